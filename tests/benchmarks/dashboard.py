"""The dashboard with 10,000 runs in a real browser, beside MLflow's own page of the same store.

    python -m tests.benchmarks.dashboard [--runs 10000] [--rounds 3]

Each time is from the address being opened, or the choice being made, until the page shows its tables and the server has
no more to say; each browser is a new one with an empty profile. The dashboard shows all runs and their sums, MLflow the
first hundred runs. Skipped, loudly, where there is no Chromium.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from tests.benchmarks.frame import build
from tests.benchmarks.observer import table
from tests.browser import CHROMIUM, DRIVER, WAIT, Server, chrome, select, shows, until

SUITES, CHOSEN = 20, "suite-3"
FIRST_SECONDS, FILTER_SECONDS = 2.0, 0.5
PAUSE = 0.02


@contextmanager
def new_browser() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = chrome(Path(folder))
        browser.set_window_size(1400, 1000)
        try:
            yield browser
        finally:
            browser.quit()


def tables(browser: Any) -> bool:
    return bool(browser.find_elements("css selector", "[data-testid=stDataFrame] canvas"))


def counts(browser: Any, runs: int) -> bool:
    """Whether the page has ended with so many runs."""
    body = browser.execute_script("return document.body.innerText").replace(",", "")
    return shows(browser, "Read at ") and str(runs) in body.split()


def first_page(browser: Any, url: str, runs: int) -> float:
    """Seconds until the first page shows all runs."""
    begun = time.monotonic()
    browser.get(url)
    until(lambda: counts(browser, runs) and tables(browser), "the first page is seen", PAUSE)
    return time.monotonic() - begun


def first_sight(browser: Any, url: str) -> float:
    """Seconds until the first page shows any runs: those of the newest suite."""
    begun = time.monotonic()
    browser.get(url)
    until(lambda: tables(browser), "the newest suite is seen", PAUSE)
    return time.monotonic() - begun


def filtered(browser: Any, runs: int) -> float:
    """Seconds until one suite of the first page is shown alone."""
    begun = select(browser, "Suite", CHOSEN)
    until(lambda: counts(browser, runs) and tables(browser), "the suite is seen alone", PAUSE)
    return time.monotonic() - begun


def mlflow_rows(browser: Any) -> str:
    found = "return [...document.querySelectorAll('.ag-row')].map(row => row.innerText).join()"
    return str(
        browser.execute_script(f"return document.body.innerText.includes('matching runs') && (() => {{{found}}})()")
    )


def mlflow_page(browser: Any, url: str) -> float:
    """Seconds until MLflow's run table of all experiments has rows."""
    ids = json.dumps([str(number) for number in range(1, SUITES + 2)])
    begun = time.monotonic()
    browser.get(f"{url}/#/compare-experiments/s?experiments={quote(ids)}")
    until(lambda: len(mlflow_rows(browser)) > 10, "MLflow shows rows", PAUSE)
    return time.monotonic() - begun


def mlflow_filtered(browser: Any) -> float:
    """Seconds until MLflow's run table shows other rows after a search for one suite."""
    from selenium.webdriver.common.keys import Keys

    before = mlflow_rows(browser)
    box = browser.find_element("css selector", "[data-testid=search-box]")
    box.send_keys(f'tags."bench.suite" = "{CHOSEN}"')
    box.send_keys(Keys.ESCAPE)
    begun = time.monotonic()
    box.send_keys(Keys.ENTER)
    until(lambda: len(now := mlflow_rows(browser)) > 10 and now != before, "MLflow shows other rows", PAUSE)
    return time.monotonic() - begun


@contextmanager
def mlflow_server(uri: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    with (folder / "mlflow.log").open("w") as log:
        given: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": folder}
        process = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], **given)
        try:
            until(lambda: answers(port), f"MLflow's server starts: {(folder / 'mlflow.log').read_text()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # it has workers
            process.wait(WAIT)


def answers(port: int) -> bool:
    """Whether the server is ready, its workers too."""
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def ours(uri: str, folder: Path, runs: int, found: dict[str, list[float]]) -> None:
    """Measure a round of the dashboard: nothing kept, then a new server with what was kept, then another browser."""
    cache, cwd = folder / "cache", folder / "cwd"
    cwd.mkdir(parents=True)
    with Server(uri, cwd, cache=cache) as server, new_browser() as browser:
        begun = time.monotonic()
        found["cold, newest suite seen"].append(first_sight(browser, server.url))
        until(lambda: counts(browser, runs) and tables(browser), "all runs are seen", PAUSE)
        found["cold, all runs seen"].append(time.monotonic() - begun)
    with Server(uri, cwd, cache=cache) as server:
        with new_browser() as browser:
            found["first page, new server"].append(first_page(browser, server.url, runs))
        with new_browser() as browser:
            found["first page, second browser"].append(first_page(browser, server.url, runs))
            found["filter"].append(filtered(browser, runs // SUITES))


def theirs(uri: str, folder: Path, found: dict[str, list[float]]) -> None:
    with mlflow_server(uri, folder) as url:
        for name in ("MLflow, new server", "MLflow, second browser"):
            with new_browser() as browser:
                found[name].append(mlflow_page(browser, url))
                if name == "MLflow, second browser":
                    found["MLflow, search"].append(mlflow_filtered(browser))


LIMITS = {
    "first page, new server": FIRST_SECONDS,
    "first page, second browser": FIRST_SECONDS,
    "filter": FILTER_SECONDS,
}
BESIDE = {"filter": "MLflow, search", "first page, second browser": "MLflow, second browser"}
BESIDE |= dict.fromkeys(
    ("first page, new server", "cold, newest suite seen", "cold, all runs seen"), "MLflow, new server"
)


def lines(found: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    for name, seconds in found.items():
        peer = BESIDE.get(name)
        ratio = f"{median(seconds) / median(found[peer]):.2f} of {peer}" if peer else ""
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        yield name, f"{median(seconds):.2f}", f"{max(seconds):.2f}", limit, ratio


def missed(found: dict[str, list[float]]) -> list[str]:
    """Name the targets that the median of the rounds misses."""
    return [name for name, limit in LIMITS.items() if median(found[name]) > limit]


def main() -> None:
    """Measure rounds of both on a store in a temporary folder, and print the comparison; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if not CHROMIUM or not DRIVER:
        print("NOT MEASURED: the dashboard in a browser, as chromium and chromedriver are not on PATH")
        return
    names = [*BESIDE, *dict.fromkeys(BESIDE.values())]
    found: dict[str, list[float]] = {name: [] for name in names}
    runs = asked.runs - asked.runs % SUITES
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uri = build(Path(folder), runs, SUITES)
        for number in range(asked.rounds):
            ours(uri, Path(folder) / str(number), runs, found)
            theirs(uri, Path(folder) / str(number), found)
    print(table(("", "median [s]", "slowest [s]", "target [s]", "ratio"), lines(found)))
    for name in missed(found):
        print(f"MISSED: {name}")
    sys.exit(bool(missed(found)))


if __name__ == "__main__":
    main()
