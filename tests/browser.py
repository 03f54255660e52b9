"""Headless Chromium for tests of pages: what it shows, what it says, what it asks the network for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)

REQUESTS = ("Network.requestWillBeSent", "Network.webSocketCreated")


class Browser:
    """One page at a time, in light or in dark, as wide as a phone or a screen."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path | str) -> None:
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def wait(self, script: str) -> Any:
        """What a promise comes to."""
        return self.driver.execute_async_script(
            f"const done = arguments[0]; ({script}).then(done, e => done(`${{e}}`));"
        )

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def said(self) -> list[str]:
        """What the console holds since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> list[str]:
        """What was requested since then, but for what lies in the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asks = [e["params"].get("request", e["params"]) for e in events if e["method"] in REQUESTS]
        return [ask["url"] for ask in asks if not ask["url"].startswith("data:")]


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile, closed at the end.

    Args:
        profile: an empty folder.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert program and driver, "these tests need Chromium and its driver: make browser"
    options = Options()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(20)
    try:
        yield Browser(opened)
    finally:
        opened.quit()
