"""The table of results: what tells the configurations apart, then their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analytics.quantities import quantity
from analytics.runs.frame import telling
from analytics.say.blocks import Table
from analytics.say.names import is_work, word
from analytics.text import interval, printable

_MOST_FIELDS = 3
"""So many fields have columns of their own; more are one column of words."""


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


def results_table(own: pd.DataFrame, names: pd.DataFrame, *, unequal: bool) -> Table:
    """Return the table of results: what tells the configurations apart, then their figures.

    After `unequal` training quality is marked by *.
    """
    columns: dict[str, list[str]] = {}
    if names["work"].nunique() > 1 or not any(names["change"]):
        columns["model"] = list(names["work"])
    fields = [name for name in telling(own) if not is_work(name)]
    if len(fields) <= _MOST_FIELDS:
        columns |= {_heading(name): [_short(name, value) for value in own[name]] for name in fields}
    else:
        columns["configuration"] = list(names["change"])
    words = tuple(columns)
    if own["repeats"].nunique() > 1:
        columns["runs"] = [str(count) for count in own["repeats"]]
    untimed = bool((own["samples_per_second"].isna() & own["tokens_per_second"].isna()).any())
    for group in FIGURES:
        if group[0] in _WHOLE and not untimed:
            continue
        if names_known := _known(own, group):
            columns[_head(names_known, unequal=unequal)] = [_figure(row, names_known) for _, row in own.iterrows()]
    if own["grade"].nunique() > 1:
        columns["grade"] = [str(grade) for grade in own["grade"].fillna("-")]
    rows = list(zip(*columns.values(), strict=True))
    leading = min(2, len(words) - 1)
    blank = [
        tuple(
            "" if place < leading and before and cells[: place + 1] == before[: place + 1] else cell
            for place, cell in enumerate(cells)
        )
        for cells, before in zip(rows, [None, *rows], strict=False)
    ]
    return Table("", tuple(columns), tuple(blank), words=words)


def _heading(column: str) -> str:
    return {"num_nodes": "nodes", "batch_size_per_device": "batch", "global_batch_size": "global batch"}.get(
        column, printable(column.rpartition(".")[2], 30).replace("_", " ")
    )


def _short(column: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if numeric or hasattr(value, "item") else word(column, value) or "-"


def _known(own: pd.DataFrame, group: Sequence[str]) -> list[str]:
    """Return the columns of a group that some configuration knows, all in the unit of the first."""
    known = [name for name in group if name in own and own[name].notna().any()]
    return [name for name in known if quantity(name).unit == quantity(known[0]).unit]


def _head(known: Sequence[str], *, unequal: bool) -> str:
    """Return the heading of columns of one unit; ~ where all of them are estimated."""
    one = quantity(known[0])
    short = {"peak_memory_bytes": "memory, MB", "validation_loss": "loss", "loss_last": "training loss"}
    short |= {"validation_accuracy": "accuracy, %", "communication_share": "communication, %"}
    text = short.get(one.name) or (
        one.unit.replace("million ", "M").replace("Mtokens", "Mtoken").replace("Msamples", "Msample")
    )
    text = text if one.per == "work" or one.quality else f"{one.title}, {one.unit}"
    return f"{text}{'~' * all(quantity(name).estimated for name in known)}{'*' * (one.quality and unequal)}"


def _figure(row: pd.Series, group: Sequence[str]) -> str:
    known = [name for name in group if pd.notna(row[name])]
    if not known:
        return "-"
    mixed = len({quantity(name).estimated for name in group}) > 1
    text = cell(row, known[0])
    if group[0] not in ("samples_per_second", "tokens_per_second", "duration_seconds"):
        text = text.partition(" (")[0]
    return "~" * (mixed and quantity(known[0]).estimated) + text


def cell(row: pd.Series, name: str) -> str:
    """Print a figure of a summary in the unit of its quantity, with the digits of its interval."""
    factor = quantity(name).factor
    low, high = (row.get(f"{name}{end}") for end in ("_low", "_high"))
    ends = (None, None) if low is None or pd.isna(low) or pd.isna(high) else (factor * low, factor * high)
    return interval(factor * row[name], *ends)
