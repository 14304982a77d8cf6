"""The dashboard with 10,000 runs in a real browser.

    python -m tests.benchmarks.dashboard [--runs 10000] [--rounds 3]

Each time is from the address being opened, or the choice being made, until the page shows its tables and the server has
no more to say; each browser is a new one with an empty profile. The first page is opened at a new server that finds a
cache of finished runs, as soon as it answers, and at a warm one that has served the page before. How busy the machine was
is printed with the times: of two cores that others use as well they say little. Skipped, loudly, where there is no Chromium.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from analytics.runs.store import load
from app.pages.runs import matching
from tests.benchmarks.frame import build
from tests.benchmarks.observer import table
from tests.browser import CHROMIUM, DRIVER, Server, chrome, select, shows, until

SUITES, CHOSEN = 20, ("suite-3", "suite-5", "suite-7")
TYPED = (
    "devices >= 2 and precision == bf16",
    "devices == 8 and precision == bf16",
    "devices < 4 and precision == bf16",
)
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
    return shows(browser, "as of ") and str(runs) in body.split()


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


def filtered(browser: Any, suite: str, runs: int) -> float:
    """Seconds until one suite of the first page is shown alone."""
    begun = select(browser, "Suite", suite)
    until(lambda: counts(browser, runs) and tables(browser), "the suite is seen alone", PAUSE)
    seconds = time.monotonic() - begun
    select(browser, "Suite", "All suites")
    until(lambda: counts(browser, runs * SUITES) and tables(browser), "all suites are seen again", PAUSE)
    return seconds


def listed(browser: Any, url: str, runs: int, act: Callable[[], float], left: int) -> float:
    """Seconds from an act, which returns when it was, until the page Runs lists those that are left by it."""

    def lists(count: int) -> bool:
        return shows(browser, f"of {count:,} runs that match, {runs:,} in all") and tables(browser)

    browser.get(f"{url}/runs")
    until(lambda: lists(runs), "the list of all runs is seen", PAUSE)
    begun = act()
    until(lambda: lists(left), f"the {left} runs that match are seen", PAUSE)
    return time.monotonic() - begun


def picked(browser: Any, suite: str) -> float:
    """Pick a suite of the quick filter with the mouse; return when (time.monotonic)."""
    where = "//*[@data-testid='stMultiSelect'][.//label[normalize-space()='Suite']]//input"
    field = browser.find_element("xpath", where)
    field.click()
    field.send_keys(suite)
    where = f"//*[@role='option'][normalize-space()='{suite}']"
    option = until(lambda: browser.find_elements("xpath", where), f"there is the suite {suite}")[0]
    pressed = time.monotonic()
    option.click()
    return pressed


def typed(browser: Any, condition: str) -> float:
    """Type a condition and end it with the enter key; return when (time.monotonic)."""
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", "input[aria-label='Filter by any field']")
    field.send_keys(condition)
    pressed = time.monotonic()
    field.send_keys(Keys.ENTER)
    return pressed


def ours(uri: str, folder: Path, runs: int, found: dict[str, list[float]]) -> None:
    """Measure a round of the dashboard: nothing kept, then a new server with what was kept, then other browsers."""
    cache, cwd = folder / "cache", folder / "cwd"
    cwd.mkdir(parents=True)
    with Server(uri, cwd, cache=cache) as server, new_browser() as browser:
        begun = time.monotonic()
        found["cold, newest suite seen"].append(first_sight(browser, server.url))
        until(lambda: counts(browser, runs) and tables(browser), "all runs are seen", PAUSE)
        found["cold, all runs seen"].append(time.monotonic() - begun)
    with Server(uri, cwd, cache=cache) as server:
        for name in ("first page, new server", "first page, warm server"):
            with new_browser() as browser:
                found[name].append(first_page(browser, server.url, runs))
        with new_browser() as browser:
            found["first page, warm server"].append(first_page(browser, server.url, runs))
            found["filter, Overview: suite"] += [filtered(browser, suite, runs // SUITES) for suite in CHOSEN]
            filters(browser, server.url, load(uri), found)


def filters(browser: Any, url: str, df: pd.DataFrame, found: dict[str, list[float]]) -> None:
    """Measure the filters of the page Runs."""
    for suite, condition in zip(CHOSEN, TYPED, strict=True):
        left = int((df["suite"] == suite).sum())
        seconds = listed(browser, url, len(df), partial(picked, browser, suite), left)
        found["filter, Runs: suite"].append(seconds)
        left = int(matching(df, condition).sum())
        seconds = listed(browser, url, len(df), partial(typed, browser, condition), left)
        found["filter, Runs: typed"].append(seconds)


COLD = ("cold, newest suite seen", "cold, all runs seen")
FIRST = ("first page, new server", "first page, warm server")
FILTERS = ("filter, Overview: suite", "filter, Runs: suite", "filter, Runs: typed")
LIMITS = dict.fromkeys(FIRST, FIRST_SECONDS) | dict.fromkeys(FILTERS, FILTER_SECONDS)


def lines(found: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    for name, seconds in found.items():
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        yield name, f"{median(seconds):.2f}", f"{max(seconds):.2f}", limit


def missed(found: dict[str, list[float]]) -> list[str]:
    """Name the targets that the median of the rounds misses."""
    return [name for name, limit in LIMITS.items() if median(found[name]) > limit]


def main() -> None:
    """Measure rounds on a store in a temporary folder, and print them; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if not CHROMIUM or not DRIVER:
        print("NOT MEASURED: the dashboard in a browser, as chromium and chromedriver are not on PATH")
        return
    found: dict[str, list[float]] = {name: [] for name in (*COLD, *LIMITS)}
    busy = []
    runs = asked.runs - asked.runs % SUITES
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uri = build(Path(folder), runs, SUITES)
        for number in range(asked.rounds):
            busy.append(f"{os.getloadavg()[0]:.1f}")
            ours(uri, Path(folder) / str(number), runs, found)
    print(f"processes that wanted one of {os.cpu_count()} cores, in the minute before each round: {', '.join(busy)}")
    print(table(("", "median [s]", "slowest [s]", "target [s]"), lines(found)))
    for name in missed(found):
        print(f"MISSED: {name}")
    sys.exit(bool(missed(found)))


if __name__ == "__main__":
    main()
