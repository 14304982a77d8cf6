"""The report of stored runs as data: the answer, figures, what was asked, where it ran, carbon, cost, and how to do it again.

Sections hold the blocks that a terminal shows, and more; `render.files` makes a file of them. All text is plain: it is
escaped where it is rendered, never here.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.runs.export import to_csv
from analytics.runs.frame import asked, summary
from analytics.say import advice, answer, factors
from analytics.say.answer import Found
from analytics.say.blocks import Block, Commands, Figure, Lines, Sentence, Table
from analytics.say.curves import curves, efficiency_figure, speed_figure
from analytics.say.names import full_names, spoken
from analytics.say.ratios import ratios
from analytics.say.results import execution_blocks
from analytics.say.terms import definitions, terms
from analytics.text import interval, number, printable, scale
from bench.record import RunRecord, Status

_LEFT_OUT = "making the hardware (embodied carbon), networks between machines, storage, and whatever no meter reads"
_LABELS = ("repeats", "failures", "energy_provenance", "energy_missing", "emissions_basis", "cost_basis", "grade")
_DRAWN = ("samples_per_second", "joules_per_sample", "joules_per_sample_estimated")
_READING = ("How sure it is", "Comparisons and decisions", "Grade of a run; its worst flag decides")
"""Subjects of terms that belong to a report."""


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; `key` names what it is, whatever its title."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """What a file is made of. `digest` is the SHA-256 of the runs as CSV; only `made_at` differs when it is made again.

    `document` makes the answer for programs, `runs` the frame of the runs.
    """

    title: str
    in_short: tuple[str, ...]
    sections: tuple[Section, ...]
    digest: str
    made_at: datetime
    document: Callable[[], dict[str, Any]] = field(compare=False)
    runs: pd.DataFrame = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text: the document, and the report in it."""
        sections = [asdict(section) for section in self.sections]
        head = {"title": self.title, "in_short": list(self.in_short), "sections": sections}
        return {
            **self.document(),
            "report": {**head, "digest_sha256": self.digest, "made_at": self.made_at.isoformat()},
        }


def make(
    df: pd.DataFrame,
    records: Sequence[RunRecord],
    made_at: datetime,
    command: Sequence[str],
    remarks: Sequence[str] = (),
) -> Report:
    """Make the report of a frame of runs, at least one, with the carbon and cost that they hold.

    `records` are those of the runs; one that has none is told without its machine and its factors.
    `command` makes the report again; `remarks` are sentences that belong to the carbon.
    """
    digest = hashlib.sha256(to_csv(df).encode()).hexdigest()
    executions = answer.find(df)
    short: list[str] = []
    sections: list[Section] = []
    for found in executions:
        suite, execution = found.runs["suite"].iloc[0], found.runs["execution"].iloc[0]
        several = f" ({suite} {execution})" if len(executions) > 1 else ""
        blocks = list(execution_blocks(found))
        short += [block.text for block in blocks if isinstance(block, Sentence) and block.role != "plain"]
        parts = _figures(found), _plain(blocks, "title", "answer"), [_labels(found)] if len(found.own) else []
        sections.append(Section("results", f"Results{several}", tuple(block for part in parts for block in part)))
        advised = tuple(_plain(advice.blocks(found.runs), "title"))
        sections.append(Section("advice", f"Advice{several}", advised))
        sections.append(Section("asked", f"What was asked{several}", tuple(_asked(found.runs))))
        if ran := [r for r in records if (r.suite, r.execution) == (suite, execution)]:
            sections.append(Section("machine", f"Machine and software{several}", (_machine(ran),)))
    sections += [_carbon(df, records, remarks), _cost(df, records), _again(records, command, digest)]
    reading = tuple(block for block in terms() if isinstance(block, Table) and block.caption in _READING)
    sections.append(Section("reading", "How to read this", reading))
    suites = list(dict.fromkeys(df["suite"]))
    devices = " and ".join(printable(name) for name in sorted(df["device_name"].dropna().unique()))
    title = f"{', '.join(suites[:3])}{' ...' if len(suites) > 3 else ''} on {devices}"
    sums = "; ".join(f"{label}: {value}" for label, value, _ in answer.totals(df) if value != "not known")
    short += [f"All runs together: {sums}."] if sums else []
    document = lambda: _document(answer.told(df, summary(df), executions), records)  # noqa: E731
    return Report(title, tuple(short), tuple(sections), digest, made_at, document, df)


