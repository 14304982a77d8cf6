"""The answer of `bench search` for a terminal: the Pareto front, the points behind it, and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import rich.table
from rich import box
from rich.text import Text

from analytics.say.confirm import confirmed
from analytics.say.search_words import configuration, figure, sentences
from analytics.search.result import SearchResult
from analytics.text import printable

WORDS: Any = {"sentences": sentences, "confirmed": confirmed}
"""What puts the answer of a search, and what its confirming runs say, into words."""
_OTHERS = 5
"""How many points that are not on the front are printed."""
_ENOUGH = 0.95


def parts(answer: SearchResult) -> Iterator[str | rich.table.Table]:
    """Return the answer as sentences and a table."""
    yield f"\n{printable(answer.study, 80)}: Pareto front, and the points behind it (95 % intervals)"
    yield _table(answer) if answer.points else "  nothing is on it"
    file = [f"the best ones as a suite: {printable(answer.front_file, 200)}"] if answer.front_file else []
    for line in (*sentences(answer), *_volume(answer), *answer.notes, *file):
        yield f"  {line}"


def _table(answer: SearchResult) -> rich.table.Table:
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", "configuration", *(goal.name for goal in answer.objectives), "runs", "front"):
        table.add_column(heading, justify="left" if heading == "configuration" else "right", overflow="fold")
    for point in (*answer.front, *[point for point in answer.points if not point.front][:_OTHERS]):
        values = [
            figure(goal, point, point.low.get(goal.name), point.high.get(goal.name)) for goal in answer.objectives
        ]
        runs = f"{len(point.runs)} {'stored' if point.source == 'store' else point.stage}"
        chance = "" if point.p_front is None else f" {100 * point.p_front:.0f} %"
        place = ("yes" if point.front else "no") + chance + " knee" * (point.knee and len(answer.front) > 2)
        table.add_row(*map(Text, (str(point.number), configuration(point), *values, runs, place)))
    return table


def _volume(answer: SearchResult) -> list[str]:
    """Say after how many launched trials most of the final hypervolume was reached."""
    ran, stored = {t.number for t in answer.trials if t.runs}, sum(t.source == "store" for t in answer.trials)
    shares = [share for number, share in answer.hypervolume if number in ran]
    count = sum(share < _ENOUGH for share in shares) + 1
    when = f"{count - stored} of {len(shares) - stored} launched trials" if count > stored else "the stored runs alone"
    return [f"{100 * _ENOUGH:.0f} % of the final hypervolume after {when}."] if answer.points else []


def preview_lines(name: str, objectives: Sequence[str], preview: dict[str, Any]) -> Iterator[str]:
    """Say what would be searched, from `Session.preview`."""
    possible, combinations = preview["possible"], preview["combinations"]
    size = "too many to list" if possible is None else f"{possible} different ones can run here"
    yield f"{name}: {'' if combinations is None else f'{combinations} combinations, '}{size}"
    for reason, count in list(preview["refused"].items())[:5]:
        yield f"  {count} cannot: {reason}"
    yield f"  objectives: {', '.join(objectives)}; sampler: {preview['sampler']}"
    limits = ", ".join(f"{value:g} {name}" for name, value in preview["budget"].items())
    yield f"  budget: {limits}; {preview['known']} configurations are known from stored runs of this machine"
