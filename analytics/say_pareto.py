"""The answer of `bench pareto`: the document of --json, and the sentences and tables that are printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import rich.table
from rich import box

from analytics.pareto import Front
from analytics.pareto_words import sentences
from analytics.words import between, printable


def document(front: Front) -> dict[str, Any]:
    """Return a front as JSON."""
    objectives = {o.name: {"column": o.column, "unit": o.unit} for o in front.objectives}
    rows = json.loads(front.table.to_json(orient="records", double_precision=15))
    head = {"work": front.work, "per": front.per, "objectives": objectives, "dropped": front.dropped}
    return head | {"configurations": rows}


def parts(fronts: Sequence[Front]) -> Iterator[str | rich.table.Table]:
    """Return the fronts as sentences and tables, one for each kind of work."""
    for front in fronts:
        if len(front.table) < 2:
            continue
        if len(fronts) > 1:
            yield f"\n{front.work}"
        if front.objectives:
            yield f"What the same work takes ({front.per}; 95 % intervals):"
            yield _table(front)
        yield from (f"  {line}" for line in sentences(front))
    if single := [front.work for front in fronts if len(front.table) == 1]:
        yield f"\nonly one configuration, so there is nothing to choose from: {printable(', '.join(single), 300)}"


def _table(front: Front) -> rich.table.Table:
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("configuration")
    table.add_column("runs", justify="right")
    for objective in front.objectives:
        table.add_column(f"{objective.name} [{objective.unit}]", justify="right")
    table.add_column("front", justify="right")
    for _, row in front.table.iterrows():
        cells = [
            ("~" if o.name in front.estimated else "")
            + between(row[o.name], row[f"{o.name}_low"], row[f"{o.name}_high"])
            for o in front.objectives
        ]
        share = "" if math.isnan(row["p_front"]) else f" {100 * row['p_front']:.0f} %"
        mark = ("yes" if row["front"] else "no") + share + (" knee" if row["knee"] else "")
        table.add_row(row["name"], str(row["repeats"]), *cells, mark)
    return table
