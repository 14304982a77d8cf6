"""Every way to share a training between ranks is the same training: the same losses, the same weights."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.schema import RunSpec
from bench.strategies import catalog
from bench.strategies.parts import Parts, Precision, Unsupported
from bench.train.probes import communication_shares, shares
from tests.conftest import once
from tests.ranks import forked

torch = pytest.importorskip("torch")

SAMPLES, LENGTH, STEPS = 8, 16, 3
ARGS = {"layers": 4, "hidden": 32, "heads": 4, "sequence_length": LENGTH, "vocabulary": 257}
CPU = torch.device("cpu")


LLAMA = ARGS | {"architecture": "llama", "num_key_value_heads": 2}
"""The other architecture: fewer heads of keys than of queries, rotary positions, a head of its own."""


def spec(world: int, parallelism: Any, batch: int, **more: Any) -> RunSpec:
    fields = {"workload": "gpt2", "optimizer": {"name": "sgd", "learning_rate": 0.1}, "measure_steps": STEPS} | more
    if fields["workload"] in ("gpt2", "llama"):
        fields = (
            {"workload_args": LLAMA if fields["workload"] == "llama" else ARGS} | fields | {"workload": "decoder_lm"}
        )
    shape = {"device_type": "cpu", "devices_per_node": world, "batch_size_per_device": batch}
    return RunSpec.model_validate({"parallelism": parallelism} | shape | fields)


def samples(step: int) -> Any:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (SAMPLES, LENGTH + 1), generator=generator, dtype=torch.uint8)


def recompute(trainer: Any) -> None:
    """Compute each block again in the backward pass, as strategies of memory do."""
    from torch.utils.checkpoint import checkpoint

    for block in trainer.parts.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compiled(trainer: Any) -> None:
    trainer.parallel.compile(backend="aot_eager")


def overflow(trainer: Any) -> None:
    """Let a gradient of the last rank overflow in the first step: all must leave the step out."""
    parallel = trainer.parallel
    place, name = (parallel.schedule, "step") if hasattr(parallel, "schedule") else (parallel, "gradients")
    true = getattr(place, name)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        out = true(*args, **kwargs)
        setattr(place, name, true)
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            grad = trainer.parts.blocks[-1].mlp.c_fc.weight.grad
            getattr(grad, "_local_tensor", grad).view(-1)[0] = torch.inf
        return out

    setattr(place, name, poisoned)


def profiled(trainer: Any) -> None:
    """Keep what the profiler says of communication."""
    for step in range(2):
        trainer.batches = iter([(samples(step),)] * 9)
        trainer.step()
    shares = communication_shares(trainer)
    assert shares is not None
    trainer.parts.notes |= shares._asdict()


@contextmanager
def gathered_keys(mesh: Any, *, buffers: Any, buffer_seq_dims: Any, no_restore_buffers: Any) -> Iterator[None]:
    """In place of torch's ring, which needs GPUs: each rank has one stretch, and attention gathers keys and values."""
    from torch.distributed._functional_collectives import all_gather_tensor_autograd
    from torch.nn import functional

    rank, true = mesh.get_local_rank(), functional.scaled_dot_product_attention
    for buffer, dim in zip(buffers, buffer_seq_dims, strict=True):
        part = buffer.chunk(mesh.size(), dim)[rank].clone()
        buffer.resize_(part.shape).copy_(part)

    def attention(query: Any, key: Any, value: Any, *, is_causal: bool, scale: float, **_: Any) -> Any:
        assert is_causal
        key, value = (all_gather_tensor_autograd(x.contiguous(), 2, mesh.get_group()) for x in (key, value))
        rows = torch.arange(query.shape[2]) + rank * query.shape[2]
        seen = torch.arange(key.shape[2]) <= rows.unsqueeze(1)
        return (query @ key.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ value

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = true


def train(asked: RunSpec, prepare: Callable[[Any], None] | None) -> dict[str, Any]:
    """Train a few steps on the same samples however they are shared; return what came of it."""
    from bench.train.trainer import build

    trainer = build(asked, CPU, None)
    if prepare is not None:
        prepare(trainer)
    parallel, share = trainer.parallel, SAMPLES // trainer.parallel.data_ranks
    done = len(trainer.losses)

    def batches() -> Iterator[tuple[Any]]:
        for step in range(STEPS + 1):
            mine = samples(step)[parallel.data_rank * share :][:share]
            yield from ((micro,) for micro in mine.chunk(asked.gradient_accumulation_steps))

    trainer.batches = batches()
    for _ in range(STEPS):
        trainer.step()
    losses = [trainer.mean_loss(step) for step in range(done, done + STEPS)]
    quality = trainer.validate()
    state = parallel.state()
    held = state and {name: tensor.clone() for name, tensor in state.items()}
    trainer.step()  # training goes on after validation and checkpoint
    out = {"losses": losses, "quality": [quality.loss, quality.accuracy], "notes": trainer.parts.notes}
    return out | {"state": held, "samples": trainer.samples_per_step, "asked": asked.global_batch_size}


TWICE, HALF, TEXT = {"gradient_accumulation_steps": 2}, {"precision": "fp16"}, {"workload": "llama"}
SHORT = {"workload_args": ARGS | {"layers": 2}}
"""A model of two layers, where each layer takes long: cut up operation by operation, or compiled."""
SHORT_TEXT = {"workload_args": LLAMA | {"layers": 2}}
Case = tuple[str, Any, int, dict[str, Any], Callable[[Any], None] | None]
CASES: dict[int, dict[str, Case]] = {
    1: {
        "gpt2": ("gpt2", "single", 8, {}, None),
        "llama": ("llama", "single", 8, TEXT, None),
        "fp16": ("fp16", "single", 8, HALF, None),
        "overflow": ("overflow", "single", 8, HALF, overflow),
        "short": ("short", "single", 8, SHORT, None),
        "short llama": ("short llama", "single", 8, SHORT_TEXT, None),
        "short overflow": ("short overflow", "single", 8, SHORT | HALF, overflow),
        "ddp of one": ("gpt2", "ddp", 8, {}, None),
        "zero1 of one": ("gpt2", "zero1", 8, {}, None),
        "fsdp2 of one": ("gpt2", "fsdp2", 8, {}, None),
    },
    2: {
        "ddp": ("gpt2", "ddp", 4, {}, None),
        "ddp, accumulated": ("gpt2", "ddp", 2, TWICE, None),
        "zero1": ("gpt2", "zero1", 4, {}, None),
        "zero1, accumulated": ("gpt2", "zero1", 2, TWICE, None),
        "zero1, fp16": ("fp16", "zero1", 4, HALF, None),
        "fsdp2": ("gpt2", "fsdp2", 4, {}, None),
        "fsdp2, llama": ("llama", "fsdp2", 4, TEXT, None),
        "fsdp2, kept": ("gpt2", {"name": "fsdp2", "reshard": False}, 2, TWICE, None),
        "fsdp2, offload": ("gpt2", {"name": "fsdp2", "offload": True}, 4, {}, None),
        "fsdp2, mixed": ("fp16", {"name": "fsdp2", "mixed": True}, 4, HALF, None),
        "fsdp2, recomputed": ("gpt2", "fsdp2", 4, {}, recompute),
        "fsdp2, compiled": ("short", "fsdp2", 4, SHORT, compiled),
        "fsdp2, overflow": ("overflow", "fsdp2", 4, HALF, overflow),
        "tp": ("short", "tp", 8, SHORT, None),
        "tp, gathered": ("short", {"name": "tp", "loss_parallel": False}, 4, SHORT | TWICE, None),
        "tp, sequence": ("short", {"name": "tp", "sequence": True}, 8, SHORT, recompute),
        "tp, llama": ("short llama", {"name": "tp", "sequence": True}, 8, SHORT_TEXT, None),
        "tp, compiled": ("short", "tp", 8, SHORT, compiled),
        "tp, overflow": ("short overflow", "tp", 8, SHORT | HALF, overflow),
        "pp": ("gpt2", "pp", 8, {}, recompute),
        "pp, gpipe": ("gpt2", {"name": "pp", "schedule": "gpipe", "microbatches": 2}, 4, TWICE, None),
        "pp, llama": ("llama", "pp", 8, TEXT, None),
        "pp, compiled": ("short", "pp", 8, SHORT, compiled),
        "pp, overflow": ("overflow", "pp", 8, HALF, overflow),
        "cp": ("gpt2", "cp", 8, {}, None),
        "cp, accumulated": ("gpt2", "cp", 4, TWICE, None),
    },
    4: {
        "hsdp": ("gpt2", "hsdp", 2, {}, None),
        "hsdp, accumulated": ("gpt2", "hsdp", 1, TWICE, None),
        "pp of four": ("gpt2", "pp", 8, {}, None),
        "pp, two copies": ("gpt2", {"name": "pp", "size": 2}, 2, TWICE, None),
        "fsdp_tp": ("short", "fsdp_tp", 4, SHORT, None),
        "fsdp_tp, sequence": ("short llama", {"name": "fsdp_tp", "sequence": True}, 2, SHORT_TEXT | TWICE, None),
        "fsdp_tp, overflow": ("short overflow", "fsdp_tp", 4, SHORT | HALF, overflow),
        "cp, two copies": ("gpt2", {"name": "cp", "size": 2}, 4, {}, None),
    },
}
OTHER: dict[int, dict[str, Case]] = {
    2: {
        "fsdp2, meta": ("", {"name": "fsdp2", "meta": True}, 4, {}, None),
        **{name: ("", name, 8, SHORT, profiled) for name in ("ddp", "zero1", "fsdp2", "tp", "pp")},
    },
    4: {"hsdp, meta": ("", {"name": "hsdp", "meta": True}, 2, {}, None)},
}


def _rank(rank: int, world: int, folder: Path) -> None:
    """Go through all cases of a number of ranks in one process group; leave what came of them."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / f"store-{world}"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    import_module("bench.strategies.context").context_parallel = gathered_keys
    try:
        for kind, cases in (("case", CASES), ("other", OTHER)):
            for name, (_, parallelism, batch, more, prepare) in cases.get(world, {}).items():
                found = train(spec(world, parallelism, batch, **more), prepare)
                torch._dynamo.reset()
                if rank == 0:
                    torch.save(found, folder / f"{kind}-{name}.pt")
    except BaseException:
        (folder / f"error-{world}-{rank}.txt").write_text(f"{name}\n{traceback.format_exc()}")
        os._exit(1)
    os._exit(0)  # see bench.train.worker: groups of gloo are not taken down


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "ranks", partial(forked, _rank, CASES))


def outcome(folder: Path, kind: str, name: str) -> dict[str, Any]:
    path = folder / f"{kind}-{name}.pt"
    assert path.exists(), "\n".join(error.read_text() for error in folder.glob("error-*.txt")) or "it took too long"
    found: dict[str, Any] = torch.load(path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for cases in CASES.values() for name in cases])
def test_it_is_the_same_training(folder: Path, name: str) -> None:
    reference = next(cases[name][0] for cases in CASES.values() if name in cases)
    true, found = outcome(folder, "case", reference), outcome(folder, "case", name)
    exact = reference.split()[-1] not in ("fp16", "overflow")
    near = {"rel": 1e-5 if exact else 1e-4, "abs": 0}
    assert found["losses"] == pytest.approx(true["losses"], **near)
    assert found["quality"] == pytest.approx(true["quality"], **near)
    assert found["samples"] == found["asked"] == SAMPLES
    assert found["state"].keys() == true["state"].keys()
    for key, tensor in true["state"].items():
        torch.testing.assert_close(found["state"][key], tensor, rtol=0, atol=1e-6 if exact else 2e-4)


@pytest.mark.slow
def test_a_step_more_or_less_would_show(folder: Path) -> None:
    whole, left_out = outcome(folder, "case", "fp16"), outcome(folder, "case", "overflow")
    assert whole["losses"][0] == left_out["losses"][0]
    assert abs(whole["losses"][1] - left_out["losses"][1]) > 1e-3
    name = "transformer.h.0.mlp.c_fc.weight"
    assert (whole["state"][name] - left_out["state"][name]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2, meta", "hsdp, meta"])
def test_a_model_that_was_built_without_memory_is_trained(folder: Path, name: str) -> None:
    found, built = outcome(folder, "other", name), outcome(folder, "case", "gpt2")
    assert found["losses"][0] == pytest.approx(5.55, abs=0.1)  # ln 257: knows nothing yet
    state = found["state"]
    assert {key: tensor.shape for key, tensor in state.items()} == {k: t.shape for k, t in built["state"].items()}
    assert torch.equal(state["transformer.wte.weight"], state["lm_head.weight"])
    for key in ("transformer.wte.weight", "transformer.h.3.mlp.c_fc.weight"):
        assert state[key].std() == pytest.approx(0.02, rel=0.1)
    first, second = state["transformer.wpe.weight"].chunk(2)
    assert not torch.allclose(first, second, atol=1e-3)  # shards have numbers of their own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero1", "fsdp2", "tp", "pp"])
def test_communication_is_seen(folder: Path, name: str) -> None:
    found = outcome(folder, "other", name)["notes"]
    assert 0 < found["exposed_communication_share"] <= found["communication_share"] + 1e-9 < 1
    assert 0 < found["busy_share"] < 1


@pytest.mark.slow
def test_a_pipeline_says_what_its_bubble_would_be(folder: Path) -> None:
    told = outcome(folder, "case", "pp of four")["notes"]
    own = {key: value for key, value in told.items() if key.startswith("pipeline")}
    assert own == {"pipeline_stages": 4, "pipeline_microbatches": 8, "pipeline_bubble_share_ideal": 3 / 11}


@pytest.mark.parametrize(
    ("samples", "stages", "asked", "count"), [(8, 2, 0, 4), (8, 4, 0, 8), (6, 2, 0, 3), (7, 2, 0, 1), (8, 2, 2, 2)]
)
def test_microbatches(samples: int, stages: int, asked: int, count: int) -> None:
    assert catalog.PpOptions(microbatches=asked).count(samples, stages) == count


@pytest.mark.parametrize(
    ("holes", "left"),
    [
        ([], [(0, 4), (6, 9)]),
        ([(0, 9)], []),
        ([(1, 2), (2, 3)], [(0, 1), (3, 4), (6, 9)]),
        ([(3, 7), (8, 12)], [(0, 3), (7, 8)]),
        ([(-3, -1), (4, 6), (20, 30)], [(0, 4), (6, 9)]),
        ([(-1, 1), (5, 6), (6, 7)], [(1, 4), (7, 9)]),
    ],
)
def test_waiting_is_no_computing(holes: list[tuple[float, float]], left: list[tuple[float, float]]) -> None:
    of = shares([(2, 7), (5, 7)], [(0, 3), (2, 4), (6, 9)], holes, 10)
    assert of.communication_share == pytest.approx(0.5)
    assert of.busy_share == pytest.approx(sum(end - start for start, end in left) / 10)
    hidden = sum(max(0, min(end, 7) - max(start, 2)) for start, end in left)
    assert of.exposed_communication_share == pytest.approx(0.5 - hidden / 10)


def parts_of(asked: RunSpec, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Parts of rank 0 of a process group that is not there."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: asked.world_size)
    workload = registry.load("workload", asked.workload)(asked.workload_args)
    with torch.device("meta"):
        model = workload.build()
    scaler = object() if asked.precision.name == "fp16" else None
    return Parts(asked, CPU, workload, model, Precision(("cpu", torch.float16) if scaler else None, scaler))


@pytest.mark.parametrize("name", ["tp", "pp", "cp", "fsdp_tp"])
def test_models_of_other_kinds_are_not_cut_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(spec(4, name, 8), monkeypatch)
    parts.model = torch.nn.Linear(2, 2)
    with pytest.raises(Unsupported, match="GPT2LMHeadModel, LlamaForCausalLM can be divided, not those of Linear"):
        catalog.load("parallelism", parts.spec.parallelism)(parts)
