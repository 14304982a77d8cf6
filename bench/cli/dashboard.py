"""`bench dashboard`: the Streamlit app."""

from __future__ import annotations

import click

from bench.cli import fail
from bench.cli.options import store_option


@click.command()
@store_option
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def dashboard(store: str | None, port: int, no_browser: bool) -> None:
    """Open the dashboard on 127.0.0.1, where no other machine reaches it. It reads MLflow and changes nothing."""
    from app.serve import ServeError, serve

    try:
        serve(port=port, uri=store, open_browser=not no_browser)
    except ServeError as error:
        fail(str(error))
