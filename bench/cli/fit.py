"""`bench fit`: the answer again, from the store; and what more devices would bring."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option
from bench.cli.selection import select, selection_options

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@selection_options
@click.option("--devices", metavar="8,16", help="Predict the speed on so many devices.")
@click.option(
    "--law",
    type=click.Choice(["step", "power", "ideal"]),
    default="step",
    show_default=True,
    help="How to predict: step knows what a step loses, power a single exponent, ideal is T = n / (d · v).",
)
@json_option
def fit(as_json: bool, devices: str | None, law: str, **selection: Any) -> None:
    """Print the results and the fitted T = n / (d · v) of SUITE (a name), or of all suites in the store.

    With --devices also what so many devices would bring, by a law that knows what a step loses, with 80 % intervals.
    """
    from analytics.answer import document
    from analytics.frame import frame
    from bench.cli import answer

    wanted = _counts(devices) if devices is not None else []
    df = frame(select(**selection))
    if as_json:
        told = [one.to_dict() for _, outlooks in _predicted(df, wanted, law) for one in outlooks]
        click.echo(json.dumps({**document(df), "predictions": told}, indent=1, allow_nan=False))
        return
    answer.show(df)
    if not wanted:
        return
    from analytics.curves import strategy_sentences
    from analytics.frame import summary
    from analytics.outlook import sentences

    click.echo()
    for series, outlooks in _predicted(df, wanted, law):
        size = f"{outlooks[0].flops_per_sample:.3g} FLOP a sample"
        click.echo(f"{series.name}, {size}, by the law {law!r} (80 % intervals):")
        for line in sentences(series, outlooks):
            click.echo(f"  {line}")
    for line in strategy_sentences(summary(df)):
        click.echo(line)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or max(counts) > 10_000_000:
        fail(f"--devices {text!r}: give whole numbers of devices from 1 to 10,000,000, as in --devices 8,16")
    return counts


def _predicted(df: pd.DataFrame, devices: list[int], law: str) -> list[tuple[Any, list[Any]]]:
    """Each series of the runs with its predictions; none where no devices are asked for."""
    from analytics.outlook import outlook
    from analytics.scaling import fit as fitted

    return [(series, outlook(series, devices, law)) for series in fitted(df).series] if devices else []
