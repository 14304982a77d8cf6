"""Evidence -> plain sentences that a newcomer can act on, at most ten, ranked by what they save. Nothing without evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from analytics import gains, symptoms
from analytics.advice import Advice, Case, flagged
from analytics.frame import IDENTITY, asked, names
from analytics.matched import changes
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
    """Return at most ten advices from runs of one execution (`analytics.frame.frame`), what saves most first, guesses last.

    A gain is claimed only if its interval tells it after all comparisons of the execution are counted (`matched.holm`),
    and if it is worth more than `stats.SAME`. Runs that heat or other users slowed down are compared with nothing.
    """
    ok = df[(df["status"] == Status.OK) & df["config_id"].notna()]
    table = ok.drop_duplicates([*IDENTITY])[[*IDENTITY, "host", "device_name", *asked(ok)]]
    table = table.assign(name=names(table)).reset_index(drop=True)
    fit = ok[~flagged(ok, *symptoms.UNFIT)]
    found = tuple(changes(fit, table[table["config_id"].isin(fit["config_id"])]))
    case = Case(df, ok, table, found, gains.told(found))
    said = [advice for rule in RULES for advice in rule(case)]
    said.sort(key=lambda advice: (not advice.first, advice.weak, -(advice.saving or 0.0)))
    return said[:MOST]
