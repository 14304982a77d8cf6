"""The answer of `bench advise`: the document of --json, and the lines that are printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from analytics.advice import EVERYWHERE, Advice, Evidence, listed
from analytics.advise import advise
from analytics.matched import MEASURES
from analytics.words import between, number, printable


def answer(df: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """Return the document and the lines, for each execution in a frame of runs."""
    documents: list[dict[str, Any]] = []
    lines: list[str] = []
    for (suite, execution), runs in df.groupby(["suite", "execution"], sort=False):
        advice = advise(runs)
        ok, skipped = (int((runs["status"] == status).sum()) for status in ("ok", "skipped"))
        head = {"suite": suite, "execution": execution, "runs": len(runs), "runs_ok": ok, "runs_skipped": skipped}
        documents.append(head | {"advice": [asdict(each) for each in advice]})
        ran = runs[runs["status"] == "ok"] if ok else runs
        where = " and ".join(sorted({printable(name) for name in ran["device_name"].dropna()}))
        ended = f"{ok} of {len(runs)} runs ended well"
        if skipped:
            ended += f", {skipped} {'was' if skipped == 1 else 'were'} skipped (bench fit says why)"
        lines += [f"\n{printable(str(suite))} {printable(str(execution))} on {where}: {ended}\n", *_numbered(advice)]
        lines.append(f"\nLimits of all: {EVERYWHERE}." if advice else "Nothing to advise: nothing stands out.")
    return {"limits": EVERYWHERE, "executions": documents}, lines


def _numbered(advice: list[Advice]) -> Iterator[str]:
    for position, each in enumerate(advice, 1):
        yield f"{position:2}. {each.sentence}"
        yield f"    evidence: {_evidence(each.evidence)}"
        for heading, text in (("limits", "; ".join(each.limits)), ("in a suite", each.action)):
            if text:
                yield f"    {heading}: {text}"


def _evidence(evidence: Evidence) -> str:
    """The figure with its interval, or with the smallest and largest of the runs, and which runs they are."""
    figure, low, high = evidence.ratio, evidence.low, evidence.high
    text = "" if figure is None else f" {number(figure)}"
    if figure is not None and evidence.measure in MEASURES:
        text = f" × {between(figure, low, high)}"
    elif low is not None and high is not None and low < high:
        text += f" (runs: {number(low)} to {number(high)})"
    runs = f"{evidence.runs} run" + ("s" if evidence.runs != 1 else "")
    return f"{evidence.measure}{text}, from {runs}: {listed(evidence.configurations, 3)}"
