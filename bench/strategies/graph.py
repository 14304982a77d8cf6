"""How a step becomes kernels: eager, compiled, or a captured CUDA graph.

Compilation is part of the warm-up: `Measurement.compile_seconds` says how long it took. Compiled code is cached in the
folder of the execution (`.compiled`) for repeats of a configuration; the notes of a run count the hits. With `cold` a run
compiles everything itself. TORCHINDUCTOR_CACHE_DIR names another folder. The compiler is imported only where it is needed:
that takes a second.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from bench.schema import Scalar
from bench.strategies.parts import Parallelism, Parts, Unsupported, needs_capability
from bench.workloads.base import first_samples

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def eager(parts: Parts, parallel: Parallelism) -> None:
    """Run each operation as it comes."""


def default(parts: Parts, parallel: Parallelism, *, dynamic: bool, fullgraph: bool, cold: bool) -> None:
    """Compile with TorchInductor. `dynamic` makes one graph for all batch sizes instead of a faster one for each.

    `fullgraph` fails where the step cannot be one graph. Validation is not compiled.
    """
    _prepare(parts, cold=cold)
    parallel.compile(dynamic=dynamic, fullgraph=fullgraph)


def max_autotune(parts: Parts, parallel: Parallelism, *, dynamic: bool, fullgraph: bool, cold: bool) -> None:
    """Compile, and time several kernels for each product to choose the fastest; with CUDA graphs on a GPU.

    Data parallelism then exchanges gradients after the backward pass: torch cannot split such a step at its buckets.
    """
    _prepare(parts, cold=cold)
    torch._dynamo.config.optimize_ddp = False
    graphs = parts.device.type == "cuda" and parts.spec.gradient_accumulation_steps == 1
    mode = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
    parallel.compile(mode=mode, dynamic=dynamic, fullgraph=fullgraph)


def reduce_overhead(parts: Parts, parallel: Parallelism, *, dynamic: bool, fullgraph: bool, cold: bool) -> None:
    """Compile, and replay the kernels as CUDA graphs, which saves the host's time for launching them."""
    _prepare(parts, cold=cold)
    parallel.compile(mode="reduce-overhead", dynamic=dynamic, fullgraph=fullgraph)


def cuda_graphs(parts: Parts, parallel: Parallelism) -> None:
    """Capture the eager forward and backward pass once as CUDA graphs and replay them; the optimizer stays eager.

    Data parallelism then exchanges gradients after the backward pass, not during it.
    """
    batch = first_samples(parts.workload.train, int(parts.spec.batch_size_per_device or 1))
    moved = tuple(tensor.to(parts.device) for tensor in batch)
    began = time.monotonic()
    autocast = parts.precision.autocast
    # A cast that is cached in the forward pass of one step would be missing when the next one is replayed.
    context = torch.autocast(parts.device.type, autocast[1] if autocast else None, bool(autocast), cache_enabled=False)
    try:
        with context:
            torch.cuda.make_graphed_callables(parallel.module, moved)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise Unsupported(f"compile cuda_graphs: the step cannot be captured: {str(error).splitlines()[0]}") from error
    parts.notes["capture_seconds"] = round(time.monotonic() - began, 3)


def _prepare(parts: Parts, *, cold: bool) -> None:
    """Check that there are compilers, and choose the folder of the cache."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    needs_compilers(parts.device)
    _reset_counters()
    store = os.environ.get("WATTBENCH_STORE")
    chosen_by_user = os.environ.get(_CACHE, default_cache_dir()) != default_cache_dir()  # torch sets its default
    if store is None or (chosen_by_user and not cold):
        return
    scratch = Path(store).parent  # in the folder of the run, which is in the folder of the execution
    folder = scratch / "compiled" if cold else scratch.parent.parent / ".compiled"
    folder.mkdir(exist_ok=True)
    os.environ[_CACHE] = str(folder)


def needs_compilers(device: torch.device) -> None:
    """Raise Unsupported, with the remedy, if TorchInductor cannot generate code for this device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        needs_capability(device, (7, 0), "compile", amd=None)
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
        raise Unsupported("compile needs a C++ compiler on a CPU: install g++, or name one in CXX") from error


def _reset_counters() -> None:
    from torch._dynamo.utils import counters

    counters.clear()


def compiled() -> dict[str, Scalar]:
    """Return notes on what was compiled so far: graphs, breaks between them, hits and misses of the cache."""
    from torch._dynamo.utils import counters

    cache = counters["aot_autograd"]
    return {
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "compile_cache_hits": cache["autograd_cache_hit"],
        "compile_cache_misses": cache["autograd_cache_miss"] + cache["autograd_cache_bypass"],
    }
