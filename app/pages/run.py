"""One run opened: its record, what its meters and steps say, and where each of its figures comes from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from shlex import quote
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import streamlit as st

from analytics.quantities import quantity
from analytics.runs.store import MLFLOW_RUN
from analytics.say import factors
from analytics.say.blocks import Block, Commands, Note, Sentence
from analytics.say.jobs import lost_words
from analytics.text import number, printable
from app import data, page
from app.charts.bars import amounts_chart, phases_chart
from app.charts.timeline import OUTLIER, loss_chart, power_chart, steps_chart
from app.pages import runs as listed
from app.pages.nodes import nodes
from app.pages.runs import about, measured, shown, title
from bench.figures.flags import FLAGS, meaning
from bench.figures.metrics import metrics, missing_components, split_energy, systematic
from bench.folder import METERS, RECORD, STEPS, WORKER_LOG
from bench.meters.meter import Reading, meter_class
from bench.meters.trace import Trace
from bench.record import EnergyReading, Environment, Measurement, Provenance, RunRecord
from bench.store import artifacts as stored
from bench.store.tracker import StoreError, location
from bench.suites import yaml as yamlfile

POINTS = 1000
MOST_ROWS, KEPT_ROWS = 10_000_000, 100_000
"""Rows of a trace beyond which it is not read, and beyond which a part of them stands for all."""
LOG = 100_000
"""Bytes of the end of a log that are shown."""
_PART = re.compile("_joules_(cpu|gpu|dram|node)(_estimated)?$")


_READING = {
    "component": "Component",
    "device": "Device",
    "energy_joules": "Energy [J]",
    "seconds": "Time [s]",
    "power_watts_mean": "Mean power [W]",
    "power_watts_max": "Peak power [W]",
    "provenance": "Comes from",
    "source": "Meter",
    "coverage": "Covered [%]",
    "uncertainty_joules": "Error of the edges [J]",
    "gain_share": "Error of the sensor [%]",
    "scope": "Scope",
    "samples": "Readings",
    "detail": "Detail",
    "flags": "Limits",
}
"""Headings of the fields of a reading."""


@dataclass(frozen=True)
class Opened:
    """What the files of a run say; `power` are seconds since its start and watts, by device, `spans` its phases alike."""

    record: RunRecord | None = None
    power: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    log: str = ""
    problems: tuple[str, ...] = ()

    @property
    def result(self) -> Measurement | None:
        """What was measured; None where the run did not end well, or has no record."""
        return self.record.measurement if self.record is not None else None


def opened(files: Mapping[str, bytes]) -> Opened:
    """Read the files of a run; what is torn or of another version is a problem that is told, and no error."""
    record, problems, traces = None, [], []
    try:
        json.loads(files[RECORD.name], parse_int=_whole)
        record = RunRecord.model_validate_json(files[RECORD.name])
    except KeyError:
        problems.append("The store has no record of this run: it was imported, or its files are gone.")
    except (ValueError, RecursionError):
        problems.append("The record of this run is torn, or of another version.")
    for name in sorted(name for name in files if fnmatch(name, METERS.pattern)):
        try:
            traces.append(Trace(_rows(files[name])))
        except (pa.ArrowException, ValueError, TypeError, KeyError, OSError):
            problems.append("The trace of the meters cannot be read, or is too long.")
    result = record.measurement if record is not None else None
    phases = result.phases if result is not None else []
    origin = min([p.start_ns for p in phases] or [t.rows[0].t_ns for t in traces if t.rows], default=0)
    spans = [(p.name, (p.start_ns - origin) / 1e9, (p.end_ns - origin) / 1e9) for p in phases]
    power = {name: points for trace in traces for name, points in _power(trace, origin)}
    log = files.get(WORKER_LOG, b"")
    end = "… (the file worker.log has all of it)\n" * (len(log) > LOG) + log[-LOG:].decode(errors="replace")
    return Opened(record, power, spans, _steps(files, result), end, tuple(problems))


def _whole(digits: str) -> int:
    """Read a whole number of JSON; raises ValueError for one of more than 64 bits, which nothing of ours has."""
    if not -(2**63) <= (value := int(digits)) < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    return value


def _rows(content: bytes) -> Iterator[Reading]:
    """Yield the rows of a trace; of a long one some taken at random, which favours no device. Raises ValueError."""
    texts = [column.name for column in pq.read_schema(io.BytesIO(content)) if pa.types.is_string(column.type)]
    file = pq.ParquetFile(io.BytesIO(content), read_dictionary=texts)
    if (total := file.metadata.num_rows) > MOST_ROWS:
        raise ValueError("too many rows")
    random = np.random.default_rng(0)
    for batch in file.iter_batches():
        few = batch.filter(pa.array(random.random(len(batch)) < KEPT_ROWS / total)) if total > KEPT_ROWS else batch
        yield from (Reading(**values) for values in few.to_pylist())


def _power(trace: Trace, origin: int) -> Iterable[tuple[str, list[tuple[float, float]]]]:
    sources = {(component, device): source for source, component, device in reversed(trace.devices)}
    for (component, device), source in reversed(sources.items()):  # of several sources the first, as `power` takes it
        points = trace.power(component, device)
        wide = -(-len(points) // POINTS) or 1
        groups = [points[i : i + wide] for i in range(0, len(points), wide)]
        model = "~ estimated, " if meter_class(source).nature == "estimated" else ""
        name = f"{component}{'' if device in (component, 'ram') else f' {device}'} ({model}{source})"
        yield name, [((fmean(t for t, _ in g) - origin) / 1e9, fmean(w for _, w in g)) for g in groups]


def _steps(files: Mapping[str, bytes], result: Measurement | None) -> pd.DataFrame:
    """Return step, seconds, loss, and whether it is one of the window: of rank 0, or of the first that a command tells."""
    lines: list[Any] = []
    for text in next((files[name] for name in sorted(files) if fnmatch(name, STEPS.pattern)), b"").splitlines():
        with suppress(ValueError, RecursionError):
            lines.append(json.loads(text, parse_int=_whole))
    told = [line for line in lines if isinstance(line, dict) and line.get("rank", 0) == 0 and "phase" not in line]
    told = [line for line in told if all(isinstance(line.get(name, 0), int) for name in ("t_ns", "start_ns"))]
    begin = min([p.start_ns for p in result.phases if p.name == "steady"] if result is not None else [], default=0)
    rows = []
    for before, line in pairwise([{}, *told]):
        seconds = line.get("step_seconds")
        if seconds is None and "t_ns" in before and "t_ns" in line:
            seconds = (line["t_ns"] - before["t_ns"]) / 1e9
        rows.append((seconds, line.get("loss"), line.get("start_ns", before.get("t_ns", begin)) >= begin))
    if not rows and result is not None:
        rows = [(seconds, None, True) for seconds in result.step_seconds]
    found = pd.DataFrame(rows, columns=["seconds", "loss", "window"])
    found[["seconds", "loss"]] = found[["seconds", "loss"]].apply(pd.to_numeric, errors="coerce")
    first = result.quality[-1].step - len(found) if result is not None and result.quality else 0
    found.insert(0, "step", range(1 + max(0, first), 1 + max(0, first) + len(found)))
    return found


def environment(env: Environment) -> dict[str, str]:
    """Return the facts of a machine and its software, flat and as text."""
    facts = env.model_dump(mode="json", exclude={"argv": True, "machine": {"gpus"}}, exclude_none=True)
    facts["gpus"] = {str(gpu.index): f"{gpu.name}, {gpu.uuid}" for gpu in env.machine.gpus}
    return {str(name): str(value) for name, value in pd.json_normalize(facts).iloc[0].items()}


def _readings(name: str, record: RunRecord) -> list[EnergyReading]:
    """Return the readings that a figure is made of, measured or estimated as it says, of one component if it names one."""
    result, parts = record.measurement, {"unused": record.unused, "run": record.energy}
    if result is not None:
        of_phase = [r for p in result.phases if name.startswith(f"phase_{p.name}_energy") for r in p.energy]
        served = result.inference.energy if result.inference is not None else []
        parts |= {"phase": of_phase, "startup": result.startup, "inference": served}
    found = parts.get(name.split("_")[0], result.energy if result is not None else record.energy)
    of = _PART.search(name)
    return [r for r in split_energy(found)[int(quantity(name).estimated)] if of is None or r.component == of[1]]


def _origin(name: str, run: pd.Series) -> str:
    """Say where a figure comes from that is not of energy."""
    says = {
        "^emissions_": f"energy ({shown(run['emissions_basis'])}) × PUE × intensity of the grid",
        "^cost_": f"prices given by the user ({shown(run['cost_basis'])})",
        "_systematic_": "a bound: of sensors, and of the edges of the window",
        "^memory_estimated_bytes$": "~ estimated from shapes alone",
        "^memory_estimate_error$": "the estimate from shapes against the peak that was measured",
        "^(trainable_)?parameters$|^flops_per_(sample|token)$": "counted from the model's shapes",
        "^idle_": "measured before the runs of the execution",
        "flops_per_second|^(matmul|model_flops)_utilization$": "FLOP counted / time measured",
    }
    if "imported" in shown(run["flags"]).split():
        return "imported: a figure of someone else"
    return next((text for name_, text in says.items() if re.search(name_, name)), "timed or counted in the run")


def provenance(df: pd.DataFrame, run: pd.Series, record: RunRecord | None) -> pd.DataFrame:
    """Return a row a figure of a run: value, where it comes from, coverage, bound of its error, and what it lacks."""
    rows: list[tuple[Any, ...]] = []
    for name in measured(df):
        if pd.isna(run[name]):
            continue
        factor, value = quantity(name).factor, float(run[name])
        row: tuple[str, float | None, float | None, str] = (_origin(name, run), None, None, "")
        if re.search("joules|watts", name) and not re.search("^idle|limit|systematic", name):
            found = _readings(name, record) if record is not None else []
            label = Provenance.worst([reading.provenance for reading in found])
            if label.measured:
                total = sum(r.energy_joules for r in found)
                bound = systematic(found) / total * value * factor if total else None
                whole = record is not None and not _PART.search(name)
                lacks = missing_components(found, record.gpus) if whole and record else []
                row = (factors.energy_origin(label), 100 * min(r.coverage for r in found), bound, " ".join(lacks))
            elif found:
                row = (factors.energy_origin(label), 100 * min(r.coverage for r in found), None, "")
            elif "imported" not in row[0]:
                kind = "estimated_model" if quantity(name).estimated else shown(run["energy_provenance"])
                row = (factors.energy_origin(kind), None, None, "")
        rows.append((title(name), value * factor, *row))
    heads = ["Figure", "Value", "Comes from", "Covered [%]", "Error at most [±]", "Lacks"]
    return pd.DataFrame(rows, columns=heads).astype({"Covered [%]": "float64", "Error at most [±]": "float64"})


def readings(record: RunRecord) -> pd.DataFrame:
    """Return a row a sensor: the energy of the window, or of the whole run where there is none, as it was read."""
    found = record.energy if record.measurement is None else record.measurement.energy
    rows = [
        reading.model_dump(mode="json")
        | {"provenance": factors.energy_origin(reading.provenance), "coverage": 100 * reading.coverage}
        | {"gain_share": None if reading.gain_share is None else 100 * reading.gain_share}
        | {"detail": reading.detail.replace("_", " "), "flags": "; ".join(map(meaning, reading.flags))}
        for reading in found
    ]
    table = pd.DataFrame(rows, columns=list(_READING)).rename(columns=_READING)
    return table.loc[:, (table.notna() & (table != "")).any()]


def phases(result: Measurement) -> pd.DataFrame:
    """Return a row a phase: seconds, joules measured, and joules estimated by a model."""
    sums = [
        [sum(r.energy_joules for r in part) if part else None for part in split_energy(p.energy)] for p in result.phases
    ]
    rows = [(phase.name, phase.seconds, *both) for phase, both in zip(result.phases, sums, strict=True)]
    heads = ["phase", "seconds", "energy_joules", "energy_joules_estimated"]
    return pd.DataFrame(rows, columns=heads).astype(dict.fromkeys(heads[1:], "float64"))


def answer(run: pd.Series) -> list[Block]:
    """Return what a run did in one sentence, how it ended, and where it ran."""
    label, ended, where = about(run)
    name = "joules_per_sample" if pd.notna(run["joules_per_sample"]) else "joules_per_sample_estimated"
    energy = f"{'~' * name.endswith('estimated')}{number(run[name])} J/sample" if pd.notna(run[name]) else ""
    speed = f"{number(run['samples_per_second'])} samples/s" if pd.notna(run["samples_per_second"]) else ""
    memory = f"{number(run['peak_memory_bytes'] / 1e6)} MB" if pd.notna(run["peak_memory_bytes"]) else ""
    figures = ", ".join(filter(None, [speed, energy, memory]))
    text = f"{label}: {figures or shown(run['status']).replace('_', ' ')}"
    return [Sentence(text, "answer"), Sentence(ended), Sentence(where)]


def against(a: pd.Series, b: pd.Series) -> str:
    """Return how fast B is, measured by A."""
    rates = [float(run["samples_per_second"]) for run in (a, b)]
    if not all(rate > 0 for rate in rates):
        return "A and B: no throughput of both is known"
    return f"B is {rates[1] / rates[0]:.3g} times as fast as A: {number(rates[1])} against {number(rates[0])} samples/s"


def headline(run: pd.Series) -> list[tuple[str, str, str]]:
    """Return label with unit, value and what it rests on, of the figures that people look for first."""
    lacks = f", lacks {text}" if (text := shown(run["energy_missing"])) else ""
    bound = f" ± {number(run['energy_systematic_joules'])}" if pd.notna(run["energy_systematic_joules"]) else ""
    notes = {
        "samples_per_second": f"median step {shown(run['step_seconds_median'])} s",
        "energy_joules": f"{factors.energy_origin(shown(run['energy_provenance']))}{lacks}",
        "energy_joules_estimated": "estimated by a model",
        "peak_memory_bytes": "the most that a rank took",
        "emissions_kg": f"from {shown(run['emissions_basis'])} energy",
        "cost_usd": f"basis: {shown(run['cost_basis'])}",
        "duration_seconds": "from start to end",
    }
    known = [(name, note) for name, note in notes.items() if pd.notna(run[name])]
    values = {name: number(run[name] * quantity(name).factor) for name, _ in known}
    marks = {name: "~" * ("estimated" in note) for name, note in known}
    return [(title(n), f"{marks[n]}{values[n]}{bound * (n == 'energy_joules')}", note) for n, note in known]


def in_mlflow(uri: str, experiment: str, run: str) -> tuple[str, str]:
    """Return the address of a run in MLflow's own pages, and the command that starts them where the store is a file."""
    place = f"/#/experiments/{experiment}/runs/{run}"
    if uri.startswith("sqlite"):
        return f"http://127.0.0.1:5000{place}", f"mlflow ui --backend-store-uri {quote(uri)}"
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return (f"{parts.scheme}://{host}{parts.path.rstrip('/')}{place}" if parts.scheme in ("http", "https") else ""), ""


