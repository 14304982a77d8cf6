"""Start the dashboard's server: for this machine only, unless told otherwise."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module, resources
from ipaddress import ip_address
from pathlib import Path

import click

from bench.errors import UserError
from bench.store.tracker import StoreError

HOST = "127.0.0.1"
PREPARED_SECONDS = 4.0
"""How long the first page may wait for what the server does once."""
TRACKING_URI = "WATTBENCH_TRACKING_URI"
"""Environment variable that names the store that the pages read."""
RUNS = "WATTBENCH_RUNS"
"""Environment variable that names the folder of runs; otherwise `runs`, as for `bench run`."""


def _check(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: wanted a port from 1 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host or "?", port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!r}: wanted a name or address of this machine, such as {HOST}") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"--host {host}: this machine has no such address") from error
            raise UserError(f"--port {port}: {host}:{port} cannot be used ({error.strerror}); try another") from error


def _loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens there."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ip_address(str(address[0])).is_loopback for *_, address in found)


def _prepare() -> None:
    """Read the store, and import what pages need, before the first page is opened."""
    from app import data, page
    from app.pages import overview

    logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context").disabled = True  # this is no page
    with suppress(StoreError):
        table = overview.suites(runs := data.runs().content)
        for figure in overview.figures(runs, table).values():
            page.drawn_once(figure)
    import_module("analytics.law.series")
    gc.collect()
    gc.freeze()  # Streamlit collects garbage after each look at what runs: what is imported need not be gone through


def _open_when_ready(url: str, host: str, port: int) -> None:
    for _ in range(100):
        with suppress(OSError), socket.create_connection((host, port), 1):
            webbrowser.open(url)
            return
        time.sleep(0.2)


def arguments(port: int, host: str = HOST, allowed: Sequence[str] = ()) -> list[str]:
    """Return the arguments of `streamlit` that serve the dashboard at an address, and send nothing anywhere.

    Browsers must have asked for this machine, for `host` or for one of the `allowed` names: a page of somebody else that
    points a name of its own here is turned away.
    """
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        "runner.magicEnabled": "false",
        "logger.hideWelcomeMessage": "true",
        "logger.level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += [f"--server.allowedHosts={name}" for name in dict.fromkeys(("localhost", HOST, host, *allowed))]
    return ["run", str(resources.files("app") / "pages/main.py"), *flags]


def serve(
    port: int = 8501,
    uri: str | None = None,
    open_browser: bool = True,
    *,
    host: str = HOST,
    allowed: Sequence[str] = (),
    runs: Path = Path("runs"),
) -> None:
    """Serve the dashboard at http://`host`:`port` until it is interrupted; print the address.

    `uri` is the MLflow store to read (None: the usual one), `runs` the folder of the runs, where suites in flight are seen,
    `allowed` further names that browsers may ask for. Raises UserError where the address cannot be used.
    """
    from streamlit import net_util
    from streamlit.web import cli

    _check(host, port)
    if wrong := [name for name in allowed if not name.strip() or set(name) & set("/*: ")]:
        raise UserError(f"--allowed-host {wrong[0]!r}: wanted a name or address alone, such as bench.example.org")
    # Streamlit asks a service on the internet for this machine's address when a foreign page knocks: never from here.
    net_util.get_external_ip = lambda: None
    if uri is not None:
        os.environ[TRACKING_URI] = uri
    os.environ[RUNS] = str(runs.absolute())
    everywhere = host in ("0.0.0.0", "::")  # noqa: S104
    reached = HOST if everywhere else host
    url = f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
    prepared = threading.Thread(target=_prepare, daemon=True)
    prepared.start()
    prepared.join(PREPARED_SECONDS)
    click.echo(f"Dashboard: {url}  (stop it with Ctrl-C)")
    if not _loopback(host):
        click.echo("Everybody who reaches this address can read all runs: there is no password.")
        if everywhere and not allowed:
            click.echo("By other names than localhost browsers are turned away; allow one with --allowed-host NAME.")
    if open_browser:
        threading.Thread(target=_open_when_ready, args=(url, reached, port), daemon=True).start()
    cli.main(arguments(port, host, allowed), prog_name="streamlit", standalone_mode=False)
