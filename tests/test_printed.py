"""Steps that a command prints: what counts as a step, and what is left out with a flag."""

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.quantities import quantity
from analytics.say.blocks import Note, Sentence, Table
from analytics.say.measure import blocks
from bench.errors import BadValue
from bench.figures.flags import FLAGS
from bench.figures.metrics import metrics
from bench.folder import COMMAND_STEPS, STEPS
from bench.redact import redact
from bench.run.measure import check_printed
from bench.run.own_steps import Ended, measurement
from bench.run.watch import Watch
from bench.workloads import candidates, printed
from bench.workloads.candidates import Candidates
from bench.workloads.counted import Counted, count
from bench.workloads.printed import Printed, Reader, check_pattern
from tests import rows

S = 10**9


def arrived(pattern: str | None, chunks: Iterable[tuple[float, bytes]]) -> list[dict[str, Any]]:
    """Return the lines of the steps file for output that arrives in chunks at some times, in s."""
    reader, out = Reader(pattern), list[dict[str, Any]]()
    with pytest.MonkeyPatch.context() as patch:
        for t, chunk in (*chunks, (1e6, b"")):
            patch.setattr(printed.time, "monotonic_ns", lambda t=t: round(t * S))
            out += [json.loads(line) for line in reader.read(chunk)]
    return out


def each(lines: Sequence[str], every: float = 1.0, end: str = "\n") -> list[tuple[float, bytes]]:
    return [(every * (1 + index), f"{line}{end}".encode()) for index, line in enumerate(lines)]


def steps(pattern: str, chunks: Iterable[tuple[float, bytes]], **how: int) -> tuple[list[Any], list[str]]:
    """Return steps, samples and tokens of each mark, and the flags."""
    found = count(arrived(pattern, chunks), Printed(pattern, **how))
    return [(m["steps"], m.get("samples"), m.get("tokens")) for m in found.marks], found.flags


ONE = (1, None, None)
COUNTED: dict[str, list[tuple[list[str], list[Any], list[str]]]] = {
    "done": [(["done", "x", "done"], [ONE] * 2, ["steps_unchecked"])],
    r"step (?P<step>\d+)": [
        (["step 10", "step 20", "step 40"], [ONE, (10, None, None), (20, None, None)], []),
        (["step 2", "step 1", "step 9", "step 3"], [], ["steps_in_disorder"]),
    ],
    r"(?P<step>\d+) of": [(["1 of 3", "1 of 3", "2 of 3"], [ONE] * 2, [])],
    r"n (?P<step>\d+) (?P<samples>\d+)": [
        (["n 1 8", "n 1 8", "n 2 8"], [(1, 8, None), (1, 8, None)], ["lines_repeat"]),
        (["n 5 8", "n 10 8"], [(1, 8, None), (5, 40, None)], []),
    ],
    r"seen (?P<samples_total>[\d,]+)": [
        (["seen 1,000", "seen 2,500"], [(1, 0, None), (1, 1500, None)], ["steps_unchecked"])
    ],
    r"seen (?P<samples>\d+)": [(["seen 64", "seen 128", "seen 192"], [], ["lines_are_not_steps"])],
    r"i \d: (?P<samples>\d+)": [
        (["i 1: 64", "i 2: 128", "i 3: 192"], [ONE] * 3, ["steps_unchecked", "counts_only_grow"])
    ],
    r"(?P<step>\d) (?P<tokens_total>\S+)": [
        (["1 1k", "2 2k", "3 3k"], [ONE] * 3, ["totals_are_rounded"]),
        (["1 1k", "2 101.0k", "3 201.0k"], [(1, None, 0), (1, None, 100_000), (1, None, 100_000)], []),
        (["1 9", "2 8"], [ONE] * 2, ["totals_fall"]),
    ],
    r"step (?P<step>[\d.]+)": [(["step 0.1", "step 0.2"], [], ["lines_are_not_steps"])],
    "loss": [
        (["it 10 loss", "it 20 loss", "it 30 loss"], [], ["lines_are_not_steps"]),
        ([f"it {n} loss" for n in (1, 1, 2, 2, 3, 3)], [], ["lines_are_not_steps"]),
    ],
    r"step \d": [
        (["step 1", "step 0", "step 2"], [], ["lines_are_not_steps"]),
        (["12:00:07 step 1", "12:00:07 step 2", "12:00:08 step 3"], [ONE] * 3, []),
    ],
    r"step (?P<step>\d+) G": [(["step 5 G", "step 6 G"], [ONE] * 2, [])],
    r"at (?P<samples>\S+)": [
        ([f"at {n % 5 * 640}" for n in range(10)], [ONE] * 10, ["steps_unchecked", "counts_only_grow"]),
        (["at 8", "at nan", "at 9"], [ONE] * 3, ["steps_unchecked", "counts_missing"]),
        (["at 8", "at -8", "at 9"], [ONE] * 3, ["steps_unchecked", "counts_missing"]),
        (["at 8", "at 1e308", "at 9"], [ONE] * 3, ["steps_unchecked", "counts_missing"]),
    ],
    r"(?P<step>\d+) saw (?P<samples_total>\d+)": [
        (["1 saw 8", "1 saw 8", "2 saw 16", "2 saw 16"], [(1, 0, None), (1, 8, None)], ["lines_repeat"]),
    ],
    r"time": [
        (["iter 10 time 1", "iter 20 time 2", "iter 30 time 3"], [ONE] * 3, ["steps_unchecked"]),
        (["Epoch 1/3 time", "Epoch 2/3 time", "Epoch 3/3 time"], [ONE] * 3, ["steps_unchecked"]),
    ],
    r"loss \d": [
        (["\x1b[31mloss\x1b[0m 3", "loss 3", "\x1b[32mloss 2"], [ONE] * 2, ["steps_unchecked", "lines_repeat"])
    ],
    "step": [(["nothing"], [], ["no_line_matched"])],
}


