"""Strategies: what to change, candidates against a baseline, a ladder step by step, and what fits into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import streamlit as st

from analytics.judge import compare
from analytics.judge.advice import EVERYWHERE, Advice
from analytics.judge.advise import advise
from analytics.judge.compare import Comparison, Effect
from analytics.judge.objectives import REMEDIES, Per, columns
from analytics.quantities import quantity
from analytics.runs.frame import asked, names
from analytics.text import between, number, printable, repeats_words
from app import page
from app.charts.bars import OUTCOMES, memory_chart
from app.charts.base import plain
from app.charts.forest import FOOT, Ratio, forest_chart, waterfall_chart
from bench.record import Status
from bench.schema import AXES

AMOUNTS: dict[str, Per] = {"way to the target": "target", "same samples": "samples", "same tokens": "tokens"}
WHOLE_RUN = "whole run"
"""What time, energy, carbon and cost may be counted for, the most telling first; the last where nothing else is known."""
GOALS = ("time", "energy", "carbon", "cost", "memory", "loss", "accuracy")
WHOLE = "all steps"
"""Name of the top of a ladder against its foot."""
_FULL = {"loss": "validation loss", "memory": "peak memory", "carbon": "CO2e"}
_UNITS = {"time": ("s", 1.0), "energy": ("J", 1.0), "carbon": ("g", 1e3), "cost": ("USD", 1.0), "memory": ("GB", 1e-9)}
_OF_RUN = {"time": ("duration_seconds",), "energy": ("run_energy_joules", "run_energy_joules_estimated")}
_OF_RUN |= {"carbon": ("emissions_kg",), "cost": ("cost_usd",)}
MOST = 100
"""Configurations that are compared at once: more take long."""
_BASES = {"carbon": "emissions_basis", "cost": "cost_basis"}


@dataclass(frozen=True)
class Goal:
    """One thing that candidates are compared in: its column, and unit and factor of what is shown of that.

    `inverse`: the column is a rate, and the time that it takes is shown. `estimated`: it rests on a model.
    """

    name: str
    column: str
    unit: str
    factor: float
    inverse: bool
    estimated: bool

    @property
    def title(self) -> str:
        """Name, marked where it is estimated."""
        name = _FULL.get(self.name, self.name)
        return f"~{name}, estimated" if self.estimated else name

    @property
    def good(self) -> str:
        """Which side of 1 is better."""
        return "above" if not self.inverse and quantity(self.column).better == "more" else "below"

    def value(self, figure: float) -> float:
        """Return a figure of the column in the unit that is shown."""
        return self.factor * figure if not self.inverse else self.factor / figure if figure else math.inf

    def told(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{'~' * self.estimated}{number(value)} {self.unit}".strip()


def amounts(df: pd.DataFrame) -> list[str]:
    """Name those of AMOUNTS that some run tells the time of, or else WHOLE_RUN."""
    return [name for name, per in AMOUNTS.items() if df[columns("time", per)[0]].notna().any()] or [WHOLE_RUN]


def goals(df: pd.DataFrame, amount: str) -> list[Goal]:
    """Return what the runs can be compared in: of measured and estimated energy the measured one."""
    ok, per = df[df["status"] == Status.OK], AMOUNTS.get(amount, "samples")
    out = []
    for name in GOALS:
        known = _OF_RUN.get(name, ()) if amount == WHOLE_RUN else ()
        column = next((one for one in known or columns(name, per) if one in ok and ok[one].notna().any()), None)
        if column is None:
            continue
        bases = ok.get(_BASES.get(name, ""), pd.Series(dtype="str"))
        estimated = "estimated" in column or bool(bases.str.contains("estimated", na=False).any())
        unit, factor = _UNITS.get(name, ("", 1.0))
        inverse = column.endswith("_per_second")
        one = inverse or "joules_per" in column
        each = f"/{per.removesuffix('s')}" if one else f" a million {per}" if "per_million" in column else ""
        out.append(Goal(name, column, unit + each, factor, inverse, estimated))
    return out


def follows(df: pd.DataFrame, known: Sequence[Goal]) -> dict[str, str]:
    """Name what is another goal times one number in all runs, as cost is time at one price: it tells nothing of its own."""
    ok, by_name = df[df["status"] == Status.OK], {goal.name: goal for goal in known}
    out = dict[str, str]()
    for name, of in (("carbon", "energy"), ("cost", "time"), ("cost", "energy")):
        if name in by_name and of in by_name:
            one, other = (ok[by_name[goal].column] for goal in (name, of))
            ratio = one * other if by_name[of].inverse else one / other
            if one.nunique() > 1 and ratio.max(skipna=False) < 1.000001 * ratio.min():
                out.setdefault(name, of)
    return out


def ratio(name: str, effect: Effect, goal: Goal) -> Ratio:
    """Return an effect as it is shown: that on a rate as what it does to the time."""
    cost = effect.cost if goal.inverse else effect.interval
    verdict = "not enough repeats" if cost.low is None or cost.high is None else effect.verdict
    more = "" if effect.more_repeats is None else f" ({repeats_words(effect.more_repeats)})"
    told = between(cost.value, cost.low, cost.high)
    words = f"{told} {verdict}{f' among {effect.among}' if effect.among else ''}{more}"
    words = words if effect.difference is None else f"no ratio, difference {words}"
    figures = " → ".join(goal.told(goal.value(figure)) for figure in (effect.baseline_value, effect.value))
    x = cost.value if effect.difference is None else math.nan
    return Ratio(plain(name), x, cost.low, cost.high, verdict, words, figures)


def ratios(found: Sequence[Comparison], goal: Goal) -> list[Ratio]:
    """Return what each candidate does in one goal, where it can be compared with its baseline."""
    several = len({one.baseline for one in found}) > 1
    called = [(one, f"{one.name} against {one.baseline}" if several else one.name) for one in found]
    return [ratio(name, e, goal) for one, name in called for e in one.effects if e.metric == goal.column]


def steps(found: Sequence[Comparison], goal: Goal) -> list[Ratio]:
    """Return the steps of a ladder (`analytics.judge.compare.ladder`) in one goal, the foot first: their factors multiply."""
    out: list[Ratio] = []
    foot = level = 0.0
    for one in found:
        effect = next((e for e in one.effects if e.metric == goal.column and e.difference is None), None)
        if effect is None:
            out.append(Ratio(plain(one.name), math.nan, None, None, "", one.reason or "not compared"))
            continue
        shown = ratio(one.name, effect, goal)
        if not level:
            foot = level = goal.value(effect.baseline_value)
            out.insert(0, Ratio(plain(one.baseline), foot, None, None, FOOT, goal.told(foot), start=foot))
        start = foot if one.name == WHOLE else level
        level = start * shown.x
        low, high = (None if end is None else start * end for end in (shown.low, shown.high))
        words = f"× {shown.words} → {goal.told(level)}"
        out.append(replace(shown, x=level, low=low, high=high, words=words, start=start))
    return out if level else []


def table(found: Sequence[Comparison], wanted: Sequence[Goal]) -> pd.DataFrame:
    """Return a row a candidate: how it ended, and its ratios with interval and verdict."""
    rows = []
    for one in found:
        ended = f"{one.ended[0]} of {one.ended[1]} ok" if one.ended[1] else one.status.replace("_", " ")
        row = {
            "Candidate": plain(one.name.removeprefix("+ ")),
            "Baseline": plain(one.baseline.removeprefix("+ ")),
            "Ended": ended,
        }
        for goal in wanted:
            cells = [ratio("", e, goal).words for e in one.effects if e.metric == goal.column]
            row[f"{goal.title} ×"] = cells[0] if cells else "not compared" if one.status == Status.OK else ""
        rows.append(row)
    return pd.DataFrame(rows)


def effects(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return all that is known of the comparisons, a row an effect or a reason why there is none."""
    rows = list[dict[str, Any]]()
    for one in found:
        about = {"candidate": one.name, "baseline": one.baseline, "status": one.status, "reason": one.reason}
        about |= {"flags": " ".join(one.flags), "notes": "; ".join([*one.notes, *one.doubts])}
        refused = [{"metric": metric, "reason": why} for metric, why in (one.not_compared or {}).items()]
        rows += [about | more for more in [*map(asdict, one.effects), *refused] or [{}]]
    return pd.DataFrame(rows).drop(columns=["spread"], errors="ignore")


