"""A headless browser for tests of web pages: a W3C WebDriver client on the standard library.

    with open_browser() as browser:          # skips the test where chromium or chromedriver is missing
        browser.open("http://127.0.0.1:8000/")
        browser.find("#query").type("red shoes")
        browser.find("button[type=submit]").click()
        assert "Page 1" in browser.text()

Needs the programs `chromium` (or `google-chrome`) and `chromedriver`, on Debian the packages chromium and
chromium-driver; no Python package.
"""

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1000",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, fixed by the standard
_START_S = 30.0
_WAIT_S = 10.0


class BrowserError(RuntimeError):
    """The driver answered with an error, such as an element that is not there."""


@dataclass(frozen=True)
class Element:
    """An element of the present page."""

    browser: "Browser"
    id: str

    def click(self) -> None:
        """Click it. Where another page follows, wait for what shows it (`find`, `wait_until`)."""
        self.browser.command("POST", f"element/{self.id}/click", {})

    def type(self, text: str) -> None:
        """Type into it."""
        self.browser.command("POST", f"element/{self.id}/value", {"text": text})

    def text(self) -> str:
        """Its visible text."""
        return str(self.browser.command("GET", f"element/{self.id}/text"))

    def attribute(self, name: str) -> str | None:
        """An attribute as written in the page, or None."""
        value = self.browser.command("GET", f"element/{self.id}/attribute/{name}")
        return None if value is None else str(value)


class Browser:
    """One browser window with a fresh profile."""

    def __init__(self, port: int, profile: Path, binary: str) -> None:
        self._port, self._session = port, ""
        options = {"binary": binary, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._session = f"/session/{self._request('POST', '/session', wanted)['sessionId']}"

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One command of the standard, with its path behind the session's."""
        return self._request(method, f"{self._session}/{path}", body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise BrowserError(f"{value['error']}: {value.get('message', '')}")
        return value

    def open(self, url: str) -> None:
        """Go to an address and wait until the page is loaded."""
        self.command("POST", "url", {"url": url})

    def url(self) -> str:
        """The present address."""
        return str(self.command("GET", "url"))

    def title(self) -> str:
        """The present page's title."""
        return str(self.command("GET", "title"))

    def find_all(self, selector: str) -> list[Element]:
        """All elements for a CSS selector, in document order."""
        found = self.command("POST", "elements", {"using": "css selector", "value": selector})
        return [Element(self, element[_ELEMENT]) for element in found]

    def find(self, selector: str) -> Element:
        """The first element for a CSS selector; waits for it up to ten seconds."""
        deadline = time.monotonic() + _WAIT_S
        while not (found := self.find_all(selector)):
            if time.monotonic() > deadline:
                raise BrowserError(f"no element {selector!r} on {self.url()}: {self.text()[:500]}")
            time.sleep(0.05)
        return found[0]

    def text(self) -> str:
        """All visible text of the page."""
        return self.find_all("body")[0].text()

    def run(self, script: str) -> Any:
        """The value that a JavaScript function body returns in the page."""
        return self.command("POST", "execute/sync", {"script": script, "args": []})

    def wait_until(self, script: str) -> None:
        """Wait up to ten seconds until a JavaScript function body returns something true; a click may load a page."""
        deadline = time.monotonic() + _WAIT_S
        while not self.run(script):
            if time.monotonic() > deadline:
                raise BrowserError(f"still not true on {self.url()}: {script}")
            time.sleep(0.02)

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        move = {"type": "pointerMove", "duration": 20, "x": round(x), "y": round(y), "origin": "viewport"}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self.command("POST", "actions", {"actions": [mouse]})

    def errors(self) -> list[str]:
        """What the console has logged as errors since the last question."""
        return [entry["message"] for entry in self.command("POST", "se/log", {"type": "browser"})]

    def close(self) -> None:
        """End the session and its browser."""
        self._request("DELETE", self._session, None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser with a fresh profile; the test is skipped where the programs are not installed."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no headless browser: install the programs chromium and chromedriver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            browser = Browser(port, Path(profile), binary)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