@pytest.mark.parametrize(
    ("pattern", "lines", "marks", "flags"), [(pattern, *case) for pattern, cases in COUNTED.items() for case in cases]
)
def test_what_lines_count(pattern: str, lines: list[str], marks: list[Any], flags: list[str]) -> None:
    assert steps(pattern, each(lines)) == (marks, flags)
    assert set(flags) <= set(FLAGS)


def test_a_bar_that_is_drawn_again_is_one_step() -> None:
    bars = each([f"{n}/9 x 4" for n in (1, 1, 2, 2, 3)], end="\r")
    assert steps(r"(?P<step>\d)/9", bars, samples_per_step=4) == ([(1, 4, None)] * 3, [])
    assert steps(r"(?P<step>\d)/9 x (?P<samples>\d)", bars) == ([(1, 4, None)] * 3, ["lines_repeat"])


def test_lines_and_steps_stand_for_what_the_user_says() -> None:
    lines = each(["it 10", "it 20", "it 30"])
    how = {"steps_per_line": 10, "samples_per_step": 4, "tokens_per_step": 512}
    assert steps("it", lines, **how) == ([(10, 40, 5120)] * 3, [])
    assert steps("it", lines, **how | {"steps_per_line": 5}) == ([], ["lines_are_not_steps"])
    ranks = each([f"[rank{r}] it {n} loss 0.{r}" for n in (10, 20, 30) for r in range(2)])
    assert steps("it", ranks, **how)[1] == ["lines_are_not_steps"]


def test_a_counter_that_begins_anew_leaves_the_time_between_two_passes_out() -> None:
    chunks = [(1, b"s 1\n"), (2, b"s 2\n"), (3, b"s 3\n"), (9, b"s 1\n"), (10, b"s 2\n"), (11, b"s 3\n"), (12, b"")]
    found = count(arrived(r"s (?P<step>\d)", chunks[:-1]), Printed(r"s (?P<step>\d)"))
    assert [mark["steps"] for mark in found.marks] == [1, 1, 1, 0, 1, 1]
    assert found.flags == ["counter_restarts"]
    assert [(part.start_ns / S, part.end_ns / S) for part in found.breaks] == [(3, 9)]


@pytest.mark.parametrize(
    ("values", "how", "before"),
    [
        (range(50, 401, 50), {}, 100),
        (range(49, 400, 50), {}, 99),
        (range(0, 401, 50), {}, 51),
        (range(1, 41), {}, 3),
        (range(5050, 5401, 50), {}, 100),  # resumed at 5000
        ([*range(50, 201, 50)] * 2, {}, 100),
        (range(50, 401, 50), {"steps_per_line": 50}, 50),
    ],
)
def test_steps_before_the_window_are_those_of_the_lines_before_it(
    values: Sequence[int], how: dict[str, int], before: int, tmp_path: Path
) -> None:
    pattern = "s " if how else r"s (?P<step>\d+)"
    path = STEPS.path(tmp_path, COMMAND_STEPS)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in arrived(pattern, each([f"s {n}" for n in values]))))
    found = measurement(path, Ended(0, 0, 1000 * S, 1.0), 3, "cpu", Printed(pattern, **how))
    assert (found.step_source, found.steps_before) == ("output", before)
    tally = Watch(tmp_path, 3, how.get("steps_per_line", 1)).update()
    begun_again = 50 if len({*values}) < len(values) else 0
    assert (tally.steps, tally.seen) == (found.steps, before + found.steps + begun_again)


@pytest.mark.parametrize(
    "values",
    [
        [*range(1, 31), *range(1, 30), *range(1, 32)],  # the last epoch is the longest
        [*range(1, 51), *range(41, 100)],  # resumed
        [*range(10, 60, 10), 5000, 60, 70, 80],  # another number in one line
        [10, 20, 30, 40, 100000],
        [100, 200, 300, 100, 200, 300, 400],
    ],
)
def test_a_counter_that_is_none_gives_no_steps_or_a_flag(values: list[int]) -> None:
    assert steps(r"s (?P<step>\d+)", each([f"s {n}" for n in values]))[1] != []


