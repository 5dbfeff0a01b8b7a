"""Is an exported notebook alive without a kernel, a server and a network?"""

import nbformat
import pytest

from experiments.sweeps import reading
from tests.browser import CHROME, shown
from tests.pages import ROOT

STUDY = "results/gallery/demo/mnist"


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")
def test_an_exported_explorer_filters_all_runs_and_asks_nobody(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    nbconvert = pytest.importorskip("nbconvert", reason="needs nbconvert")
    source = f"from experiments.explorer import explore\nexplore({STUDY!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    (output,) = notebook.cells[0].outputs
    assert {*output.data} == {"text/html", "image/png", "text/plain"}
    # nbconvert's own pages load these, for equations and diagrams.
    exporter = nbconvert.HTMLExporter(require_js_url="", mathjax_url="", mermaid_js_url="")
    path = tmp_path / "exported.html"
    path.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")

    runs = reading.load(ROOT / STUDY).runs
    with shown(path) as (page, said, asked, dialogs):
        panels = page.frame_locator("iframe")
        panels.locator("#explore[data-drawn]").wait_for()
        count, words = panels.locator("#count"), panels.locator("#words")
        assert count.inner_text().startswith(f"{len(runs)} of {len(runs)} configurations.")
        words.fill("β1 0.9,")
        panels.locator("#count", has_text=f"{(runs['beta1'] == 0.9).sum()} of {len(runs)} configurations.").wait_for()
        rows = panels.locator("#configurations tbody tr")
        assert rows.count() == (runs["beta1"] == 0.9).sum()
        assert panels.locator("#parallel svg, #curves svg, #over svg").count() >= 3
        page.screenshot(path=tmp_path / "exported.png")
        assert (said, asked, dialogs) == ([], [path.as_uri()], [])
    with shown(path, scripts=False) as (page, said, _, _):
        # The frame hides nothing of the picture.
        picture = page.get_by_alt_text("convergence")
        before = picture.screenshot()
        page.locator("iframe").evaluate("frame => frame.remove()")
        assert picture.screenshot() == before
        assert said == []
