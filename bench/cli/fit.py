"""`bench fit`: the answer again, from the store, and predictions for more devices."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.options import device_counts, json_option, print_json, selection_options
from bench.cli.progress import print_parts


@click.command()
@selection_options
@click.option("--devices", type=device_counts, metavar="8,16", help="Predict the speed on 8,64 or 8-512 devices.")
@click.option(
    "--law",
    type=click.Choice(["step", "power", "ideal"]),
    default="step",
    show_default=True,
    help="Law for --devices. step: models what a step loses; power: one exponent; ideal: T = n / (d · v).",
)
@json_option
def fit(as_json: bool, devices: tuple[int, ...] | None, law: str, **selection: Any) -> None:
    """Print the results of SUITE and the fitted law T = n / (d · v).

    SUITE is a name; without it, all suites in the store are printed. --devices adds predictions with 80 % intervals.
    """
    from analytics.answer import document
    from analytics.frame import frame
    from analytics.say_results import parts, prediction_lines, predictions
    from analytics.selection import select

    df = frame(select(**selection))
    if as_json:
        print_json({**document(df), "predictions": predictions(df, devices or (), law)})
        return
    print_parts(parts(df))
    for line in prediction_lines(df, devices or (), law):
        click.echo(line)