@pytest.mark.parametrize(
    "texts",
    [
        ["1.024", "2.048", "3.072"],  # thousands, in some countries
        ["1.0e+06", "1.1e+06", "1.2e+06"],
        ["0k", "1.00M", "1.01M", "1.01M", "1.02M"],
        ["4Ki", "8Ki"],
    ],
)
def test_totals_that_are_not_exact_are_left_out(texts: list[str]) -> None:
    marks, flags = steps(
        r"(?P<step>\d+) seen (?P<samples_total>\S+)", each([f"{n} seen {t}" for n, t in enumerate(texts)])
    )
    assert [mark[1] for mark in marks] == [None] * len(texts)
    assert {*flags} & {"totals_are_rounded", "counts_missing"}


@pytest.mark.parametrize(
    ("text", "samples", "loss"),
    [
        ("1,024", 1024, None),  # which may be 1.024
        ("1,234,567", 1234567, 1234567),
        ("1,234.5", None, 1234.5),
        ("12,", 12, 12),
        ("0,532", None, None),
        ("1,5", None, None),
        ("1,5k", None, None),
        ("12,34,567", None, None),
    ],
)
def test_a_comma_groups_digits_or_begins_a_fraction(text: str, samples: int | None, loss: float | None) -> None:
    (line,) = arrived(r"n (?P<samples>\S+) of (?P<loss>\S+) (?P<mine>\S+)", each([f"n {text} of {text} {text}"]))
    assert [line.get("samples"), line.get("loss"), line.get("own", {}).get("mine")] == [samples, loss, loss]


# --- lines of a validation


def between(epochs: int, train: str, val: str, batches: int, fast: float = 0.3) -> list[tuple[float, bytes]]:
    """Return epochs of ten steps of 1 s, each with a validation after it."""
    now, out = 0.0, list[tuple[float, bytes]]()
    for epoch in range(epochs):
        for text, count_, seconds in ((train, 10, 1.0), (val, batches, fast)):
            for n in range(1, count_ + 1):
                now += seconds
                out.append((now, (text.format(n=n, total=count_, e=epoch) + "\n").encode()))
    return out


@pytest.mark.parametrize(
    ("train", "val", "batches", "flags", "breaks"),
    [
        ("Train {n}/{total}", "Val {n}/{total}", 5, ["validation_left_out", "counter_restarts"], ["eval"]),
        ("epoch {e} step {n} ", "Test: step {n} ", 10, ["validation_left_out", "counter_restarts"], ["eval"]),
        ("step {n}/{total}", "step {n}/{total}", 5, ["passes_differ", "counter_restarts"], ["eval"]),
        ("a: step {n} ", "b: step {n} ", 5, ["passes_differ", "counter_restarts"], ["eval"]),
        ("train: step {n} ", "other: step {n} ", 5, ["validation_left_out", "counter_restarts"], ["eval"]),
    ],
)
def test_lines_of_a_validation_are_no_steps(
    train: str, val: str, batches: int, flags: list[str], breaks: list[str]
) -> None:
    pattern = r"(?:step|Train|Val) (?P<step>\d+)"
    found = count(arrived(pattern, between(2, train, val, batches)), Printed(pattern))
    assert [mark["steps"] for mark in found.marks] == [*[1] * 10, 0, *[1] * 9]
    assert (found.flags, [part.name for part in found.breaks]) == (flags, breaks)
    assert found.breaks[0].end_ns - found.breaks[0].start_ns == pytest.approx(S * (1 + batches * 0.3))


@pytest.mark.parametrize(("val", "fast"), [("step {n} loss", 0.3), ("step {n} accuracy", 1.0)])
def test_passes_with_other_words_or_another_speed_may_be_a_validation(val: str, fast: float) -> None:
    chunks = between(2, "step {n} loss", val, 10, fast)
    assert steps(r"step (?P<step>\d+)", chunks)[1] == ["counter_restarts", "passes_differ"]
    assert steps(r"step (?P<step>\d+)", between(2, "step {n} loss", "step {n} loss", 10, 1.0))[1] == [
        "counter_restarts"
    ]


def test_a_validation_between_two_lines_takes_the_steps_around_it_out() -> None:
    chunks = [(float(n), f"step {n * 10} ".encode() + b"\n") for n in range(1, 4)]
    chunks += [(3.5, b"eval step 1 \n"), (3.9, b"eval step 2 \n")]
    chunks += [(n + 1.0, f"step {n * 10} ".encode() + b"\n") for n in range(4, 6)]
    found = count(arrived(r"step (?P<step>\d+) ", chunks), Printed(r"step (?P<step>\d+) "))
    assert [mark["steps"] for mark in found.marks] == [1, 10, 10, 0, 10]
    assert [(part.name, part.start_ns / S, part.end_ns / S) for part in found.breaks] == [("eval", 3, 5)]


# --- times and metrics of the script


def times(pattern: str, lines: Sequence[str], every: float) -> list[str]:
    return steps(pattern, each(lines, every))[1]


def test_times_of_the_script_are_checked_against_the_clock() -> None:
    lines = [f"step {n} took 250.0 ms" for n in range(1, 9)]
    assert times(r"step (?P<step>\d+) took (?P<milliseconds>\S+)", lines, 0.25) == []
    assert times(r"step (?P<step>\d+) took (?P<milliseconds>\S+)", lines, 0.5) == ["times_differ"]
    assert times(r"step (?P<step>\d+) took (?P<seconds>\S+)", lines, 0.25) == ["times_differ"]
    tens = [f"step {n} took {t}s" for t in ("0.2", "2.5") for n in range(10, 90, 10)]
    pattern = r"step (?P<step>\d+) took (?P<seconds>\S+)"  # of a step, rounded to 0.2, or of ten of them
    assert (times(pattern, tens[:8], 2.5), times(pattern, tens[8:], 2.5)) == ([], [])
    late = each(lines[:4], 0.25) + [(t + 60, line) for t, line in each(lines[4:], 0.25)]  # a pause
    assert steps(r"step (?P<step>\d+) took (?P<milliseconds>\S+)", late)[1] == []


