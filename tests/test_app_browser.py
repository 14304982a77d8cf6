"""The dashboard as a user meets it: a real store, a real server on the loopback, a real browser."""

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.record import Status
from bench.store.tracker import Tracker
from tests import rows
from tests.browser import CHROMIUM, DRIVER, Server, chrome, download, first, press, see, until
from tests.searches import thirty

BODY = "return document.body.innerText"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    empty = folder / "run"
    empty.mkdir()
    given = [
        rows.record(d, preset, precision, r, v=rows.V * factor * (1 + r / 100) * (0.7 if d == 4 else 1))
        for d in (1, 2, 4)
        for preset in rows.SIZES
        for precision, factor in (("fp32", 1.0), ("bf16", 1.8))
        for r in range(2)
    ]
    given.append(rows.record(8, status=Status.FAILED, message=rows.HOSTILE, cpu=rows.HOSTILE_LINK))
    old = [rows.record(1, v=1e9, execution="20250101T000000-old")]
    for execution, records in (("20260102T030405-aaaa", given), ("20250101T000000-old", old)):
        tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "synthetic", execution)
        tracker.open()
        for record in records:
            tracker.log(record, empty)
        if records is given:
            found = thirty() | dict.fromkeys(("study", "machine"), rows.HOSTILE) | {"sentences": [rows.HOSTILE_LINK]}
            found["trials"][0] |= {"params": {rows.HOSTILE: rows.HOSTILE_LINK}, "runs": [rows.HOSTILE]}
            tracker.attach(found)
        tracker.close(finished=True)
        assert tracker.error is None
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("NOT CHECKED IN A BROWSER: chromium and chromedriver are not on PATH")
    driver = chrome(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


def safe(browser: Any) -> None:
    """Nothing of the hostile names became an element of the page."""
    assert not browser.find_elements("css selector", "img[src='x'], a[href^='javascript']")


def drawn(browser: Any, charts: int) -> None:
    """All charts of the page are drawn, it is safe, and it does not scroll sideways."""
    plots = lambda: browser.find_elements("css selector", ".js-plotly-plot")  # noqa: E731
    until(lambda: len(plots()) >= charts, f"{charts} charts are drawn")
    safe(browser)
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    until(lambda: browser.execute_script(overflow) <= 0, "the page does not scroll sideways")


@contextmanager
def serving(factory: pytest.TempPathFactory, uri: str) -> Iterator[Server]:
    """A dashboard in an empty folder that ends without a traceback."""
    folder = factory.mktemp("server") / "cwd"
    folder.mkdir()
    with Server(uri, folder) as server:
        yield server
        assert "Traceback" not in server.text()


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory, f"sqlite:///{store}") as server:
        yield server


@pytest.fixture(scope="module")
def server_without_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory, f"sqlite:///{tmp_path_factory.mktemp('absent')}/absent.db") as server:
        yield server


PAGES = {
    "": ("Newest suite: ", "Throughput by suite", "Runs that did not end well", "26 of 26 runs"),
    "runs": ("1 to 26 of 26 runs", "Filter by any field"),
    "scaling": ("as fast as", "Losses, and how well the law holds"),
    "strategies": ("Compared by", "Batches that fit into memory"),
    "tradeoffs": ("Objectives of the front", "The configuration that is picked"),
    "planner": ("Say what is trained",),
    "search": (rows.HOSTILE, rows.HOSTILE_LINK, "Course of the search"),
}
CHARTS = {"scaling": 3, "strategies": 2, "tradeoffs": 1, "search": 6}


def test_all_pages_on_narrow_and_wide_screens(store: Path, server: Server, browser: Any) -> None:
    before = hashlib.sha256(store.read_bytes()).hexdigest()
    for page, content in PAGES.items():
        browser.set_window_size(420, 1000)
        see(browser, f"{server.url}/{page}", *content)
        drawn(browser, CHARTS.get(page, 0))
        browser.set_window_size(1400, 1000)
        drawn(browser, CHARTS.get(page, 0))
    see(browser, f"{server.url}/scaling?execution=2025-01-01 03:04:05 UTC", "Download the configurations as CSV")
    assert f"Dashboard: {server.url}" in server.text()
    assert hashlib.sha256(store.read_bytes()).hexdigest() == before, "looking changes nothing"
    assert list(server.folder.iterdir()) == []


