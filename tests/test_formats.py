"""Known formats: the steps that libraries print are recognised without a pattern, and bars over other things are not.

`tests/data/outputs` holds output of small trainings, as it arrived, with the times at which their steps ended:
transformers 5.23, keras 3.15, lightning 2.6 (its rich bar in a terminal, its tqdm bar in a pipe), and nested bars of
tqdm 4.70. The other formats are those of the programs' sources.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.figures.flags import STEP_FLAGS
from bench.workloads.counted import Counted, count
from bench.workloads.formats import FORMATS, TITLES
from bench.workloads.printed import Printed
from tests.test_printed import arrived, each

OUTPUTS = sorted((Path(__file__).parent / "data/outputs").glob("*.json"))
NAMES = {
    "huggingface": ("transformers", []),
    "keras": ("keras", []),
    "lightning-rich": ("lightning", ["batches_are_steps"]),
    "lightning-tqdm": ("lightning", ["batches_are_steps"]),
    "tqdm": ("tqdm", ["bar_unchecked"]),
}


def counted(lines: list[str], every: float = 1.0, end: str = "\n", **how: int) -> Counted:
    return count(arrived(None, each(lines, every, end)), Printed(None, **how))


@pytest.mark.parametrize("path", OUTPUTS, ids=lambda path: path.stem)
def test_outputs_of_libraries_give_the_speed_of_their_steps(path: Path) -> None:
    recorded = json.loads(path.read_text())
    found = count(arrived(None, [(t, text.encode()) for t, text in recorded["chunks"]]), Printed())
    assert (found.known, found.flags) == NAMES[path.stem]
    times = {(epoch, step): t for epoch, step, t in recorded["steps"]}
    spans = [(a, b) for a, b in pairwise(found.marks) if a["step"] and b["steps"]]
    assert sum(b["steps"] for _, b in spans) > 0.8 * len(times)
    seconds = sum(times[b["pass"], b["step"]] - times[a["pass"], a["step"]] for a, b in spans)
    assert sum(b["t_ns"] - a["t_ns"] for a, b in spans) / 1e9 == pytest.approx(seconds, rel=0.02)
    assert set(found.flags) <= set(STEP_FLAGS)


def test_the_trainer_reports_losses_apart_from_its_bar() -> None:
    (path,) = [path for path in OUTPUTS if path.stem == "huggingface"]
    chunks = [(t, text.encode()) for t, text in json.loads(path.read_text())["chunks"]]
    found = count(arrived(None, chunks), Printed(samples_per_step=8))
    assert [mark["step"] for mark in found.marks if "loss" in mark] == [5, 10, 15, 20, 25, 30]
    assert {part.name for part in found.breaks} == {"eval"}
    assert {mark["samples"] - 8 * mark["steps"] for mark in found.marks} == {0}


MEGATRON = (
    " [2026-01-01 10:00:00] iteration {s:8d}/     100 | consumed samples: {n:12d} | elapsed time per iteration (ms): "
    "1000.0 | learning rate: 6.0E-05 | global batch size:    64 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 1.2 |"
)
OTHERS = {
    "megatron": MEGATRON,
    "nanogpt": "iter {s}: loss {loss:.4f}, time 1000.00ms, mfu 30.10%",
    "llm_c": "step {s:4d}/40 | loss {loss:.6f} | norm 1.0000 | lr 3.00e-04 | 1000.0 ms | 12.0% bf16 MFU | 81920 tok/s",
    "torchtitan": "\x1b[36m[titan] 2026-01-01 10:00:00,000 - root - INFO - \x1b[31mstep: {s:2}  \x1b[32mloss: {loss:8.5f}  "
    "\x1b[38mgrad_norm:  1.2000  memory: 10.00GiB(12.00%)  \x1b[34mtps: 16,384  \x1b[36mtflops: 12.30  mfu: 31.20%\x1b[39m",
    "timm": "Train: 0 [{s:>4d}/1251 (  4%)]  Loss: {loss:#.3g} (6.95)  Time: 1.000s,  800.00/s  (0.320s,  800.00/s)  "
    "LR: 1.000e-05  Data: 0.010 (0.020)",
}


@pytest.mark.parametrize(("name", "form"), OTHERS.items())
def test_lines_of_known_programs_are_steps(name: str, form: str) -> None:
    found = counted([form.format(s=s, n=64 * s, loss=9 - s / 10) for s in range(1, 9)])
    assert (found.known, found.flags) == (name, [])
    assert [mark["steps"] for mark in found.marks] == [1] * 8
    assert [mark["loss"] for mark in found.marks] == pytest.approx([9 - s / 10 for s in range(1, 9)], rel=0.01)
    assert [mark.get("samples") for mark in found.marks[1:]] == [64 if name == "megatron" else None] * 7
    assert TITLES[name]


def test_a_time_of_the_program_that_the_clock_denies_is_a_flag() -> None:
    lines = [OTHERS["nanogpt"].format(s=s, loss=9 - s / 10) for s in range(1, 9)]
    assert counted(lines, every=2.0).flags == ["times_differ"]
    tens = [OTHERS["nanogpt"].format(s=s, loss=9 - s / 100) for s in range(10, 90, 10)]
    assert counted(tens, every=10.0).flags == []


def bar(title: str, n: int, total: int, end: str = ", 4.9it/s, loss=2.1") -> str:
    return f"{title}{100 * n // total:3d}%|{'█' * (10 * n // total):10s}| {n}/{total} [00:01<00:19{end}]"


@pytest.mark.parametrize(
    ("title", "end"),
    [
        ("Tokenizing: ", ", 99.0it/s"),
        ("Tokenizing train: ", ", 99.0it/s"),
        ("Loading checkpoint shards: ", ",  1.20s/it"),
        ("Generating train split: ", ", 9000 examples/s"),
        ("model.safetensors: ", ", 9.1MB/s"),
        ("Epochs: ", ", 10.0s/it"),
        ("", ", 4.9it/s"),  # of what?
        ("Validation DataLoader 0: ", ", 4.9it/s"),
        ("Epoch 1: ", ", 800img/s"),
        ("val: ", ", 4.9it/s, loss=2.1"),
        ("Testing: ", ", 4.9it/s, loss=2.1"),
    ],
)
def test_bars_over_other_things_are_no_steps(title: str, end: str) -> None:
    found = counted([bar(title, n, 20, end) for n in range(21)], end="\r")
    assert (found.known, found.marks, found.flags) == ("", [], [])


def test_a_bar_that_shows_a_loss_or_names_its_epoch_is_taken_with_a_flag() -> None:
    for title, end in (("", ", 4.9it/s, loss=2.1"), ("Epoch 3/9: ", ",  1.10s/it"), ("Training: ", ", 4.9batch/s")):
        found = counted([bar(title, n, 20, end) for n in range(21)], end="\r")
        assert (found.known, found.flags, len(found.marks)) == ("tqdm", ["bar_unchecked"], 21)


def test_two_bars_that_may_be_the_training_give_no_steps() -> None:
    lines = [bar(title, n, 20) for n in range(21) for title in ("first: ", "second: ")]
    assert counted(lines).marks == []


def test_an_evaluation_of_keras_is_no_epoch() -> None:
    lines = [f"{n}/9 ━━━━━━━━━ 0s 5ms/step - accuracy: 0.5 - loss: 0.7" for n in range(1, 10)]
    assert counted(lines).marks == []
    found = counted(["Epoch 1/2", *lines, "Epoch 2/2", *lines, *lines])
    assert [mark["steps"] for mark in found.marks] == [*[1] * 9, 0, *[1] * 8]
    old = ["Epoch 1/1", *(f"{n}/9 [==>......] - ETA: 3s - loss: 0.7" for n in range(1, 10))]
    assert len(counted(old).marks) == 9


def test_each_line_of_a_format_has_its_sign() -> None:
    for known in FORMATS:
        for form in (OTHERS[known.name],) if known.name in OTHERS else ():
            assert known.sign in form


def test_output_without_a_known_format_says_nothing() -> None:
    noise: list[Any] = ["step 1 of 3", "loss 2.1", "10/100", "iter 10", "{'epoch': 1}", "50%", "x" * 70_000]
    assert counted(noise) == Counted()