def test_times_of_the_script_stand_in_where_the_output_comes_in_blocks(tmp_path: Path) -> None:
    pattern = r"step (?P<step>\d+) took (?P<milliseconds>\S+)"
    for spent, flags, expected in (
        (100.0, ["times_of_script"], [0.1] * 40),
        (60.0, ["output_in_blocks", "times_differ"], []),
    ):
        text = "".join(f"step {n} took {spent} ms\n" for n in range(1, 51)).encode()
        size = len(text) // 5
        lines = arrived(pattern, [(1.0 * n, text[(n - 1) * size : n * size]) for n in range(1, 6)] + [(5.01, b"\n")])
        (tmp_path / "steps").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = measurement(tmp_path / "steps", Ended(0, 0, 6 * S, 1.0, None), 1, "cpu", Printed(pattern))
        assert found.step_flags == flags
        assert (
            found.step_seconds == pytest.approx(expected, abs=1e-9) if not expected else len(found.step_seconds) >= 39
        )
        assert found.steps / found.window_seconds == pytest.approx(10, rel=0.02)


def test_other_groups_are_metrics_of_the_user(tmp_path: Path) -> None:
    pattern = r"step (?P<step>\d+) acc (?P<accuracy>\S+)% (?P<reward>\S+)"
    lines = arrived(pattern, each([f"step {n} acc {50 + n}% {-n / 2}" for n in range(1, 7)]))
    (tmp_path / "steps").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measurement(tmp_path / "steps", Ended(0, 0, 9 * S, 1.0, None), 1, "cpu", Printed(pattern))
    assert found.own == {"accuracy": 56.0, "reward": -3.0}
    row = metrics(rows.record().changed(measurement=found))
    assert (row["own.accuracy"], row["own.reward"]) == (56.0, -3.0)
    accuracy = quantity("own.accuracy")
    assert (accuracy.title, accuracy.factor, accuracy.unit, accuracy.better) == ("accuracy", 1.0, "", "more")


# --- where nothing matches


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        (r"iter (?P<step>\d+) loss (?P<loss>\S+)", "iter 1: loss 2.5"),
        (r"Step: (?P<step>\d+): loss", "iter 1: loss 2.5"),
        (r"epoch (?P<step>\d+)", "epoch one begins"),
        (r"^xyz(?P<step>\d+)$", "iter 1: loss 2.5"),
        (r"^Step *(?P<step>\d+)$", "iter 1: loss 2.5"),
        (r"^xyz(?P<samples>\d+)$", ""),
    ],
)
def test_the_line_that_came_nearest_is_kept(pattern: str, nearest: str) -> None:
    lines = ["reading data", "epoch one begins", *(f"iter {n}: loss 2.5" for n in range(1, 400)), "done"]
    found = count(arrived(pattern, each(lines)), Printed(pattern))
    assert (found.flags, found.nearest) == (["no_line_matched"], nearest)
    assert count(arrived("nothing|done", each(lines)), Printed("nothing|done")).nearest == ""


# --- rates, and a pattern that is offered


RATES = [
    "samples/s",
    "it/s",
    "tok/s",
    "k tok/s",
    "tokens / s",
    "examples/sec",
    "ms/step",
    "s/it",
    "/s",
    "images per second",
    "(tok/sec)",
]


@pytest.mark.parametrize("unit", RATES)
def test_a_rate_is_no_count(unit: str) -> None:
    lines = [f"step {n} at {n % 3 * 20 + n} {unit}" for n in range(1, 30)]
    for name in ("samples", "samples_total", "tokens", "tokens_total"):
        pattern = rf"step (?P<step>\d+) at (?P<{name}>\d+)"
        assert steps(pattern, each(lines)) == ([ONE] * 29, ["counts_are_rates"])
    alone = steps(r"at (?P<samples>\d+)", each(lines))
    assert all(mark == ONE for mark in alone[0])
    assert "counts_are_rates" in alone[1]
    way_out = steps(r"step (?P<step>\d+) at (?P<samples>\d+)", each(lines), samples_per_step=8)
    assert way_out == ([(1, 8, None)] * 29, [])
    assert steps(r"at (?P<step>\d+)", each(lines)) == ([], ["counts_are_rates"])


@pytest.mark.parametrize(
    "before", ["samples/s: ", "'samples_per_second': ", "tps=", "tok/s = ", "wps=", "ips: ", "Throughput "]
)
def test_a_rate_may_be_named_before_its_number(before: str) -> None:
    lines = [f"step {n} {before}{100 + n}" for n in range(1, 10)]
    found = steps(rf"step (?P<step>\d+) {before}(?P<tokens>\d+)", each(lines))
    assert found == ([ONE] * 9, ["counts_are_rates"])


