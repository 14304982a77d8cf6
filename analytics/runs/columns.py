"""What the columns of a table of others are: by their names, their units, and what the user says. Nothing is guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

from analytics.amounts import written
from analytics.runs.cells import (
    FIGURES,
    LENGTH,
    RATES,
    SPEEDS,
    Column,
    RowValues,
    decimal_mark,
    dimension,
    empty,
    status_of,
    unit,
    value_of,
)
from analytics.runs.frame import WORDS
from analytics.runs.tables import FileTable
from analytics.text import printable
from bench.errors import BadValue, UserError
from bench.figures.regions import intensity
from bench.registry import did_you_mean
from bench.schema import AXES, Scalar

_OWN_NAMES = {"sequence_length": LENGTH, "step_seconds": "step_seconds_median"}
TARGETS = {*FIGURES, *WORDS, "device_name", "dataset", "host", "region", "started_at", "status", *_OWN_NAMES}
_OPTION = re.compile(rf"(workload_args|{'|'.join(AXES)})\.[A-Za-z0-9_-]{{1,60}}")
_FEW = 15
_USUAL = ("devices", *SPEEDS, "step_seconds", "parameters", "sequence_length", "precision", "parallelism")
WITHOUT_SPEED = (
    "duration_seconds",
    "run_energy_joules",
    "run_energy_joules_estimated",
    "energy_joules",
    "emissions_kg",
)
"""What a row may have instead of a speed: a training that was metered as a whole."""
_IN_SECONDS = {"s/it", "s/step"}
_NOT_SURE = {"train tokens per second", "tps"}
"""Tokens per second of all devices in some programs and of one in others."""
_TOTAL = re.compile(r"\b(total|world size)\b")
_PREFIX = re.compile(r"(params|metrics|config|summary|summary_metrics)[./]")


@cache
def _listed() -> dict[str, tuple[str, bool]]:
    """Return what columns are by their names in small words, and whether their unit must be told."""
    text = resources.files("analytics").joinpath("data/column_names.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return {name: (row["target"], row["unit_needed"] == "yes") for row in rows for name in row["names"].split("|")}


@dataclass(frozen=True)
class _Program:
    """Columns that a program writes: those by which it is known, and what its columns are, with their factors."""

    marks: frozenset[str]
    columns: dict[str, tuple[str, float]]
    note: str = ""


_CODECARBON = _Program(
    frozenset(("duration", "emissions", "energy_consumed")),
    {
        "duration": ("duration_seconds", 1.0),
        "emissions": ("emissions_kg", 1.0),
        "energy_consumed": ("run_energy_joules_estimated", 3.6e6),
        "project_name": ("workload_args.project", 1.0),
        "country_iso_code": ("region", 1.0),
        "region": ("", 1.0),
        "gpu_count": ("devices", 1.0),
        "gpu_model": ("device_name", 1.0),
    },
    "A table of codecarbon: devices are the GPUs that it saw, and its energy is estimated (memory always is)",
)
_PROGRAMS = (
    _CODECARBON,
    _Program(frozenset(("Name", "State", "Runtime")), {"Runtime": ("duration_seconds", 1.0)}),
    _Program(frozenset(("run_id", "experiment_id", "start_time")), {"start_time": ("started_at", 1.0)}),
)


@dataclass
class Columns:
    """The columns that are used, what is fixed for all rows, which mark begins fractions, and what is to be known.

    `per_node` is the column of devices that may be those of one node, or of all: "" where its name or the user says it.
    """

    columns: list[Column]
    fixed: dict[str, Scalar]
    decimal: str = "."
    notes: list[str] = field(default_factory=list)
    program: _Program | None = None
    per_node: str = ""

    @property
    def median_step(self) -> bool:
        """Whether the time of a step is said to be a median."""
        return any(c.target == "step_seconds_median" and re.search("median|p50", c.name.lower()) for c in self.columns)

    def complete(self, reading: RowValues, cells: Mapping[Any, Any]) -> None:
        """Take the state of codecarbon's region for the country, and its PUE out of the energy. Raises ValueError."""
        energy = reading.values.get("run_energy_joules_estimated")
        if self.program is not _CODECARBON or not isinstance(energy, int | float):
            return
        if not empty(cells.get("pue"), "pue"):
            reading.values["run_energy_joules_estimated"] = energy / float(value_of("factor", cells["pue"])[0])
        country, state = reading.values.get("region"), cells.get("region")
        try:
            code = intensity(str(state)).region
        except ValueError:  # no state whose grid is known
            return
        if country is not None and intensity(code[:2]).region == country:
            reading.values["region"] = code


