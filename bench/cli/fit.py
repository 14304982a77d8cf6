"""`bench fit`: the answer again, from the store, and predictions for more devices."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.options import (
    device_counts,
    explain_option,
    json_option,
    print_answer,
    print_json,
    several_selection_options,
)


@click.command()
@several_selection_options
@click.option("--devices", type=device_counts, metavar="8,16", help="Predict the speed on 8,64 or 8-512 devices.")
@explain_option
@json_option
def fit(as_json: bool, explain: bool, devices: tuple[int, ...] | None, **selection: Any) -> None:
    """Print the results of SUITE and the fitted law T = n / (d · v).

    SUITE is a name; without it, all suites in the store are printed. Several names of `bench measure` are printed as one, so
    that a law spans their numbers of devices. --devices adds predictions with 80 % intervals.
    """
    from analytics.runs.frame import frame
    from analytics.runs.selection import together
    from analytics.say.answer import document
    from analytics.say.results import predictions, results

    df = frame(together(**selection))
    if as_json:
        print_json({**document(df), "predictions": predictions(df, devices or ())})
        return
    print_answer(results(df, devices or (), selection["store"]), df, selection["store"], explain=explain)
