"""A real browser for tests: headless Chromium by its driver's own protocol (W3C WebDriver)."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,800",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
CODES = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Backspace": "\ue003"}


class Browser:
    """One window after another; keys, clicks, scripts and pictures of it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self.session = self._call("POST", "/session", wanted)["sessionId"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.loads(reply.read())["value"]

    def do(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, f"/session/{self.session}{path}", body)

    def open(self, url: str) -> None:
        self.do("POST", "/url", {"url": url})

    def script(self, text: str) -> Any:
        return self.do("POST", "/execute/sync", {"script": text, "args": []})

    def press(self, key: str) -> None:
        value = CODES.get(key, key)
        steps = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self.do("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def click(self, selector: str) -> None:
        found = self.do("POST", "/element", {"using": "css selector", "value": selector})
        self.do("POST", f"/element/{found[ELEMENT]}/click", {})

    def wait_for(self, condition: str, seconds: float = 60) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.script(f"return {condition}")):
            assert time.monotonic() < end, (
                f"{condition} never was true: {self.script('return document.body.innerText')}"
            )
            time.sleep(0.02)
        return value

    def new_tab(self) -> str:
        handle = self.do("POST", "/window/new", {"type": "tab"})["handle"]
        self.switch(handle)
        return str(handle)

    def tab(self) -> str:
        return str(self.do("GET", "/window"))

    def switch(self, handle: str) -> None:
        self.do("POST", "/window", {"handle": handle})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    driver = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/status", timeout=5):
                break
            time.sleep(0.1)
        window = Browser(address, folder)
        try:
            yield window
        finally:
            window.do("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(30)
