"""Tables of figures of configurations: results, the served model, and the way to a target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from analytics.judge.compare import Comparison, Effect
from analytics.judge.symptoms import MANY as MANY
from analytics.quantities import quantity
from analytics.runs.frame import telling
from analytics.say.blocks import Table
from analytics.say.names import UP_TO, metric_name, spoken, word, work_fields
from analytics.text import interval, number, printable, written
from bench.record import Status

_MOST_FIELDS = 3
"""So many fields have columns of their own; more are one column of words."""
GAIN = "speed / step above"
FIGURES = (
    ("samples_per_second", "tokens_per_second"),
    ("joules_per_sample", "joules_per_sample_estimated", "joules_per_token", "joules_per_token_estimated"),
    ("emissions_kg_per_million_tokens", "emissions_kg_per_million_samples"),
    ("cost_usd_per_million_tokens", "cost_usd_per_million_samples"),
    ("duration_seconds",),
    ("run_energy_joules", "run_energy_joules_estimated"),
    ("emissions_kg",),
    ("cost_usd",),
    ("peak_memory_bytes",),
    ("communication_share",),
    ("validation_loss", "loss_last"),
    ("validation_accuracy",),
)
"""Columns of the table of results: of each group the first that is known."""
_WHOLE = ("duration_seconds", "run_energy_joules", "emissions_kg", "cost_usd")
"""Figures of whole runs: shown only where some runs report no steps."""
_DETAILS = ("emissions_kg_per_million_tokens", "communication_share")
SERVED = {
    "MB on disk": ("model_bytes",),
    "zeros, %": ("zeros_share",),
    "samples/s": ("inference_samples_per_second",),
    "J/sample": ("inference_joules_per_sample", "inference_joules_per_sample_estimated"),
}
TARGET = {
    "seconds": ("seconds_to_target",),
    "steps": ("steps_to_target",),
    "J": ("energy_to_target_joules", "energy_to_target_joules_estimated"),
    "g CO2e": ("emissions_to_target_kg",),
    "USD": ("cost_to_target_usd",),
}


def results_table(own: pd.DataFrame, names: pd.DataFrame, *, unequal: bool, steps: Sequence[Comparison] = ()) -> Table:
    """Return the table of results: what tells the configurations apart, then their figures.

    Quality after `unequal` training is marked by * and for those who ask. `steps` of a ladder have their gain in speed.
    """
    columns: dict[str, list[str]] = {}
    if names["work"].nunique() > 1 or not any(names["change"]):
        columns["model"] = list(names["work"])
    kinds = work_fields(own)
    fields = [name for name in telling(own) if name not in kinds]
    if steps:
        columns["step"] = [text.replace(UP_TO, "+ ") for text in names["change"]]
    elif len(fields) <= _MOST_FIELDS:
        columns |= {_heading(name): [_short(name, value) for value in own[name]] for name in fields}
    else:
        columns["configuration"] = list(names["change"])
    words, details = [*columns], list[str]()
    untimed = bool((own["samples_per_second"].isna() & own["tokens_per_second"].isna()).any())
    if own["repeats"].nunique() > 1:
        columns["runs"] = [str(count) for count in own["repeats"]]
    for group in FIGURES:
        if group[0] in _WHOLE and not untimed:
            continue
        bare = group[0] not in ("samples_per_second", "duration_seconds")
        heading = _head(known[0], unequal=unequal) if (known := _known(own, group)) else ""
        added = _figures(own, {heading: known}, bare=bare)
        columns |= added
        details += added if group[0] in _DETAILS or (quantity(group[0]).quality and unequal) else []
        if steps and group[0] == "samples_per_second":
            columns[GAIN] = _gains(own, steps)
            words.append(GAIN)
    if own["grade"].nunique() > 1:
        columns["grade"] = [str(grade) for grade in own["grade"].fillna("-")]
    rows = blanked(list(zip(*columns.values(), strict=True)), min(2, len(words) - 1) if not steps else 0)
    if steps:
        lost = [f"{spoken(step.name)}: {step.status.replace('_', ' ')}" for step in steps if step.status != Status.OK]
        rows += [(text, *("-" for _ in [*columns][1:])) for text in lost]
        whole = [steps[-1]] if steps[-1].status == Status.OK else []
        rows += [(one.name, *(_gain(one) if head == GAIN else "" for head in [*columns][1:])) for one in whole]
    return Table("", tuple(columns), tuple(rows), words=tuple(words), details=tuple(details))


def blanked(rows: Sequence[tuple[str, ...]], leading: int) -> list[tuple[str, ...]]:
    """Leave out in the first columns what the row above says."""
    return [
        tuple(
            "" if place < leading and cells[: place + 1] == above[: place + 1] else cell
            for place, cell in enumerate(cells)
        )
        for above, cells in pairwise([(), *rows])
    ]


def _gains(own: pd.DataFrame, steps: Sequence[Comparison]) -> list[str]:
    """Say how much faster each step that ran is than the one below."""
    ran = iter([step for step in steps[:-1] if step.status == Status.OK])
    return ["", *(_gain(next(ran, None)) for _ in range(len(own) - 1))]


def _gain(step: Comparison | None) -> str:
    effect = None if step is None else step.effect("samples_per_second")
    return "-" if effect is None else f"{written(effect.interval)} {verdict_cell(effect)}"


def verdict(effect: Effect) -> str:
    """Print a verdict: `better`, `same`, `undecided`; `probably better` where the interval alone would tell, see `marks`."""
    if effect.probably:
        return f"probably {_SHORT.get(effect.probably, effect.probably)}"
    return _SHORT.get(effect.verdict, effect.verdict)


_SHORT = {"equivalent": "same", "cannot tell": "undecided"}


def verdict_cell(effect: Effect) -> str:
    """Print a verdict in short: `undecided +3` where 3 more repeats should tell.

    `probably` says no way where the ratio beside it does.
    """
    text, more = verdict(effect).removesuffix(" better").removesuffix(" worse"), effect.more_repeats
    return text if more is None or more > MANY else f"{text} +{more}"


def marks(effects: Iterable[Effect]) -> list[str]:
    """Say what the verdicts of a table mean that are none yet, and which figures are estimated."""
    effects = list(effects)
    out = ["+N: N more repeats should tell."] * any(0 < (effect.more_repeats or 0) <= MANY for effect in effects)
    likely = [chance_words(effect.among for effect in effects)] * any(effect.probably for effect in effects)
    return out + likely + ["~ estimated."] * any(quantity(effect.metric).estimated for effect in effects)


def chance_words(among: Iterable[int | None]) -> str:
    """Say what `probably` means; `among` are the numbers of comparisons, as far as they are known."""
    most = max((count or 0 for count in among), default=0) or "several"
    return f"probably: the interval alone says so; among {most} comparisons that may be chance."


def _heading(column: str) -> str:
    return {"num_nodes": "nodes", "batch_size_per_device": "batch", "global_batch_size": "global batch"}.get(
        column, printable(column.rpartition(".")[2], 30).replace("_", " ")
    )


def _short(column: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if numeric or hasattr(value, "item"):
        return f"{value:g}"
    return (word(column, value) or "-").removeprefix(f"{_heading(column)} ")


def _known(own: pd.DataFrame, group: Sequence[str]) -> list[str]:
    """Return the columns of a group that some configuration knows, all in the unit of the first."""
    known = [name for name in group if name in own and own[name].notna().any()]
    return [name for name in known if quantity(name).unit == quantity(known[0]).unit]


def _head(name: str, *, unequal: bool) -> str:
    """Return the heading of a column of the table of results."""
    known = quantity(name)
    unit = known.unit.replace("million ", "M").replace("Mtokens", "Mtoken").replace("Msamples", "Msample")
    title = metric_name(name).removeprefix("validation ").removeprefix("time with ")
    text = unit if "/" in known.unit and known.per == "work" else ", ".join(filter(None, (title, unit)))
    return text + "*" * (known.quality and unequal)


def _figures(own: pd.DataFrame, groups: Mapping[str, Sequence[str]], *, bare: bool = True) -> dict[str, list[str]]:
    """Return figures by heading, in each row the first of a group that is known; `bare` ones have no interval.

    ~ marks estimates: in the heading where all are, else in the cell. A column in which nothing is known is left out.
    """
    columns: dict[str, list[str]] = {}
    for heading, group in groups.items():
        names = [next((name for name in group if pd.notna(row.get(name))), None) for _, row in own.iterrows()]
        guesses = [
            name is not None and _estimated(row, name) for name, (_, row) in zip(names, own.iterrows(), strict=True)
        ]
        whole = all(guess for guess, name in zip(guesses, names, strict=True) if name)
        cells = [
            "-" if name is None else "~" * (guess and not whole) + cell(row, name, bare=bare)
            for name, guess, (_, row) in zip(names, guesses, own.iterrows(), strict=True)
        ]
        if any(names):
            columns[heading + "~" * whole] = cells
    return columns


def _estimated(row: pd.Series, name: str) -> bool:
    """Whether a figure is that of a model, or rests on one."""
    known = quantity(name)
    return known.estimated or "estimated" in str(row.get(known.rests_on or "", ""))


def cell(row: pd.Series, name: str, *, bare: bool = False) -> str:
    """Print a figure of a summary in the unit of its quantity, with the digits of its interval."""
    factor = quantity(name).factor
    low, high = (row.get(f"{name}{end}") for end in ("_low", "_high"))
    ends = (None, None) if low is None or pd.isna(low) or pd.isna(high) else (factor * low, factor * high)
    text = interval(factor * row[name], *ends)
    return text.partition(" (")[0] if bare else text


def served(own: pd.DataFrame, names: Sequence[str]) -> Iterator[Table]:
    """Size, speed and quality of the served models; the change of quality is that against the trained form."""
    known = own["model_bytes"].notna()
    rows = own[known]
    if rows.empty:
        return
    quality = {name: [_change(row, name) for _, row in rows.iterrows()] for name in ("loss", "accuracy")}
    columns = {"configuration": [name for name, is_known in zip(names, known, strict=True) if is_known]}
    columns |= _figures(rows, SERVED) | {name: cells for name, cells in quality.items() if {*cells} != {"-"}}
    caption = "In use: the model as it would be served, forward passes alone"
    yield Table(caption, tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _change(row: pd.Series, name: str) -> str:
    after = row[f"served_{name}"]
    change = after - row[f"validation_{name}"]
    return "-" if pd.isna(after) else f"{number(after)} ({'+' * (change >= 0)}{number(change)})"


def to_target(own: pd.DataFrame, names: Sequence[str]) -> Iterator[Table]:
    """What it took to reach the target, from the first step of the training: median over repeats, if all did."""
    known = own["target_reached"].notna()
    rows = own[known]
    if rows.empty:
        return
    figures = [name for group in TARGET.values() for name in group]
    reached = rows.assign(**{name: rows[name].where(rows["target_reached"] == 1) for name in figures})
    columns = {"configuration": [name for name, is_known in zip(names, known, strict=True) if is_known]}
    columns["reached"] = ["yes" if x == 1 else "no" if x == 0 else "not by all repeats" for x in rows["target_reached"]]
    columns |= _figures(reached, TARGET)
    goals = sorted({f"{a} {b:g}" for a, b in zip(rows["target.metric"], rows["target.value"], strict=True)})
    caption = f"To reach {' or '.join(map(printable, goals))}, from the first step of the training"
    yield Table(caption, tuple(columns), tuple(zip(*columns.values(), strict=True)), words=("reached",))
