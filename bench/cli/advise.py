"""`bench advise`: what to change after the runs of a suite, each sentence with its evidence and limits."""

from __future__ import annotations

from typing import Any

import click

from bench.cli.options import json_option, print_json, selection_options


@click.command()
@selection_options
@json_option
def advise(as_json: bool, **selection: Any) -> None:
    """Recommend what to change after the runs of SUITE: at most ten sentences, each with its evidence and limits.

    SUITE is a name; without it, there is advice for each suite in the store.
    """
    from analytics.frame import frame
    from analytics.say_advice import answer
    from analytics.selection import select

    document, lines = answer(frame(select(**selection)))
    if as_json:
        print_json(document)
    else:
        click.echo("\n".join(lines))
