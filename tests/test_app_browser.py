"""The dashboard as a user meets it: a real store, a real server on the loopback, a real browser."""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.record import Status
from bench.store.tracker import Tracker
from tests import rows
from tests.browser import CHROMIUM, DRIVER, WAIT, Server, chrome, download, first, press, see, until
from tests.searches import thirty

BODY = "return document.body.innerText"
pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 with SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    # Selenium leaves the pipe of a driver that it stopped to the garbage collector.
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


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
    end = time.monotonic() + WAIT
    while len(browser.find_elements("css selector", ".js-plotly-plot")) < charts:
        assert time.monotonic() < end, f"{charts} charts are drawn"
        time.sleep(0.2)
    safe(browser)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, "the page does not scroll sideways"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


PAGES = {
    "": ("Newest suite: synthetic", "Throughput by suite", "Runs that did not end well", "26 of 26 runs"),
    "runs": ("1 to 26 of 26 runs", "Filter by any field"),
    "scaling": ("as fast as", "Losses, and how well the law holds"),
    "strategies": ("Compared by", "Batches that fit into memory"),
    "tradeoffs": ("Objectives of the front", "The configuration that is picked"),
    "planner": ("Say what is trained",),
    "search": (rows.HOSTILE, rows.HOSTILE_LINK, "Course of the search"),
}
CHARTS = {"scaling": 3, "strategies": 2, "tradeoffs": 1, "search": 6}


@pytest.mark.parametrize("width", [1400, 420])
def test_all_pages(store: Path, browser: Any, tmp_path: Path, width: int) -> None:
    before = digest(store)
    folder = tmp_path / "cwd"
    folder.mkdir()
    with Server(f"sqlite:///{store}", folder) as server:
        for page, said in PAGES.items():
            browser.set_window_size(width, 1000)
            see(browser, f"{server.url}/{page}", *said)
            drawn(browser, CHARTS.get(page, 0))
        see(browser, f"{server.url}/scaling?execution=2025-01-01 03:04:05 UTC", "Download the configurations as CSV")
        assert f"Dashboard: {server.url}" in server.text()
        assert "Traceback" not in server.text()
    assert digest(store) == before, "looking changes nothing"
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are kept: $SCREENSHOTS, otherwise pytest's own folders."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(browser: Any, path: Path, width: int = 1400) -> None:
    height = browser.execute_script("return document.querySelector('[data-testid=stMain]').scrollHeight")
    browser.set_window_size(width, height + 150)
    time.sleep(1)
    browser.save_screenshot(str(path))
    browser.set_window_size(width, 1000)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_main_way_through_real_runs(
    recorded_uri: str, browser: Any, tmp_path: Path, pictures: Path, scheme: str
) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    browser.set_window_size(1400, 1000)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def until_said(*texts: str) -> None:
        until(lambda: all(text in browser.execute_script(BODY) for text in texts), f"the page says {texts}")

    with Server(recorded_uri, folder) as server:
        see(browser, server.url, "44 runs in 3 suites", "out of memory: 6 runs")
        shoot(browser, pictures / f"overview-{scheme}.png")
        see(browser, f"{server.url}/runs", "1 to 44 of 44 runs")
        shoot(browser, pictures / f"runs-{scheme}.png")
        field = browser.find_element("css selector", "input[aria-label='Filter by any field']")
        field.send_keys("devices >= 2 and precision == bf16\n")
        until_said("44 in all", "1 to 5 of 5")
        listed = download(browser, "Download all 5 as CSV").decode().splitlines()
        assert len(listed) == 6
        assert "where=devices" in browser.current_url
        first(browser, "Open")
        until_said("Power", "Step times", "Where time and energy went")
        press(browser, "Show this alone, at an address to share")
        until_said("Back to the list", "Where time and energy went")
        drawn(browser, 5)
        assert "run=" in browser.current_url
        shoot(browser, pictures / f"run-{scheme}.png")
        see(
            browser,
            f"{server.url}/scaling?suite=scaling&devices=4,8",
            "Predicted by the law of scaling",
            "more devices than this machine has",
        )
        drawn(browser, 3)
        shoot(browser, pictures / f"scaling-{scheme}.png")
        see(browser, f"{server.url}/strategies?suite=ladder", "The ladder, step by step", "What to do next")
        shoot(browser, pictures / f"strategies-{scheme}.png")
        see(browser, f"{server.url}/tradeoffs", "Its runs, and how to repeat them")
        shoot(browser, pictures / f"tradeoffs-{scheme}.png")
        see(browser, f"{server.url}/planner", "Say what is trained")
        press(browser, "Fill in an example")
        until_said("Take 104 devices or more", "bench plan --params 7B")
        shoot(browser, pictures / f"planner-{scheme}.png")
        see(browser, f"{server.url}/search", "Course of the search", "Ended: ")
        drawn(browser, 4)
        shoot(browser, pictures / f"search-{scheme}.png")
        assert "Traceback" not in server.text()


def test_a_server_that_hangs_does_not_hang_the_page(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with Server(f"http://me:hunter2@{where}", folder) as server:
            body = see(browser, server.url, f"http://***@{where} does not answer", "--store")
            assert "hunter2" not in body + browser.execute_script(BODY)


def test_downloads_arrive(store: Path, browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    browser.set_window_size(1400, 1000)
    with Server(f"sqlite:///{store}", folder) as server:
        see(browser, f"{server.url}/scaling", "Download as CSV")
        table = download(browser, "Download as CSV").decode().splitlines()
        assert len(table) > 1
        assert "samples/s" in table[0]
        page = download(browser, "Download as HTML").decode()
        assert page.startswith("<!doctype html>")
        assert "Plotly.newPlot" in page
        camera = browser.find_element("css selector", ".modebar-btn[data-title^='Download plot']")
        browser.execute_script("arguments[0].click()", camera)
        picture = until(lambda: [*browser.downloads.glob("*.png")], "the camera brings a picture")[0]
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.name.startswith("wattbench-")


def test_other_pages_of_the_browser_are_turned_away(tmp_path: Path) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    with Server(f"sqlite:///{folder / 'absent.db'}", folder) as server:
        own, foreign = f"127.0.0.1:{server.port}", "evil.example"
        for host, origin, wanted in ((own, own, b"101"), (own, foreign, b"403"), (foreign, foreign, b"403")):
            with socket.create_connection(("127.0.0.1", server.port)) as knock:
                lines = ("GET /_stcore/stream HTTP/1.1", f"Host: {host}", f"Origin: http://{origin}")
                lines += ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
                lines += ("Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==", "", "")
                knock.sendall("\r\n".join(lines).encode())
                assert knock.recv(100).split()[1] == wanted, (host, origin)
        assert "external IP" not in server.text(), "no service on the internet was asked"


def test_no_store(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    with Server(f"sqlite:///{folder / 'absent.db'}", folder) as server:
        for name, what in (("", "runs"), ("strategies", "runs"), ("search", "searches")):
            body = see(browser, f"{server.url}/{name}", "bench run")  # the reason comes after the heading
            assert f"The {what} could not be read." in body
            assert "Traceback" not in body
    assert list(folder.iterdir()) == [], "opening a page makes no store"
