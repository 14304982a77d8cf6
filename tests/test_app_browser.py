"""The dashboard as a user meets it: a real store, a real server on the loopback, a real browser."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.record import Status
from bench.tracking import Tracker
from tests import rows
from tests.searches import thirty

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 with SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    # Selenium leaves the pipe of a driver that it stopped to the garbage collector.
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)
WAIT = 60.0


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
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Server:
    """The dashboard in a process of its own, in an empty folder; stopped at the end of the block."""

    def __init__(self, uri: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        code = f"from app.serve import serve; serve({self.port}, {uri!r}, open_browser=False)"
        self.log = (folder.parent / f"{folder.name}.log").open("w+")
        environment = {**os.environ, "HOME": str(folder.parent), "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> "Server":
        end = time.monotonic() + WAIT
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        raise AssertionError(f"the server did not start: {self.text()}")

    def text(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def see(browser: Any, url: str, *texts: str) -> str:
    """Open a page and wait until the texts are on it; return all text of the page."""
    browser.get(url)
    end, body = time.monotonic() + WAIT, ""
    while time.monotonic() < end:
        body = browser.execute_script("return document.body.innerText")
        running = browser.find_elements("css selector", "[data-testid=stStatusWidget]")
        if all(text in body for text in texts) and not running:
            break
        time.sleep(0.2)
    assert [text for text in texts if text not in body] == [], body
    assert not browser.find_elements("css selector", "[data-testid=stException]"), body
    return str(body)


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


@pytest.mark.parametrize("width", [1400, 420])
def test_all_pages(store: Path, browser: Any, tmp_path: Path, width: int) -> None:
    before = digest(store)
    folder = tmp_path / "cwd"
    folder.mkdir()
    browser.set_window_size(width, 1000)
    with Server(f"sqlite:///{store}", folder) as server:
        energy = ("Energy, measured", "Energy, estimated by a model")
        see(browser, server.url, *energy, "What did not end well", "26 of 26 runs", "All runs")
        safe(browser)
        said = ("The law is T = n / (d · v)", "breaks at d = 4", "times as fast as fp32", "Download as CSV")
        see(browser, f"{server.url}/scaling", *said)
        drawn(browser, 3)
        see(browser, f"{server.url}/search", rows.HOSTILE, rows.HOSTILE_LINK, "What the search itself took")
        drawn(browser, 7)
        see(browser, f"{server.url}/scaling?execution=20250101T000000-old", "v = 1 GFLOP/s")
        if "SCREENSHOTS" in os.environ:
            shoot(browser, server.url, width)
        assert f"Dashboard: {server.url}" in server.text()
        assert "Traceback" not in server.text()
    assert digest(store) == before, "looking changes nothing"
    assert list(folder.iterdir()) == []


def shoot(browser: Any, url: str, width: int) -> None:
    for page, text in (("", "All runs"), ("scaling", "Download as CSV"), ("search", "What the search itself took")):
        see(browser, f"{url}/{page}", text)
        height = browser.execute_script("return document.querySelector('[data-testid=stMain]').scrollHeight")
        browser.set_window_size(width, height + 150)
        time.sleep(2)
        browser.save_screenshot(str(Path(os.environ["SCREENSHOTS"]) / f"{page or 'overview'}-{width}.png"))


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
        for name, what in (("", "runs"), ("scaling", "runs"), ("search", "searches")):
            body = see(browser, f"{server.url}/{name}", "bench run")  # the reason comes after the heading
            assert f"The {what} could not be read." in body
            assert "Traceback" not in body
    assert list(folder.iterdir()) == [], "opening a page makes no store"