def failure(run: pd.Series, one: Opened) -> tuple[str, str]:
    """Say why a run did not end well, and return the end of its log; nothing where it did, or where that is not kept."""
    error = one.record.error if one.record is not None else None
    if error is not None:
        return f"{error.type}: {error.message}", error.log_tail
    return (f"{shown(run['error_type'])}: {shown(run['error_message'])}" if shown(run["error_type"]) else ""), ""


def limits(run: pd.Series) -> list[str]:
    """Return the meaning of each flag of a run."""
    meanings = (meaning(flag) if flag in FLAGS else flag for flag in shown(run["flags"]).split())
    return [f"{text[:1].upper()}{text[1:]}" for text in meanings]


Drawn = tuple[str, str, go.Figure, str]
"""Heading, name, figure, and what it shows in words."""


def of_run(content: Opened) -> Iterator[Drawn]:
    """Draw what is known of a run."""
    if content.power:
        said = "Power over the run, by device; phases are shaded, the measured window most. ~ marks a model's estimate."
        yield "Power", "power", power_chart(content.power, content.spans), said
    if len(content.steps):
        said = f"Time of each step of rank 0; crosses took more than {OUTLIER} times the median of the window."
        yield "Step times", "steps", steps_chart({"": content.steps}), said
    result = content.result
    if content.record is None or result is None:
        return
    if content.steps["loss"].notna().any() or result.quality:
        said = "Loss of each step, and quality on held-out samples."
        yield "Learning", "loss", loss_chart(content.steps, result.quality), said
    if result.phases:
        said = "Shares of the phases in the time of the run, and in its energy."
        yield "Where time and energy went", "phases", phases_chart(phases(result)), said
    if result.peak_memory_bytes:
        peaks = {f"rank {rank}": size / 1e6 for rank, size in enumerate(result.peak_memory_bytes)}
        limits_: dict[str, float | None] = {"~ estimated": result.memory_estimated_bytes}
        limits_ |= {"limit": metrics(content.record).get("memory_available_bytes")}
        parts = {"peak": peaks} | {name: dict.fromkeys(peaks, size / 1e6) for name, size in limits_.items() if size}
        said = "Peak of each rank: tensors on a GPU, or what a CPU process grew by. The estimate is from shapes alone."
        figure = amounts_chart(parts, "peak memory [MB]", "group")
        yield "Memory", "memory", figure, said


