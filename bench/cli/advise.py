"""`bench advise`: what the runs of a suite say to do, each sentence with its evidence and its limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import json_option
from bench.cli.selection import select, selection_options

if TYPE_CHECKING:
    from analytics.advice import Evidence


@click.command()
@selection_options
@json_option
def advise(as_json: bool, **selection: Any) -> None:
    """Say what to do after the runs of SUITE (a name), or of all suites in the store: at most ten sentences each."""
    from analytics.advice import EVERYWHERE
    from analytics.advise import advise as advices
    from analytics.frame import frame
    from analytics.words import printable

    df = frame(select(**selection))
    documents: list[dict[str, Any]] = []
    for (suite, execution), runs in df.groupby(["suite", "execution"], sort=False):
        found = advices(runs)
        ok, skipped = (int((runs["status"] == status).sum()) for status in ("ok", "skipped"))
        documents.append(
            {
                "suite": suite,
                "execution": execution,
                "runs": len(runs),
                "runs_ok": ok,
                "runs_skipped": skipped,
                "advice": [asdict(advice) for advice in found],
            }
        )
        if as_json:
            continue
        there = runs[runs["status"] == "ok"] if ok else runs
        where = " and ".join(sorted({printable(name) for name in there["device_name"].dropna()}))
        ended = f"{ok} of {len(runs)} runs ended well"
        ended += (
            f", {skipped} {'was' if skipped == 1 else 'were'} skipped for stated reasons (bench fit tells them)"
            if skipped
            else ""
        )
        click.echo(f"\n{printable(suite)} {printable(execution)} on {where}: {ended}\n")
        for number, advice in enumerate(found, 1):
            click.echo(f"{number:2}. {advice.sentence}")
            click.echo(f"    evidence: {_evidence(advice.evidence)}")
            for heading, text in (("limits", "; ".join(advice.limits)), ("in a suite", advice.action)):
                if text:
                    click.echo(f"    {heading}: {text}")
        click.echo(f"\nLimits of all: {EVERYWHERE}." if found else "There is nothing to advise: nothing stands out.")
    if as_json:
        click.echo(json.dumps({"limits": EVERYWHERE, "executions": documents}, indent=1, allow_nan=False))


def _evidence(evidence: Evidence) -> str:
    """One line: the figure with its interval, or with the least and the largest of the runs, and which runs they are."""
    from analytics.advice import listed
    from analytics.matched import MEASURES
    from analytics.words import between, number

    figure, low, high = evidence.ratio, evidence.low, evidence.high
    told = "" if figure is None else f" {number(figure)}"
    if figure is not None and evidence.measure in MEASURES:
        told = f" × {between(figure, low, high)}"
    elif low is not None and high is not None and low < high:
        told += f" (runs: {number(low)} to {number(high)})"
    runs = f"{evidence.runs} run" + ("s" if evidence.runs != 1 else "")
    return f"{evidence.measure}{told}, from {runs}: {listed(evidence.configurations, 3)}"