def _words(name: str) -> str:
    """Return the name of a column in small words: `num gpus` of # GPUs, NumGpus or num_gpus."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name)
    text = re.sub(r"#", " num ", text)
    return " ".join(re.sub(r"[^a-z0-9/%$]+", " ", text.lower()).split()).replace("gpus num", "num gpus")


def _meaning(name: str) -> tuple[str, float | None] | None:
    """Return what a column is by its name, with the factor that its unit there gives, None without one."""
    plain = _PREFIX.sub("", name.strip())
    words = _words(plain)
    own = re.sub(r"[ /]+", "_", words)
    for target in (plain, own):
        if _is_known(target):
            return _OWN_NAMES.get(target, target), 1.0
    if words in _NOT_SURE:
        return None
    bracket = re.fullmatch(r"(.*?)\s*[\[(]([^\[\]()]*)[\])]\s*", plain)
    base, _, tail = words.rpartition(" ")
    pairs = [(_words(bracket[1]), bracket[2])] if bracket else []
    pairs += [(words, ""), (base, tail), *([(f"{_words(bracket[1])} {_words(bracket[2])}", "")] if bracket else [])]
    for text, its in pairs:
        named = text.replace(" ", "_")
        ours = _OWN_NAMES.get(named, named) if _is_known(named) else ""  # Parameters (billion)
        target, _ = _listed().get(text, (ours, False))
        if text in _IN_SECONDS:
            return target, 1.0
        if target and not its:
            return target, None
        if target and (found := unit(its, None if target.startswith("speed") else dimension(target))):
            rate = _rate(target, found[0])
            if rate or found[0] == dimension(target):
                return rate or target, found[1]
    # The name may be a unit itself: Tokens/s/GPU, train_samples_per_second.
    rate_words = re.sub(r"\b(throughput|speed|train|training|total|average|avg|mean)\b", " ", words)
    speed = unit(re.sub(r"\s+", " ", rate_words).strip().replace(" per ", "/").strip("/ "))
    return speed if speed is not None and speed[0] in SPEEDS + RATES else None


def target_of(name: str) -> str | None:
    """Return what a column is by its name alone, None where that is not sure."""
    meaning = _meaning(name)
    return None if meaning is None else meaning[0]


def _rate(target: str, found: str) -> str:
    """Return the speed that a column of speeds is in a unit: per device too where the name says so; "" where it is none."""
    if target not in ("speed", "speed_per_device") or found not in SPEEDS + RATES:
        return ""
    return found if target == "speed" or found in RATES else f"{found}_per_device"


def read_columns(table: FileTable, maps: Iterable[str], settings: Iterable[str], decimal: str | None = None) -> Columns:
    """Say what each column is: `COLUMN=OURS` or `COLUMN=OURS:FACTOR`, else by its name; and what `OURS=VALUE` fixes.

    `COLUMN=` leaves one out.

    Raises UserError with all mistakes, a line each.
    """
    wrong: list[str] = []
    fixed = _fixed(settings, wrong)
    columns = _mapped(table.names, maps, wrong)
    taken, mapped = {*(column.target for column in columns), *fixed}, {column.name for column in columns}
    columns = [column for column in columns if column.target]
    targets = [*(column.target for column in columns), *fixed]
    wrong += [f"{target} is given twice" for target in sorted({t for t in targets if targets.count(t) > 1})]
    out = Columns(columns, fixed)
    program = next((one for one in _PROGRAMS if one.marks <= {*table.names}), None)
    out.program = program
    out.notes += [program.note] if program is not None and program.note else []
    own: list[Column] = []
    for name in table.names:
        if name in mapped:
            continue
        column = _column(name, table, program, out.notes)
        if column is not None and column.target not in taken:
            own.append(column)
    if "devices" not in taken:
        counts = [c.name for c in own if c.target in ("devices", "device_name")]
        total = any(c.target == "devices" and (c.name == "devices" or _TOTAL.search(_words(c.name))) for c in own)
        out.per_node = "" if total else next(iter(counts), "")
    columns += own
    present = {*(column.target for column in columns), *fixed}
    if "devices" not in present and not {"num_nodes", "devices_per_node"} <= present and not wrong:
        named = [column for column in columns if column.target == "device_name"]
        if not any(re.match(r"\s*\d+\s*[x×*]", str(cells.get(c.name))) for c in named for _, cells in table.rows):
            wrong.append(_lacking(table, ("devices",)))
    rates = {*SPEEDS, *RATES, *WITHOUT_SPEED}
    from_steps = {"step_seconds_median", "global_batch_size"} <= present
    if not wrong and not rates & present and not from_steps:
        wrong.append(_lacking(table, ("tokens_per_second", "samples_per_second")))
        wrong += [note for note in out.notes if "--map" in note]
    if wrong:
        raise UserError(*wrong)
    out.decimal = decimal or _decimal(table, columns, out.notes)
    return out


def _lacking(table: FileTable, wanted: Sequence[str]) -> str:
    listed = ", ".join(map(printable, table.names[:_FEW])) + " ..." * (len(table.names) > _FEW)
    return f"no column is {' or '.join(wanted)}: give --map COLUMN={wanted[0]}, or --set; columns: {listed}"


def _fixed(settings: Iterable[str], wrong: list[str]) -> dict[str, Scalar]:
    fixed: dict[str, Scalar] = {}
    for text in settings:
        name, _, value = text.partition("=")
        try:
            target = known_name(name)
            if not value or target in fixed:
                raise ValueError(f"{target} is given twice" if value else "give NAME=VALUE")
            fixed[target] = value_of(target, value)[0]
        except ValueError as error:
            wrong.append(f"--set {text}: {error}")
    return fixed


def _mapped(names: Sequence[str], maps: Iterable[str], wrong: list[str]) -> list[Column]:
    columns = []
    for text in maps:
        name, _, rest = text.rpartition("=")
        target, _, factor = rest.partition(":")
        try:
            if name.strip() not in names:
                raise ValueError(f"no column {printable(name)!r}; {_near(name, names)}")
            columns.append(
                Column(name.strip(), target and known_name(target), float(value_of("factor", factor or "1")[0]))
            )
        except ValueError as error:
            wrong.append(f"--map {text}: {error}")
    return columns


def _column(name: str, table: FileTable, program: _Program | None, notes: list[str]) -> Column | None:
    """Return what a column is, by its name and the units of its cells; None, perhaps with a note, where that is not sure."""
    if program is not None and name in program.columns:
        ours, times = program.columns[name]
        return Column(name, ours, times) if ours else None
    meaning = _meaning(name)
    if meaning is None:
        parameter = name.removeprefix("params.")
        is_option = parameter != name and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", parameter)
        return Column(name, f"workload_args.{parameter}") if is_option else None
    target, factor = meaning
    if target in AXES and any(written(str(cells.get(name))) for _, cells in table.rows):
        return None  # a memory of 5 GB is no way to save memory
    if factor is not None or (target, True) not in _listed().values():
        return Column(name, target, factor or 1.0)
    cells = [cells.get(name) for _, cells in table.rows if not empty(cells.get(name), "devices")]
    return _by_cells(name, target, [cell for cell in cells if status_of(cell) is None], notes)


def _by_cells(name: str, target: str, cells: Sequence[Any], notes: list[str]) -> Column | None:
    """Return what a column without a unit in its name is, if its cells have one unit; those without one have it too."""
    parts = [written(re.sub(r"^(?:us)?\$\s*(.*)", r"\1 usd", str(cell), flags=re.IGNORECASE)) for cell in cells]
    units = [unit(part.suffix * (not part.unit) + part.unit, None) if part else None for part in parts]
    kinds = {found for found in units if found}
    bare = [str(cell) for cell, part in zip(cells, parts, strict=True) if part and not part.unit]
    shares = target == "model_flops_utilization"
    if shares and not kinds and bare:
        # A share is never above 1, so these are percent.
        return Column(name, target, 0.01 if any(part and part.value() > 1 for part in parts) else 1.0)
    if len(kinds) != 1 or (shares and bare):
        if bare or kinds:
            wanted = "tokens_per_second or samples_per_second" if target.startswith("speed") else f"{target}[:FACTOR]"
            why = "has several units" if len(kinds) > 1 else "has no unit" if not kinds else "has % in some cells only"
            notes.append(f"Column {printable(name)} {why}: give --map '{printable(name)}={wanted}'")
        return None
    (found,) = kinds
    final = _rate(target, found[0]) or (target if found[0] == dimension(target) else "")
    if not final:
        return None
    if bare:
        count = f"{len(bare)} of {len(cells)} cells without a unit"
        notes.append(f"Column {printable(name)}: {count} count in that of the others ({printable(bare[0])})")
    return Column(name, final, found[1])


def _decimal(table: FileTable, columns: Sequence[Column], notes: list[str]) -> str:
    """Return which mark begins fractions in a table of text. Raises UserError where a cell may be one number or another."""
    figures = [column.name for column in columns if column.target in FIGURES]
    texts = [
        (line, str(cells[name])) for line, cells in table.rows for name in figures if isinstance(cells.get(name), str)
    ]
    try:
        mark, point, comma = decimal_mark(text for _, text in texts)
    except ValueError as error:
        raise UserError(str(error)) from error
    unsure = (point if table.delimiter in (";", "\t", "|") else None) or (comma if table.delimiter == ";" else None)
    if not mark and unsure is not None:
        line = next(line for line, text in texts if text == unsure)
        raise UserError(
            f"line {line}: {unsure!r} may be a fraction or have its digits in groups: "
            "give --decimal . or --decimal , (the mark before a fraction)"
        )
    if not mark and comma is not None:
        notes.append(f"Commas group digits, as in {printable(comma)}; --decimal , reads them as fractions")
    return mark or "."


def _is_known(target: str) -> bool:
    return target in TARGETS or _OPTION.fullmatch(target) is not None


def known_name(target: str) -> str:
    """Return the name of a target. Raises ValueError with a suggestion for one that is unknown."""
    if not _is_known(target):
        raise BadValue(f"unknown name {printable(target)!r}: {_near(target, [*TARGETS], _USUAL)}")
    return _OWN_NAMES.get(target, target)


def _near(given: str, allowed: Sequence[str], usual: Sequence[str] = ()) -> str:
    """What may be meant; where nothing is near, what is usual."""
    return did_you_mean(given, allowed if get_close_matches(given, allowed) else usual or allowed[:_FEW])