def remarks(found: Sequence[Comparison]) -> list[str]:
    """Say what failed, what cannot be compared, what was other work, and what else may have made a difference."""
    said: dict[str, list[str]] = {}
    for one in found:
        refused = one.not_compared or {}
        lines = [f"{one.status.replace('_', ' ')}: {one.reason}"] if one.reason else []
        for why in dict.fromkeys(refused.values()):
            lines.append(f"not compared by {' and '.join(m for m, w in refused.items() if w == why)}: {why}")
        for line in (*lines, *one.notes, *one.doubts):
            said.setdefault(line, []).append(one.name)
    called = {
        line: "All" if len(of) == len(found) > 1 else printable(plain(", ".join(of)), 200) for line, of in said.items()
    }
    return [f"{names}: {printable(plain(line), 400)}" for line, names in called.items()]


def unknown(known: Sequence[Goal]) -> list[str]:
    """Say of each goal that no run tells what to do about it; loss and accuracy are both quality."""
    told = {"quality" if goal.name in GOALS[5:] else goal.name for goal in known}
    return [f"No {name}: {REMEDIES[name]}." for name in (*GOALS[:5], "quality") if name not in told]


def advised(found: Sequence[Advice]) -> list[str]:
    """Return the advice in lines, numbered, with its limits and what to set in a suite."""
    out = []
    for count, advice in enumerate(found, 1):
        more = {"limits": "; ".join(advice.limits), "in a suite": advice.action}
        out += [f"{count}. {plain(advice.sentence)}", *(f"    {name}: {text}" for name, text in more.items() if text)]
    return [*out, f"Limits of all: {EVERYWHERE}."] if out else []


