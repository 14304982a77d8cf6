"""The answer of a suite for a terminal: the table of results, what is missing, and the ladder, the law or a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import rich.table
from rich.text import Text

from analytics import answer
from analytics.curves import strategy_sentences
from analytics.frame import summary
from analytics.outlook import outlook, sentences
from analytics.scaling import fit
from analytics.words import printable


def parts(df: pd.DataFrame) -> Iterator[str | rich.table.Table]:
    """Return the answer of a frame of runs as sentences and tables, execution by execution."""
    results = summary(df)
    for part in answer.find(df):
        runs = part.runs
        suite, execution = runs["suite"].iloc[0], runs["execution"].iloc[0]
        own = results[(results["suite"] == suite) & (results["execution"] == execution)]
        devices = " and ".join(sorted(set(own["device_name"])))
        if len(own):
            yield f"\n{printable(suite)} {printable(execution)} on {printable(devices)}"
            yield _rich(answer.results_table(own))
            for table in (*answer.served(own), *answer.to_target(own)):
                yield f"\n  {table.caption[0].lower()}{table.caption[1:]}:"
                yield _rich(table)
            yield from (f"  {line}" for line in answer.remarks(own))
        yield from (f"  {line}" for line in answer.not_ok(runs))
        for conclusion in answer.conclusions(part):
            yield ""
            if isinstance(conclusion, str):
                yield conclusion
            else:
                yield f"{conclusion.caption}:\n"
                yield _rich(conclusion)


def _rich(table: answer.Table) -> rich.table.Table:
    """A table for a terminal; names of configurations and of losses are not broken into lines."""
    drawn = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(table.columns):
        whole = table.figures and (place == 0 or heading == "loss")
        drawn.add_column(heading, justify="right" if table.figures and place else "left", no_wrap=whole)
    for cells in table.rows:
        drawn.add_row(*map(Text, cells))
    return drawn


def predictions(df: pd.DataFrame, devices: Sequence[int], law: str) -> list[dict[str, Any]]:
    """Return what a law predicts for each series of the runs on numbers of devices, as documents."""
    return [prediction.to_dict() for _, outlooks in _predicted(df, devices, law) for prediction in outlooks]


def prediction_lines(df: pd.DataFrame, devices: Sequence[int], law: str) -> Iterator[str]:
    """Say the same in words; nothing where no devices are given."""
    if not devices:
        return
    yield ""
    for series, outlooks in _predicted(df, devices, law):
        size = f"{outlooks[0].flops_per_sample:.3g} FLOP per sample"
        yield f"{series.name}, {size}, by the law {law!r} (80 % intervals):"
        yield from (f"  {line}" for line in sentences(series, outlooks))
    yield from strategy_sentences(summary(df))


def _predicted(df: pd.DataFrame, devices: Sequence[int], law: str) -> list[tuple[Any, list[Any]]]:
    return [(series, outlook(series, devices, law)) for series in fit(df).series] if devices else []
