"""Steps that a command prints: what counts as a step, and what is left out with a flag."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.say.blocks import Table
from analytics.say.measure import blocks
from bench.figures.flags import FLAGS
from bench.run.own_steps import Ended, measurement
from bench.workloads import printed
from bench.workloads.printed import BadPattern, Printed, Reader, check_pattern, count
from tests import rows

S = 10**9


def arrived(pattern: str, chunks: Iterable[tuple[float, bytes]]) -> list[dict[str, Any]]:
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
    r"step (?P<step>[\d.]+)": [(["step 0.1", "step 0.2"], [ONE] * 2, ["steps_unchecked"])],
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
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("(?P<lost>.)", "groups are step, samples, tokens, samples_total, tokens_total and loss, not lost"),
        (r"(?P<tokens>\d)(?P<tokens_total>\d)", "not both"),
    ],
)
def test_patterns_that_cannot_be_used(pattern: str, message: str) -> None:
    with pytest.raises(BadPattern, match=message):
        check_pattern(pattern)


# --- logs of any kind: the right rate, or a flag


@dataclass(frozen=True)
class Log:
    """A training that prints: `count` steps of 0.1 s and 8 samples by all ranks, in one of many formats."""

    count: int
    every: int
    ranks: int
    epochs: int
    offset: int
    end: str
    form: str
    pattern: str
    block: int
    how: dict[str, int]
    seed: int

    def chunks(self) -> list[tuple[float, bytes]]:
        draw, lines = random.Random(self.seed), list[tuple[float, str]]()  # noqa: S311
        for number in range(1, self.count * self.epochs + 1):
            own = (number - 1) % self.count + 1
            if own % self.every == 0:
                pause = 3.0 * ((number - 1) // self.count)
                for _ in range(self.ranks):
                    loss = 9 - number * 0.001 + draw.random() * 0.2
                    text = self.form.format(
                        s=own - self.offset, b=8 // self.ranks, t=8 * number, n=self.count, loss=loss
                    )
                    lines.append((pause + 0.1 * number + draw.random() * 0.001, text + self.end))
        lines.sort(key=lambda line: line[0])
        if not self.block:
            return [(t, text.encode()) for t, text in lines]
        out, full = list[tuple[float, bytes]](), b""
        for t, text in lines:
            full += text.encode()
            while len(full) >= self.block:
                out.append((t, full[: self.block]))
                full = full[self.block :]
        return [*out, (lines[-1][0] + 0.5, full)]


FORMS = {
    "step {s}/{n} loss {loss:.4f} samples {b}": (
        (r"step (?P<step>\d+)/", {}),
        (r"step (?P<step>\d+)/.* samples (?P<samples>\d+)", {}),
        (r"step \d+/", {}),
        (r"loss (?P<loss>\S+) samples (?P<samples>\d+)", {}),
    ),
    "\x1b[31m[rank]\x1b[0m it: {s:6,} | consumed {t:12,} | {loss:.3E}": (
        (r"it: +(?P<step>[\d,]+).*consumed +(?P<samples_total>[\d,]+)", {}),
        (r"consumed +(?P<samples_total>[\d,]+)", {}),
        (r"consumed +(?P<samples>[\d,]+)", {}),
    ),
    "loss {loss:.6f}": (("loss", {}),),
    "10:20:31 done {s}": ((r"done (?P<step>\d+)", {"samples_per_step": 8}), ("done", {"samples_per_step": 8})),
}


@st.composite
def logs(draw: st.DrawFn) -> Log:
    form = draw(st.sampled_from(sorted(FORMS)))
    pattern, how = draw(st.sampled_from(FORMS[form]))
    return Log(
        count=draw(st.integers(20, 60)),
        every=draw(st.sampled_from([1, 1, 2, 5])),
        ranks=draw(st.sampled_from([1, 1, 2, 4])),
        epochs=draw(st.integers(1, 3)),
        offset=draw(st.integers(0, 1)),
        end=draw(st.sampled_from(["\n", "\n", "\r", "\r\n"])),
        form=form,
        pattern=pattern,
        block=draw(st.sampled_from([0, 0, 512, 4096])),
        how=how,
        seed=draw(st.integers(0, 999)),
    )


def wrong(log: Log, folder: Path) -> str:
    """Return what is wrong in the figures of a log without a flag; nothing where they are right, absent or flagged."""
    path, chunks = folder / "steps", log.chunks()
    path.write_text("".join(json.dumps(line) + "\n" for line in arrived(log.pattern, chunks)))
    ended = Ended(0, 0, round((chunks[-1][0] + 1) * S), cpu_seconds=1.0, peak_memory_bytes=None)
    found = measurement(path, ended, 1, "cpu", Printed(log.pattern, **log.how))
    if found.step_flags or not found.steps:
        return ""
    rates = {"steps": (found.steps, 10.0), "samples": (found.samples, 80.0)}
    seen = {name: value / found.window_seconds for name, (value, _) in rates.items() if value is not None}
    far = [name for name, rate in seen.items() if abs(rate / rates[name][1] - 1) > 0.02]
    return f"{far} {seen} {log}" if far else ""


@settings(max_examples=200, derandomize=True, deadline=None)
@given(logs())
def test_no_log_gives_a_wrong_rate_without_a_flag(tmp_path_factory: pytest.TempPathFactory, log: Log) -> None:
    assert wrong(log, tmp_path_factory.getbasetemp()) == ""