def of_two(ones: Mapping[str, Opened]) -> Iterator[Drawn]:
    """Draw step times and power of two runs in one figure each."""
    if any(len(one.steps) for one in ones.values()):
        figure = steps_chart({name: one.steps for name, one in ones.items()})
        yield "Step times", "steps-of-two", figure, "Time of each step of both runs."
    power = {f"{name}: {device}": points for name, one in ones.items() for device, points in one.power.items()}
    if power:
        yield "Power", "power-of-two", power_chart(power), "Power of both runs, each since its own start, by device."


@st.cache_data(max_entries=16, show_spinner="Reading the files of the run ...")  # type: ignore[untyped-decorator]
def _files(run: str, where: str | None) -> tuple[stored.Stored, Opened]:
    files = stored.files(run, where)
    return files, opened(files.files)


_DIGITS = ["A", "B", "B / A", "Value", "Error at most [±]", "Window [s]", "Energy [J]", "~ Energy [J]"]
_DIGITS += ["Forward pass [s]", "Against the others", "Clock ahead [s]"]
DIGITS = dict.fromkeys(_DIGITS, st.column_config.NumberColumn(format="%.4g"))


def _opened(run: pd.Series) -> tuple[stored.Stored, Opened]:
    """Read the files of a run; where they cannot be had, the row alone is shown, and why."""
    try:
        found: tuple[stored.Stored, Opened] = _files(run[MLFLOW_RUN], data.uri())
    except StoreError as error:
        return stored.Stored("", {}, {}), Opened(problems=(str(error),))
    return found