@pytest.mark.parametrize("number", ["12,288", "12'288", "12\u202f288", "12 288", "12.5", "2e6", "2 Mi", "2Mi", "2 M"])
def test_a_part_of_a_number_is_no_count(number: str) -> None:
    lines = [f"step {n} tokens {number} loss 1" for n in range(1, 10)]
    counts = steps(r"step (?P<step>\d+) tokens (?P<tokens>\d+)", each(lines))
    assert counts == ([ONE] * 9, ["counts_missing"])


@pytest.mark.parametrize("pattern", [r"step .*(?P<step>\d+)", r"^(?P<step>\d+)"])
def test_a_part_of_a_counter_is_none(pattern: str) -> None:
    assert steps(pattern, each([f"1{n:03},128 step {100 + n}" for n in range(1, 30)])) == ([], ["lines_are_not_steps"])


@pytest.mark.parametrize(
    "line",
    [
        "step {n} 64 samples",
        "step {n} samples 64",
        "step {n} 64 samples, 3 it/s",
        "step {n} samples/s 120 samples 64",
        "step {n} samples 64 tok/s 5000",
        "step {n} [64/1200] 12.5 it/s",
        "step {n} 64 samples/step",
    ],
)
def test_a_count_beside_a_rate_is_a_count(line: str) -> None:
    lines = [line.format(n=n) for n in range(1, 10)]
    assert steps(r"step (?P<step>\d+)\D.*?(?P<samples>\b64)\b", each(lines)) == ([(1, 64, None)] * 9, [])


@pytest.mark.parametrize(
    ("line", "pattern", "every"),
    [
        ("step {n} loss 0.3 120 samples/s", r"\bstep *(?P<step>\d+)", 10),
        ("  [1] Iter: {n:6} loss 2.5", r"\bIter: *(?P<step>\d+)", 1),
        ("epoch 1 batch [{n}/100] 0.5", r"\bbatch *\[(?P<step>\d+)", 1),
        ("global_step={n}, epoch=0.5", r"\bglobal_step=(?P<step>\d+)", 5),
        ("Epoch {n}: loss 1", r"\bEpoch *(?P<step>\d+)", 1),
    ],
)
def test_a_pattern_is_offered_that_counts(line: str, pattern: str, every: int) -> None:
    lines = each(["loading step 1", *(line.format(n=n * every) for n in range(1, 700)), "done"])
    chunks = [*lines, (1e6, b"")]
    offered = offer(chunks)
    assert (offered.offer[0], offered.marks, offered.flags) == (pattern, [], [])
    marks, _ = steps(pattern, lines)
    assert marks[-1] == (every, None, None), "it counts as it was offered"


@pytest.mark.parametrize(
    "lines",
    [
        ["no number at all"] * 50,
        [f"batch {32} of data {n}" for n in range(50)],
        [f"step {n * 7919 % 101} loss 1" for n in range(50)],
        [f"step {n}" for n in range(3)],
        [f"timestep {n} batch_size {n}" for n in range(50)],
    ],
)
def test_no_pattern_is_offered_that_does_not_count(lines: list[str]) -> None:
    assert offer([*each(lines), (1e6, b"")]).offer == ("", "")


def test_epochs_are_offered_last_and_secrets_are_not_kept() -> None:
    lines = [text for n in range(1, 30) for text in (f"epoch {n}", f"epoch {n} loss 1", f"step {n} token=abc123secret")]
    found = offer([*each(lines), (1e6, b"")])
    assert found.offer[0] == r"\bstep *(?P<step>\d+)"
    assert "abc123secret" not in found.offer[1]


def offer(chunks: Iterable[tuple[float, bytes]]) -> Counted:
    """Return what is counted of output without a pattern."""
    reader, out = Reader(None, Candidates()), list[dict[str, Any]]()
    with pytest.MonkeyPatch.context() as patch:
        for t, chunk in chunks:
            patch.setattr(printed.time, "monotonic_ns", lambda t=t: round(t * S))
            out += [json.loads(line) for line in reader.read(chunk)]
    return count(out, Printed())


@pytest.mark.parametrize(
    ("flags", "args", "notes", "words"),
    [
        ([], {}, {}, ["no steps of torch", "--step-pattern"]),
        (["no_line_matched"], {"step_pattern": "x"}, {}, ["matches no line"]),
        (["counts_are_rates"], {"step_pattern": "x"}, {}, ["gives no steps"]),
        ([], {"step_pattern": "x"}, {}, ["too few"]),
        (
            [],
            {},
            {"pattern_offered": "step (?P<step>x)", "pattern_example": "step 1"},
            ["'step 1'", "'step (?P<step>x)'"],
        ),
    ],
)
def test_what_is_given_already_is_not_asked_for(
    flags: list[str], args: dict[str, str], notes: dict[str, str], words: list[str]
) -> None:
    record = rows.record()
    assert record.measurement is not None
    measured = record.measurement.changed(steps=0, step_flags=flags, notes=notes)
    record = record.changed(measurement=measured, spec=record.spec.changed(workload_args={"argv": "x", **args}))
    (text,) = [block.text for block in blocks(record) if isinstance(block, Sentence) and "Throughput" in block.text]
    assert all(word in text for word in words)
    assert ("--step-pattern" in text) == ("step_pattern" not in args)


