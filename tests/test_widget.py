"""Does a sweep show in a notebook how far it is, and go on if the view fails? In a real kernel."""

import re

import nbformat
import pytest

from tests.pages import ROOT

WHOLE = """
from experiments import watch, widget
from experiments.sweep import sweep

widget.EVERY = widget.SHARE = 0
options = {"optimizer": "nesterov", "lr": [1e-3, 1e4], "momentum": [0.1, 0.5, 0.9], "seeds": 2, "steps": 12}
shown = sweep("regression", **options, evaluations=3)
"""
EARLY = "early = sweep('regression', **options, evaluations=3, time_budget=1e-9, out={!r})"
HIDDEN = "hidden = sweep('regression', **options, evaluations=3, progress=False)"
BROKEN = """
def broken(*arguments):
    raise RuntimeError("<broken>")

watch.screen = broken
failed = sweep("regression", **options, evaluations=3)
print([shown.runs["eval_loss"].equals(other.runs["eval_loss"]) for other in (failed, hidden)])
"""


@pytest.mark.slow
def test_a_sweep_in_a_notebook_has_a_view_below_its_bar(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    cells = [WHOLE, EARLY.format(str(tmp_path / "<b>out")), HIDDEN, BROKEN]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    views: list[list[str]] = [[] for _ in cells]

    class Client(nbclient.NotebookClient):
        def handle_comm_msg(self, outs, msg, cell_index):
            value = msg["content"]["data"].get("state", {}).get("value")
            if isinstance(value, str) and value.startswith(("<pre", "No view")):
                views[cell_index].append(value)
            return super().handle_comm_msg(outs, msg, cell_index)

    resources = {"metadata": {"path": str(ROOT)}}
    Client(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    # The bar comes first.
    widgets = [[o for o in cell.outputs if o.output_type == "display_data"] for cell in notebook.cells]
    assert [len(of) for of in widgets] == [2, 2, 0, 2]
    assert "teacher regression: 12 runs" in widgets[0][0].data["text/plain"]
    begun, *between, last = (re.sub("<.*?>", "", view) for view in views[0])
    assert "0 of 12 runs finished" in begun
    assert any("step 8 of 12, 6 of 12 lanes alive" in view for view in between)
    for told in ("12 of 12 runs finished, 6 diverged", "100%", "best so far", "6 ok and 6 diverged, after", "█"):
        assert told in last, told
    early = views[1][-1]
    assert "&lt;b&gt;out" in early
    assert "ended early" in early
    assert {*views[3]} == {"No view of the sweep: RuntimeError: &lt;broken&gt;"}
    assert notebook.cells[3].outputs[-1].text == "[True, True]\n"
