"""A real Chromium, spoken to in the WebDriver protocol; nothing but chromedriver is needed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip

WITNESS = """
window.witnessed = [];
for (const name of ["alert", "confirm", "prompt", "print", "open"]) window[name] = (what) => { witnessed.push(name); };
addEventListener("securitypolicyviolation", (event) => witnessed.push("policy: " + event.violatedDirective));
"""
"""Runs before anything in a page: notes what a payload would do."""


def binaries() -> tuple[str, str] | None:
    """Paths of Chromium and chromedriver, or None when this machine lacks one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, page: Path, *, policy: bool = True) -> None:
        """Loads a file; without ``policy`` the page's own content policy is switched off."""
        self.command("Page.setBypassCSP", enabled=not policy)
        self._post("url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str) -> Any:
        """What a script hands to its last argument, a callback."""
        return self._post("execute/async", {"script": script, "args": []})

    def resize(self, width: int, height: int = 900) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def emulate(self, **features: str) -> None:
        """Media features by name, such as ``prefers_color_scheme="dark"``."""
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=listed)

    def scripts(self, *, on: bool) -> None:
        self.command("Emulation.setScriptExecutionDisabled", value=not on)

    def command(self, name: str, **parameters: Any) -> Any:
        return self._post("goog/cdp/execute", {"cmd": name, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return _post(f"{self._session}/{path}", body)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A fresh window with the witness in every page."""
    found = binaries()
    assert found is not None
    with subprocess.Popen(
        [found[1], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            server = f"http://127.0.0.1:{_port(driver)}"
            options = {"binary": found[0], "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
            session = _post(f"{server}/session", {"capabilities": wanted})["sessionId"]
            browser = Browser(f"{server}/session/{session}")
            browser.command("Page.addScriptToEvaluateOnNewDocument", source=WITNESS)
            yield browser
            _request(f"{server}/session/{session}", None, "DELETE")
        finally:
            driver.terminate()


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        found = re.search(r"started successfully on port (\d+)", line)
        if found:
            return int(found[1])
    raise RuntimeError("chromedriver did not start")


def _post(url: str, body: dict[str, Any]) -> Any:
    return _request(url, json.dumps(body).encode(), "POST")


def _request(url: str, data: bytes | None, method: str) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"].splitlines()[0]) from error
