"""Workers that torchrun started again after one was lost: the steps of all of them, one after another, as one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from bench.record import RESTART, Phase

Marks = dict[int, list[dict[str, Any]]]
"""The ends of steps by rank, in order of time."""
_Each = TypeVar("_Each")


@dataclass(frozen=True)
class Restarts:
    """How often workers were started again, and how many steps were made twice; None where that is not known.

    Each of `phases` is from the last step that all ranks made before the loss to the first one after it.
    """

    count: int = 0
    phases: tuple[Phase, ...] = ()
    repeated: int | None = 0


def with_same_ranks(starts: Mapping[int, dict[int, _Each]]) -> dict[int, dict[int, _Each]]:
    """Return the starts of workers in which all ranks made steps, by the number of the restart."""
    most = max(map(set, starts.values()), key=len, default=set[int]())
    return {number: starts[number] for number in sorted(starts) if starts[number].keys() == most}


def one_training(starts: Mapping[int, Marks]) -> tuple[Marks, Restarts]:
    """Return the steps of workers by the number of the restart as those of one training, and the restarts.

    The first step after a restart is a mark from which the next ones count: neither it nor its work is in the window. Of the
    workers that were ended, the steps count that all ranks have made. A mark may have its `number` among all steps.
    """
    kept = [(ranks, min(map(len, ranks.values()))) for ranks in with_same_ranks(starts).values()]
    kept = [(ranks, count) for ranks, count in kept if count]
    marks: Marks = {}
    for place, (ranks, count) in enumerate(kept):
        for rank, own in ranks.items():
            own = own if place == len(kept) - 1 else own[:count]
            marks.setdefault(rank, []).extend([_anew(own[0]), *own[1:]] if place else own)
    leaders = [ranks[min(ranks)][: count if ranks is not kept[-1][0] else None] for ranks, count in kept]
    pairs = [(before[-1]["t_ns"], after[0]["t_ns"]) for before, after in pairwise(leaders)]
    repeats = [_repeated(before, after) for before, after in pairwise(leaders)]
    known = [count for count in repeats if count is not None]
    return marks, Restarts(
        count=max(starts, default=0),
        phases=tuple(Phase(name=RESTART, start_ns=start, end_ns=end) for start, end in pairs),
        repeated=sum(known) if len(known) == len(repeats) else None,
    )


def _anew(mark: dict[str, Any]) -> dict[str, Any]:
    """Return the first step after a restart as a mark without work of its own."""
    return mark | {"steps": 0} | {name: 0 for name in ("samples", "tokens") if name in mark}


def _repeated(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int | None:
    """Return how many steps were made again after a loss; None where steps are not numbered one by one."""
    first, last, again = before[0].get("number"), before[-1].get("number"), after[0].get("number")
    if first is None or again is None:
        return None
    end: int = first + len(before) - 1
    return max(0, end - again + 1) if last is None or last == end or len(before) == 1 else None