def _plain(blocks: Iterable[Block], *roles: str) -> Iterator[Block]:
    """Leave out sentences of some roles, and commands, which name a store."""
    for block in blocks:
        if not isinstance(block, Commands) and getattr(block, "role", "") not in roles:
            yield block


def _document(answered: dict[str, Any], records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the answer as JSON with the carbon and cost of each run, and the factors that they rest on."""
    found = {
        (r.suite, r.execution, r.environment.fingerprint, r.run_id): r
        for r in sorted(records, key=lambda one: one.started_at)
    }
    for run in answered["runs"]:
        record = found.get((run["suite"], run["execution"], run["environment"], run["run_id"]))
        for name in ("carbon", "cost"):
            value = getattr(record, name, None)
            run[name] = None if value is None else value.model_dump(mode="json")
    return {"factors": factors.factors(records), **answered}


# --- figures


def _figures(found: Found) -> Iterator[Figure]:
    """Draw what tells most: the law where it was tested, else each comparison."""
    if found.tested:
        drawn = curves(found.law, found.own, None)
        yield from (figure for figure in (speed_figure(drawn), efficiency_figure(drawn)) if figure.groups)
    elif comparisons := found.steps or found.others:
        pairs = [(spoken(one.name), one) for one in comparisons]
        yield from (figure for metric in _DRAWN if (figure := ratios(pairs, metric)))


# --- what was asked, and where


def _labels(found: Found) -> Table:
    """Where the figures of each configuration come from."""
    names = full_names(found.names)
    words = definitions()["Provenance, best first"]
    cells = [["-" if pd.isna(x) or x == "" else words.get(str(x), str(x)) for x in found.own[name]] for name in _LABELS]
    headings = ("configuration", *(name.replace("_", " ") for name in _LABELS))
    rows = tuple(zip(names, *cells, strict=True))
    return Table("Labels: where the figures come from", headings, rows, figures=False, detail=True)


def _asked(runs: pd.DataFrame) -> Iterator[Table]:
    fields = [name for name in asked(runs) if runs[name].notna().any()]
    values = {name: list(dict.fromkeys(_cell(value) for value in runs[name])) for name in fields}
    repeats = runs.groupby("config_id").size()
    facts = {
        "suite": runs["suite"].iloc[0],
        "execution": runs["execution"].iloc[0],
        "begun": f"{runs['started_at'].min():%Y-%m-%d %H:%M:%S} UTC",
        "configurations": str(len(repeats)),
        "repeats": " to ".join(dict.fromkeys((str(repeats.min()), str(repeats.max())))),
        **{f"{name} (varied)": ", ".join(texts) for name, texts in values.items() if len(texts) > 1},
    }
    yield Table("The suite", ("", ""), tuple(facts.items()), figures=False)
    fixed = tuple((name, texts[0]) for name, texts in values.items() if len(texts) == 1)
    yield Table("The same in all runs", ("field", "value"), fixed, figures=False, detail=True)


def _cell(value: Any) -> str:
    return "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _machine(records: Sequence[RunRecord]) -> Table:
    """Facts of the machines, a column each; no variables of whoever ran it."""
    columns = {record.environment.fingerprint: _facts(record) for record in records}
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    rows = [(name, *(facts.get(name) or "-" for facts in columns.values())) for name in names]
    known = tuple(row for row in rows if {*row[1:]} != {"-"})
    return Table("Where it ran", ("", *("" for _ in columns)), known, figures=False)


def _facts(record: RunRecord) -> dict[str, str | None]:
    env, machine = record.environment, record.environment.machine
    gpus = pd.Series([gpu.name for gpu in machine.gpus], dtype="str").value_counts()
    return {
        "host": env.host,
        "GPUs": ", ".join(f"{count} × {name}" for name, count in gpus.items()),
        "processor": f"{machine.cpu_model} ({machine.cpu_count} processors)",
        "memory": None if machine.memory_bytes is None else f"{number(machine.memory_bytes / 1e9)} GB",
        "GPU driver": machine.driver_version,
        "CUDA of torch": env.torch_cuda,
        "ROCm of torch": env.torch_rocm,
        "system": f"{env.os}, kernel {env.kernel}",
        "Python": env.python,
        **env.packages,
        "wattbench commit": env.wattbench_commit,
        "fingerprint": env.fingerprint,
    }


# --- carbon, cost, again


def _sums(df: pd.DataFrame, *begins: str) -> list[tuple[str, str]]:
    return [(label, f"{value} ({note})") for label, value, note in answer.totals(df) if label.startswith(begins)]


def _carbon(df: pd.DataFrame, records: Sequence[RunRecord], remarks: Sequence[str]) -> Section:
    said = factors.words(records)
    rows = (
        *_sums(df, "Energy", "CO2e"),
        ("Energy rests on", said["energy"]),
        ("PUE of the data centre", said["pue"]),
        ("Carbon intensity", said["intensity"]),
        ("Method", "location-based: the mean of the grid that is named; contracts for green power are not counted"),
        ("In it", "all runs from start to end, with those that failed"),
        ("Not in it", _LEFT_OUT),
    )
    table = Table("Carbon = energy × PUE × intensity", ("", ""), rows, figures=False)
    quote = Lines(tuple(_statements(df, records, said)), "quote")
    return Section("carbon", "Carbon statement", (quote, table, *([Lines(tuple(remarks))] if remarks else [])))


def _statements(df: pd.DataFrame, records: Sequence[RunRecord], said: dict[str, str]) -> Iterator[str]:
    """Say what was emitted in sentences that can be quoted, one for measured and one for estimated energy."""
    suites = ", ".join(dict.fromkeys(df["suite"]))
    for basis, verb in (("measured", "emitted"), ("estimated", "emitted an estimated")):
        known = [r.carbon for r in records if r.carbon is not None and r.carbon.energy_basis == basis]
        if known:
            kwh = sum(carbon.energy_joules for carbon in known) / 3.6e6
            grams = 1000 * sum(carbon.emissions_kg for carbon in known)
            divisor, unit = scale(grams, "g")
            yield (
                f"{len(known)} training run{'s' * (len(known) > 1)} (suite {suites}, begun on "
                f"{df['started_at'].min():%Y-%m-%d}) {verb} {interval(grams / divisor)} {unit} CO2e: {number(kwh)} kWh of "
                f"{basis} energy, PUE {said['pue']}, {said['intensity']}, location-based; embodied carbon is not in it."
            )
    ran = [record for record in records if record.status is not Status.SKIPPED]
    if lacking := sum(record.carbon is None for record in ran):
        skipped = f"; {len(records) - len(ran)} skipped" if len(ran) < len(records) else ""
        why = f"energy {said['energy']}, {said['intensity']}{skipped}"
        yield f"The carbon of {lacking} of {len(ran)} runs is not known: {why}."


def _cost(df: pd.DataFrame, records: Sequence[RunRecord]) -> Section:
    costs = [record.cost for record in records if record.cost is not None]
    hours = sum(cost.devices * cost.billed_seconds for cost in costs) / 3600
    rows = [*(_sums(df, "Cost") if costs else [("Cost", "not known")]), ("Price", factors.words(records)["price"])]
    if costs:
        rows.append(("Device-hours", f"{number(hours)}, from the start of each run to its end, start-up included"))
        rows.append(("Not in it", "time between runs, storage, networks, staff"))
    return Section("cost", "Cost statement", (Table("Cost of whole runs", ("", ""), tuple(rows), figures=False),))


def _again(records: Sequence[RunRecord], command: Sequence[str], digest: str) -> Section:
    commands = dict.fromkeys(shlex.join(["bench", *r.environment.argv[1:]]) for r in records if r.environment.argv)
    words = dict.fromkeys(word for record in records for word in record.environment.argv[1:])
    bare = [word for word in words if word == Path(word).name and word.endswith((".yaml", ".yml"))]
    measured = [r.measurement for r in records if r.measurement is not None and r.measurement.dataset is not None]
    data = dict.fromkeys(f"{one.dataset}: {one.dataset_digest}" for one in measured)
    made = dict.fromkeys(c for r in records if (c := r.environment.wattbench_commit) is not None)
    setup = [f"git checkout {commit.partition('+')[0]}" for commit in made] if len(made) == 1 else []
    rows = (
        ("commit of wattbench", ", ".join(made) or "-"),
        ("environment", ", ".join(dict.fromkeys(r.environment.fingerprint for r in records))),
        ("runs: SHA-256 of this report as .csv", digest),
        *((f"data {place}", text) for place, text in enumerate(data, 1)),
    )
    notes = (
        *(f"{word}: the file of that name, wherever it lies." for word in bare),
        "The report, from the stored runs:",
    )
    parts = (
        Lines((*setup, "pip install -e . -c constraints.txt", *commands), "command"),
        Lines(notes),
        Lines((shlex.join(command),), "command"),
        Table("What it was made from", ("", ""), rows, figures=False),
    )
    return Section("again", "How to do it again", parts)
