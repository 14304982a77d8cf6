"""Someone else's table of results -> rows of runs, of provenance `imported`. What cannot be used is told line by line.

A row is what `metrics.row` would make of a run. Nothing is guessed: a column counts by its name and units or by what the
user says it is. Only what follows is added: rates from each other, and the work from parameters and sequence, as plans
count it. Columns that say one thing twice are checked against each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from analytics.runs.cells import FIGURES, LENGTH, MOST, PRECISIONS, RATES, SPEEDS, Column, RowValues, read
from analytics.runs.columns import WITHOUT_SPEED, Columns, read_columns
from analytics.runs.frame import NUMBERS
from analytics.runs.selection import own_runs
from analytics.runs.steps import one_row_a_run
from analytics.runs.tables import REPEATED, read_table
from analytics.text import counted, number, percent, printable
from analytics.work import Work, language_model
from bench.errors import UserError
from bench.figures.metrics import peak_flops
from bench.files import write_text
from bench.folder import IMPORTED
from bench.record import Provenance, Status
from bench.schema import Scalar
from bench.store.sync import sync
from bench.store.tracker import StoreError

_NOT_ASKED = {*NUMBERS, *RATES, "repeat", "seed", "started_at", "region", "host", "status"}
_NOT_ASKED -= {"parameters", "flops_per_sample"}
_AGREE, _SAME_STEP = 0.02, 0.1
"""Figures that follow from each other differ by less; a median step and a mean speed, and utilizations, by less."""
_CONTRADICTION = re.compile(r"disagree|in one column and")


@dataclass
class Imported:
    """What became of a file: rows of runs, lines that are no use with the reason, and what is to be known of the rest."""

    suite: str
    columns: list[Column]
    ignored: list[str]
    execution: str = ""
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rounded:
    """A positive figure, and the smallest and the largest one that its printed digits allow."""

    value: float
    least: float
    most: float

    @classmethod
    def of(cls, value: float, rounding: float) -> _Rounded:
        return cls(value, value - rounding, value + rounding)

    def over(self, count: float) -> _Rounded:
        """Return `count` / figure."""
        return _Rounded(count / self.value, count / self.most, count / self.least if self.least > 0 else math.inf)

    def exceeds(self, other: _Rounded, near: float = _AGREE) -> bool:
        """Return whether it is larger than another figure by more than `near`, whatever their digits hide."""
        return self.least > other.most * (1 + near)

    def contradicts(self, other: _Rounded, near: float = _AGREE) -> bool:
        """Return whether it cannot be the same as another figure."""
        return self.exceeds(other, near) or other.exceeds(self, near)


def _settled(name: str, first: float, other: float, roundings: tuple[float, float]) -> tuple[float, float]:
    """Return the less rounded of two figures that say one thing, and its rounding. Raises ValueError where they disagree."""
    if _Rounded.of(first, roundings[0]).contradicts(_Rounded.of(other, roundings[1])):
        raise ValueError(f"{name} {number(first)} and the {number(other)} of the other columns disagree")
    return (first, roundings[0]) if roundings[0] / first <= roundings[1] / other else (other, roundings[1])


def _add_nodes(row: dict[str, Any], column: str) -> None:
    """Add the number of devices, or check it. Raises ValueError where it is missing or not that of the nodes.

    Those of a `column` with a name may be the devices of one node.
    """
    nodes, each = row.get("num_nodes"), row.get("devices_per_node")
    if column and (nodes or 1) > 1 and not each and "devices" in row:
        name = printable(column)
        raise ValueError(
            f"{row['devices']} devices may be those of all {nodes} nodes or of each: "
            f"give --map '{name}=devices' or --map '{name}=devices_per_node'"
        )
    if nodes and each and row.setdefault("devices", nodes * each) != nodes * each:
        raise ValueError(f"devices {row['devices']} are not num_nodes {nodes} x devices_per_node {each}")
    if "devices" not in row:
        raise ValueError("no number of devices")


def _add_speeds(row: dict[str, Any], reading: RowValues, *, median: bool) -> None:
    """Add speeds that follow from others. Raises ValueError where they contradict each other, or were rounded to nothing.

    The time of a step is the `median` where its column says so: then it may differ more from the mean.
    """
    devices, length, rounding = row["devices"], row.get(LENGTH), dict(reading.rounding)

    def settle(name: str, value: float, its: float) -> None:
        if name in row:
            value, its = _settled(name, row[name], value, (rounding.get(name, 0.0), its))
        row[name], rounding[name] = value, its

    for speed, rate in zip(SPEEDS, RATES, strict=True):
        if rate in row:
            settle(speed, row[rate] * devices, rounding.get(rate, 0.0) * devices)
    samples, tokens = SPEEDS
    if length and samples in row:
        settle(tokens, row[samples] * length, rounding.get(samples, 0.0) * length)
    if length and tokens in row:
        row[samples], rounding[samples] = row[tokens] / length, rounding.get(tokens, 0.0) / length
    batches, step, seconds = _batches(row), row.get("step_seconds_median"), row.get("duration_seconds")
    batch = row.get("global_batch_size")
    if batch and step:
        implied = _Rounded.of(step, rounding.get("step_seconds_median", 0.0)).over(batch)
        if samples not in row:
            row[samples], rounding[samples] = implied.value, implied.most - implied.value
        if length:
            row.setdefault(tokens, implied.value * length)
    if batches and step and samples in row:
        _check_speed(row, rounding, batches, near=_SAME_STEP if median else _AGREE)
    if (count := row.get("steps")) and seconds:
        _check_duration(row, rounding, count, min(batches, default=0.0))
    for name, its in reading.zeros.items():
        per, speed = devices if name in RATES else 1, name.removesuffix("_per_device")
        if (row.get(speed, MOST) - rounding.get(speed, 0.0)) / per > its:
            raise ValueError(f"{name} '0': must be greater than 0")
    row |= {rate: row[speed] / devices for speed, rate in zip(SPEEDS, RATES, strict=True) if speed in row}


def _batches(row: Mapping[str, Any]) -> list[float]:
    """Return the samples of a step by the batch size: one figure, or all that it may mean.

    It may be that of all devices or of each, in samples or in tokens; that of each may be a part of an accumulation.
    """
    if batch := row.get("global_batch_size"):
        return [batch]
    devices, more = row["devices"], (1, row.get("gradient_accumulation_steps", 1))
    if batch := row.get("batch_size_per_device"):
        return [batch * devices * times for times in more]
    batch = row.get("workload_args.batch_size")
    if not isinstance(batch, float) or batch <= 0:
        return []
    return [
        batch * count * times / unit for count in (1, devices) for times in more for unit in {1, row.get(LENGTH, 1)}
    ]


def _check_speed(
    row: Mapping[str, Any], rounding: Mapping[str, float], batches: Sequence[float], *, near: float
) -> None:
    """Check samples per second against those of batch size and step time. Raises ValueError where none of them is near."""
    stated = _Rounded.of(row[SPEEDS[0]], rounding.get(SPEEDS[0], 0.0))
    step = _Rounded.of(row["step_seconds_median"], rounding.get("step_seconds_median", 0.0))
    implied = [step.over(batch) for batch in sorted(batches)]
    if all(rate.contradicts(stated, near) for rate in implied):
        both = f"{number(stated.value)} and the {' or '.join(dict.fromkeys(number(rate.value) for rate in implied))}"
        raise ValueError(f"samples_per_second {both} of batch size / step_seconds disagree")


def _check_duration(row: Mapping[str, Any], rounding: Mapping[str, float], count: float, batch: float) -> None:
    """Raise ValueError where so many steps take longer than a run did. Its start takes time too, so they may be shorter."""
    samples, step = SPEEDS[0], row.get("step_seconds_median")
    seconds = _Rounded.of(row["duration_seconds"], rounding.get("duration_seconds", 0.0))
    if batch and samples in row:
        least, stated = seconds.over(count * batch), _Rounded.of(row[samples], rounding.get(samples, 0.0))
        if least.exceeds(stated):
            both = f"{number(stated.value)} and the {number(least.value)}"
            raise ValueError(f"samples_per_second {both} of steps x batch size / duration_seconds disagree")
    if step and _Rounded.of(count * step, count * rounding.get("step_seconds_median", 0.0)).exceeds(seconds):
        both = f"{number(seconds.value)} and the {number(count * step)}"
        raise ValueError(f"duration_seconds {both} of steps x step_seconds disagree")


def _derived(reading: RowValues, found: Columns) -> dict[str, Scalar]:
    """Add what follows. Raises ValueError where devices or a speed are missing, or figures contradict each other."""
    row: dict[str, Any] = {**found.fixed, **reading.values}
    _add_nodes(row, found.per_node)
    if reading.status is not Status.OK:  # it has no result
        kept = {*FIGURES} - (_NOT_ASKED & {*NUMBERS, *RATES})
        return {name: value for name, value in row.items() if name in kept or name not in FIGURES}
    _add_speeds(row, reading, median=found.median_step)
    if not {*SPEEDS, *WITHOUT_SPEED} & row.keys():
        raise ValueError("no speed: samples_per_second and tokens_per_second are empty")
    if row.get(LENGTH) and "parameters" in row:
        row.setdefault("flops_per_sample", _work(row).per_sample)
    if {"flops_per_sample", "samples_per_second"} <= row.keys():
        row["flops_per_second_per_device"] = row["flops_per_sample"] * row["samples_per_second"] / row["devices"]
    if "flops_per_sample" in {*found.fixed, *reading.values} and (share := _utilization(row)):
        stated = row.get("model_flops_utilization", share)
        if abs(stated / share - 1) > _SAME_STEP:
            raise ValueError(
                f"model_flops_utilization {percent(stated)} and the {percent(share)} of work, speed and peak disagree"
            )
    for part, label in (("joules", "energy_provenance"), ("emissions", "emissions_basis"), ("cost", "cost_basis")):
        if any(part in key for key in row):
            row[label] = str(Provenance.IMPORTED)
    figures = {name: abs(value) for name, value in row.items() if isinstance(value, float) and value}
    for name, value in figures.items():
        if not 1 / MOST <= value <= MOST:
            raise ValueError(f"{name} would be {number(value)}, which cannot be meant")
    return row


def _utilization(row: Mapping[str, Any]) -> float | None:
    """Model FLOP utilization by work, speed and the peak of the device; None where one of them is not known."""
    peak = peak_flops(str(row.get("device_name")), str(row.get("precision")))
    rate = row.get("flops_per_second_per_device")
    return rate / peak if peak and rate else None


def _work(row: Mapping[str, Any]) -> Work:
    """The work of a sample by parameters and sequence; by layers and hidden size too, where both are known as numbers."""
    shape = [row.get(f"workload_args.{name}") for name in ("layers", "hidden")]
    layers, hidden = shape if all(isinstance(v, float) and v > 0 for v in shape) else (None, None)
    return language_model(row["parameters"], row[LENGTH], sequence=row[LENGTH], layers=layers, hidden=hidden)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def imported(
    path: Path,
    maps: Iterable[str],
    settings: Sequence[str],
    suite: str,
    now: datetime | None = None,
    decimal: str | None = None,
) -> Imported:
    """Read a table of results as runs of a suite; rows of one configuration are its repeats.

    A run began when it was imported, unless the file has a column `started_at`. The name of the execution follows from the
    rows, so that the same file gives the same execution. `decimal` is the mark before fractions, where the file does not
    show it. Raises UserError; rows that are of no use do not.
    """
    table = one_row_a_run(read_table(path))
    found = read_columns(table, maps, settings, decimal)
    used = {column.name for column in found.columns}
    out = Imported(suite, found.columns, [name for name in table.names if name not in used])
    out.notes += [*table.notes, *found.notes]
    seen: dict[str, int] = {}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line, cells in table.rows:
        try:
            _check_cells(cells)
            reading = read(found.columns, cells, found.decimal)
            found.complete(reading, cells)
            row = _derived(reading, found)
            known = {**found.fixed, **reading.values, "status": str(reading.status)}
            asked = {key: value for key, value in known.items() if key not in _NOT_ASKED}
            config = _hash(asked)
            others = {name: str(cells.get(name)) for name in out.ignored}
            key = _hash([config, known["repeat"]] if "repeat" in known else [known, others])
            if key in seen:
                raise ValueError(f"the same run as line {seen[key]}")
        except ValueError as error:
            out.refused.append((line, printable(error, 200)))
            continue
        seen[key] = line
        repeat = known.get("repeat", len(groups[config]))
        label = printable(" ".join(f"{key.split('.')[-1]}={value}" for key, value in asked.items()), 200)
        row |= {"config_id": config, "repeat": repeat, "run_id": f"imported-{config}-r{repeat}", "label": label}
        groups[config].append(cells)
        out.rows.append({**row, "status": str(reading.status)})
    _identify(out, now or datetime.now(UTC))
    texts = [text.partition("=")[2] for text in settings if text.startswith("precision=")]
    texts += [str(cells.get(c.name)) for c in found.columns if c.target == "precision" for _, cells in table.rows]
    _remark(out, found.fixed, texts, [group for group in groups.values() if len(group) > 1])
    return out


def _check_cells(cells: Mapping[Any, Any]) -> None:
    """Refuse a row that is none, or whose cells cannot be told apart. Raises ValueError."""
    if not cells:
        raise ValueError("no JSON object")
    if None in cells:
        raise ValueError("it has more cells than there are columns")
    if REPEATED in cells:
        raise ValueError(f"the key {printable(cells[REPEATED])!r} stands twice")


def _identify(out: Imported, now: datetime) -> None:
    """Give the rows what all runs have; they keep their order, a microsecond apart."""
    out.execution = f"imported-{_hash(out.rows)}"
    own: dict[str, Scalar] = {"suite": out.suite, "execution": out.execution, "environment": "imported"}
    own |= {"flags": "imported"}
    for index, row in enumerate(out.rows):
        began = (now + timedelta(microseconds=index)).isoformat()
        out.rows[index] = {"workload": "imported", "device_name": "unknown", "started_at": began, **row, **own}


def _remark(
    out: Imported, fixed: Mapping[str, Scalar], precisions: Sequence[str], pooled: list[list[Mapping[str, Any]]]
) -> None:
    """Say what was added, which precisions are called otherwise here, and what differs between rows taken for repeats."""
    given = {*(column.target for column in out.columns), *fixed}
    added = [row for row in out.rows if {"flops_per_sample", "parameters", LENGTH} <= row.keys()]
    if added and "flops_per_sample" not in given:
        work = _work(added[0])
        says = "; assumed: ".join(filter(None, (work.says[1], ", ".join(work.assumed))))
        out.notes.append(f"Work per sample is (6 × parameters + attention) × sequence length; first run: {says}")
        out.notes += _other_utilization(added)
    called = {text.strip(): PRECISIONS.get(text.strip().lower()) for text in precisions}
    out.notes += [
        f"Precision {name} is called {ours} here" for name, ours in sorted(called.items()) if ours not in (None, name)
    ]
    sizes = [row for row in out.rows if re.fullmatch(r"[\d.]+[bBmM]", str(row.get("workload_args.model")))]
    if sizes and "parameters" not in given:
        name = next((column.name for column in out.columns if column.target == "workload_args.model"), "model")
        out.notes.append(
            f"Sizes such as {sizes[0]['workload_args.model']} are names; to count them: --map '{name}=parameters'"
        )
    if any(_CONTRADICTION.search(reason) for _, reason in out.refused):
        out.notes.append("Where columns disagree, correct the file, or leave one out: --map 'COLUMN='")
    if pooled and "repeat" not in given:
        apart = [n for n in out.ignored if any(len({str(cells.get(n)) for cells in group}) > 1 for group in pooled)]
        differ = f"; not mapped, though they differ: {', '.join(map(printable, apart))}" if apart else ""
        out.notes.append(
            f"Rows of one configuration count as its repeats: {counted(len(pooled), 'configuration')}{differ}"
        )


def _other_utilization(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where the file's model FLOP utilization is neither with attention nor without it that of its speed."""
    pairs = [(row.get("model_flops_utilization"), _utilization(row), row) for row in rows]
    other = [
        (stated, share)
        for stated, share, row in pairs
        if stated
        and share
        # 6 N alone, or with attention: files differ in what they count.
        and not 0.9 * share * 6 * row["parameters"] * row[LENGTH] / row["flops_per_sample"] <= stated <= 1.1 * share
    ]
    if not other:
        return []
    stated, share = other[0]
    both = f"{percent(stated)}, by the speed it is {percent(share)}"
    return [f"{counted(len(other), 'row')} with an MFU that does not fit: {both}"]


def suite_of(path: Path, name: str | None) -> str:
    """Return the name of the suite of a table: as given, or that of the file. Raises UserError for a bad name."""
    suite = name if name is not None else re.sub(r"[^a-z0-9_]+", "-", path.stem.lower()).strip("-_")[:64]
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", suite):
        raise UserError(f"--suite {suite}: only lower-case letters, digits, - and _ are allowed, at most 64")
    return suite


def namesakes(table: Imported, store: str | None) -> int:
    """Return how many runs of other executions the store has under the name of a table."""
    runs = own_runs(store)
    return int(((runs["suite"] == table.suite) & (runs["execution"] != table.execution)).sum())


def keep(table: Imported, runs: Path, store: str | None) -> int:
    """Write the rows to a folder of their own, unless it exists, and log them; return how many were new in the store.

    Raises StoreError where the store fails; the rows are kept even then.
    """
    folder = runs / table.suite / table.execution
    if not (folder / IMPORTED).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / IMPORTED, "".join(json.dumps(row, allow_nan=False) + "\n" for row in table.rows))
    try:
        return sync(runs, store, folder)[0]
    except StoreError as error:
        raise StoreError(*error.messages, "the rows are kept: bench sync logs them later", code=error.code) from error