def one(df: pd.DataFrame, run: pd.Series) -> None:
    """Show a run: its figures, its course, and where each figure comes from."""
    files, content = _opened(run)
    page.show(answer(run))
    with st.container(horizontal=True):
        for label, value, note in headline(run):
            with st.container(border=True, width=232, gap="xsmall"):
                st.metric(label, value)
                st.text(note)
    if content.problems:
        st.info("Some of this run is missing; what follows is what the store has.", icon=":material/info:")
        st.text("\n".join(content.problems))
    why, tail = failure(run, content)
    if why:
        st.subheader("Error")
        page.lines([why])
    if tail:
        st.caption("The end of its log:")
        st.code(tail, language=None, height=400)
    _draw(of_run(content))
    if content.record is not None and content.record.nodes:
        st.subheader("Nodes")
        page.table(nodes(content.record), "nodes", column_config=DIGITS)
        st.caption("Each node by its own clock. ~ is estimated by a model. Above 1, the others wait for the node.")
    if content.record is not None and content.record.lost:
        rent = content.record.cost.usd_per_device_hour if content.record.cost is not None else None
        page.lines([lost_words([(content.record.spec, attempt) for attempt in content.record.lost], rent)])
    if notes := limits(run):
        st.subheader("Limits of these figures")
        page.lines(notes)
    _tabs(df, run, files, content)


