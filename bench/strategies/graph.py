"""How a step becomes kernels: eager, compiled, or a captured CUDA graph.

Compiling is part of the warm-up: `Measurement.compile_seconds` says how long it took. What was compiled is kept in the
folder of the execution (`.compiled`), so that repeats of a configuration find it there; the notes of a run say how much it
found. With `cold` a run compiles everything itself. TORCHINDUCTOR_CACHE_DIR, where it is set, names another folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.schema import Scalar
from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parallelism, Parts

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def eager(parts: Parts, parallel: Parallelism) -> None:
    """Run each operation as it comes."""


def default(
    parts: Parts, parallel: Parallelism, dynamic: bool = False, fullgraph: bool = False, cold: bool = False
) -> None:
    """Compile with TorchInductor. `dynamic` shapes make one graph for all batch sizes, static ones a faster one for each.

    `fullgraph` fails where the step cannot be one graph. Validation is not compiled.
    """
    _prepare(parts, cold=cold)
    parallel.compile(dynamic=dynamic, fullgraph=fullgraph)


def max_autotune(
    parts: Parts, parallel: Parallelism, dynamic: bool = False, fullgraph: bool = False, cold: bool = False
) -> None:
    """Compile, and time several kernels for each product to choose the fastest; with CUDA graphs on a GPU."""
    _prepare(parts, cold=cold)
    graphs = parts.device.type == "cuda" and parts.spec.gradient_accumulation_steps == 1
    mode = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
    parallel.compile(mode=mode, dynamic=dynamic, fullgraph=fullgraph)


def reduce_overhead(
    parts: Parts, parallel: Parallelism, dynamic: bool = False, fullgraph: bool = False, cold: bool = False
) -> None:
    """Compile, and replay the kernels as CUDA graphs, which spares the host's time of starting them."""
    _needs_cuda_graphs(parts)
    _prepare(parts, cold=cold)
    parallel.compile(mode="reduce-overhead", dynamic=dynamic, fullgraph=fullgraph)


def cuda_graphs(parts: Parts, parallel: Parallelism) -> None:
    """Capture the eager forward and backward pass once as CUDA graphs and replay them; the optimizer stays eager.

    Gradients of data parallelism are then exchanged after the backward pass and not during it.
    """
    import torch

    spec = parts.spec
    _needs_cuda_graphs(parts)
    if spec.parallelism.name not in ("single", "ddp"):
        raise Unsupported(f"compile cuda_graphs works with parallelism single and ddp, not {spec.parallelism.name}")
    if spec.memory.name != "none":
        raise Unsupported(f"compile cuda_graphs cannot capture memory {spec.memory.name}: it asks the host in between")
    from bench.workloads.base import first_samples

    objective = getattr(parallel.module, "module", parallel.module)
    batch = first_samples(parts.workload.train, int(spec.batch_size_per_device or 1))
    moved = tuple(tensor.to(parts.device) for tensor in batch)
    began = time.monotonic()
    autocast = parts.precision.autocast
    # A cast that is kept from the forward pass of one step would be missing in a replay of the next.
    context = torch.autocast(parts.device.type, autocast[1] if autocast else None, bool(autocast), cache_enabled=False)
    try:
        with context:
            torch.cuda.make_graphed_callables(objective, moved)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise Unsupported(f"compile cuda_graphs: the step cannot be captured: {str(error).splitlines()[0]}") from error
    parts.notes["capture_seconds"] = round(time.monotonic() - began, 3)


def _needs_cuda_graphs(parts: Parts) -> None:
    spec = parts.spec
    if parts.device.type != "cuda":
        raise Unsupported(f"compile {spec.compile.name} needs an NVIDIA GPU: CUDA graphs are what it is about")
    if spec.gradient_accumulation_steps > 1:
        raise Unsupported(
            f"compile {spec.compile.name} is for one micro-batch a step: gradients lie in the memory of the graph, which "
            "the next micro-batch overwrites"
        )


def _prepare(parts: Parts, *, cold: bool) -> None:
    """Look for the compilers, and choose where what is compiled is kept."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    needs_compilers(parts.device)
    _reset_counters()
    store = os.environ.get("WATTBENCH_STORE")
    of_user = os.environ.get(_CACHE, default_cache_dir()) != default_cache_dir()  # torch sets it to its own by itself
    if store is None or (of_user and not cold):
        return
    scratch = Path(store).parent  # in the folder of the run, which is in that of the execution
    folder = scratch / "compiled" if cold else scratch.parent.parent / ".compiled"
    folder.mkdir(exist_ok=True)
    os.environ[_CACHE] = str(folder)


def needs_compilers(device: torch.device) -> None:
    """Raise Unsupported, with the remedy, where TorchInductor could not make code for this device."""
    import shutil

    import torch

    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if torch.cuda.get_device_capability(device) < (7, 0):
            raise Unsupported(
                f"compile needs compute capability 7.0 or newer, not {torch.cuda.get_device_name(device)}"
            )
        if not has_triton():
            raise Unsupported("compile needs triton on a GPU: pip install triton")
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            raise Unsupported("compile needs a C compiler for triton: install gcc")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise Unsupported("compile needs a C++ compiler on a CPU: install g++, or name one by CXX") from error


def _reset_counters() -> None:
    from torch._dynamo.utils import counters

    counters.clear()


def compiled() -> dict[str, Scalar]:
    """What was compiled so far: graphs, breaks between them, and how many came from the cache; for the notes of a run."""
    from torch._dynamo.utils import counters

    cache = counters["aot_autograd"]
    return {
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "compile_cache_hits": cache["autograd_cache_hit"],
        "compile_cache_misses": cache["autograd_cache_miss"] + cache["autograd_cache_bypass"],
    }
