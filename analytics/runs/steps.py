"""Logs of steps, as W&B, trackio and MLflow export them, -> one row a run: medians of its speeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from analytics.amounts import written
from analytics.runs.cells import RATES, SPEEDS, empty
from analytics.runs.columns import target_of
from analytics.runs.tables import FileRow, FileTable
from analytics.text import counted, printable

_RUN, _STEP = ("run_name", "run", "run_id"), ("step", "_step", "global_step", "trainer/global_step")
_CLOCKS = ("timestamp", "_timestamp", "_runtime")
_STEADY = {*SPEEDS, *RATES, "step_seconds_median", "model_flops_utilization"}
"""Figures of one step whose median is that of a run; counters that grow are not."""


def one_row_a_run(table: FileTable) -> FileTable:
    """Return a table as it is, or with a row for each run where its rows are the steps of runs, which is noted.

    A column that changes from step to step is left out, unless it is a speed: then it is the median.
    """
    run = next((name for name in _RUN if name in table.names), None)
    step = next((name for name in _STEP if name in table.names), None)
    if step is None or (run is None and not {*_CLOCKS} & {*table.names}):
        return table
    runs: dict[Any, list[FileRow]] = {}
    for line, cells in table.rows:
        runs.setdefault(cells.get(run) if run else "", []).append((line, cells))
    if not any(len({str(cells.get(step)) for _, cells in rows}) > 1 for rows in runs.values()):
        return table
    names = [name for name in table.names if name not in (step, *_CLOCKS)]
    merged: list[FileRow] = [
        (
            rows[0][0],
            {name: cell for name in names if (cell := _merged(name, [cells for _, cells in rows])) is not None},
        )
        for rows in runs.values()
    ]
    out = FileTable(names, merged, table.delimiter, table.notes)
    out.notes.append(
        f"{counted(len(table.rows), 'row')} are steps of {counted(len(merged), 'run')}: speeds are medians, "
        f"and other columns that change are left out (column {printable(step)})"
    )
    return out


def _merged(name: str, rows: Sequence[dict[Any, Any]]) -> Any:
    """Return the cell of a run; None for none, or one that changes and is no speed."""
    cells = [cells[name] for cells in rows if not empty(cells.get(name), "devices")]
    if len({str(cell) for cell in cells}) < 2:
        return cells[0] if cells else None
    numbers = [(parts.value(), parts.suffix + parts.unit) for cell in cells if (parts := written(str(cell)))]
    units = {unit for _, unit in numbers}
    if target_of(name) not in _STEADY or len(numbers) < len(cells) or units != {""}:
        return None
    return median(value for value, _ in numbers)
