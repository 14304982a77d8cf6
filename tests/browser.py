"""The dashboard in a server of its own, and a real browser that looks at it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)
WAIT = 300.0
"""Seconds after which a page will not come any more, also on a machine with ten times the work."""


def chrome(folder: Path, *flags: str) -> Any:
    """Start headless Chromium with a profile in a folder, where downloads arrive in `downloads`; to be quit by the caller."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    (folder / "downloads").mkdir(exist_ok=True)
    wanted = {"download.default_directory": str(folder / "downloads")}
    wanted["profile.default_content_setting_values.automatic_downloads"] = 1  # not one alone
    options.add_experimental_option("prefs", wanted)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = folder / "downloads"
    return driver


class Server:
    """The dashboard in a process of its own, in an empty folder; stopped at the end of the block."""

    def __init__(self, uri: str, folder: Path, code: str = "", cache: Path | None = None) -> None:
        """`code` is run in the server before it starts; what was read is kept in `cache`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        code += f"\nfrom app.serve import serve; serve({self.port}, {uri!r}, open_browser=False)"
        self.log = (folder.parent / f"{folder.name}.log").open("w+")
        environment = {**os.environ, "HOME": str(folder.parent), "PYTHONSAFEPATH": "1"}
        environment |= {"XDG_CACHE_HOME": str(cache)} if cache else {}
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
        self.process.wait(WAIT)
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


def shows(browser: Any, *texts: str) -> bool:
    """Whether the texts are on the page, and the server has said all that it has to say about it."""
    script = """return document.querySelector("[data-test-script-state=notRunning]") && document.body.innerText || ''"""
    body = browser.execute_script(script)
    return bool(body) and all(text in body for text in texts)


def until(action: Any, what: str, pause: float = 0.05) -> Any:
    """Wait until a function returns something that counts as true; return that."""
    end = time.monotonic() + WAIT
    while not (found := action()):
        assert time.monotonic() < end, what
        time.sleep(pause)
    return found


def select(browser: Any, label: str, value: str) -> float:
    """Choose a value in the selectbox with a label, as somebody does who types; return when (time.monotonic)."""
    from selenium.webdriver.common.keys import Keys

    field = _opened(browser, label)
    field.send_keys(value)
    option = f"//*[@role='option'][normalize-space()={value!r}]"
    until(lambda: browser.find_elements("xpath", option), f"{label!r} has an option {value!r}")
    pressed = time.monotonic()
    field.send_keys(Keys.ENTER)
    return pressed


def first(browser: Any, label: str) -> None:
    """Choose the first value of the selectbox with a label."""
    _opened(browser, label)
    until(lambda: browser.find_elements("css selector", "[role=option]"), f"{label!r} has options")[0].click()


def press(browser: Any, text: str) -> None:
    """Click the button with a text."""
    where = f"//button[.//p[normalize-space()={text!r}]]"
    found = until(lambda: browser.find_elements("xpath", where), f"there is a button {text!r}")[0]
    browser.execute_script("arguments[0].click()", found)


def _opened(browser: Any, label: str) -> Any:
    where = f"//*[@data-testid='stSelectbox'][.//label[normalize-space()={label!r}]]//input"
    field = until(lambda: browser.find_elements("xpath", where), f"there is a selectbox {label!r}")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
    field.click()
    return field


def download(browser: Any, button: str, index: int = 0) -> bytes:
    """Click the download button with a text, that with an index of several; return the file that arrives."""
    before = set(browser.downloads.iterdir())
    where = f"//*[@data-testid='stDownloadButton']//button[.//p[normalize-space()={button!r}]]"
    found = until(lambda: browser.find_elements("xpath", where)[index:], f"there is a button {button!r}")[0]
    browser.execute_script("arguments[0].click()", found)

    def arrived() -> list[Path]:
        fresh = set(browser.downloads.iterdir()) - before
        return [path for path in fresh if path.suffix not in (".crdownload", ".tmp") and not path.name.startswith(".")]

    return until(arrived, f"{button!r} brings a file")[0].read_bytes()
