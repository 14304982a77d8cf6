"""The answer of stored runs as data: tables of text and the sentences that belong to them; printed, or put into a report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from analytics.interval import MOST_REPEATS
from analytics.judge.comparable import unequal_training
from analytics.judge.compare import Comparison, Effect, costs, ladder, within
from analytics.judge.matched import Changes
from analytics.law.series import ScalingFit, fit
from analytics.runs.frame import summary, total
from analytics.say.blocks import Note, Table
from analytics.say.names import word
from analytics.text import number, printable, scale, written
from bench.figures.flags import meaning
from bench.record import Status

_ESTIMATED = "~ is the figure of a model (CodeCarbon), not a measurement."


@dataclass(frozen=True)
class Found:
    """What the runs of one execution say: the law, a ladder, and each configuration against the first of its work."""

    runs: pd.DataFrame
    law: ScalingFit
    steps: tuple[Comparison, ...]

    @cached_property
    def others(self) -> tuple[Comparison, ...]:
        """Each configuration that ended well against the first that did the same work."""
        return tuple(one for one in within(self.runs, costs(self.runs)).comparisons if one.status == Status.OK)

    @cached_property
    def changes(self) -> Changes:
        """What each option does where configurations differ in nothing else."""
        return Changes(self.runs)

    def configurations(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a summary that are those of this execution, with an index from 0."""
        suite, execution = self.runs["suite"].iloc[0], self.runs["execution"].iloc[0]
        own: pd.DataFrame = table[(table["suite"] == suite) & (table["execution"] == execution)]
        return own.reset_index(drop=True)

    @property
    def tested(self) -> bool:
        """Whether they put the law to a test: no ladder, but several numbers of devices, or three sizes of work."""
        return not self.steps and any(len(one.devices) > 1 or len(one.by_work) > 2 for one in self.law.series)


def find(df: pd.DataFrame) -> list[Found]:
    """Return what each execution in a frame of runs says."""
    parts = [part.reset_index(drop=True) for _, part in df.groupby(["suite", "execution"], sort=False)]
    return [Found(part, fit(part), tuple(ladder(part))) for part in parts]


def document(df: pd.DataFrame) -> dict[str, Any]:
    """The answer of a frame of runs as JSON: every run, one entry a configuration, comparisons, the fit. Absent is null."""
    return told(df, summary(df), find(df))


def told(df: pd.DataFrame, table: pd.DataFrame, found: Sequence[Found]) -> dict[str, Any]:
    """The answer as JSON, of a frame, its summary and what its executions say."""
    law = found[0].law if len(found) == 1 else fit(df)
    return {
        "runs": _records(df),
        "configurations": _records(table),
        "comparisons": [_told(one.runs, comparison) for one in found for comparison in one.others],
        "ladder": [_told(one.runs, step) for one in found for step in one.steps],
        "precisions": [
            {"suite": one.runs["suite"].iloc[0], "execution": one.runs["execution"].iloc[0], **change.to_dict("time")}
            for one in found
            for change in one.changes
            if change.topic.name == "precision"
        ],
        "fit": law.to_dict(),
    }


def _told(part: pd.DataFrame, comparison: Comparison) -> dict[str, Any]:
    return {"suite": part["suite"].iloc[0], "execution": part["execution"].iloc[0], **comparison.to_dict()}


def _records(df: pd.DataFrame) -> list[dict[str, Any]]:
    text = df.to_json(orient="records", date_format="iso", double_precision=15)
    records: list[dict[str, Any]] = json.loads(text)
    return records


