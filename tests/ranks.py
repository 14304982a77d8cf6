"""Ranks of tests in processes of their own, forked from one that has imported the models."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tests import warm

Rank = Callable[[int, int, Path], None]
"""A rank, by its number, the number of all ranks, and a folder in which it leaves what came of it."""


def forked(rank: Rank, worlds: Iterable[int], folder: Path) -> None:
    """Run all ranks of each number of ranks, until they end or one of them fails."""
    warm.call(_nursery, rank, [*worlds], folder)


def _nursery(rank: Rank, worlds: list[int], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    fork = multiprocessing.get_context("fork")
    for world in worlds:
        ranks = [fork.Process(target=rank, args=(number, world, folder)) for number in range(world)]
        for process in ranks:
            process.start()
        while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
            ranks[0].join(0.1)
        for process in ranks:
            process.join(2) or process.kill()