def paint(browser: Any, scheme: str) -> None:
    """Let the browser say that its user wants a light or a dark page."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def shoot(browser: Any, name: str) -> None:
    """Keep pictures of the page in $SCREENSHOTS, where that is set."""
    if not os.environ.get("SCREENSHOTS"):
        return
    folder = Path(os.environ["SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    height = browser.execute_script("return document.querySelector('[data-testid=stMain]').scrollHeight")
    browser.set_window_size(1400, height + 150)
    for scheme in ("dark", "light"):
        paint(browser, scheme)
        time.sleep(1)
        browser.save_screenshot(str(folder / f"{name}-{scheme}.png"))
    browser.set_window_size(1400, 1000)


def test_the_main_way_through_real_runs(
    recorded_uri: str, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    browser.set_window_size(1400, 1000)
    paint(browser, "light")

    def until_shown(*texts: str) -> None:
        until(lambda: all(text in browser.execute_script(BODY) for text in texts), f"the page shows {texts}")

    def brightness() -> float:
        """Of the background, 0 to 255."""
        style = "return getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
        return sum(map(int, re.findall(r"\d+", browser.execute_script(style))[:3])) / 3

    with serving(tmp_path_factory, recorded_uri) as server:
        see(browser, server.url, "44 runs in 3 suites", "out of memory: 6 runs")
        assert brightness() > 200
        shoot(browser, "overview")
        see(browser, f"{server.url}/runs", "1 to 44 of 44 runs")
        shoot(browser, "runs")
        where = "css selector", "input[aria-label='Filter by any field']"
        (field,) = until(lambda: browser.find_elements(*where), "the filter is there")
        field.send_keys("devices >= 2 and precision == bf16\n")
        until_shown("44 in all", "1 to 5 of 5")
        assert len(download(browser, "Download all 5 as CSV").splitlines()) == 6
        assert "where=devices" in browser.current_url
        first(browser, "Open")
        until_shown("Power", "Step times", "Where time and energy went")
        press(browser, "Show this alone, at an address to share")
        until_shown("Back to the list", "Where time and energy went")
        drawn(browser, 5)
        assert "run=" in browser.current_url
        shoot(browser, "run")
        address = f"{server.url}/scaling?suite=scaling&devices=4,8"
        see(browser, address, "Predicted by the law of scaling", "more devices than this machine has")
        drawn(browser, 3)
        shoot(browser, "scaling")
        paint(browser, "dark")
        see(browser, f"{server.url}/strategies?suite=ladder", "The ladder, step by step", "What to do next")
        assert brightness() < 55
        shoot(browser, "strategies")
        see(browser, f"{server.url}/tradeoffs", "Its runs, and how to repeat them")
        shoot(browser, "tradeoffs")
        see(browser, f"{server.url}/planner", "Say what is trained")
        press(browser, "Fill in an example")
        until_shown("Take 104 devices or more", "bench plan --params 7B")
        shoot(browser, "planner")
        see(browser, f"{server.url}/search", "Course of the search", "Ended: ")
        drawn(browser, 4)
        shoot(browser, "search")


def test_a_server_that_hangs_does_not_hang_the_page(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # seconds, of each attempt
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with serving(tmp_path_factory, f"http://me:hunter2@{where}") as server:
            body = see(browser, server.url, f"http://***@{where} does not answer", "--store")
            assert "hunter2" not in body + browser.execute_script(BODY)


def test_downloads_arrive(server: Server, browser: Any) -> None:
    browser.set_window_size(1400, 1000)
    see(browser, f"{server.url}/scaling", "Download as CSV")
    table = download(browser, "Download as CSV").decode().splitlines()
    assert len(table) > 1
    assert "samples/s" in table[0]
    page = download(browser, "Download as HTML").decode()
    assert page.startswith("<!doctype html>")
    assert "Plotly.newPlot" in page
    where = "css selector", ".modebar-btn[data-title^='Download plot']"
    camera, *_ = until(lambda: browser.find_elements(*where), "the camera is there")
    browser.execute_script("arguments[0].click()", camera)
    picture = until(lambda: [*browser.downloads.glob("*.png")], "the camera brings a picture")[0]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.name.startswith("wattbench-")


def test_other_pages_of_the_browser_are_turned_away(server_without_store: Server) -> None:
    port = server_without_store.port
    own, foreign = f"127.0.0.1:{port}", "evil.example"
    for host, origin, status in ((own, own, b"101"), (own, foreign, b"403"), (foreign, foreign, b"403")):
        with socket.create_connection(("127.0.0.1", port)) as knock:
            lines = ("GET /_stcore/stream HTTP/1.1", f"Host: {host}", f"Origin: http://{origin}")
            lines += ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
            lines += ("Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==", "", "")
            knock.sendall("\r\n".join(lines).encode())
            assert knock.recv(100).split()[1] == status, (host, origin)
    assert "external IP" not in server_without_store.text(), "no service on the internet was asked"


def test_no_store(server_without_store: Server, browser: Any) -> None:
    for name, what in (("", "runs"), ("strategies", "runs"), ("search", "searches")):
        body = see(browser, f"{server_without_store.url}/{name}", "bench measure")  # the reason comes after the heading
        assert f"The {what} could not be read." in body
    assert list(server_without_store.folder.iterdir()) == [], "opening a page makes no store"
