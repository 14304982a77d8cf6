"""The training of one rank: warm-up, window, how it ends early, and the batch that is found before it."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from bench.schema import RunSpec
from tests import tiny
from tests.clock import Clock

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.usefixtures("one_rank"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CPU = torch.device("cpu")
SMALL = {"layers": 2, "hidden": 32, "heads": 2, "sequence_length": 16}


spec = partial(tiny.spec, args=SMALL, parallelism="single", measure_steps=12)


def measured(asked: RunSpec) -> Any:
    from bench.train.trainer import Clock, Window, build

    window = Window(build(asked, CPU, None), Clock(CPU), 0.01)
    window.measure()
    return window


def test_training_ends_where_patience_does() -> None:
    still = {"name": "sgd", "learning_rate": 0.0}
    window = measured(spec(optimizer=still, validation={"every_steps": 2, "samples": 4, "patience": 2}))
    assert (window.stopped_by, window.steps) == ("patience", 6)  # the first one, and two that were no better
    window = measured(spec(optimizer={"name": "adamw"}, validation={"every_steps": 4, "samples": 4, "patience": 2}))
    assert (window.stopped_by, window.steps) == (None, 12)
    losses = [point.loss for point in window.trainer.quality]
    assert losses == sorted(losses, reverse=True)


def test_training_ends_where_the_target_is_reached() -> None:
    often = {"every_steps": 3, "samples": 4}
    easy, hard = ({"metric": "validation_loss", "value": value} for value in (100.0, 0.0))
    window = measured(spec(validation=often, target=easy))
    assert (window.stopped_by, window.steps, len(window.trainer.quality)) == ("target", 3, 1)
    assert window.trainer.quality[0].step == 3
    assert (measured(spec(validation=often, target=hard)).stopped_by) is None
    sure = {"metric": "validation_accuracy", "value": 0.0}
    assert measured(spec(validation=often, target=sure)).stopped_by == "target"


@pytest.mark.parametrize("warmup_seconds", [0.0, 0.3])
def test_the_rate_follows_the_schedule_over_the_window_however_long_the_warm_up(warmup_seconds: float) -> None:
    from bench.train.trainer import Clock, Window, build, warm_up

    asked = spec(
        schedule={"name": "linear", "warmup": 0.0}, warmup_steps=3, warmup_seconds=warmup_seconds, measure_steps=3
    )
    trainer = build(asked, CPU, None)
    rates = []
    trainer.parts.after_step.append(lambda step: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    window = Window(trainer, Clock(CPU), warm_up(trainer))
    window.measure()
    assert rates[:-3] == [1e-3] * (len(rates) - 3)
    assert rates[-3:] == pytest.approx([1e-3 * (1 - step / 3) for step in range(1, 4)])


def test_what_compiling_took_is_what_the_first_steps_took_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.train.trainer import warm_up

    def trainer(name: str) -> Any:
        waits = iter([0.3, *[0.02] * 100])
        asked = spec(compile=name, warmup_steps=6, warmup_seconds=0.0)
        made = SimpleNamespace(spec=asked, device=CPU, compile_seconds=None, parts=SimpleNamespace(notes={}))
        made.step = lambda: clock.sleep(next(waits))
        return made

    clock = Clock()
    monkeypatch.setattr("bench.train.trainer.time", clock)
    compiled, eager = trainer("default"), trainer("eager")
    assert warm_up(compiled) == pytest.approx(0.02)
    assert compiled.compile_seconds == pytest.approx(0.28)
    assert compiled.parts.notes["compiled_graphs"] == 0
    warm_up(eager)
    assert eager.compile_seconds is None


def test_precision_changes_the_model_before_it_is_counted_and_wrapped() -> None:
    from bench.train.trainer import build

    trainer = build(spec(precision="bf16_params", memory="recompute", parallelism="ddp"), CPU, None)
    assert {p.dtype for p in trainer.parallel.module.parameters()} == {torch.bfloat16}
    trainer.step()
    assert {type(g).__name__ for g in trainer.optimizer.param_groups} == {"dict"}
    assert {p.grad.dtype for p in trainer.parts.model.parameters()} == {torch.bfloat16}
    assert all(name.startswith(("transformer.", "lm_head.")) for name in trainer.parallel.state() or {})


@pytest.mark.parametrize("parallelism", ["single", "ddp"])
def test_the_batch_that_fills_the_memory_is_found_and_nothing_is_trained(
    parallelism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peaks of 10 MB and 1 MB a sample: those of this process depend on what the tests before have freed."""
    from bench.train import batch_size
    from bench.train.trainer import build

    made = []
    step = batch_size._Trials.step
    monkeypatch.setattr(batch_size._Trials, "step", lambda self, size: made.append(size) or step(self, size))
    monkeypatch.setattr(batch_size, "TRIAL_SECONDS", 1e6)  # a busy machine tries no fewer sizes
    monkeypatch.setattr(batch_size, "peak_memory", lambda device, before: (10 + made[-1]) * 10**6)
    asked = spec(batch_size_per_device="max", batch_size_cap=200, parallelism=parallelism)
    plain = build(asked.changed(batch_size_per_device=2), CPU, None)
    for limit, wanted, how in ((60, 50, "line"), (160, 150, "line"), (100_000, 200, "cap")):
        limited = asked.changed(memory_limit_bytes=limit * 10**6)
        size, notes = batch_size.find_batch(limited, CPU, None)
        assert (size, notes["batch_found_by"]) == (wanted, how)
    with pytest.raises(MemoryError, match="a batch of 1 needs"):
        batch_size.find_batch(asked.changed(memory_limit_bytes=10**7), CPU, None)
    assert made[:3] == [1, 1, 1]
    again = build(asked.changed(batch_size_per_device=50), CPU, None)
    for before, after in zip(plain.parts.model.parameters(), again.parts.model.parameters(), strict=True):
        assert torch.equal(before, after)
    assert again.samples_per_step == 50


