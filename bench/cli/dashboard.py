"""`bench dashboard`: the Streamlit app."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import runs_option, store_option


@click.command()
@store_option
@runs_option
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Port to listen on.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on. Any other than the default lets other machines read all runs, without a password.",
)
@click.option(
    "--allowed-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="Another name under which browsers may reach the dashboard. Can be repeated.",
)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def dashboard(store: str | None, runs: Path, port: int, host: str, allowed: tuple[str, ...], no_browser: bool) -> None:
    """Open the dashboard on 127.0.0.1, which no other machine reaches. It reads MLflow and changes nothing."""
    from app.serve import serve

    serve(port, store, not no_browser, host=host, allowed=allowed, runs=runs)
