"""Evidence -> plain sentences that a newcomer can act on, at most ten, ranked by what they save. Nothing without evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from analytics.judge import gains, symptoms
from analytics.judge.advice import Advice, Case
from analytics.judge.matched import Changes
from bench.record import Status

MOST = 10
RULES: tuple[Callable[[Case], Iterator[Advice]], ...] = (
    symptoms.disturbed,
    symptoms.too_large,
    symptoms.failing,
    gains.options,
    gains.devices,
    symptoms.waiting,
    symptoms.straggling,
    symptoms.communicating,
    symptoms.spare,
    symptoms.nothing_compared,
    symptoms.uncertain,
    symptoms.unsteady,
    symptoms.starting,
)
"""In the order in which they count where nothing is known to be saved."""


def advise(df: pd.DataFrame) -> list[Advice]:
    """Return at most ten advices from runs of one execution (`runs.frame.frame`), what saves most first, guesses last.

    A gain is claimed only if that is its verdict (`judge.matched`), and if it is worth more than `stats.SAME`.
    """
    case = Case(df, df[(df["status"] == Status.OK) & df["config_id"].notna()], Changes(df))
    said = [advice for rule in RULES for advice in rule(case)]
    said.sort(key=lambda advice: (not advice.first, advice.weak, -(advice.saving or 0.0)))
    return said[:MOST]
