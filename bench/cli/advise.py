"""`bench advise`: what to change after the runs of a suite, each with its gain and condition."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.options import explain_option, json_option, print_answer, print_json, several_selection_options


@click.command()
@several_selection_options
@explain_option
@json_option
def advise(as_json: bool, explain: bool, **selection: Any) -> None:
    """Recommend what to change after the runs of SUITE: at most ten sentences, each with its gain and condition.

    SUITE is a name; without it, there is advice for each suite in the store. Several names of `bench measure` are advised on
    as one. --explain adds the evidence.
    """
    from analytics.runs.frame import frame
    from analytics.runs.selection import together
    from analytics.say.advice import blocks, document

    df = frame(together(**selection))
    if as_json:
        print_json(document(df))
    else:
        print_answer(blocks(df, selection["store"]), df, selection["store"], explain=explain)
