"""How long a training is, as its script states it: planted counters beside steps, and recorded outputs of libraries."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.record import PlannedLength
from bench.run.planned import planned_length
from tests.test_formats import MEGATRON, OTHERS, OUTPUTS, bar
from tests.test_printed import arrived

MS = 1_000_000
BATCHES = 400
KERAS_BAR = "{s}/{n} ━━━━━━━━━━━━━━━━━━━━ 0s 9ms/step - loss: 0.5"
LIGHTNING_BAR = "Epoch {e}/{last} ━━━━━━━━━━━━ {s}/{n} 0:00:01 • 0:00:02 9.90it/s train_loss: 0.5"


def marks(count: int, every_ms: int = 100) -> list[dict[str, Any]]:
    return [{"t_ns": number * every_ms * MS} for number in range(1, count + 1)]


def printed(lines: list[tuple[float, str]], pattern: str | None = None) -> list[dict[str, Any]]:
    """Lines of the output, each with the seconds at which it arrived."""
    return arrived(pattern, [(t, f"{text}\n".encode()) for t, text in lines])


def bars(title: str, each: int = 1, total: int = BATCHES, count: int = 100) -> Iterator[tuple[float, str]]:
    """A bar that grows by `each` in a step of 0.1 s, drawn just after it."""
    for step in range(count + 1):
        n = (step * each - 1) % total + 1 if step else 0
        yield 0.1 * step + 0.001, bar(title, n, total, ", 9.9it/s")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (bars(""), {"steps": 400, "source": "tqdm", "assumed": True}),
        (bars("", each=4), {"steps": 100, "source": "tqdm", "assumed": True}),  # batches of an accumulation
        (bars("Epoch 1: "), {"epoch_steps": 400, "source": "tqdm"}),
        (bars("Epoch 1/3: ", each=4), {"epoch_steps": 100, "source": "tqdm"}),
        (bars("", total=40), {"epoch_steps": 40, "source": "tqdm"}),  # it began anew
        ([(0.0, bar("", 0, 4, ", ?it/s")), *bars("train: ")], None),  # another bar is open, perhaps that of epochs
        ([(0.0, bar("Loading shards: ", 4, 4)), *bars("")], {"steps": 400, "source": "tqdm", "assumed": True}),
        (
            [*bars("", total=50, count=48), (4.9, bar("", 0, 50, ", ?it/s")), (4.95, bar("", 1, 50))],
            {"epoch_steps": 50, "source": "tqdm"},
        ),
        (bars("", total=100, count=70), {"steps": 100, "source": "tqdm", "assumed": True}),
        (bars("", total=70, count=70), None),  # steps go on after its end
        (bars("val: "), None),
        (bars("", count=8), None),  # too few to tell
        ([(t / 1.5, text) for t, text in bars("")], None),  # not a whole number a step, by the clock
        ([], None),
    ],
)
def test_a_bar_states_a_length_where_it_goes_along_with_the_steps(lines: Any, expected: dict[str, Any] | None) -> None:
    assert planned_length(printed(list(lines)), marks(100)) == (expected and PlannedLength(**expected))


@pytest.mark.parametrize(
    ("title", "total", "count", "expected"),
    [
        ("Epoch: ", 400, 100, None),  # the bar over epochs of one step, or that of an epoch
        ("Epochs: ", 400, 100, None),
        ("training epoch: ", 400, 100, None),
        ("Epoch: ", 40, 100, None),  # epochs of an epoch, or those of several trainings
        ("Epoch {n}: ", 400, 100, {"steps": 400, "source": "tqdm", "assumed": True}),  # its title goes on with it
        ("Epoch {n}/400: ", 400, 100, {"steps": 400, "source": "tqdm", "assumed": True}),
        ("Epoch {n}: ", 40, 100, None),
        ("Epoch_3: ", 400, 100, {"epoch_steps": 400, "source": "tqdm"}),
    ],
)
def test_a_bar_may_be_that_over_epochs(title: str, total: int, count: int, expected: dict[str, Any] | None) -> None:
    lines = []
    for step in range(count + 1):
        n = (step - 1) % total + 1 if step else 0
        lines.append((0.1 * step + 0.001, bar(title.format(n=n), n, total)))
    assert planned_length(printed(lines), marks(count)) == (expected and PlannedLength(**expected))


def test_a_counter_of_all_epochs_beside_the_number_of_one_is_none_of_an_epoch() -> None:
    lines = [(0.1 * s + 0.001, f"Epoch {1 + s // 40} step {s} of 1,000 loss 2.1") for s in range(1, 101)]
    stated = planned_length(printed(lines, r"step (?P<step>\d+)"), marks(100))
    assert stated == PlannedLength(steps=1000, source="pattern", assumed=True)


def test_the_number_of_an_epoch_is_no_length_in_epochs() -> None:
    """One step an epoch, and the pattern counts epochs."""
    lines = [(0.1 * s + 0.001, f"epoch {s}/200 loss 2.1") for s in range(1, 101)]
    assert planned_length(printed(lines, r"epoch (?P<step>\d+)"), marks(100)) is None


def resumed(name: str, begun: int, form: str, total: int = 1000) -> list[tuple[float, str]]:
    """A counter that goes on after `begun` of its `total` steps; the bar of Trainer is drawn at 0 before."""
    lines = [(0.01, bar("", 0, total))] if name == "transformers" else []
    for step in range(1, 101):
        n, t = begun + step, 0.1 * step + 0.001
        lines.append((t, bar("", n, total) if name in ("transformers", "tqdm") else form.format(s=n, n=64 * n, loss=1)))
        if name == "transformers" and step % 10 == 0:
            lines += [(t + 0.001, "{'loss': '3.1', 'epoch': '1'}"), (t + 0.002, bar("", n, total))]
    return lines


MEGATRON_1000 = MEGATRON.replace("/ 100 ", "/ 1000 ").replace("/     100 ", "/    1000 ")


@pytest.mark.parametrize("name", ["transformers", "tqdm", "megatron"])
@pytest.mark.parametrize("begun", [0, 500, 800])
def test_a_training_that_was_resumed_has_fewer_steps_left(name: str, begun: int) -> None:
    stated = planned_length(printed(resumed(name, begun, MEGATRON_1000)), marks(100))
    assert stated is not None
    assert (stated.steps, stated.earlier_steps, stated.source) == (1000 - begun, begun, name)


def test_a_counter_that_is_printed_now_and_then_is_that_of_no_resumed_training() -> None:
    lines = [(5.0 * s + 0.001, MEGATRON_1000.format(s=50 * s, n=1, loss=1)) for s in range(1, 11)]
    steps = [{"t_ns": round((5 * s + 0.001) * 1e9), "steps": 50 if s > 1 else 1} for s in range(1, 11)]
    assert planned_length(printed(lines), steps) == PlannedLength(steps=1000, source="megatron")


@pytest.mark.parametrize(("form", "source"), [(KERAS_BAR, "keras"), (LIGHTNING_BAR, "lightning")])
def test_epochs_before_the_first_one_are_none_of_this_training(form: str, source: str) -> None:
    """fit(epochs=10, initial_epoch=8), or a checkpoint after 8 epochs."""
    lines = [(t, text) for t, text in fits((10, 10), form=form) if t > 40.005]
    lines = [(t - 40, text) for t, text in lines]
    assert planned_length(printed(lines), marks(99)) == PlannedLength(
        steps=100, earlier_steps=400, epoch_steps=50, source=source, assumed=True
    )


def test_two_bars_that_go_along_with_the_steps_state_nothing() -> None:
    assert planned_length(printed(sorted([*bars("a: "), *bars("b: ", total=300)])), marks(100)) is None


def test_bars_of_several_ranks_are_one() -> None:
    late = [(t + 0.15, text) for t, text in bars("")]
    stated = planned_length(printed(sorted([*bars(""), *late])), marks(100))
    assert stated == PlannedLength(steps=400, source="tqdm", assumed=True)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (MEGATRON, {"steps": 100, "source": "megatron"}),
        (OTHERS["llm_c"], {"steps": 40, "source": "llm_c"}),
        (OTHERS["timm"], {"epoch_steps": 1251, "source": "timm"}),
        (OTHERS["nanogpt"], None),
        (OTHERS["torchtitan"], None),
    ],
)
def test_lines_of_known_programs_state_what_their_total_is(form: str, expected: dict[str, Any] | None) -> None:
    lines = [(0.1 * s + 0.001, form.format(s=s, n=64 * s, loss=9 - s / 10)) for s in range(1, 31)]
    assert planned_length(printed(lines), marks(30)) == (expected and PlannedLength(**expected))


def test_a_counter_of_a_step_pattern_states_a_total_under_a_condition() -> None:
    lines = [(0.1 * s + 0.001, f"step {s} of 1,000 loss 2.1") for s in range(1, 31)]
    stated = planned_length(printed(lines, r"step (?P<step>\d+)"), marks(30))
    assert stated == PlannedLength(steps=1000, source="pattern", assumed=True)
    epochs = [(t, text.replace("step", "Epoch 1 step")) for t, text in lines]
    assert planned_length(printed(epochs, r"step (?P<step>\d+)"), marks(30)) == PlannedLength(
        epoch_steps=1000, source="pattern"
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("step {s}/200 (epoch 1/5) loss 1.0", {"epoch_steps": 200, "source": "pattern"}),
        ("step {s}/200 loss 1.0 epoch=0", {"epoch_steps": 200, "source": "pattern"}),
        ("step {s}/200 loss 1.0 epoch: {f:.2f}", {"steps": 200, "source": "pattern", "assumed": True}),  # it goes on
        ("Epoch 3 step {s}/200 | next epoch {e}", {"epoch_steps": 200, "source": "pattern"}),  # that before it counts
        ("step {s}/200 of 5 epochs", {"steps": 200, "source": "pattern", "assumed": True}),
    ],
)
def test_a_counter_whose_line_states_an_epoch_is_that_of_one(form: str, expected: dict[str, Any]) -> None:
    lines = [(0.1 * s + 0.001, form.format(s=s, e=s, f=s / 40)) for s in range(1, 101)]
    assert planned_length(printed(lines, r"step (?P<step>\d+)"), marks(100)) == PlannedLength(**expected)


@pytest.mark.parametrize(
    "form", ["s {s} {n}", "s {s} 0e400", "s {s} 1e400", "s {s} 1e{n}", "s {s}/{n}", "epoch {n} s {s}"]
)
def test_a_number_that_cannot_be_meant_ends_no_reading(form: str) -> None:
    lines = [(0.1 * s + 0.001, form.format(s=s, n="1" * 5000)) for s in range(1, 101)]
    found = printed(lines, r"\bs (?P<step>\d+)(?: (?P<loss>\S+))?")
    assert [line["step"] for line in found] == [*range(1, 101)]
    assert planned_length(found, marks(100)) is None
    headers = [(t, f"Epoch {'1' * 5000}/{'1' * 5000}") for t, _ in lines]
    assert planned_length(printed([*headers, *lines]), marks(100)) is None


@pytest.mark.parametrize(
    ("each", "total", "expected"),
    [
        (200, 200, None),  # of this epoch, or of all
        (40, 40, {"epoch_steps": 40, "source": "pattern"}),
        (40, 200, {"steps": 200, "source": "pattern", "assumed": True}),
    ],
)
def test_a_line_of_its_own_may_say_in_which_epoch_a_counter_is(
    each: int, total: int, expected: dict[str, Any] | None
) -> None:
    lines = []
    for s in range(100):
        title = [(0.1 * s + 0.05, f"--- Epoch {1 + s // each}/5 ---")] if s % each == 0 else []
        lines += [*title, (0.1 * s + 0.101, f"step {1 + s % total}/{total} loss 2.1")]
    stated = planned_length(printed(lines, r"step (?P<step>\d+)"), marks(100))
    assert stated == (expected and PlannedLength(**expected))


def test_a_bar_that_states_its_epoch_behind_is_that_of_one() -> None:
    lines = [(t, text.replace("it/s", "it/s, epoch=1")) for t, text in bars("")]
    assert planned_length(printed(lines), marks(100)) == PlannedLength(epoch_steps=400, source="tqdm")


RECORDED: dict[str, dict[str, Any]] = {
    "huggingface": {"steps": 30, "source": "transformers", "assumed": True},
    "keras": {"steps": 32, "epoch_steps": 16, "source": "keras", "assumed": True},
    "lightning-rich": {"steps": 32, "epoch_steps": 16, "source": "lightning", "assumed": True},
    "lightning-tqdm": {"epoch_steps": 16, "source": "tqdm"},
    "tqdm": {"epoch_steps": 20, "source": "tqdm"},
}
"""The output of Keras has the bars of an evaluation, with as many batches."""


@pytest.mark.parametrize("path", OUTPUTS, ids=lambda path: path.stem)
def test_outputs_of_libraries_state_their_length(path: Path) -> None:
    recorded = json.loads(path.read_text())
    lines = arrived(None, [(t, text.encode()) for t, text in recorded["chunks"]])
    steps = [{"t_ns": round(t * 1e9)} for _, _, t in recorded["steps"]]
    assert planned_length(lines, steps) == PlannedLength(**RECORDED[path.stem])


def callback(**planned: Any) -> dict[str, Any]:
    return {"t_ns": 1, "rank": 0, "pid": 1, "phase": "training", "begin": True, "planned": planned}


def test_a_callback_goes_before_a_bar_and_two_trainings_state_nothing() -> None:
    stated, lines = callback(steps=70, source="KerasCallback"), printed(list(bars("")))
    assert planned_length([stated, *lines], marks(100)) == PlannedLength(steps=70, source="KerasCallback")
    assert planned_length([stated, stated, *lines], marks(100)) is None
    assert planned_length([callback(steps="many")], marks(100)) is None
    assert planned_length([stated | {"rank": 1}], marks(100)) is None


def test_a_bar_of_an_evaluation_with_as_many_batches_counts_for_nothing() -> None:
    evaluation = [(4.95 + n / 1000, bar("", n, 50, ", 900it/s")) for n in range(51)]
    lines = [*bars("", total=50, count=49), *evaluation]
    assert planned_length(printed(lines), marks(49)) == PlannedLength(epoch_steps=50, source="tqdm")


@pytest.mark.parametrize("rate", ["12 it/s", "12", "120 tokens/s", "12.5", "1,200/s"])
def test_a_number_after_the_counter_that_is_no_total_states_nothing(rate: str) -> None:
    lines = [(0.1 * s + 0.001, f"step {s} / {rate}") for s in range(1, 101)]
    assert planned_length(printed(lines, r"step (?P<step>\d+)"), marks(100)) is None


def test_a_rate_that_varies_is_no_total() -> None:
    lines = [(0.1 * s + 0.001, f"step {s} / {11 + 20 * (s > 10)}") for s in range(1, 32)]
    assert planned_length(printed(lines, r"step (?P<step>\d+)"), marks(31)) is None


@pytest.mark.parametrize("growth", [0.75, 0.8, 0.9, 1.1, 1.2, 3.5])
@pytest.mark.parametrize("steps", [10, 15, 20, 25, 50, 100])
def test_a_counter_that_grows_by_no_whole_number_states_nothing(growth: float, steps: int) -> None:
    lines = [(0.1 * s + 0.001, bar("", int(growth * s), BATCHES)) for s in range(steps + 1)]
    assert planned_length(printed(lines), marks(steps)) is None


def test_an_epoch_of_no_whole_number_of_steps_states_nothing() -> None:
    """Four batches make a step, ten an epoch: it has three steps, the last one of two batches."""
    times = [
        (0.1 * (3 * epoch + min(n // 4 + 1, 3)) - 0.09 + 0.02 * (n % 4), n) for epoch in range(12) for n in range(11)
    ]
    assert planned_length(printed([(t, bar("", n, 10)) for t, n in sorted(times)]), marks(36)) is None


def fits(*epochs: tuple[int, int], batches: int = 50, form: str = KERAS_BAR) -> list[tuple[float, str]]:
    """Trainings one after another, each with the epochs that it states and those it ran, of steps of 0.1 s."""
    out, step = list[tuple[float, str]](), 0
    for stated, ran in epochs:
        for epoch in range(1, ran + 1):
            out.append((0.1 * step + 0.01, f"Epoch {epoch}/{stated}"))
            for n in range(1, batches + 1):
                step += 1
                out.append((0.1 * step + 0.001, form.format(s=n, n=batches, e=epoch - 1, last=stated - 1)))
    return out


@pytest.mark.parametrize("form", [KERAS_BAR, LIGHTNING_BAR], ids=["keras", "lightning"])
@pytest.mark.parametrize(
    ("epochs", "steps"),
    [
        (((10, 4),), 500),
        (((1, 1), (10, 4)), None),
        (((10, 10), (1, 1)), None),
        (((1, 1), (1, 1)), None),
        (((3, 3), (3, 2)), None),
        (((3, 1), (3, 2)), None),  # the first one was ended early
    ],
)
def test_epochs_of_two_trainings_state_nothing(form: str, epochs: Any, steps: int | None) -> None:
    lines = fits(*epochs, form=form)
    stated = planned_length(printed(lines), marks(sum(ran for _, ran in epochs) * 50))
    assert (stated and (stated.steps, stated.epoch_steps)) == (steps and (steps, 50))


@pytest.mark.parametrize("form", [MEGATRON, KERAS_BAR, OTHERS["timm"]], ids=["megatron", "keras", "timm"])
@pytest.mark.parametrize(("before", "sure"), [(0, True), (1, True), (30, False), (300, False)])
def test_steps_before_a_counter_are_another_training(form: str, before: int, sure: bool) -> None:
    lines = [
        (0.1 * (before + s) + 0.001, form.format(s=s, n=64 * s if form is MEGATRON else 100, loss=9 - s / 10))
        for s in range(1, 31)
    ]
    assert (planned_length(printed(lines), marks(before + 30)) is not None) == sure
