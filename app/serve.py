"""Start the dashboard's server on this machine only."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import webbrowser
from importlib import resources

import click

HOST = "127.0.0.1"
TRACKING_URI = "WATTBENCH_TRACKING_URI"
"""Environment variable that tells the pages which store to read."""


class ServeError(Exception):
    """Why the dashboard cannot be served, in a line that can be shown as it is."""


def _check(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ServeError(f"--port {port}: wanted a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServeError(f"--port {port}: {HOST}:{port} cannot be used ({error.strerror}); try another") from error


def _open_when_ready(url: str, port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                webbrowser.open(url)
                return
        time.sleep(0.2)


def arguments(port: int) -> list[str]:
    """Return the arguments of `streamlit` that serve the dashboard to this machine only and send nothing anywhere."""
    options = {
        "server.address": HOST,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "logger.hideWelcomeMessage": "true",
        "logger.level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += ["--server.allowedHosts=localhost", f"--server.allowedHosts={HOST}"]
    return ["run", str(resources.files("app") / "main.py"), *flags]


def serve(port: int = 8501, uri: str | None = None, open_browser: bool = True) -> None:
    """Serve the dashboard at http://127.0.0.1:`port` until it is interrupted; print the address.

    `uri` is the MLflow store to read (None: the usual one). Raises ServeError where the port is taken or not a port.
    """
    from streamlit import net_util
    from streamlit.web import cli

    from app import live, page  # noqa: F401  most of what pages import

    _check(port)
    # Streamlit asks a service on the internet for this machine's address when a foreign page knocks: never from here.
    net_util.get_external_ip = lambda: None
    if uri is not None:
        os.environ[TRACKING_URI] = uri
    url = f"http://{HOST}:{port}"
    click.echo(f"Dashboard: {url}  (stop it with Ctrl-C)")
    if open_browser:
        threading.Thread(target=_open_when_ready, args=(url, port), daemon=True).start()
    gc.collect()
    gc.freeze()  # Streamlit collects garbage after each look at what runs: what is imported need not be gone through
    cli.main(arguments(port), prog_name="streamlit", standalone_mode=False)
