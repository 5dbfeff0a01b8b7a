"""Does a user of JupyterLab see the explorer, and does a slider change its figures? In a real browser."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.browser import CHROME

NOTEBOOK = Path(__file__).parents[1] / "notebooks/03_sweep_explorer.ipynb"
PATIENCE = 120_000
"""Milliseconds for a kernel to start and draw, on a machine that does other things too."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, "JupyterLab has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise TimeoutError(url)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, with a copy of the notebook and nothing of the user's settings."""
    pytest.importorskip("jupyterlab", reason="needs jupyterlab")
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    root, port, token = tmp_path / "notebooks", free_port(), secrets.token_hex(16)
    root.mkdir()
    shutil.copy(NOTEBOOK, root)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    folders += ("JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    environment |= {name: str(tmp_path / name.lower()) for name in folders}
    # Nobody is there to answer whether news are wanted.
    settings = tmp_path / "jupyterlab_settings_dir/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')
    options = [f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    options += [f"--IdentityProvider.token={token}", "--no-browser", "--allow-root", "--LabApp.news_url=None"]
    with open(tmp_path / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        # A session of its own, so that its kernels end with it.
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server)
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token={token}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")
def test_a_slider_moved_by_key_changes_the_figures(lab, tmp_path):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1300})
            page.set_default_timeout(PATIENCE)
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(lab)
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            # What is run before that is lost.
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

            # The widgets, not the still picture that is kept for pages without.
            explorer = page.locator(".jp-OutputArea-output:has(.widget-slider)")
            figures = {name: explorer.locator(f'img[alt="{name}"]') for name in ("convergence", "over")}
            for figure in figures.values():
                figure.wait_for()
            assert all(figure.evaluate("image => image.naturalWidth") > 500 for figure in figures.values())
            before = {name: figure.get_attribute("src") for name, figure in figures.items()}
            label = explorer.locator(".widget-slider .widget-readout").first
            value = label.inner_text()

            handle = explorer.locator(".widget-slider .noUi-handle").first
            handle.focus()
            page.keyboard.press("ArrowLeft")
            for name in figures:
                page.wait_for_function(
                    "([name, before]) => { const image = document.querySelector("
                    '`.jp-OutputArea-output:has(.widget-slider) img[alt="${name}"]`);'
                    "return image && image.complete && image.src !== before; }",
                    arg=[name, before[name]],
                )
            assert label.inner_text() != value
            explorer.locator("td").first.wait_for()
            page.screenshot(path=tmp_path / "explorer.png")
            assert errors == []
        finally:
            browser.close()
