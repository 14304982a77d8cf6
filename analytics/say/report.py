"""The report of stored runs as data: what was asked, what came out, how sure it is, what it cost, how to do it again.

Sections hold sentences, tables and figures; `render.files` makes a file of them. All text is plain: it is escaped where
it is rendered, never here.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from analytics.judge.advise import advise
from analytics.judge.compare import Comparison
from analytics.law.series import ScalingFit
from analytics.runs import recost as factors
from analytics.runs.export import to_csv
from analytics.runs.frame import asked, summary
from analytics.say import answer
from analytics.say.answer import Found
from analytics.say.blocks import Block, Figure, Group, Lines, Mark, Sentence, Table
from analytics.say.law import FLAGS
from analytics.say.results import execution_blocks
from analytics.text import between, number, printable, scale
from bench.record import RunRecord, Status

_LEFT_OUT = "making the hardware (embodied carbon), networks between machines, storage, and whatever no meter reads"
_LABELS = (
    *("repeats", "failures", "energy_provenance", "energy_missing"),
    *("emissions_basis", "cost_basis", "grade", "flags"),
)
_READING = (
    "Speeds and energies are geometric means over the repeats of a configuration, each a launch of its own; other figures "
    "are medians, peak memory is the largest.",
    "Intervals (in brackets) are 95 %: Student's t on the logarithms of the repeats; without repeats there is none.",
    "~ marks a figure that rests on a model. Measured and estimated energy are never added.",
    "- is not known: nothing is filled in, and absent is not 0.",
    "Grades: A fit to be published, B sound with the limits that its flags name, C a figure may be wrong.",
    "Verdicts: less and more where the interval lies on one side of 1, same where it lies within 2 % of 1, ? otherwise.",
)


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
        told = {
            "title": self.title,
            "in_short": list(self.in_short),
            "sections": sections,
            "digest_sha256": self.digest,
        }
        return {**self.document(), "report": {**told, "made_at": self.made_at.isoformat()}}


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
    whole = summary(df)
    short: list[str] = []
    sections: list[Section] = []
    found = answer.find(df)
    for one in found:
        suite, execution = one.runs["suite"].iloc[0], one.runs["execution"].iloc[0]
        table = one.configurations(whole)
        of = [r for r in records if (r.suite, r.execution) == (suite, execution)]
        several = f" ({suite} {execution})" if len(found) > 1 else ""
        blocks = list(execution_blocks(one, table))
        short += [block.text for block in blocks if isinstance(block, Sentence) and block.role != "plain"]
        rest = [block for block in blocks if not isinstance(block, Sentence) or block.role == "plain"]
        sections += [Section(part.key, part.title + several, part.blocks) for part in _sections(one, table, rest, of)]
    sections += [_carbon(df, records, remarks), _cost(df, records), _again(records, command, digest)]
    sections.append(Section("reading", "How to read this", (Lines(_READING),)))
    suites = list(dict.fromkeys(df["suite"]))
    devices = " and ".join(printable(name) for name in sorted(df["device_name"].dropna().unique()))
    title = f"{', '.join(suites[:3])}{' ...' if len(suites) > 3 else ''} on {devices}"
    return Report(
        title,
        (*short, *_sums(df)),
        tuple(sections),
        digest,
        made_at,
        lambda: _document(answer.told(df, whole, found), records),
        df,
    )


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


# --- one execution


def _sections(
    found: Found, table: pd.DataFrame, blocks: Sequence[Block], records: Sequence[RunRecord]
) -> Iterator[Section]:
    """Yield the parts of one execution: `table` is its summary, `blocks` its answer but for what stands at the top."""
    runs = found.runs
    labels = [_labels(table)] if len(table) else []
    yield Section("results", "Results", (*blocks, *labels))
    if found.tested:
        yield Section("law", "Scaling", (*_curves(found.law), _series(found.law)))
    elif figures := tuple(_ratios(found.steps or found.others)):
        yield Section("comparison", "Comparison", figures)
    yield from _advice(runs)
    yield Section("asked", "What was asked", tuple(_asked(runs)))
    if records:
        yield Section("machine", "Machine and software", (_machine(records),))


def _sums(df: pd.DataFrame) -> list[str]:
    said = [f"{label}: {value}" for label, value, _ in answer.totals(df) if value != "not known"]
    return [f"All runs together: {'; '.join(said)}."] if said else []


# --- results


def _wide(marks: Sequence[Mark], span: float = 20) -> bool:
    values = [mark.value for mark in marks]
    return max(values) > span * min(values)


def _ratios(comparisons: Sequence[Comparison]) -> Iterator[Figure]:
    """Time and energy of each candidate, as multiples of its baseline."""
    kinds = {"time": "samples_per_second", "energy, measured": "joules_per_sample"}
    kinds["~energy, estimated by a model"] = "joules_per_sample_estimated"
    groups = []
    for name, metric in kinds.items():
        costs = [(one.name, effect.cost) for one in comparisons if (effect := one.effect(metric))]
        marks = tuple(Mark(whose, cost.value, cost.low, cost.high) for whose, cost in costs)
        groups += [Group(name, marks)] if marks else []
    if groups:
        every = [mark for group in groups for mark in group.marks]
        title = "What each takes for the same number of samples: left of 1 is less"
        yield Figure(
            title, "multiple of the baseline", tuple(groups), reference=1.0, log=_wide([*every, Mark("", 1)], 5)
        )


def _labels(table: pd.DataFrame) -> Table:
    """Where the figures of each configuration come from."""
    cells = [["-" if pd.isna(value) or value == "" else str(value) for value in table[name]] for name in _LABELS]
    rows = tuple(zip(table["name"], *cells, strict=True))
    headings = ("configuration", *(name.replace("_", " ") for name in _LABELS))
    return Table("Labels: where the figures come from", headings, rows, figures=False, folded=True)


# --- the law


def _curves(law: ScalingFit) -> Iterator[Figure]:
    """Time per sample and efficiency against devices."""
    groups, shares = [], []
    for series in law.series:
        for size in series.by_work:
            near = [p for p in series.points if abs(p.flops_per_sample / size.flops_per_sample - 1) < 0.005]
            divisor, unit = scale(size.flops_per_sample, "FLOP")
            marks = [
                Mark(f"{p.name} repeat {i}", 1 / s, x=p.devices)
                for p in near
                for i, s in enumerate(p.samples_per_second)
            ]
            line = tuple(
                (float(d), size.flops_per_sample / (d * series.v.value)) for d in sorted({p.devices for p in near})
            )
            shared = _shared([p.name for p in near], series.name)
            name = f"{series.name}: {shared}{number(size.flops_per_sample / divisor)} {unit} a sample"
            groups.append(Group(name, tuple(marks), line))
        for curve in dict.fromkeys(point.curve for point in series.efficiency):
            points = [point for point in series.efficiency if point.curve == curve]
            base = Mark(f"d = {points[0].baseline_devices}", 1.0, x=points[0].baseline_devices)
            rest = [Mark(f"d = {p.devices}", p.value, p.low, p.high, p.devices) for p in points]
            joined = tuple((mark.x, mark.value) for mark in (base, *rest))
            shares.append(Group(f"{series.name}: {curve}", (base, *rest), joined))
    yield Figure(
        "Time per sample: each marker a run, each line the law", "seconds", tuple(groups), "devices d", log=True
    )
    if shares:
        marks = [mark for group in shares for mark in group.marks]
        most = max(1.5, *(1.1 * mark.value for mark in marks))
        cut = most if any(mark.high is not None and mark.high > most for mark in marks) else None
        title = "Efficiency: what a device does of what it does alone" + (
            "; arrows: the interval goes on" if cut else ""
        )
        yield Figure(title, "efficiency E", tuple(shares), "devices d", reference=1.0, most=cut)


def _shared(names: Sequence[str], series: str) -> str:
    """What the names of configurations share, without devices and what that of the series says: `preset=tiny, `."""
    words = [w for w in names[0].split() if w[:2] != "d=" and w not in series.split()]
    return "".join(f"{word}, " for word in words if all(word in name.split() for name in names))


def _series(law: ScalingFit) -> Table:
    rows = []
    for one in law.series:
        divisor, unit = scale(one.v.value, "FLOP/s")
        v = one.v.times(1 / divisor)
        misses = [one.error_median, one.error_max, one.left_out_median, one.left_out_max]
        flags = "; ".join(FLAGS[flag] for flag in one.flags) or "-"
        cells = [between(v.value, v.low, v.high, unit), *("-" if m is None else f"{m:.1%}" for m in misses)]
        loss = one.loss if one.breaks_at is None else f"breaks at {one.breaks_at} devices"
        devices = ", ".join(map(str, one.devices))
        rows.append((one.name, str(len(one.points)), devices, *cells, loss, flags))
    errors = ("misses (median)", "(at most)", "unseen (median)", "(at most)")
    columns = ("series", "configurations", "devices", "v of one device", *errors, "loss over 5 %", "limits")
    return Table("The law by series, and by how much it misses", columns, tuple(rows), figures=False)


def _advice(runs: pd.DataFrame) -> Iterator[Section]:
    found = advise(runs)
    if found:
        rows = tuple((one.sentence, one.action or "-", "; ".join(one.limits) or "-") for one in found)
        table = Table("Advice, with its limits", ("what the runs show", "what to do", "limits"), rows, figures=False)
        yield Section("advice", "Advice", (table,))


# --- what was asked, and where


def _asked(runs: pd.DataFrame) -> Iterator[Table]:
    fields = [name for name in asked(runs) if runs[name].notna().any()]
    values = {name: list(dict.fromkeys(_cell(value) for value in runs[name])) for name in fields}
    varied = [(name, ", ".join(found)) for name, found in values.items() if len(found) > 1]
    repeats = runs.groupby("config_id").size()
    facts = [
        ("suite", runs["suite"].iloc[0]),
        ("execution", runs["execution"].iloc[0]),
        ("begun", f"{runs['started_at'].min():%Y-%m-%d %H:%M:%S} UTC"),
        ("configurations", str(len(repeats))),
        ("repeats", " to ".join(dict.fromkeys((str(repeats.min()), str(repeats.max()))))),
        *((f"{name} (varied)", found) for name, found in varied),
    ]
    yield Table("The suite", ("", ""), tuple(facts), figures=False)
    fixed = tuple((name, found[0]) for name, found in values.items() if len(found) == 1)
    yield Table("The same in all runs", ("field", "value"), fixed, figures=False, folded=True)


def _cell(value: Any) -> str:
    return "-" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _machine(records: Sequence[RunRecord]) -> Table:
    """Facts of the machines, a column each; no variables of whoever ran it."""
    columns = list({r.environment.fingerprint: r for r in records}.values())
    facts: dict[str, list[str]] = {}
    for record in columns:
        env, machine = record.environment, record.environment.machine
        gpus = pd.Series([gpu.name for gpu in machine.gpus], dtype="str").value_counts()
        told = {
            "host": env.host,
            "GPUs": ", ".join(f"{count} × {name}" for name, count in gpus.items()),
            "processor": f"{machine.cpu_model} ({machine.cpu_count} processors)",
            "memory": None if machine.memory_bytes is None else f"{machine.memory_bytes / 1e9:.3g} GB",
            "NVIDIA driver": machine.driver_version,
            "CUDA of torch": env.torch_cuda,
            "system": f"{env.os}, kernel {env.kernel}",
            "Python": env.python,
            **env.packages,
            "wattbench commit": env.wattbench_commit,
            "fingerprint": env.fingerprint,
        }
        for name, value in told.items():
            facts.setdefault(name, []).append(value or "-")
    rows = tuple((name, *values) for name, values in facts.items() if set(values) != {"-"})
    return Table("Where it ran", ("", *("" for _ in columns)), rows, figures=False)


# --- carbon, cost, again


def _carbon(df: pd.DataFrame, records: Sequence[RunRecord], remarks: Sequence[str]) -> Section:
    said = factors.words(records)
    rows = [
        (label, f"{value} ({note})") for label, value, note in answer.totals(df) if label.startswith(("Energy", "CO2e"))
    ]
    rows += [
        ("Energy rests on", said["energy"]),
        ("PUE of the data centre", said["pue"]),
        ("Carbon intensity", said["intensity"]),
        ("Method", "location-based: the mean of the grid that is named; contracts for green power are not counted"),
        ("In it", "all runs from start to end, with those that failed"),
        ("Not in it", _LEFT_OUT),
    ]
    table = Table("Carbon = energy × PUE × intensity", ("", ""), tuple(rows), figures=False)
    quote = Lines(tuple(_statements(df, records, said)), "quote")
    return Section("carbon", "Carbon statement", (quote, table, *([Lines(tuple(remarks))] if remarks else [])))


def _statements(df: pd.DataFrame, records: Sequence[RunRecord], said: dict[str, str]) -> Iterator[str]:
    """Say what was emitted in sentences that can be quoted, one for measured and one for estimated energy."""
    begun = f"{df['started_at'].min():%Y-%m-%d}"
    suites = ", ".join(dict.fromkeys(df["suite"]))
    for basis, verb in (("measured", "emitted"), ("estimated", "emitted an estimated")):
        known = [r.carbon for r in records if r.carbon is not None and r.carbon.energy_basis == basis]
        if not known:
            continue
        kwh = sum(carbon.energy_joules for carbon in known) / 3.6e6
        kg = sum(carbon.emissions_kg for carbon in known)
        divisor, unit = scale(1000 * kg, "g")
        yield (
            f"{len(known)} training run{'s' * (len(known) > 1)} (suite {suites}, begun on {begun}) {verb} "
            f"{1000 * kg / divisor:.3g} {unit} CO2e: "
            f"{number(kwh)} kWh of {basis} energy, PUE {said['pue']}, {said['intensity']}, location-based; embodied carbon "
            "is not in it."
        )
    ran = [record for record in records if record.status is not Status.SKIPPED]
    lacking = sum(record.carbon is None for record in ran)
    if lacking:
        skipped = f"; {len(records) - len(ran)} skipped" if len(ran) < len(records) else ""
        why = f"energy {said['energy']}, {said['intensity']}{skipped}"
        yield f"The carbon of {lacking} of {len(ran)} runs is not known: {why}."


def _cost(df: pd.DataFrame, records: Sequence[RunRecord]) -> Section:
    costs = [record.cost for record in records if record.cost is not None]
    rows = [(label, f"{value} ({note})") for label, value, note in answer.totals(df) if label.startswith("Cost")]
    rows.append(("Price", factors.words(records)["price"]))
    if costs:
        hours = sum(cost.devices * cost.billed_seconds for cost in costs) / 3600
        rows.append(("Device-hours", f"{number(hours)}, from the start of each run to its end, start-up included"))
        rows.append(("Not in it", "time between runs, storage, networks, staff"))
    rows = rows if costs else [("Cost", "not known"), *rows]
    return Section("cost", "Cost statement", (Table("Cost of whole runs", ("", ""), tuple(rows), figures=False),))


def _again(records: Sequence[RunRecord], command: Sequence[str], digest: str) -> Section:
    commands = dict.fromkeys(shlex.join(["bench", *r.environment.argv[1:]]) for r in records if r.environment.argv)
    words = dict.fromkeys(word for record in records for word in record.environment.argv[1:])
    bare = [
        f"{word}: the file of that name, wherever it lies." for word in words if re.fullmatch(r"[^/]+\.ya?ml", word)
    ]
    data = dict.fromkeys(
        f"{r.measurement.dataset}: {r.measurement.dataset_digest}"
        for r in records
        if r.measurement is not None and r.measurement.dataset is not None
    )
    made = dict.fromkeys(c for r in records if (c := r.environment.wattbench_commit) is not None)
    setup = [f"git checkout {commit.partition('+')[0]}" for commit in made] if len(made) == 1 else []
    rows = [
        ("commit of wattbench", ", ".join(made) or "-"),
        ("environment", ", ".join(dict.fromkeys(r.environment.fingerprint for r in records))),
        ("runs: SHA-256 of this report as .csv", digest),
        *((f"data {number}", text) for number, text in enumerate(data, 1)),
    ]
    return Section(
        "again",
        "How to do it again",
        (
            Lines((*setup, "pip install -e . -c constraints.txt", *commands), "command"),
            *([Lines(tuple(bare))] if bare else []),
            Lines(("The report, from the runs in the store:",)),
            Lines((shlex.join(command),), "command"),
            Table("What it was made from", ("", ""), tuple(rows), figures=False),
        ),
    )
