"""`bench fit`: the answer again, from the store; and what more devices would bring."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import device_counts, json_option
from bench.cli.selection import select, selection_options

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@selection_options
@click.option(
    "--devices", type=device_counts, metavar="8,16", help="Predict the speed on so many devices: 8,64 or 8-512."
)
@click.option(
    "--law",
    type=click.Choice(["step", "power", "ideal"]),
    default="step",
    show_default=True,
    help="How to predict: step knows what a step loses, power a single exponent, ideal is T = n / (d · v).",
)
@json_option
def fit(as_json: bool, devices: tuple[int, ...] | None, law: str, **selection: Any) -> None:
    """Print the results and the fitted T = n / (d · v) of SUITE (a name), or of all suites in the store.

    With --devices also what so many devices would bring, by a law that knows what a step loses, with 80 % intervals.
    """
    from analytics.answer import document
    from analytics.frame import frame
    from bench.cli import answer

    wanted = devices or ()
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


def _predicted(df: pd.DataFrame, devices: tuple[int, ...], law: str) -> list[tuple[Any, list[Any]]]:
    """Each series of the runs with its predictions; none where no devices are asked for."""
    from analytics.outlook import outlook
    from analytics.scaling import fit as fitted

    return [(series, outlook(series, devices, law)) for series in fitted(df).series] if devices else []
