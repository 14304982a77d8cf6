"""The estimate of memory: against what torch's own allocator counts, and by arithmetic."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.schema import RunSpec
from bench.train.footprint import Unknown, estimate, peak_bytes
from tests import tiny

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHAPE = {"layers": 3, "hidden": 64, "heads": 2, "sequence_length": 64}


spec = partial(tiny.spec, args=SHAPE, batch_size_per_device=8, parallelism="single")


def allocated(asked: RunSpec, folder: Path) -> int:
    """Peak of a real step above its begin, as the allocator of the CPU counts it."""
    from torch.profiler import profile

    from bench import registry
    from bench.strategies import catalog
    from bench.strategies.parts import Parts

    device = torch.device("cpu")
    precise = catalog.load("precision", asked.precision)(device)
    workload = registry.load("workload", asked.workload)(asked.workload_args)
    parts = Parts(asked, device, workload, workload.build().train(), precise)
    catalog.load("finetune", asked.finetune)(parts)
    catalog.load("memory", asked.memory)(parts)
    precise.convert(parts)
    optimizer = catalog.load("optimizer", asked.optimizer)(parts.model.parameters())
    batch = workload.train.__getitems__(list(range(int(asked.batch_size_per_device or 0))))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(asked.gradient_accumulation_steps):
            with precise.context():
                loss = parts.loss(parts.model, batch)
            precise.backward(loss)
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    now = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: float(e["ts"])):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16_params": {"precision": "bf16_params"},
    "recompute": {"memory": "recompute"},
    "selective": {"memory": {"name": "selective", "every": 1, "policy": "save_products"}},
    "accumulation": {"gradient_accumulation_steps": 2, "batch_size_per_device": 1},
    "sgd": {"optimizer": "sgd", "batch_size_per_device": 16},
    "lora": {"finetune": "lora"},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_the_estimate_is_what_the_allocator_of_a_real_step_counts(fields: dict[str, Any], tmp_path: Path) -> None:
    asked = spec(**fields)
    found = estimate(asked)
    wanted = allocated(asked, tmp_path)
    assert found.peak - found.weights - found.optimizer == pytest.approx(wanted, rel=0.05)


def test_parts_of_the_estimate_by_arithmetic() -> None:
    with torch.device("meta"):
        from bench.workloads.decoder_lm import DecoderLM

        count = sum(p.numel() for p in DecoderLM(SHAPE).build().parameters())
    single = estimate(spec())
    assert (single.weights, single.gradients, single.optimizer) == (4 * count, 4 * count, 8 * count)
    assert single.exchange == 0
    assert single.peak >= single.weights + single.optimizer + max(single.activations, single.gradients)
    assert estimate(spec(parallelism="ddp")).exchange == 4 * count
    halved = estimate(spec(precision="bf16_params"))
    assert (halved.weights, halved.gradients, halved.optimizer) == (2 * count, 2 * count, 4 * count)
    assert estimate(spec(optimizer={"name": "sgd", "momentum": 0.0})).optimizer == 0
    assert estimate(spec(optimizer="sgd")).optimizer == 4 * count
    assert 2 * count < estimate(spec(optimizer="adamw8bit")).optimizer < 2.2 * count
    four = {"devices_per_node": 4}
    assert estimate(spec(parallelism="zero1", **four)).optimizer == 2 * count
    cut = estimate(spec(parallelism="fsdp2", **four))
    assert (cut.weights, cut.gradients, cut.optimizer) == (count, count, 2 * count)
    assert estimate(spec(parallelism={"name": "hsdp", "shard": 2}, **four)).weights == 2 * count
    parted = estimate(spec(parallelism="tp", devices_per_node=2)).weights
    assert 2 * count < parted < 2.1 * count  # each rank holds all norms and positions


def test_activations_follow_what_is_done_about_them() -> None:
    def activations(**fields: Any) -> int:
        return estimate(spec(**fields)).activations

    plain = activations()
    assert activations(batch_size_per_device=16) == pytest.approx(2 * plain, rel=0.02)
    assert activations(precision="bf16") < 0.8 * plain
    assert activations(attention="math") > 1.05 * plain  # holds the square of the sequence
    products = activations(memory={"name": "selective", "every": 1, "policy": "save_products"})
    assert plain > products > activations(memory="recompute") > activations(memory="offload")
    assert plain > activations(memory="selective") > activations(memory="recompute")


def test_a_stage_of_a_pipeline_holds_the_micro_batches_that_are_in_progress() -> None:
    def pipeline(**options: Any) -> Any:
        shape = SHAPE | {"layers": 8, "sequence_length": 128}
        parallelism = {"name": "pp", "microbatches": 8, **options}
        return estimate(spec(args=shape, devices_per_node=4, parallelism=parallelism, precision="bf16"))

    turns, all_first = pipeline(), pipeline(schedule="gpipe")
    assert all_first.activations > 2 * turns.activations  # 8 micro-batches, not 4, and their logits on the last stage
    assert all_first.peak > turns.peak
    assert turns.exchange == 8 * 128 * 64 * 4  # hidden states of the whole batch
    whole = estimate(spec(args=SHAPE | {"layers": 8}))
    assert turns.weights < 0.5 * whole.weights
    assert (
        turns.peak > turns.weights + turns.optimizer + turns.gradients + turns.activations
    )  # gradients stay meanwhile


def test_the_gradient_of_a_divided_embedding_is_whole() -> None:
    shape = SHAPE | {"vocabulary": 1000}
    halved = estimate(spec(args=shape | {"architecture": "llama"}, parallelism="tp", devices_per_node=2))
    assert halved.gradients == pytest.approx(halved.weights + 4 * 1000 * 64 / 2, rel=0.01)


def test_nothing_is_computed_and_nothing_is_left_behind() -> None:
    large = {"preset": "gpt2-1.5b", "sequence_length": 1024}
    state = torch.random.get_rng_state()
    found = estimate(spec(args=large, precision="bf16"))
    assert 60e9 < found.peak < 80e9  # 25 GB of weights, gradients and Adam; the rest are activations
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(torch.ones(1)) is torch.Tensor


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"batch_size_per_device": "max"}, "the batch size is found at run time"),
        ({"quantization": "int8"}, "quantization int8 is not counted"),
        ({"optimizer": "other"}, "optimizer other is not known"),
    ],
)
def test_what_is_not_known_is_absent(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unknown, match=reason):
        estimate(spec(**fields))
    assert peak_bytes(spec(**fields)) is None
