"""The record of one run in words, as `bench measure` prints it: the answer, its grade, and each figure with its source."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from analytics.runs.frame import latest_execution
from analytics.say.blocks import Block, Commands, Note, Sentence, Table, command, unnamed
from analytics.text import interval, number, percent, printable, scale
from bench.figures.flags import COVERED, STEP_FLAGS, grade, meaning
from bench.figures.metrics import OWN, metrics, missing_components, split_energy, systematic, window
from bench.figures.regions import region_name
from bench.record import WANDB, EnergyReading, Observation, Provenance, RunRecord, Status
from bench.schema import MEASURE, program_of
from bench.workloads.formats import TITLES

_COMPONENTS = {"gpu": "GPU", "cpu": "CPU", "dram": "memory", "node": "machine"}
_SEVERAL = {"gpu": "GPUs", "cpu": "CPUs", "node": "machines"}
_PHASES = {"start": "start-up", "warmup": "warm-up", "steady": "measured steps", "tail": "end"}
_NO_STEPS = (
    "Throughput is unknown: no steps of torch were seen. Call step() in the loop of the script, or give --step-pattern "
    "(docs/own-scripts.md)."
)
_SOURCES = {"script": ", reported by the script", "hooks": ", seen in torch", "output": ", read from the output"}
_NAMED = 2
"""So many limits of a run are named in the answer; `--explain` has all of them."""


def blocks(record: RunRecord) -> Iterator[Block]:
    """Yield what a command took, how sure that is, and a table of its figures with what each rests on."""
    figures = metrics(record) | _until_failure(record)
    yield Sentence(_title(record), "title")
    if record.partial is not None:
        yield Sentence("Figures are of what it did until then.", "answer")
    if record.grade is not None:
        flags = sorted(record.flags, key=lambda flag: (flag in STEP_FLAGS, grade([flag])), reverse=True)
        limits = [re.split("[:;]", meaning(flag))[0] for flag in flags]
        more = [f"and {len(limits) - _NAMED} more (--explain)"] if len(limits) > _NAMED else []
        text = "; ".join([*limits[:_NAMED], *more])
        yield Sentence(f"Grade {record.grade}: {text}." if text else f"Grade {record.grade}.", "answer")
    source = record.measurement.step_source if record.measurement is not None else None
    yield from _without_steps(record)
    yield from _unmatched(record)
    rows = (*_energy(record), *_place(record), *_steps(record, figures, _SOURCES.get(source or "", "")))
    if rows:
        yield Table("", ("", "value", "rests on"), rows, figures=False)
    if not record.energy:
        yield Note("No energy: no meter was read while it ran (bench doctor says which can be).")
    for reading in record.energy:
        if reading.coverage < COVERED:
            share = percent(reading.coverage)
            yield Note(f"{_device(record, reading)} was read for {share} of the time: all sums are too low.", "Careful")
    if record.measurement is not None and (ids := record.measurement.notes.get(WANDB)):
        yield Note(f"{printable(ids, 200)}, which the script has made.", "Run in W&B")
    yield from (Sentence(meaning(flag), detail=True) for flag in record.flags)


def next_steps(record: RunRecord, runs: pd.DataFrame, store: str | None) -> Iterator[Block]:
    """Yield the commands to go on with. `runs` are those of the store.

    Another name is compared if both have one command each, of one program, on other devices or with other arguments, and
    both ran to their end or both were ended after a while.
    """
    suite = record.suite
    lines: list[tuple[str, ...]] = [("report", suite, "-o", f"{suite}.html")]
    names = runs[(runs["status"] == Status.OK) & (runs["suite"] != MEASURE)]
    names = latest_execution(names[names["open_devices"].notna()] if "open_devices" in names else names[:0])
    alone = names.groupby("suite")["config_id"].nunique() == 1
    several = suite in alone and not alone[suite]
    last = names.sort_values("started_at", kind="stable").drop_duplicates("suite", keep="last").set_index("suite")
    last = last[[bool(alone[name]) for name in last.index]]
    others = last.drop(index=suite, errors="ignore")
    if suite in last.index:
        same = others["workload_args.argv"].map(program_of) == program_of(last["workload_args.argv"][suite])
        whole = last[["measure_seconds", "measure_steps"]].isna().all(axis=1)
        same = same.astype(bool) & (whole[others.index] == whole[suite])
        others = others[same & (others["config_id"] != last["config_id"][suite])]
        lines.insert(0, ("compare", str(others.index[-1]), suite) if len(others) else ("fit", suite))
    elif several:
        lines.insert(0, ("compare", suite))
    if record.status is not Status.OK and suite not in last.index and not several:
        return  # nothing ended well
    if record.status is Status.OK and not several and (suite not in last.index or others.empty):
        other = "two devices" if record.device_count < 2 else "one device"
        yield Note(
            f"measure it on {other}, or with other arguments: bench measure --name NAME -- COMMAND", "To compare"
        )
    yield Commands(tuple(command(*line, store=store) for line in lines))
    yield from unnamed(store)


def _without_steps(record: RunRecord) -> Iterator[Sentence]:
    """Yield why throughput is not known, and what to give; the pattern that would count the lines of the output."""
    measured = record.measurement
    if measured is None:
        if record.error is not None and record.partial is None:
            yield Sentence("It failed before a step was measured.", "answer")
        return
    if measured.steps:
        return
    if "step_pattern" in record.spec.workload_args:
        unmatched, doubts = "no_line_matched" in measured.step_flags, set(measured.step_flags) & {*STEP_FLAGS}
        why = (
            "matches no line"
            if unmatched
            else "counts too few steps"
            if not doubts
            else "gives no steps, as said above"
        )
        yield Sentence(f"Throughput is unknown: the step pattern {why}.", "answer")
    elif offer := measured.notes.get("pattern_offered"):
        example = printable(measured.notes.get("pattern_example", ""), 120)
        yield Sentence(
            f"Throughput is unknown, but lines such as {example!r} count steps. To read them: "
            f"--step-pattern {shlex.quote(printable(offer, 120))}",
            "answer",
        )
        if "epoch" in str(offer).lower():
            yield Sentence("A step is then an epoch.", "answer")
    else:
        yield Sentence(_NO_STEPS, "answer")


def _unmatched(record: RunRecord) -> Iterator[Note]:
    """Yield the line of the output that came nearest to a step pattern that no line matches."""
    measured = record.measurement
    if measured is not None and "no_line_matched" in measured.step_flags:
        nearest = printable(measured.notes.get("nearest_line", ""), 120)
        pattern = printable(record.spec.workload_args.get("step_pattern", ""), 120)
        yield Note(f"No line matches {pattern}" + (f"; nearest is: {nearest}" if nearest else "."), "Careful")


def _until_failure(record: RunRecord) -> dict[str, float]:
    """Return the figures of what a failed command did until its failure."""
    seen = {name: getattr(record, name) for name in Observation.model_fields}
    return window(Observation(**(seen | {"measurement": record.partial})))


def _title(record: RunRecord) -> str:
    command = printable(record.spec.workload_args.get("argv", record.spec.label))
    if record.status is not Status.OK:
        why = "" if record.error is None else f": {printable(record.error.message, 200)}"
        return f"{command}: failed after {interval(record.duration_seconds)} s{why}"
    measured, estimated = split_energy(record.energy)
    parts = [f"{interval(record.duration_seconds)} s", _joules(measured) if measured else _joules(estimated)]
    parts += [f"{interval(1000 * record.carbon.emissions_kg)} g CO2e"] if record.carbon is not None else []
    parts += [f"{_usd(record.cost.cost_usd)}"] if record.cost is not None else []
    return f"{command}: {', '.join(filter(None, parts))}"


def _joules(readings: Sequence[EnergyReading]) -> str:
    if not readings:
        return ""
    joules = sum(reading.energy_joules for reading in readings)
    divisor, unit = scale(joules, "J")
    return f"{'~' * (not readings[0].provenance.measured)}{interval(joules / divisor)} {unit}"


def _part(readings: Sequence[EnergyReading], component: str) -> str:
    """Say what all GPUs, processors or memories took together."""
    own = [reading for reading in readings if reading.component == component]
    name = _COMPONENTS[component]
    return f"{name if len(own) == 1 else f'{len(own)} {_SEVERAL.get(component, name)}'} {_joules(own)}"


def _device(record: RunRecord, reading: EnergyReading) -> str:
    """Name what was read; on several nodes with the name of its node, of which readings know the boot."""
    boot, _, device = reading.device.partition(":")
    node = next((node.name for node in record.nodes if boot and (node.boot_id or node.name).startswith(boot)), None)
    name = f"{_COMPONENTS[reading.component]} {printable(reading.device if node is None else device)}"
    return name if node is None else f"{name} of {printable(node)}"


def _usd(cost: float) -> str:
    return "under 0.0001 USD" if 0 < cost < 1e-4 else f"{interval(cost)} USD"


def _energy(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    for readings in split_energy(record.energy):
        if not readings:
            continue
        watts = sum(reading.power_watts_mean for reading in readings)
        spread = f" ± {interval(systematic(readings))} J" if systematic(readings) else ""
        parts = ", ".join(_part(readings, component) for component in dict.fromkeys(r.component for r in readings))
        if readings[0].provenance.measured:
            missing = [_COMPONENTS[name] for name in missing_components(readings, record.gpus)]
            lacks = f"; lacks {' and '.join(missing)}, which could not be measured" if missing else ""
            yield "energy", f"{_joules(readings)}{spread}, {interval(watts)} W", f"measured: {parts}{lacks}"
        else:
            replayed = any(reading.provenance is Provenance.IMPORTED for reading in readings)
            source = "replayed from a recorded trace" if replayed else "estimated by CodeCarbon"
            yield "energy~", f"{_joules(readings)}, {interval(watts)} W", f"{source}: {parts}"


def _place(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    carbon, cost, peak = record.carbon, record.cost, metrics(record).get("peak_memory_bytes")
    if carbon is not None:
        grid = carbon.intensity
        source = f"{region_name(grid.region)}{f' {grid.year}' if grid.year else ''}: {interval(1000 * grid.kg_per_kwh)} g/kWh"
        pue = f"PUE {number(carbon.pue)}" if record.site.pue is not None else "cooling left out (--pue)"
        yield (
            "carbon",
            f"{interval(1000 * carbon.emissions_kg)} g CO2e",
            f"{carbon.energy_basis} energy; {source}; {pue}",
        )
    if cost is not None:
        lacks = ", without electricity" if cost.mode == "owned" and cost.usd_per_kwh is None else ""
        what = "rent of" if cost.mode == "rental" else "owned:"
        count = f"{cost.devices} device{'s' * (cost.devices != 1)}"
        yield "cost", f"{_usd(cost.cost_usd)}", f"{what} {count}{lacks}"
    if peak is not None:
        divisor, unit = scale(peak, "B")
        owner = "all processes on a GPU" if record.spec.device_type == "gpu" else "the largest process"
        yield "peak memory", f"{interval(peak / divisor)} {unit}", owner


def _steps(record: RunRecord, figures: Mapping[str, float], source: str) -> Iterator[tuple[str, str, str]]:
    if not figures.get("steps"):
        return
    measured = record.measurement
    each = ""
    if measured is not None and measured.samples:
        about = " on average" * (measured.samples % measured.steps > 0)
        each = f" of {number(measured.samples / measured.steps)} samples{about}"
    window = f"{number(figures['steps'])} steps{each} in {number(figures['window_seconds'])} s{source}"
    if record.measurement is not None and (known := record.measurement.notes.get("output_format")):
        yield "steps", number(figures["steps"]), f"read from the output, format of {TITLES.get(str(known), known)}"
    units = [unit for unit in ("samples", "tokens") if f"{unit}_per_second" in figures]
    if units:
        yield "throughput", ", ".join(f"{number(figures[f'{unit}_per_second'])} {unit}/s" for unit in units), window
    if "step_seconds_median" in figures:  # steps that arrive in blocks have no times
        yield "step", f"{number(figures['step_seconds_median'])} s", "median"
    for unit in ("sample", "token"):
        for end, mark in (("", ""), ("_estimated", "~")):
            if (name := f"joules_per_{unit}{end}") in figures:
                yield f"energy per {unit}{mark}", f"{mark}{number(figures[name])} J", "energy of the measured steps"
    for name in (name for name in figures if name.startswith(OWN)):
        yield name.removeprefix(OWN), number(figures[name]), "last value of the script"
    phases = {
        name.removeprefix("phase_").removesuffix("_seconds"): seconds
        for name, seconds in figures.items()
        if name.startswith("phase_") and name.endswith("_seconds")
    }
    if len(phases) > 1:
        parts = (f"{_PHASES.get(name, printable(name))} {number(seconds)} s" for name, seconds in phases.items())
        yield "phases", f"{number(sum(phases.values()))} s", ", ".join(parts)