def test_a_secret_in_the_nearest_line_is_not_kept(tmp_path: Path) -> None:
    lines = arrived(r"login (?P<step>\d+)", each(["login token=abc123secret"]))
    assert "abc123secret" not in json.dumps(lines)
    (tmp_path / "steps").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measurement(tmp_path / "steps", Ended(0, 0, 9 * S, 1.0, None), 1, "cpu", Printed(r"login (?P<step>\d+)"))
    assert found.notes["nearest_line"] == "login token=***"
    spec = rows.record().spec.changed(workload_args={"argv": "x", "step_pattern": "login"})
    (note,) = [
        block for block in blocks(rows.record().changed(measurement=found, spec=spec)) if isinstance(block, Note)
    ][:1]
    assert "login token=***" in note.text


def test_a_counter_and_steps_per_line_contradict_each_other() -> None:
    for pattern in (r"step (?P<step>\d+)", None):
        with pytest.raises(ValueError, match=r"leave one of them out|needs a step pattern"):
            Printed(pattern, steps_per_line=10)
    with pytest.raises(BadValue, match="--steps-per-line 10: the pattern has the group step"):
        check_printed({"step_pattern": r"(?P<step>\d+)", "steps_per_line": 10})


def test_a_bar_has_the_time_at_which_it_was_drawn() -> None:
    chunks = [(float(n), f"\r{n}/9 it".encode()) for n in range(1, 6)] + [(20.0, b"\n")]
    assert [line["t_ns"] / S for line in arrived(r"(?P<step>\d)/9", chunks)] == [1, 2, 3, 4, 5]


def test_lines_that_arrive_together_have_one_time() -> None:
    chunks = [(4, b"s 1 8\ns 2 8\ns 3 8\n"), (8, b"s 4 8\ns 5 8\ns 6 8\ns 7"), (9, b" 8\n")]
    marks, flags = steps(r"s (?P<step>\d) (?P<samples>\d)", chunks)
    assert (marks, flags) == ([(3, 24, None), (3, 24, None), (1, 8, None)], ["output_in_blocks"])


def test_steps_without_times_are_told_without_the_time_of_a_step() -> None:
    record = rows.record()
    measured = record.measurement.changed(step_seconds=[], step_flags=["output_in_blocks"], steps=40)
    (table,) = [block for block in blocks(record.changed(measurement=measured)) if isinstance(block, Table)]
    heads = [row[0] for row in table.rows]
    assert ("throughput" in heads, "step" in heads) == (True, False)


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "PATIENCE_SECONDS", 0.05)
    assert steps(r"(\w+)*(\w+)*(\w+)*\d\1", each(["a" * 2000] * 3)) == ([], ["slow_pattern"])


@pytest.mark.parametrize(
    "line",
    [
        "_" * 60_000,
        " " * 60_000 + "x n 5",
        "-" * 60_000 + "x n 5",
        "x n 5 " + "1" * 30_000 + "a" * 30_000 + "1",
        "it" * 30_000 + "x n 5 64 tok/s 5000",
        "it" * 30_000 + "x " + "_" * 100 + " n 5 64 tok/s 5000",
    ],
)
def test_a_line_takes_no_time_that_grows_with_the_square_of_its_length(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "LONGEST", 100_000)
    lines, begin = candidates.Candidates(), time.process_time()
    lines.add(line, 0, 0)
    lines.offer()
    assert len(arrived(r"n (?P<step>\d+)(?: (?P<samples>\d+))?", each([line]))) == (" n 5" in line)
    redact(line)
    assert time.process_time() - begin < 5  # of the processor, where the square takes over 15