def totals(df: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return label, value and small print of every total of whole runs. What rests on a model says so in its label."""
    taken = df[["run_energy_joules", "run_energy_joules_estimated", "cost_usd"]].notna().any(axis=1)
    skipped = int(((df["status"] == Status.SKIPPED) & ~taken).sum())  # others found out only when they had begun
    runs = f"{{}} of {len(df) - skipped} runs" + (f", {skipped} skipped before they began" if skipped else "")
    tiles = []
    for column, label in (
        ("run_energy_joules", "Energy, measured"),
        ("run_energy_joules_estimated", "Energy, estimated by a model"),
    ):
        joules, known = total(df, column)
        divisor, unit = scale(joules or 0.0, "J")
        value = "not known" if joules is None else f"{joules / divisor:.3g} {unit}"
        kwh = f"{number(joules / 3.6e6)} kWh, " if joules is not None else ""
        tiles.append((label, value, kwh + runs.format(known)))
    for basis, label in (
        ("measured", "CO2e, from measured energy"),
        ("estimated", "CO2e, from energy estimated by a model"),
    ):
        kilograms, known = total(df[df["emissions_basis"] == basis], "emissions_kg")
        if kilograms is not None:
            divisor, unit = scale(1000 * kilograms, "g")
            tiles.append((label, f"{1000 * kilograms / divisor:.3g} {unit}", runs.format(known)))
    for basis, label in (("rental", "Cost, rent of devices"), ("owned", "Cost, owned devices")):
        usd, known = total(df[df["cost_basis"].str.startswith(basis, na=False)], "cost_usd")
        if usd is not None:
            tiles.append((label, f"{number(usd)} USD", runs.format(known)))
    return tiles


def not_ok(runs: pd.DataFrame) -> Iterator[str]:
    """Runs that did not end well, and why; repeats with the same reason once."""
    for (_, status, reason), same in runs[runs["status"] != "ok"].groupby(
        ["config_id", "status", "error_message"], sort=False, dropna=False
    ):
        times = f" (and {len(same) - 1} more repeats)" if len(same) > 1 else ""
        yield f"{status}: {printable(same['run_id'].iloc[0], 160)}{times}: {printable(reason, 300)}"


def conclusions(found: Found) -> Iterator[Table | Note]:
    """Yield what follows from runs that do not test the law: a ladder, or each configuration against the first."""
    compared = found.steps or found.others
    if any(one.effects for one in compared):
        baselines = dict.fromkeys(one.baseline for one in compared)
        against = next(iter(baselines)) if len(baselines) == 1 else "the first with the same work"
        caption = "Each step against the one below" if found.steps else f"Each configuration against {against}"
        yield _compared("step" if found.steps else "configuration", f"{caption}, for the same work", compared)
        yield Note(
            "? cannot be told yet; +3: three more repeats of each should tell. Verdicts allow for a whole column."
        )
    if not found.law.series and found.runs["status"].eq(Status.OK).any():
        timed = found.runs["samples_per_second"].notna().any()
        what = "No law is fitted" if timed else "Nothing is predicted"
        give = " Import them with flops_per_sample, or with parameters and sequence_length."
        yield Note(f"{what}: the work of a sample (FLOP) is unknown.{give if imported(found.runs).all() else ''}")


def imported(rows: pd.DataFrame) -> pd.Series:
    """Say of each row whether its figures come from a file of others."""
    return rows["flags"].str.contains(r"\bimported\b", na=False)


def unequal(runs: pd.DataFrame) -> bool:
    """Return whether quality was read after unequal training, so that it cannot be compared."""
    return unequal_training(runs[runs["saves"].isna()] if "saves" in runs else runs) is not None


_COSTS = {
    "samples_per_second": "time ×",
    "joules_per_sample": "energy ×",
    "joules_per_sample_estimated": "~energy ×",
    "cost_usd_per_million_samples": "money ×",
    "seconds_to_target": "time to target ×",
    "energy_to_target_joules": "energy to target ×",
    "energy_to_target_joules_estimated": "~energy to target ×",
    "cost_to_target_usd": "money to target ×",
}


def _compared(heading: str, caption: str, comparisons: Sequence[Comparison]) -> Table:
    """A table of factors: what each costs of its baseline, with the verdict, and the quality of both."""
    shown = [metric for metric in _COSTS if any(one.effect(metric) for one in comparisons)]
    if any("target" in metric for metric in shown):  # the way to the target says more than the speed of it
        shown = [metric for metric in shown if "target" in metric]
    headings = (heading, *(_COSTS[metric] for metric in shown), "validation loss", "accuracy")
    rows = []
    for comparison in comparisons:
        cells = [_factor(comparison.effect(metric)) for metric in shown]
        why = (
            ""
            if comparison.effects or comparison.status == Status.OK
            else f" ({comparison.status}: {comparison.reason})"
        )
        quality = [_before_after(comparison, f"validation_{name}") for name in ("loss", "accuracy")]
        rows.append((_step(comparison.name) + why, *cells, *quality))
    return Table(caption, headings, tuple(rows), figures=False)


def _step(name: str) -> str:
    """Put the name of a step into words: `+ bf16` for `+ precision=bf16`."""
    return re.sub(r"([\w.]+)=(\S+)", lambda found: word(found[1], found[2]), name)


def _factor(effect: Effect | None) -> str:
    """Print the ratio of what the same work takes with its interval and the verdict; ? is that it cannot be told."""
    if effect is None or effect.difference is not None:
        return "-"
    cost, more = effect.cost, effect.more_repeats
    verdict = effect.verdict if effect.verdict != "cannot tell" else f"? {_more(more)}"
    return f"{written(cost)} {verdict}".strip()


def _more(repeats: int | None) -> str:
    """Print how many more repeats should tell."""
    return "" if repeats is None else f"+{repeats}" if repeats <= MOST_REPEATS else f">{MOST_REPEATS:,}"


def _before_after(comparison: Comparison, name: str) -> str:
    before, after = (comparison.baseline_quality or {}).get(name), (comparison.quality or {}).get(name)
    return "-" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


def _filled(caption: str, names: pd.Series, columns: dict[str, list[str]]) -> Table:
    """A table of configurations by their names; a column in which nothing is known is left out."""
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {"-"}}
    return Table(caption, ("configuration", *shown), tuple(zip(names, *shown.values(), strict=True)))


def served(results: pd.DataFrame) -> Iterator[Table]:
    """Size, speed and quality of the served models; the change of quality is that against the trained form."""
    results = results[results["model_bytes"].notna()]
    if results.empty:
        return
    energy = results["inference_joules_per_sample"]
    basis = energy.notna().map({True: "measured", False: "estimated"})
    columns = {
        "MB on disk": _figures(results["model_bytes"] / 1e6, basis.map({})),
        "zeros": [_percent(share) for share in results["zeros_share"]],
        "samples/s": _figures(results["inference_samples_per_second"], basis.map({})),
        "J/sample": _figures(energy.fillna(results["inference_joules_per_sample_estimated"]), basis),
        "loss": [_change(row, "loss") for _, row in results.iterrows()],
        "accuracy": [_change(row, "accuracy") for _, row in results.iterrows()],
    }
    yield _filled("In use: the model as it would be served, forward passes alone", results["name"], columns)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"


def _change(row: pd.Series, name: str) -> str:
    before, after = row[f"validation_{name}"], row[f"served_{name}"]
    return "-" if math.isnan(after) else f"{after:.3f} ({after - before:+.3f})"


def to_target(results: pd.DataFrame) -> Iterator[Table]:
    """What it took to reach the target, from the first step of the training: median over repeats, if all did."""
    results = results[results["target_reached"].notna()]
    if results.empty:
        return
    measured = results["energy_to_target_joules"]
    energy = measured.fillna(results["energy_to_target_joules_estimated"])
    basis = measured.notna().map({True: "measured", False: "estimated"})
    columns = {
        "seconds": _figures(results["seconds_to_target"], basis.map({})),
        "steps": _figures(results["steps_to_target"], basis.map({})),
        "J": _figures(energy, basis),
        "g CO2e": _figures(results["emissions_to_target_kg"] * 1000, results["emissions_basis"]),
        "USD": _figures(results["cost_to_target_usd"], results["cost_basis"]),
    }
    for place, share in enumerate(results["target_reached"]):
        if share < 1:  # what those took that did reach it would be a figure of the lucky ones
            for cells in columns.values():
                cells[place] = "-"
            columns["seconds"][place] = "not reached" if share == 0 else "not by all repeats"
    goals = sorted({f"{a} {b:g}" for a, b in zip(results["target.metric"], results["target.value"], strict=True)})
    caption = f"To reach {' or '.join(map(printable, goals))}, from the first step of the training"
    yield _filled(caption, results["name"], columns)


def _figures(values: pd.Series, basis: pd.Series) -> list[str]:
    return [_number(value, "~" if "estimated" in str(on) else "") for value, on in zip(values, basis, strict=True)]


def _number(value: float, mark: str = "") -> str:
    return "-" if math.isnan(value) else f"{mark}{value:.3g}"


def _systematic(measured: pd.DataFrame) -> list[str]:
    """What repeats do not show of measured energy, what of it is idle power, and what a start takes."""
    out = []
    share = (measured["energy_systematic_joules"] / measured["energy_joules"]).max()
    if share > 0:
        out.append(f"measured energy: repeats aside, ±{100 * share:.2g} % (gain of the sensors, assumed, and edges)")
    idle = (1 - measured["energy_above_idle_joules"] / measured["energy_joules"]).median()
    if not math.isnan(idle):
        out.append(f"of it {100 * idle:.2g} % would be drawn idle too (attributed: idle power × time)")
    joules = measured["startup_energy_joules"].median()
    if not math.isnan(joules):
        seconds = measured["startup_seconds"].median()
        out.append(f"a start takes {seconds:.2g} s and {joules:.3g} J, once (median), and is not in the figures above")
    return out


def _compiling(results: pd.DataFrame) -> list[str]:
    """What compiling took, once a start; the figures of steps do not hold it."""
    seconds = results["compile_seconds"].dropna()
    return [f"compiling took {seconds.min():.3g} to {seconds.max():.3g} s of a start"] if len(seconds) else []


def remarks(results: pd.DataFrame) -> list[str]:
    """What a reader of the table must know: estimates, missing parts, what to give for carbon and cost."""
    out = []
    ours = ~imported(results)
    measured = results["energy_joules"].notna()
    estimated = results["run_energy_joules_estimated"].notna()
    missing = " ".join(
        sorted({word for text in results.loc[measured, "energy_missing"].dropna() for word in text.split()})
    )
    if measured.any() and missing:
        out.append(
            f"energy is a partial total: {missing.replace(' ', ' and ')} could not be measured (bench doctor says why)"
        )
    if (~measured & estimated).any():
        out.append(_ESTIMATED)
    elif not (measured | ~ours).all():
        out.append("no energy: no meter could read any (bench doctor says why)")
    out += _systematic(results[measured]) + _compiling(results)
    energy = measured | estimated
    if energy.any() and results["emissions_kg"].isna().all():
        out.append("no carbon: give a region, the power of which is used (bench report --region FR)")
    if ours.any() and results["cost_usd"].isna().all():
        out.append(
            "no cost: give USD per device-hour (bench report --price 2.10) or per kWh (--electricity-price 0.20)"
        )
    if results["memory_estimate_error"].notna().any():
        out.append("(est.): how far the estimate of bench show was off; on a CPU the peak is what the process grew by")
    if (results["zeros_share"] > 0.2).any():  # 5 % or so are zeros by themselves: biases, padding
        out.append("zeros: a share of the weights; whether they make it any faster is what samples/s says")
    found = results[results["label"].str.contains(" bmax ", regex=False)]
    out += [f"largest batch that fits, {row['name']}: {row['batch_size_per_device']}" for _, row in found.iterrows()]
    if results["grade"].notna().any():
        out.append("grade: A fit to be published, B sound with the limits below, C a figure may be wrong")
    if (results["repeats"] < 2).any():
        out.append("one repeat has no interval: give repeats of 3 or more")
    flags = {flag for text in results["flags"] for flag in str(text).split()} - {"energy_estimated", "energy_absent"}
    for flag in sorted(flags):
        named = [row["name"] for _, row in results.iterrows() if flag in str(row["flags"]).split()]
        which = "all" if len(named) == len(results) else ", ".join(map(printable, named))
        if len(named) > 3 and len(named) < len(results):
            which = f"{len(named)} of {len(results)}"
        out.append(f"{flag} ({which}): {meaning(flag)}")
    return out