def answer(found: Sequence[Advice], ladder: Sequence[Comparison], known: Sequence[Goal]) -> str:
    """Return what all steps of a ladder bring together; otherwise the first advice."""
    brought = []
    for goal in known if ladder else ():
        whole = next((step for step in steps(ladder, goal) if step.name == WHOLE), None)
        if whole is not None and whole.verdict not in ("cannot tell", "not enough repeats", ""):
            brought.append(f"{goal.title} {whole.words.partition('→')[0].strip(' ×')}")
    if brought:
        return f"All steps together, as multiples of the baseline: {'; '.join(brought)}."
    return plain(found[0].sentence) if found else "Nothing stands out: there is no advice from these runs."


# --- what fits into memory

_OUTCOME = {Status.OK: "fits", Status.SKIPPED: "skipped", Status.OUT_OF_MEMORY: "out of memory"}
_HOW = {*AXES, "devices", "gradient_accumulation_steps", "memory_limit_bytes"} - {"schedule"}
_BYTES = {"peak_memory_bytes": "max", "attempted_bytes": "max", "memory_available_bytes": "min"}


def _called(df: pd.DataFrame, fields: Sequence[str]) -> pd.Series:
    """Name each run by those of some fields that vary."""
    group = df.groupby(list(fields), dropna=False, sort=False).ngroup()
    first = df.loc[~group.duplicated(), list(fields)].reindex(
        columns=[*fields, *{"workload", "devices"}.difference(fields)]
    )
    return group.map(dict(zip(group[first.index], names(first), strict=True)))


