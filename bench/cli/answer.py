"""The answer of a suite, printed: the table of results and the fitted law, for `bench run` and `bench fit` alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import rich.console
    import rich.table

    from analytics.answer import Table


def console() -> rich.console.Console:
    """Return what answers are printed on: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    return found if found.is_terminal else Console(highlight=False, markup=False, width=160)


def show(df: pd.DataFrame) -> None:
    """Print the answer for people: the table, what is missing in it and why, and the ladder, the law or a comparison."""
    from analytics import answer
    from analytics.frame import summary
    from analytics.words import printable

    results = summary(df)
    out = console()
    for found in answer.find(df):
        runs = found.runs
        suite, execution = runs["suite"].iloc[0], runs["execution"].iloc[0]
        one = results[(results["suite"] == suite) & (results["execution"] == execution)]
        devices = " and ".join(sorted(set(one["device_name"])))
        if len(one):
            out.print(f"\n{printable(suite)} {printable(execution)} on {printable(devices)}")
            out.print(_rich(answer.results_table(one)))
            for table in (*answer.served(one), *answer.to_target(one)):
                out.print(f"\n  {table.caption[0].lower()}{table.caption[1:]}:")
                out.print(_rich(table))
            for line in answer.remarks(one):
                out.print(f"  {line}")
        for line in answer.not_ok(runs):
            out.print(f"  {line}")
        for part in answer.conclusions(found):
            out.print()
            if isinstance(part, str):
                out.print(part)
            else:
                out.print(f"{part.caption}:")
                out.print()
                out.print(_rich(part))


def _rich(table: Table) -> rich.table.Table:
    """A table for a terminal; names of configurations and of losses are not broken into lines."""
    import rich.table
    from rich.text import Text

    shown = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(table.columns):
        whole = table.figures and (place == 0 or heading == "loss")
        shown.add_column(heading, justify="right" if table.figures and place else "left", no_wrap=whole)
    for cells in table.rows:
        shown.add_row(*map(Text, cells))
    return shown
