"""`bench compare`: runs against others, with verdicts, and a gate for continuous integration."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bench.cli.options import baselines_option, explain_option, json_option, print_answer, print_json, store_option
from bench.errors import FAILED, UserError


def _finite(value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("nan is not in the range 0<=x<1.")
    return value


@click.command()
@click.argument("base")
@click.argument("new", required=False)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare this metric. Can be repeated.")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="'METRIC OP RATIO'",
    help="Exit with 1 if NEW / BASE is a regression: 'tokens_per_second < 0.97'. It must hold for the whole 95 % interval, "
    "from at least 3 repeats of each side, allowing for all comparisons. Can be repeated.",
)
@click.option("--fail-if-unsure", is_flag=True, help="With --fail-if: also exit with 1 where it cannot be decided.")
@click.option("--allow-missing", is_flag=True, help="With --fail-if: NEW may lack configurations of BASE.")
@click.option(
    "--equivalence",
    type=click.FloatRange(0, 1, max_open=True),
    callback=lambda _context, _option, value: _finite(value),
    default=0.02,
    show_default=True,
    help="Metrics are equivalent if the interval of their ratio is within 1 / (1 + this) to 1 + this.",
)
@baselines_option
@store_option
@explain_option
@json_option
def compare(
    base: str,
    new: str | None,
    metrics: tuple[str, ...],
    gates: tuple[str, ...],
    equivalence: float,
    folder: Path,
    store: str | None,
    as_json: bool,
    explain: bool,
    **gate: bool,
) -> None:
    """Compare NEW with BASE, or the configurations of BASE with the first one that does the same work.

    BASE and NEW are each a suite or a name of `bench measure` (its newest execution, or SUITE@EXECUTION), a git commit (of
    the runs' folder, or of wattbench), a host, a file (CSV, Parquet, or JSON of `bench fit --json`) or a saved baseline.
    For a name that could be several, write suite:NAME, commit:NAME, host:NAME, file:NAME or baseline:NAME.
    """
    import pandas as pd

    from analytics.judge.gate import Condition, State, broken, incomparable_conditions, outcomes
    from analytics.judge.sides import Sources, compared, compared_metrics
    from analytics.say.compare import blocks, gate_blocks

    conditions = [Condition.parse(text) for text in gates]
    sources = Sources(store, folder)
    sides = [sources.find(text) for text in (base, new) if text is not None]
    names = compared_metrics(sides, metrics, conditions)
    matched = compared(sides, names, equivalence)
    decided = outcomes(conditions, matched.comparisons)
    broke = broken(matched.comparisons, skipped=len(sides) == 2) if conditions else []
    missing = matched.lost if conditions and not gate["allow_missing"] else []
    bad = {"fails", "cannot tell"} if gate["fail_if_unsure"] else {"fails"}
    failed = bool(broke or missing) or any(outcome.state in bad for outcome in decided)
    void = [] if failed else incomparable_conditions(conditions, decided)
    if as_json:
        document: dict[str, Any] = {
            **{name: side.to_dict() for name, side in zip(("base", "new"), sides, strict=False)},
            "metrics": names,
            "equivalence": equivalence,
            "comparisons": [comparison.to_dict() for comparison in matched.comparisons],
            "only_base": matched.only_baseline,
            "only_new": matched.only_candidate,
            "gate": [asdict(outcome) for outcome in decided],
            "broken": [name for name, _ in broke],
            "missing": missing,
            "notes": matched.notes,
            "failed": failed,
            "not_compared": [str(condition) for condition in void],
        }
        print_json(document)
    else:
        state: State = "fails" if failed else "cannot tell" if void else "holds"
        gated = gate_blocks(sides, matched, decided, broke, missing, equivalence, store, state)
        answer = gated if conditions else blocks(sides, matched, equivalence, store)
        print_answer(answer, pd.concat([side.df for side in sides]), store, explain=explain)
    if void:
        what = "no configuration could be compared by"
        raise UserError(*(f"--fail-if {str(condition)!r}: {what} {condition.metric}" for condition in void))
    sys.exit(FAILED if failed else 0)