def _draw(figures: Iterable[Drawn]) -> None:
    places = st.columns(2)
    for index, (heading, name, figure, caption) in enumerate(figures):
        with places[index % 2]:
            st.subheader(heading)
            page.figure(figure, name, caption)
            st.caption(caption)


def _tabs(df: pd.DataFrame, run: pd.Series, files: stored.Stored, content: Opened) -> None:
    record = content.record
    figures, spec, machine, kept = st.tabs(["All figures", "Specification", "Environment", "Log, files, MLflow"])
    with figures:
        st.caption("The origin of each figure. Errors are bounds of the sensors; the scatter of repeats comes on top.")
        page.table(provenance(df, run, record), "figures", column_config=DIGITS)
        if record is not None:
            st.caption("Readings of each sensor in the window, or in the whole run where it has none:")
            page.table(readings(record), "readings")
            page.lines(factors.lines([record]))
    with spec:
        fields = record.spec.model_dump(mode="json", exclude_none=True) if record else listed.wanted(df, run)
        st.code(yamlfile.write(fields), language="yaml")
    with machine:
        facts = environment(record.environment) if record else listed.surroundings(run)
        page.table(pd.DataFrame(facts.items(), columns=["Name", "Value"]), "environment")
    with kept:
        st.code(content.log or "The store has no log of this run.", language=None, height=400)
        if files.files:
            name = st.selectbox("Files of the run", list(files.files), key="file")
            data_ = files.files[name]
            page.download(f"Download it ({len(data_):,} B)", data_, name)
        sizes = {name: "unknown size" if size is None else f"{size:,} B" for name, size in files.left_out.items()}
        st.text("\n".join(f"{name}: {size}, too large to be read here" for name, size in sizes.items()))
        if files.experiment.isdecimal():
            url, command = in_mlflow(location(data.uri()), files.experiment, run[MLFLOW_RUN])
            if command:
                st.caption("In MLflow's own pages: run the command, then follow the link.")
                page.code(command)
            if url:
                st.link_button("Open in MLflow", url, icon=":material/open_in_new:")