def test_trials_of_a_gpu_do_not_exchange_and_survive_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, with a device that says that it is full above 5 samples."""
    from bench.train import batch_size

    trials = batch_size._Trials(spec(batch_size_per_device="max", parallelism="ddp"), CPU, None)
    trials.step(1)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    exchanged = []
    monkeypatch.setattr(trials.trainer.parallel.replicated, "no_sync", _counted(exchanged, trials))
    forward = trials.trainer.parts.loss

    def full(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if len(batch[0]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, batch)

    trials.trainer.parts.loss = full
    assert batch_size.search(trials.fits, 64) == 5
    assert len(exchanged) == trials.tried - 1
    assert all(p.grad is None for p in trials.trainer.parts.model.parameters())
    trials.step(5)  # the ranks exchange again
    assert len(exchanged) == trials.tried - 2


def _counted(calls: list[int], trials: Any) -> Any:
    held = trials.trainer.parallel.replicated.no_sync

    def no_sync() -> Any:
        calls.append(1)
        return held()

    return no_sync


def test_recomputed_blocks_can_be_sharded_and_keep_their_names() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from bench.train.trainer import build

    plain = build(spec(precision="bf16"), CPU, None)
    cut = build(spec(precision="bf16", memory="recompute"), CPU, None)
    mesh = init_device_mesh("cpu", (1,))
    for block in cut.parts.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(cut.parts.model, mesh=mesh)
    for trainer in (plain, cut):
        trainer.parallel.gradients(trainer.batches, lambda: None)
    wanted, found = (dict(trainer.parts.model.named_parameters()) for trainer in (plain, cut))
    assert list(wanted) == list(found)
    for name, parameter in wanted.items():
        assert torch.allclose(parameter.grad, found[name].grad.full_tensor(), atol=1e-6), name
