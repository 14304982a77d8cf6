"""The answer of `bench search`, printed: the front, the next behind it, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from analytics.searched import SearchResult

_OTHERS = 5
"""So many points that are not on the front are printed."""
_ENOUGH = 0.95


def show(found: SearchResult) -> None:
    """Print the answer for people."""
    from analytics.searched_words import sentences
    from analytics.words import printable
    from bench.cli.answer import console

    screen = console()
    screen.print(f"\n{printable(found.study, 80)}: the front, and what is next behind it (95 % intervals)")
    screen.print(_table(found) if found.points else "  nothing is on it")
    file = [f"the best ones as a suite: {printable(found.front_file, 200)}"] if found.front_file else []
    for line in (*sentences(found), *_volume(found), *found.notes, *file):
        screen.print(f"  {line}")


def _table(found: SearchResult) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from analytics.searched_words import configuration, figure

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", "configuration", *(one.name for one in found.objectives), "runs", "front"):
        table.add_column(heading, justify="left" if heading == "configuration" else "right", overflow="fold")
    for point in (*found.front, *[point for point in found.points if not point.front][:_OTHERS]):
        values = [figure(one, point, point.low.get(one.name), point.high.get(one.name)) for one in found.objectives]
        runs = f"{len(point.runs)} {'stored' if point.source == 'store' else point.stage}"
        sure = "" if point.p_front is None else f" {100 * point.p_front:.0f} %"
        place = ("yes" if point.front else "no") + sure + " knee" * (point.knee and len(found.front) > 2)
        table.add_row(*map(Text, (str(point.number), configuration(point), *values, runs, place)))
    return table


def _volume(found: SearchResult) -> list[str]:
    """Say after how many trials that this search launched most of the final hypervolume was reached."""
    ran, stored = {t.number for t in found.trials if t.runs}, sum(t.source == "store" for t in found.trials)
    shares = [share for number, share in found.hypervolume if number in ran]
    count = sum(share < _ENOUGH for share in shares) + 1
    told = f"{count - stored} of {len(shares) - stored} launched trials" if count > stored else "the stored runs alone"
    return [f"{100 * _ENOUGH:.0f} % of the final hypervolume after {told}."] if found.points else []
