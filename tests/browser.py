"""The browser that shows pages to tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The path of an installed Chromium or Chrome; None if there is none."""


class Shown(NamedTuple):
    """A page in a browser, and what was watched since it was opened.

    Attributes:
        page: Playwright's Page.
        said: messages in the console, and errors.
        asked: addresses that were requested, but for data in the page.
        dialogs: texts of dialogs.
    """

    page: Any
    said: list[str]
    asked: list[str]
    dialogs: list[str]


@contextmanager
def shown(path: Path, width: int = 1280, scripts: bool = True, **options: Any) -> Iterator[Shown]:
    """Open a file in a headless browser, and watch it. options: as of Playwright's Browser.new_page.

    scripts: whether the page's scripts run. Playwright's java_script_enabled=False reaches a sandboxed frame, which is
        a process of its own, only after some of its scripts have run; Chromium's own setting holds from the start.
    """
    settings = [] if scripts else ["--blink-settings=scriptEnabled=false"]
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox", *settings])
        try:
            page = browser.new_page(viewport={"width": width, "height": 900}, **options)
            found = Shown(page, [], [], [])
            page.on("console", lambda message: found.said.append(message.text))
            page.on("pageerror", lambda error: found.said.append(str(error)))
            page.on(
                "request", lambda request: None if request.url.startswith("data:") else found.asked.append(request.url)
            )
            page.on("dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss()))
            page.goto(path.as_uri())
            yield found
        finally:
            browser.close()
