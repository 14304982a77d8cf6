"""The paths of GPUs through a whole rank, with real numbers: the loss is that of the same training on a CPU."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.schema import RunSpec

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from bench.strategies.parts import Unsupported  # noqa: E402
from bench.train import probes, worker  # noqa: E402
from tests.cuda_on_cpu import SAMPLE_BYTES, STATIC_BYTES, UUID, pretend  # noqa: E402

SMALL = {"layers": 2, "hidden": 32, "heads": 2, "sequence_length": 16}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def spec(device_type: str = "cuda", **fields: Any) -> RunSpec:
    base = {"workload": "decoder_lm", "workload_args": SMALL, "batch_size_per_device": 2, "parallelism": "single"}
    base |= {"measure_steps": 4, "warmup_steps": 2, "warmup_seconds": 0, "validation": {"samples": 4}}
    return RunSpec.model_validate(base | {"device_type": device_type} | fields)


REFERENCES: dict[str, SimpleNamespace] = {}
"""Runs on the CPU that several tests compare with."""


KERNELS = ("flash", "mem_efficient", "cudnn", "math")


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Do a run as its only rank; return its result, its steps, and what was asked of torch.cuda."""
    monkeypatch.setattr(probes, "_product", lambda a, b: lambda: None)  # 8192 cubed is much for a CPU
    monkeypatch.setattr(probes, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # three products
    monkeypatch.setattr(worker, "peak_bytes", lambda spec: 1)
    folders = iter(range(9))

    kernels = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in KERNELS}
    tf32, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    def run(asked: RunSpec, **gpu: Any) -> SimpleNamespace:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        monkeypatch.setenv("WATTBENCH_STORE", str(folder / "store"))
        monkeypatch.setenv("WATTBENCH_STARTED_NS", str(time.monotonic_ns()))
        try:
            with pretend(**gpu) if asked.device_type == "gpu" else nullcontext() as pretended:
                worker.run(asked, folder, 0, 0)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        steps = [json.loads(line) for line in (folder / "steps-0.jsonl").read_text().splitlines()]
        return SimpleNamespace(
            **json.loads((folder / "result.json").read_text()),
            losses=[step["loss"] for step in steps],
            seconds=[step["step_seconds"] for step in steps],
            cuda=pretended,
        )

    yield run
    for name, enabled in kernels.items():  # a rank has a process of its own, which ends with it
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision(precision)


PLAIN: dict[str, Any] = {}
BF16, WORKERS = {"precision": "bf16"}, SMALL | {"workers": 1}


@pytest.mark.parametrize(
    ("fields", "on_cpu"),
    [
        (PLAIN, PLAIN),
        ({"parallelism": "ddp"}, PLAIN),
        ({"precision": "tf32"}, PLAIN),
        ({"memory": "offload"}, PLAIN),
        pytest.param({"memory": {"name": "selective", "policy": "save_products"}}, PLAIN, marks=pytest.mark.slow),
        pytest.param({"optimizer": {"name": "adamw", "implementation": "foreach"}}, PLAIN, marks=pytest.mark.slow),
        ({"attention": "math"}, PLAIN),
        pytest.param({"workload_args": WORKERS}, PLAIN, marks=pytest.mark.slow),
        pytest.param({"quantization": "int8_dynamic", "inference_seconds": 0.02}, PLAIN, marks=pytest.mark.slow),
        (BF16 | {"memory": "recompute"}, BF16),
        (BF16 | {"parallelism": "fsdp2"}, BF16),
        (BF16 | {"parallelism": "ddp", "compile": "cuda_graphs"}, BF16),
        (*({"precision": "bf16_params"},) * 2,),
        (*({"precision": "fp16", "gradient_accumulation_steps": 2},) * 2,),
        (*({"parallelism": "zero1", "optimizer": {"name": "sgd", "implementation": "fused"}},) * 2,),
        pytest.param(*({"parallelism": {"name": "fsdp2", "meta": True}},) * 2, marks=pytest.mark.slow),
        pytest.param(*({"finetune": "lora"},) * 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_on_a_gpu_has_the_losses_of_one_on_a_cpu(
    rank: Any, fields: dict[str, Any], on_cpu: dict[str, Any]
) -> None:
    if (theirs := REFERENCES.get(str(on_cpu))) is None:
        theirs = REFERENCES[str(on_cpu)] = rank(spec("cpu", **on_cpu))
    ours = rank(spec(**fields))
    narrow = fields.get("precision", "fp32") not in ("fp32", "tf32")
    # on a GPU the probe of its speed is followed by a step of training, so that the window begins one step later
    assert ours.losses[:-1] == pytest.approx(theirs.losses[1:], rel=2e-3 if narrow else 1e-5)
    assert ours.ranks[0]["device"] == f"GPU-{UUID}"
    assert theirs.ranks[0]["device"] == "cpu"
    # steps are timed by events, memory is that of the allocator
    assert 0 < sum(ours.seconds) <= ours.window_seconds
    assert ours.peak_memory_bytes == [STATIC_BYTES + 2 * SAMPLE_BYTES]
    calls = ours.cuda.calls
    assert calls["set_device"] == 1
    assert calls["synchronize"] > len(ours.seconds) / 3
    assert calls["empty_cache"] >= 2
    # batches are pinned, and copied without a wait
    assert ours.cuda.mode.pinned >= 5 or "workers" in fields.get("workload_args", {})
    assert ours.cuda.mode.moves[True] >= 5


def test_the_largest_batch_fills_the_memory_of_the_gpu(rank: Any) -> None:
    found = rank(spec(batch_size_per_device="max", batch_size_cap=64, memory_limit_bytes=40 << 30))
    size = found.batch_size_per_device
    room = 0.92 * (40 << 30) - STATIC_BYTES
    assert size == room // SAMPLE_BYTES
    assert found.notes["batch_found_by"] == "trial"
    assert (
        found.cuda.calls["set_per_process_memory_fraction"] == 3
    )  # the run's, that of the trials, and the run's again
    assert found.cuda.mode.limit == 40 << 30


@pytest.mark.parametrize(
    ("fields", "capability", "reason"),
    [
        ({"precision": "fp8"}, (8, 6), "fp8 with recipe tensorwise needs compute capability 8.9"),
        ({"precision": {"name": "fp8", "recipe": "rowwise"}}, (8, 9), "needs compute capability 9.0"),
        ({"precision": "tf32"}, (7, 5), "tf32 needs compute capability 8.0"),
        ({"precision": "bf16"}, (7, 5), "has no bfloat16"),
        ({"precision": "bf16_params"}, (7, 5), "has no bfloat16"),
        ({"quantization": "int4", "precision": "fp16"}, (7, 5), "int4 needs compute capability 8.0"),
        ({"pruning": "semi_structured", "precision": "fp16"}, (7, 5), "2:4 sparsity needs compute capability 8.0"),
        ({"compile": "default"}, (6, 1), "compile needs compute capability 7.0"),
    ],
    ids=str,
)
def test_a_gpu_that_is_too_old_is_refused(
    rank: Any, fields: dict[str, Any], capability: tuple[int, int], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        rank(spec(**fields), capability=capability)