def test_a_counter_in_a_line_has_all_of_its_name() -> None:
    for text, name in (("a_b_step: 5", "a_b_step"), ("1_step 5", "step"), ("_iter 5", "iter"), ("(Batch 5)", "Batch")):
        match = candidates._COUNTER.search(text)
        assert match is not None
        assert match[1] == name
    assert candidates._COUNTER.search("footstep 5") is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("(?P<sampels>.)", "unknown group 'sampels': did you mean 'samples'"),
        ("(?P<window_seconds>.)", "wattbench has a figure of this name"),
        (r"(?P<seconds>\d)(?P<milliseconds>\d)", "not both"),
        (r"(?P<tokens>\d)(?P<tokens_total>\d)", "not both"),
    ],
)
def test_patterns_that_cannot_be_used(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pattern(pattern)


# --- logs of any kind: the right rate, or a flag

HARMLESS = {"validation_left_out", "times_of_script", "batches_are_steps"}
"""Flags with which the rates must be right, too."""


@dataclass(frozen=True)
class Form:
    """How a training prints its steps: patterns that a user may give, and how lines of a validation look.

    A validation names itself, or only its total differs.
    """

    text: str
    patterns: tuple[tuple[str | None, dict[str, int]], ...]
    validations: tuple[str, ...] = ()
    header: str = ""
    after: str = ""


@dataclass(frozen=True)
class Log:
    """A training that prints: `count` steps of 0.1 s and 8 samples by all ranks, in one of many formats.

    After some steps, it validates for `validation` batches of 0.03 s. `onward`: its counter goes on over the epochs.
    """

    form: Form
    text: str
    pattern: str | None
    how: dict[str, int]
    count: int
    every: int
    ranks: int
    epochs: int
    onward: bool
    offset: int
    end: str
    block: int
    validation: int
    validated: int
    check: str
    seed: int

    def lines(self) -> list[tuple[float, str]]:
        draw, out, now = random.Random(self.seed), list[tuple[float, str]](), 0.0  # noqa: S311

        def put(text: str, step: int, total: int, number: int) -> None:
            for _ in range(self.ranks):
                loss = 9 - number * 0.001 + draw.random() * 0.2
                line = text.format(
                    s=step, b=8 // self.ranks, t=8 * number, n=total, loss=loss, e=epoch, p=100 * step // total
                )
                out.append((now + draw.random() * 0.001, line))

        for epoch in range(self.epochs):
            if self.form.header:
                out.append((now, self.form.header.format(e=epoch + 1, n=self.epochs)))
            for own in range(1, self.count + 1):
                now += 0.1
                number = epoch * self.count + own
                step = number if self.onward else own
                if own % self.every == 0:
                    put(self.form.text, step - self.offset, self.count * (self.epochs if self.onward else 1), number)
                    if self.form.after and own % (5 * self.every) == 0:
                        put(self.form.after, step, self.count, number)
                if self.check and own % self.validated == 0:
                    for batch in range(1, self.validation + 1):
                        now += 0.03
                        if batch % self.every == 0:
                            put(self.check, batch, self.validation, number)
            now += 0.0 if self.onward else 3.0
        return sorted(out, key=lambda line: line[0])

    @property
    def silent(self) -> bool:
        """Whether lines of the validation tell the reader nothing, so that its time belongs to the steps around it."""
        line = self.check.format(s=1, b=1, t=1, n=2, loss=2.0, e=1, p=50) + "\n"
        return bool(self.check) and not any("text" in mark for mark in arrived(self.pattern, [(1.0, line.encode())]))

    def chunks(self) -> list[tuple[float, bytes]]:
        lines = [(t, text + self.end) for t, text in self.lines()]
        if not self.block:
            return [(t, text.encode()) for t, text in lines]
        out, full = list[tuple[float, bytes]](), b""
        for t, text in lines:
            full += text.encode()
            while len(full) >= self.block:
                out.append((t, full[: self.block]))
                full = full[self.block :]
        return [*out, (lines[-1][0] + 0.5, full)]


FORMS = (
    Form(
        "step {s}/{n} loss {loss:.4f} samples {b}",
        (
            (r"step (?P<step>\d+)/", {}),
            (r"step (?P<step>\d+)/.* samples (?P<samples>\d+)", {}),
            (r"step \d+/", {}),
            (r"step \d+/", {"steps_per_line": 1}),
            (r"loss (?P<loss>\S+) samples (?P<samples>\d+)", {}),
        ),
        (
            "val step {s}/{n} loss {loss:.4f} samples {b}",
            "step {s}/{n} loss {loss:.4f} samples {b}",
            "val loss {loss:.4f}",
        ),
    ),
    Form(
        "\x1b[31m[rank]\x1b[0m it: {s:6,} | consumed {t:12,} | {loss:.3E}",
        (
            (r"it: +(?P<step>[\d,]+).*consumed +(?P<samples_total>[\d,]+)", {}),
            (r"consumed +(?P<samples_total>[\d,]+)", {}),
            (r"consumed +(?P<samples>[\d,]+)", {}),
        ),
        ("[Eval] it: {s:6,} | consumed {t:12,} | {loss:.3E}", "it: {s:6,} | consumed {t:12,} | {loss:.3E}"),
    ),
    Form("loss {loss:.6f}", (("loss", {}), ("loss", {"steps_per_line": 1})), ("Validation loss {loss:.6f}",)),
    Form(
        "10:20:31 done {s}",
        ((r"done (?P<step>\d+)", {"samples_per_step": 8}), ("done", {"samples_per_step": 8})),
        ("10:20:31 done {s}", "10:20:31 test done {s}"),
    ),
    Form(
        "iter {s}: loss {loss:.4f}, time 100.00ms, mfu 30.10%",
        (
            (None, {"samples_per_step": 8}),
            (r"iter (?P<step>\d+): .*time (?P<milliseconds>[\d.]+)ms", {}),
            (r"iter (?P<step>\d+): .*time (?P<seconds>[\d.]+)", {}),
            (r"iter \d+: .*time (?P<milliseconds>\S+),", {"steps_per_line": 1}),
        ),
        ("step {s}: train loss {loss:.4f}, val loss {loss:.4f}",),
    ),
    Form(
        " iteration {s:8d}/{n:8d} | consumed samples: {t:12d} | elapsed time per iteration (ms): 100.0 |"
        " lm loss: {loss:.6E} |",
        ((None, {}), (r"iteration +(?P<step>\d+)/.*samples: +(?P<samples_total>\d+)", {})),
        (" validation loss at iteration {t} | lm loss value: {loss:.6E} |",),
    ),
    Form(
        "{p:3d}%|████      | {s}/{n} [00:01<00:19,  9.9it/s, loss={loss:.3f}]",
        ((None, {}), (r"(?P<step>\d+)/\d+ \[", {})),
        (
            "Val: {p:3d}%|███       | {s}/{n} [00:01<00:19, 33.0it/s]",
            "{p:3d}%|███       | {s}/{n} [00:01<00:19, 33.0it/s]",
        ),
    ),
    Form(
        "Epoch {e}: {p:3d}%|████      | {s}/{n} [00:01<00:19,  9.9it/s, v_num=0]",
        ((None, {"samples_per_step": 8}),),
        ("Validation DataLoader 0: {p:3d}%|███       | {s}/{n} [00:01<00:19, 33.0it/s]",),
    ),
    Form(
        "{p:3d}%|████      | {s}/{n} [00:01<00:19,  9.9it/s]",
        ((None, {"samples_per_step": 8}),),
        ("{p:3d}%|███       | {s}/{n} [00:01<00:19, 33.0it/s]",),
        after="{{'loss': '{loss:.3f}', 'grad_norm': '0.4', 'epoch': '0.1'}}",
    ),
    Form(
        "{s}/{n} ━━━━━━━━━━━━━━━━━━━━ 2s 100ms/step - accuracy: 0.5 - loss: {loss:.4f}",
        ((None, {"samples_per_step": 8}),),
        ("{s}/{n} ━━━━━━━━━━━━━━━━━━━━ 0s 30ms/step - accuracy: 0.5 - loss: {loss:.4f}",),
        header="Epoch {e}/{n}",
    ),
    Form(
        "Train: {e} [{s:>4d}/{n} ( 50%)]  Loss: {loss:#.3g} (6.9)  Time: 0.100s,   80.00/s  (0.100s,   80.00/s)",
        ((None, {"samples_per_step": 8}), (r"\[ *(?P<step>\d+)/\d+ ", {"samples_per_step": 8})),
        ("Test: {e} [{s:>4d}/{n} ( 50%)]  Loss: {loss:#.3g} (6.9)  Time: 0.030s",),
    ),
    Form(
        "[titan] root - INFO - \x1b[31mstep: {s:2}  \x1b[32mloss: {loss:7.4f}  \x1b[34mtps: 16,384  mfu: 31.2%\x1b[0m",
        ((None, {"tokens_per_step": 8}),),
        ("[titan] root - INFO - \x1b[31mvalidate step: {s:2}  \x1b[32mloss: {loss:7.4f}  \x1b[34mtps: 16,384",),
    ),
)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    form = draw(st.sampled_from(FORMS))
    pattern, how = draw(st.sampled_from(form.patterns))
    count_, epochs = draw(st.integers(20, 60)), draw(st.integers(1, 3))
    onward, every = draw(st.booleans()) and not form.header, draw(st.sampled_from([1, 1, 2, 5]))
    return Log(
        form=form,
        text=form.text,
        pattern=pattern,
        how=how | ({"steps_per_line": every} if "steps_per_line" in how else {}),  # what users say is true
        count=count_,
        every=every,
        ranks=draw(st.sampled_from([1, 1, 2, 4])),
        epochs=epochs,
        onward=onward,
        offset=draw(st.integers(0, 1)),
        end=draw(st.sampled_from(["\n", "\n", "\r", "\r\n"])),
        block=draw(st.sampled_from([0, 0, 512, 4096])),
        validation=draw(st.sampled_from([5, 20, count_])),
        validated=count_ if form.header else draw(st.sampled_from([count_, count_, 10, 15])),
        check=draw(st.sampled_from(["", *form.validations])),
        seed=draw(st.integers(0, 999)),
    )


def wrong(log: Log, folder: Path) -> str:
    """Return what is wrong in the figures of a log without a flag; nothing where they are right, absent or flagged."""
    path, chunks = folder / "steps", log.chunks()
    path.write_text("".join(json.dumps(line) + "\n" for line in arrived(log.pattern, chunks)))
    ended = Ended(0, 0, round((chunks[-1][0] + 1) * S), cpu_seconds=1.0, peak_memory_bytes=None)
    found = measurement(path, ended, 1, "cpu", Printed(log.pattern, **log.how))
    if {*found.step_flags} - HARMLESS or not found.steps or log.silent:
        return ""
    rates = {"steps": (found.steps, 10.0), "samples": (found.samples, 80.0), "tokens": (found.tokens, 80.0)}
    seen = {name: value / found.window_seconds for name, (value, _) in rates.items() if value is not None}
    far = [name for name, rate in seen.items() if abs(rate / rates[name][1] - 1) > 0.02]
    far += ["step"] if found.step_seconds and abs(median(found.step_seconds) / 0.1 - 1) > 0.05 else []
    return f"{far} {seen} {found.step_flags} {log}" if far else ""


@settings(max_examples=200, derandomize=True, deadline=None)
@given(logs())
def test_no_log_gives_a_wrong_rate_without_a_flag(tmp_path_factory: pytest.TempPathFactory, log: Log) -> None:
    assert wrong(log, tmp_path_factory.getbasetemp()) == ""
