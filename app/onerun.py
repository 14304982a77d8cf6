"""One run opened: its record, what its meters and steps say, and where each of its figures comes from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from statistics import fmean
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analytics.frame import asked
from app.runs import columns, estimated, title, unit
from bench.meters.trace import Row, Trace
from bench.metrics import missing_components, split_energy, systematic, used_gpus
from bench.record import EnergyReading, Environment, Provenance, RunRecord

POINTS = 1000
_TABLE = ["Figure", "Value", "Comes from", "Covered [%]", "Error at most [±]", "Lacks"]


@dataclass(frozen=True)
class Opened:
    """What the files of a run say; `power` are seconds since its start and watts, by device, `spans` its phases alike."""

    record: RunRecord | None = None
    power: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    steps: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["step", "seconds", "loss", "window"]))
    log: str = ""
    problems: tuple[str, ...] = ()


def opened(files: Mapping[str, bytes]) -> Opened:
    """Read the files of a run; what is torn or of another version is a problem that is told, and no error."""
    record, problems, traces = None, [], []
    try:
        record = RunRecord.model_validate_json(files["record.json"])
    except KeyError:
        problems.append("The store has no record of this run: it was imported, or its files are gone.")
    except ValueError:
        problems.append("The record of this run is torn, or of another version.")
    for name in sorted(name for name in files if fnmatch(name, "meters-*.parquet")):
        try:
            table = pq.read_table(io.BytesIO(files[name]))
            traces.append(Trace(Row(**values) for values in table.to_pylist()))
        except (pa.ArrowException, ValueError, TypeError, OSError):
            problems.append("The trace of the meters cannot be read.")
    phases = record.measurement.phases if record is not None and record.measurement is not None else []
    origin = min([p.start_ns for p in phases] or [t.rows[0].t_ns for t in traces if t.rows], default=0)
    spans = [(p.name, (p.start_ns - origin) / 1e9, (p.end_ns - origin) / 1e9) for p in phases]
    power = {name: points for trace in traces for name, points in _power(trace, origin)}
    log = files.get("worker.log", b"").decode(errors="replace")
    return Opened(record, power, spans, _steps(files, record), log, tuple(problems))


def _power(trace: Trace, origin: int) -> Iterable[tuple[str, list[tuple[float, float]]]]:
    for source, component, device in trace.devices:
        points = trace.power(component, device)
        wide = -(-len(points) // POINTS) or 1
        groups = [points[i : i + wide] for i in range(0, len(points), wide)]
        model = "~ estimated, " if source == "codecarbon" else ""
        name = f"{component}{'' if device in (component, 'ram') else f' {device}'} ({model}{source})"
        yield name, [((fmean(t for t, _ in g) - origin) / 1e9, fmean(w for _, w in g)) for g in groups]


def _steps(files: Mapping[str, bytes], record: RunRecord | None) -> pd.DataFrame:
    """Return step, seconds, loss, and whether it is one of the window: of rank 0, or of the first that a command tells."""
    lines: list[dict[str, Any]] = []
    for line in next((files[name] for name in sorted(files) if fnmatch(name, "steps-*.jsonl")), b"").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    told = [line for line in lines if isinstance(line, dict) and line.get("rank", 0) == 0 and "phase" not in line]
    measured = record.measurement if record is not None else None
    window = [p for p in measured.phases if p.name == "steady"] if measured is not None else []
    begin = window[0].start_ns if window else None
    rows = []
    for before, line in pairwise([{}, *told]):
        seconds = line.get("step_seconds")
        if seconds is None and "t_ns" in before and "t_ns" in line:
            seconds = (line["t_ns"] - before["t_ns"]) / 1e9
        at = line.get("start_ns", before.get("t_ns"))
        rows.append((seconds, line.get("loss"), begin is None or at is None or at >= begin))
    if not rows and measured is not None:
        rows = [(seconds, None, True) for seconds in measured.step_seconds]
    found = pd.DataFrame(rows, columns=["seconds", "loss", "window"])
    found[["seconds", "loss"]] = found[["seconds", "loss"]].apply(pd.to_numeric, errors="coerce")
    first = record.measurement.quality[-1].step - len(found) if measured is not None and measured.quality else 0
    found.insert(0, "step", range(1 + max(0, first), 1 + max(0, first) + len(found)))
    return found


def environment(env: Environment) -> dict[str, str]:
    """Return the facts of a machine and its software, flat and as text."""
    flat = pd.json_normalize(env.model_dump(mode="json", exclude={"packages", "machine", "variables", "argv"})).iloc[0]
    out = {name: str(value) for name, value in flat.items() if value is not None}
    machine = env.machine.model_dump(mode="json", exclude={"gpus"}, exclude_none=True)
    out |= {name: str(value) for name, value in machine.items()}
    out |= {f"gpu {gpu.index}": f"{gpu.name}, {gpu.uuid}" for gpu in env.machine.gpus}
    out |= {f"package {name}": version for name, version in sorted(env.packages.items())}
    return out | {f"variable {name}": value for name, value in sorted(env.variables.items())}


def _readings(name: str, record: RunRecord) -> list[EnergyReading]:
    """Return the readings that a figure of energy or power is made of, measured or estimated as it says."""
    measured = record.measurement
    found = [*record.unused] if name.startswith("unused") else [*record.energy]
    if measured is not None and not name.startswith(("run_", "unused")):
        phase = re.match(r"phase_(\w+?)_energy", name)
        served = measured.inference.energy if measured.inference is not None else []
        of_phases = [r for p in measured.phases if phase and p.name == phase[1] for r in p.energy]
        part = {"phase": of_phases, "startup": measured.startup, "inference": served}
        found = part.get(name.split("_")[0], measured.energy)
    hardware, model = split_energy(found)
    return model if estimated(name) else hardware


def _origin(name: str, run: pd.Series, record: RunRecord | None) -> str:
    """Say where a figure comes from that is not of energy."""
    if "imported" in str(run["flags"]).split():
        return "imported: someone else's figure, see where the file is from"
    if name.startswith("emissions"):
        return f"energy ({run['emissions_basis']}) × PUE × intensity of the grid"
    if name.startswith("cost"):
        return f"price given by the user ({run['cost_basis']})"
    if name == "memory_estimated_bytes" or "parameters" in name or name in ("flops_per_sample", "flops_per_token"):
        return "~ estimated from shapes" if estimated(name) else "counted from the shapes of the model"
    if name.startswith("idle"):
        return "measured before the runs of the execution"
    return "FLOP counted / time measured" if "flops" in name or "utilization" in name else "timed or counted in the run"


def provenance(df: pd.DataFrame, run: pd.Series, record: RunRecord | None) -> pd.DataFrame:
    """Return a row a figure of a run: value, where it comes from, coverage, bound of its error, and what it lacks."""
    fixed = {*asked(df), "seed", "repeat", "ladder"}
    rows: list[tuple[Any, ...]] = []
    for name in columns(df):
        if not pd.api.types.is_float_dtype(df[name].dtype) or name in fixed or pd.isna(run[name]):
            continue
        factor, value = unit(name)[0], float(run[name])
        row: tuple[Any, ...] = (_origin(name, run, record), None, None, "")
        drawn = record is not None and re.search("joules|watts", name) and not re.search("idle_|limit", name)
        if drawn and record is not None and (readings := _readings(name, record)):
            label = Provenance.worst([reading.provenance for reading in readings])
            covered = 100 * min(reading.coverage for reading in readings)
            bound = systematic(readings) / sum(r.energy_joules for r in readings) if label.measured else None
            lacks = " ".join(missing_components(readings, used_gpus(record))) if label.measured else ""
            row = (f"{'' if label.measured else '~ '}{label}", covered, bound and bound * value * factor, lacks)
        elif drawn and not estimated(name):
            row = (str(run["energy_provenance"]), None, None, str(run["energy_missing"]))
        rows.append((title(name), value * factor, *row))
    return pd.DataFrame(rows, columns=_TABLE).fillna({"Lacks": ""})


def readings(record: RunRecord) -> pd.DataFrame:
    """Return a row a sensor: the energy of the window, or of the whole run where there is none, as it was read."""
    found = record.energy if record.measurement is None else record.measurement.energy
    return pd.DataFrame([reading.model_dump(mode="json") | {"flags": " ".join(reading.flags)} for reading in found])


def phases(record: RunRecord) -> pd.DataFrame:
    """Return a row a phase: seconds, joules measured, and joules estimated by a model."""
    rows = []
    for phase in record.measurement.phases if record.measurement is not None else []:
        sums = [sum(r.energy_joules for r in part) if part else None for part in split_energy(phase.energy)]
        rows.append((phase.name, phase.seconds, *sums))
    return pd.DataFrame(rows, columns=["phase", "seconds", "energy_joules", "energy_estimated_joules"])
