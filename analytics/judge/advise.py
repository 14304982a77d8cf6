"""Evidence -> what to change, at most ten advices, ranked by what they save. Nothing without evidence."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analytics.judge import gains, symptoms
from analytics.judge.advice import Advice, Case
from analytics.judge.matched import Changes
from analytics.runs.frame import measured_commands
from bench.record import Status
from bench.schema import COMMAND, names_in_braces
from bench.workloads.command import CommandArgs

MOST = 10
_OF_SUITES = {"devices", "repeats", "measure_steps", "measure_seconds"}
"""Fields that every command of a suite has."""
_READING = {f"workload_args.{name}" for name in CommandArgs.model_fields}


def advise(df: pd.DataFrame) -> list[Advice]:
    """Return at most ten advices from runs of one execution (`runs.frame.frame`), what saves most first, weak ones last.

    A gain is claimed only if that is its verdict (`judge.matched`), and if it is worth more than `stats.SAME`.
    """
    case = Case(df, df[(df["status"] == Status.OK) & df["config_id"].notna()], Changes(df))
    rules = (*symptoms.BEFORE, gains.options, gains.devices, *symptoms.AFTER)  # where nothing is known to be saved
    found = [_possible(advice, df) for rule in rules for advice in rule(case)]
    found.sort(key=lambda advice: (not advice.first, advice.weak, -(advice.saving or 0.0)))
    return found[:MOST]


def _possible(advice: Advice, df: pd.DataFrame) -> Advice:
    """Leave of an action on commands what these can be told: own arguments, and in a suite the fields in their text."""
    parts = [part.partition(": ") for part in advice.action.split(", ")]
    if not df["workload"].eq(COMMAND).all() or not all(colon for _, colon, _ in parts):
        return advice
    if measured_commands(df):
        own = {name for name in map(str, df) if name.startswith("workload_args.")} - _READING
        action = " ".join(f"--set {name.partition('.')[2]}={value}" for name, _, value in parts if name in own)
    else:
        told = set().union(*map(names_in_braces, df["workload_args.argv"].dropna().unique())) | _OF_SUITES
        known = (part for part in parts if part[0].removeprefix("workload_args.") in told and part[2] != "max")
        action = ", ".join("".join(part) for part in known)
    return replace(advice, action=action)
