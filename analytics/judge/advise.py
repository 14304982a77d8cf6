"""Evidence -> what to change, at most ten advices, ranked by what they save. Nothing without evidence."""

from __future__ import annotations

import pandas as pd

from analytics.judge import gains, symptoms
from analytics.judge.advice import Advice, Case
from analytics.judge.matched import Changes
from bench.record import Status

MOST = 10


def advise(df: pd.DataFrame) -> list[Advice]:
    """Return at most ten advices from runs of one execution (`runs.frame.frame`), what saves most first, weak ones last.

    A gain is claimed only if that is its verdict (`judge.matched`), and if it is worth more than `stats.SAME`.
    """
    case = Case(df, df[(df["status"] == Status.OK) & df["config_id"].notna()], Changes(df))
    rules = (*symptoms.BEFORE, gains.options, gains.devices, *symptoms.AFTER)  # where nothing is known to be saved
    found = [advice for rule in rules for advice in rule(case)]
    found.sort(key=lambda advice: (not advice.first, advice.weak, -(advice.saving or 0.0)))
    return found[:MOST]
