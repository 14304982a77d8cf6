"""`bench fit`: the answer again, from the store."""

from __future__ import annotations

import json
from typing import Any

import click

from bench.cli.options import json_option
from bench.cli.selection import select, selection_options


@click.command()
@selection_options
@json_option
def fit(as_json: bool, **selection: Any) -> None:
    """Print the results and the fitted T = n / (d · v) of SUITE (a name), or of all suites in the store."""
    from bench.cli import answer

    rows = select(**selection)
    if as_json:
        click.echo(json.dumps(answer.document(rows), indent=1, allow_nan=False))
    else:
        answer.show(rows)