def memory_map(df: pd.DataFrame) -> pd.DataFrame:
    """Return a row a strategy, model and batch per device that was tried: how that ended, the worst run first.

    Columns: strategy, parameters (of the whole model; NaN where no run tells), model, batch, outcome (of OUTCOMES), worst
    (how many runs ended so), runs, those of _BYTES, share (peak of available), reason. Models in order of their size;
    strategies as they were begun, those that were only skipped last.
    """
    df = df[df["batch_size_per_device"].notna()].reset_index(drop=True)
    if df.empty:
        return df
    df = df.assign(gradient_accumulation_steps=df["gradient_accumulation_steps"].replace(1, pd.NA))
    how = [name for name in asked(df) if name.split(".")[0] in _HOW and name != "optimizer.learning_rate"]
    of_model = ["workload", *(name for name in asked(df) if name.startswith("workload_args."))]
    df["strategy"], df["model"] = _called(df, how).map(plain), _called(df, of_model).map(plain)
    df["model"] = df["model"].mask(df["model"] == "plain", df["workload"])
    df["parameters"] = df.groupby("model")["parameters"].transform("max")
    df["batch"] = df["batch_size_per_device"].astype(int)
    df["outcome"] = pd.Categorical(
        [_OUTCOME.get(status, "failed") for status in df["status"]], [*OUTCOMES], ordered=True
    )
    df = df.assign(**{name: df.get(name, math.nan) for name in _BYTES})
    ran = df.sort_values("outcome", key=lambda outcome: outcome == "skipped", kind="stable")
    df["strategy"] = pd.Categorical(df["strategy"], ran["strategy"].unique())
    keys, rows = ["strategy", "parameters", "model", "batch"], []
    for key, runs in df.groupby(keys, dropna=False, observed=True):
        bad = runs[runs["outcome"] == runs["outcome"].max()]
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"outcome": bad["outcome"].iloc[0]}
        row |= {"worst": len(bad), "runs": len(runs), **runs.agg(_BYTES), "reason": bad["error_message"].iloc[0]}
        rows.append(row | {"share": row["peak_memory_bytes"] / row["memory_available_bytes"]})
    return pd.DataFrame(rows)


def cell(row: Any) -> list[str]:
    """Say in a few words how a cell ended: `✓ 3.2 GB`, `12 % of 26 GB`; `✗ out of memory`, `wanted 80 GB`."""
    peak, wanted, there = (
        f"{size / 1e9:.3g} GB" for size in (row.peak_memory_bytes, row.attempted_bytes, row.memory_available_bytes)
    )
    if row.outcome == "fits":
        share = [] if math.isnan(row.share) else [f"{100 * row.share:.2g} % of {there}"]
        return ["✓ fits" if math.isnan(row.peak_memory_bytes) else f"✓ {peak}", *share]
    full = row.outcome == "out of memory"
    out = [f"{'✗' if full else '!'} {row.outcome}"]
    out += [f"wanted {wanted}"] if full and not math.isnan(row.attempted_bytes) else []
    return [*out, f"{row.worst} of {row.runs} runs"] if row.worst < row.runs else out


FIRST, ALL = "First of each kind of work", "All strategies"
FORMATS = {"peak_memory_bytes": ("Peak memory", "bytes"), "attempted_bytes": ("Attempted", "bytes")}
FORMATS |= {"memory_available_bytes": ("Memory of a device", "bytes"), "share": ("Share", "percent")}
FORMATS |= {"parameters": ("Parameters", "compact"), "batch": ("Batch per device", "localized")}
MEMORY = {name: st.column_config.NumberColumn(title, format=how) for name, (title, how) in FORMATS.items()}
MEMORY |= {"worst": "Runs that ended so", "runs": "Runs", "reason": "Reason"}
MEMORY |= {"strategy": "Strategy", "model": "Model", "outcome": "Outcome"}
CANDIDATES = (
    "Multiples of the baseline, 95 % intervals; verdicts allow for all comparisons (Holm). ~ is estimated by a model."
)
LADDER = "Each step against the one below, last all steps together. A mark is the end of a step; 95 % intervals."
CELLS = "Peak memory of the fullest device (on a CPU: the growth of the process), or how the worst run ended."
_cached = st.cache_data(ttl=60, max_entries=8, show_spinner="Comparing ...")
_within, _ladder, _advise = _cached(compare.within), _cached(compare.ladder), _cached(advise)
_memory_map = _cached(memory_map)