def two(df: pd.DataFrame, a: pd.Series, b: pd.Series) -> None:
    """Show two runs side by side: their figures, and the differences of specification and environment."""
    contents = {"A": _opened(a)[1], "B": _opened(b)[1]}
    blocks: list[Block] = [Sentence(against(a, b), "answer")]
    blocks += [Note(" · ".join(about(run)), name) for name, run in (("A", a), ("B", b))]
    if a.config_id == b.config_id and a.execution == b.execution:
        blocks.append(Note("These are repeats of one configuration: their difference is noise."))
    else:
        sides = dict.fromkeys(quote(printable(f"{run.suite}@{run.execution}", 400)) for run in (a, b))
        why = "One run of each cannot tell whether a difference is more than noise; repeats can"
        blocks.append(Commands((f"bench compare {' '.join(sides)}",), why))
    page.show(blocks)
    _draw(of_two(contents))
    st.subheader("Figures")
    figures = listed.figures(df, a, b)
    page.table(figures[figures["A"] != figures["B"]], "figures-of-two", column_config=DIGITS)
    spec = listed.facts(listed.wanted(df, a), listed.wanted(df, b))
    machines = [environment(one.record.environment) for one in contents.values() if one.record is not None]
    machine = listed.facts(*(machines if len(machines) == 2 else map(listed.surroundings, (a, b))))
    for heading, table in (("Specification", spec), ("Environment", machine)):
        st.subheader(f"{heading}: differences")
        differ = table[table["A"] != table["B"]]
        if len(differ):
            page.table(differ, f"differ-{heading.lower()}")
        else:
            st.text("None.")
