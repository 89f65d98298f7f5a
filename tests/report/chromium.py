"""The system's Chromium, headless, and pages in it that must neither ask the network nor complain."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def executable() -> str:
    """Skips the test where there is none, and fails it where there has to be one."""
    found = next((path for name in NAMES if (path := shutil.which(name)) is not None), None)
    if found is None:
        missing = "no Chromium on PATH; Debian has it as chromium, and `make browser` installs it"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return found


@contextmanager
def started() -> Iterator[Browser]:
    """A browser with a profile of its own, which is removed with it."""
    path = executable()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=list(OPTIONS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A report in a tab. ``requests`` are those for anything but the file itself; ``complaints`` what the console and
    uncaught errors say."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def rows(self) -> list[str]:
        """The families listed, in order."""
        names: list[str] = self.page.eval_on_selector_all("tr[data-family]", "rows => rows.map(r => r.dataset.family)")
        return names

    def focused(self) -> str:
        """Of the focused element: the family of its row, else its id, else its tag."""
        found: str = self.page.evaluate(
            "() => (e => e.closest('[data-family]')?.dataset.family || e.id || e.tagName)(document.activeElement)"
        )
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def family(self) -> str:
        """The one that is open, when what was pressed last has been done."""
        named = "document.querySelector('#name')?.textContent"
        self.page.wait_for_function(f"() => location.hash.split('/')[1] === {named}")
        return self.page.text_content("#name") or ""

    def go(self, place: str) -> None:
        """To ``#/...``."""
        self.page.evaluate("place => { location.hash = place }", place)
        self.page.wait_for_function("place => location.hash === place", arg=place)


@contextmanager
def opened(browser: Browser, path: Path, place: str = "", width: int = 1400) -> Iterator[Opened]:
    """Fails when the page asked for anything, or complained."""
    context: BrowserContext = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(5_000)
    tab = Opened(context.new_page())
    tab.page.on("request", lambda r: None if r.url.split("#")[0] == path.as_uri() else tab.requests.append(r.url))
    tab.page.on("console", lambda message: tab.complaints.append(f"{message.type}: {message.text}"))
    tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.page.goto(path.as_uri() + place)
    tab.page.wait_for_selector("html[data-ready]")
    try:
        yield tab
    finally:
        said = [url for url in tab.requests if not url.startswith("data:")], tab.complaints
        context.close()
    assert said == ([], [])