def _choose(runs: pd.DataFrame, only: list[str] | None) -> tuple[compare.Matched, list[Goal]]:
    """Let amount, goals and baseline be chosen; return the comparisons, `only` those of some configurations."""
    with st.sidebar:
        amount = st.selectbox("Time, energy, carbon, cost of", amounts(runs), key="amount", **page.BOUND)
        known = {goal.name: goal for goal in goals(runs, amount)}
        copies = follows(runs, list(known.values()))
        usual = [name for name in known if name not in copies and (name != "accuracy" or "loss" not in known)]
        chosen = st.multiselect("Compared by", list(known), usual, key="goals", **page.BOUND)
        for name, of in copies.items():
            if name not in chosen:
                st.caption(f"{name.capitalize()} is {of} times one number here, so its ratios are those of {of}.")
        columns = [known[name].column for name in chosen]
        found = _within(runs, columns, only=only)
        bases = [name for one in found.comparisons for name in (one.baseline, *([one.name] * (one.ended[0] > 0)))]
        base = st.selectbox("Baseline", [FIRST, *dict.fromkeys(bases)], key="baseline", **page.BOUND)
    found = found if base == FIRST else _within(runs, columns, baseline=base, only=only)
    return found, [known[name] for name in chosen]


def _candidates(runs: pd.DataFrame) -> None:
    begun = runs.sort_values("started_at", kind="stable")["config_id"].dropna().unique()
    only = None
    if len(begun) > MOST:
        st.caption(f"Compared are the first {MOST} of {len(begun):,} configurations, as they were begun.")
        only = list(begun[:MOST])
    found, chosen = _choose(runs, only)
    if not found.comparisons:
        page.lines(["Nothing to compare: it takes two configurations that do the same work.", *map(plain, found.notes)])
        return
    drawn = {goal: rows for goal in chosen if (rows := ratios(found.comparisons, goal))}
    for pair in (list(drawn.items())[i : i + 2] for i in range(0, len(drawn), 2)):
        for column, (goal, rows) in zip(st.columns(2), pair, strict=False):
            with column:
                figure = forest_chart(rows, goal.title, goal.good)
                page.figure(figure, f"ratios-{goal.name}", f"Ratios: {goal.name}")
    st.caption(CANDIDATES)
    page.table(table(found.comparisons, chosen), "candidates", full=effects(found.comparisons))
    missing = unknown(goals(runs, amounts(runs)[0]))
    if notes := [*remarks(found.comparisons), *map(plain, found.notes), *missing]:
        page.lines(notes)


def _steps(found: Sequence[Comparison], runs: pd.DataFrame) -> None:
    known = goals(runs, amounts(runs)[0])
    drawn = {goal.name: (goal, rows) for goal in known if (rows := steps(found, goal))}
    if drawn:
        name = st.sidebar.selectbox("Ladder by", list(drawn), key="step", **page.BOUND)
        goal, rows = drawn[name]
        page.figure(waterfall_chart(rows, goal.title, goal.unit), "ladder", f"The ladder step by step: {name}")
        st.caption(LADDER)
    page.table(table(found, [goal for goal, _ in drawn.values()]), "steps", full=effects(found))
    if notes := remarks(found):
        page.lines(notes)


def _memory(cells: pd.DataFrame) -> None:
    options = [ALL, *cells["strategy"].unique()]
    strategy = st.sidebar.selectbox("Memory of", options, key="strategy", **page.BOUND)
    cells = cells if strategy == ALL else cells[cells["strategy"] == strategy]
    page.figure(
        memory_chart(cells, [cell(row) for row in cells.itertuples()]), "memory", "Which batches fit into memory"
    )
    st.caption(CELLS)
    page.table(cells.dropna(axis="columns", how="all"), "memory", column_config=MEMORY)


def main() -> None:
    """Show the page."""
    runs = page.execution(page.runs("Strategies"))
    advice, ladder, cells = _advise(runs), _ladder(runs), _memory_map(runs)
    page.answer(answer(advice, ladder, goals(runs, amounts(runs)[0])))
    if ladder:
        st.subheader("The ladder, step by step")
        _steps(ladder, runs)
    st.subheader("Candidates against a baseline")
    _candidates(runs)
    if len(cells):
        st.subheader("Batches that fit into memory")
        _memory(cells)
    if found := advised(advice):
        with st.expander("All advice, with its limits"):
            st.text("\n".join(found))
    suites = {"ladder": not ladder, "memory": cells.empty}
    for name in (name for name, absent in suites.items() if absent):
        st.text(f"No {name} was measured in this execution. Run in a terminal:")
        page.code(f"bench run suites/{name}.yaml{page.store_option()}")
