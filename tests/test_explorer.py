"""Does the explorer show the slice that was asked for, and a sentence if there is none?"""

import base64
import gzip
import html
import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import explorer
from experiments.common.errors import OptionError
from experiments.sweeps import reading, space
from tests.explored import find, leaf, written

GALLERY = explorer.RESULTS / "gallery"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make runs of two optimizers, one with three axes and one with lr alone; the largest lr diverges."""
    out = tmp_path_factory.mktemp("results") / "first"
    axes = {"lr": [1e-3, 1e-2, 1e30], "beta1": [0.0, 0.9], "beta2": [0.9, 0.99]}
    return written(out, optimizer=["adam", "sgd"], **axes, seeds=2, steps=20)


@pytest.fixture(scope="module")
def loaded(folder):
    return reading.load(folder)


def test_every_folder_below_the_root_that_holds_results_is_found(folder):
    assert explorer.folders(folder.parent) == [folder]
    assert explorer.folders(folder) == [folder]
    assert GALLERY / "demo/mnist" in explorer.folders()
    assert explorer.folders(folder / "parts") == []


def test_select_leaves_the_runs_with_these_values(loaded):
    kept = explorer.select(loaded.runs, {"beta1": 0.9, "lr": 1e-2})
    assert len(kept) == 4  # two values of beta2, two seeds; sgd has no beta1
    assert set(kept["beta1"]) == {0.9}
    assert set(kept["lr"]) == {1e-2}
    pd.testing.assert_frame_equal(explorer.select(loaded.runs, {}), loaded.runs)


def test_a_view_is_of_the_slice_and_of_nothing_else(loaded):
    view = explorer.view(loaded, "adam", x="lr", y="beta1", held={"beta2": 0.99})
    assert "held: β2 0.99. 12 of 30 runs" in view.sentence
    assert view.convergence.get_suptitle().endswith("runs: 12, seeds: 2, diverged: 4")
    assert view.over.get_suptitle() == view.convergence.get_suptitle()
    runs = loaded.runs.query("optimizer == 'adam' and beta2 == 0.99")
    best = runs.query("status == 'ok'").groupby(["lr", "beta1"])["eval_loss"].median()
    assert view.best["eval loss"].iloc[0] == f"{best.min():.4g}"
    assert view.over.axes[0].get_xlabel() == "lr"
    assert view.over.axes[0].get_ylabel() == "β1"


def test_without_a_second_axis_the_loss_is_drawn_against_the_first(loaded):
    view = explorer.view(loaded, "sgd", x="lr")
    assert view.over.axes[0].get_ylabel().startswith("final ")
    assert "6 of 30 runs" in view.sentence


def test_values_that_were_not_run_are_named(loaded):
    with pytest.raises(OptionError, match=r"adam was not run with β1 0\.5"):
        explorer.view(loaded, "adam", held={"beta1": 0.5})


def test_a_sampled_sweep_is_drawn_as_points(tmp_path):
    ranges = {"lr": space.Range(1e-4, 1e-1), "beta1": space.Range(0, 0.9)}
    view = explorer.first_view(reading.load(written(tmp_path, **ranges, sample="sobol:4", steps=5)))
    assert "held: nothing. 4 of 4 runs" in view.sentence
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    assert find(explorer.controls(tmp_path, tmp_path), "β1") is None  # four values of an axis that no two runs share


def damaged(folder, how: str) -> None:
    runs = pd.read_parquet(folder / "runs.parquet")
    if how == "no runs":
        (folder / "runs.parquet").unlink()
    elif how == "half a file":
        data = (folder / "runs.parquet").read_bytes()
        (folder / "runs.parquet").write_bytes(data[: len(data) // 2])
    elif how == "no curves":
        (folder / "curves.parquet").unlink()
    elif how == "other curves":
        curves = pd.read_parquet(folder / "curves.parquet")
        curves.assign(run_id=curves["run_id"] + 1000).to_parquet(folder / "curves.parquet")
    elif how == "no rows":
        runs[:0].to_parquet(folder / "runs.parquet")
    elif how == "words for numbers":
        runs.assign(lr="small").to_parquet(folder / "runs.parquet")
    elif how == "no json":
        (folder / "provenance.json").write_text("{")
    elif how == "a list":
        (folder / "provenance.json").write_text("[1]")
    elif how == "another json":
        (folder / "provenance.json").write_text(json.dumps({"sweep": 3}))


DAMAGE = {
    "no runs": r" holds no results: a sweep with --out .* that has ended writes them",
    "half a file": r"/runs.parquet cannot be read \(.*\)",
    "no curves": r"/curves.parquet does not exist",
    "other curves": r"/curves.parquet lacks runs that runs.parquet has",
    "no rows": r"/runs.parquet is empty",
    "words for numbers": r"/runs.parquet has a column lr that holds no numbers",
    "no json": r"/provenance.json cannot be read \(.*\)",
    "a list": r"/provenance.json does not describe a sweep",
    "another json": r"/provenance.json does not describe a sweep",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_folder_is_one_sentence(folder, tmp_path, how):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    provenance = json.loads((copy / "provenance.json").read_text())
    del provenance["sha256"]  # as in older folders
    (copy / "provenance.json").write_text(json.dumps(provenance))
    damaged(copy, how)
    with pytest.raises(OptionError) as caught:
        reading.load(copy)
    assert re.fullmatch(re.escape(str(copy)) + DAMAGE[how], str(caught.value))
    assert html.unescape(explorer.static(copy)["text/html"]) == f"<p>{caught.value}.</p>"
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    shown = leaf(explorer.controls(copy, tmp_path))
    assert shown.value == explorer.static(copy)["text/html"]


@pytest.mark.parametrize("how", ["half a file", "other curves", "no rows", "words for numbers"])
def test_checksums_tell_a_table_that_is_not_the_sweeps(folder, tmp_path, how):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damaged(copy, how)
    with pytest.raises(
        OptionError, match=r"/(runs|curves).parquet is damaged: the command of its sweep makes it again"
    ):
        reading.load(copy)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_missing_or_empty_folder_is_one_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert re.fullmatch(
        rf"<p>{tmp_path / name} (is no folder|holds no results.*)\.</p>",
        explorer.static(tmp_path / name)["text/html"],
    )


def test_the_html_needs_nothing_else(loaded):
    text = explorer.html_of(explorer.first_view(loaded))
    assert re.findall(r'src="(.{21})', text) == ["data:image/png;base64"] * 2
    assert "http" not in text
    assert "<script" not in text


def test_without_a_kernel_all_runs_lie_in_a_frame_over_the_first_view(folder, loaded):
    data = explorer.static(folder)
    frame = r'<iframe [^>]*sandbox="allow-scripts" srcdoc="([^"]*)"[^>]*></iframe>'
    found = re.fullmatch(rf"<div [^>]*>(.*)\n{frame}\n</div>", data["text/html"], re.DOTALL)
    assert found
    assert found[1] == explorer.html_of(explorer.first_view(loaded))
    page = html.unescape(found[2])
    assert re.search(r"""Content-Security-Policy" content="default-src 'none';""", html.unescape(page))
    (packed,) = re.findall(r'id="sweep">([^<]*)<', page)
    assert len(json.loads(gzip.decompress(base64.b64decode(packed)))["runs"]["seed"]) == len(loaded.runs)
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == explorer.first_view(loaded).sentence
    assert sum(map(len, data.values())) < 3e6


def parts(text: str) -> tuple[str, str, str]:
    """Return the data of the convergence figure, the figure over axes, and the table of the best."""
    convergence, over = re.findall(r'src="([^"]+)"', text)
    return convergence, over, text[text.index("<table") :]


@pytest.fixture
def box(folder):
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    return explorer.controls(folder, folder.parent)


def test_a_slider_changes_both_figures_and_the_table(box, folder, loaded):
    find(box, "optimizer").value = "adam"
    slider, before = find(box, "β2"), leaf(box).value
    start = slider.value
    assert start == explorer.best_values(loaded.runs.query("optimizer == 'adam'"))["beta2"]
    slider.value = next(value for _, value in slider.options if value != start)
    assert all(new != old for new, old in zip(parts(leaf(box).value), parts(before), strict=True))
    slider.value = start
    assert leaf(box).value == before


def test_axes_that_are_chosen_have_no_slider(box):
    find(box, "optimizer").value = "adam"
    assert [find(box, name) is not None for name in ("β1", "β2")] == [False, True]
    find(box, "y").value = "beta2"
    assert [find(box, name) is not None for name in ("β1", "β2")] == [True, False]
    find(box, "x").value = "beta1"
    assert dict(find(box, "y").options) == {"lr": "lr", "β2": "beta2", "none": None}
    find(box, "y").value = None
    assert [find(box, name) is not None for name in ("lr", "β2")] == [True, True]


def test_an_optimizer_with_one_axis_has_no_slider(box):
    find(box, "optimizer").value = "sgd"
    assert dict(find(box, "y").options) == {"none": None}
    assert "6 of 30 runs" in leaf(box).value


@pytest.mark.slow
def test_another_folder_can_be_typed(box, folder):
    typed = box.children[0].children[1]
    typed.value = "/no/such/folder"
    assert leaf(box).value == "<p>/no/such/folder is no folder.</p>"
    typed.value = str(GALLERY / "demo/regression")
    assert "held: β2" in leaf(box).value
    typed.value = ""
    assert "of 30 runs" in leaf(box).value


@pytest.mark.slow
def test_redrawing_leaves_no_widgets_behind(box):
    widgets = pytest.importorskip("ipywidgets.widgets.widget")
    find(box, "optimizer").value = "adam"
    slider, y = find(box, "β2"), find(box, "y")
    before = len(widgets._instances)
    for _, value in slider.options:
        slider.value = value
    for value in ("beta2", "beta1"):
        y.value = value
    assert len(widgets._instances) == before


def shown_by(call) -> dict:
    shell = pytest.importorskip("IPython.core.interactiveshell", reason="needs IPython")
    shell.InteractiveShell.instance()
    with pytest.importorskip("IPython.utils.capture").capture_output() as captured:
        call()
    (output,) = captured.outputs
    return output.data


@pytest.mark.parametrize("installed", [True, False])
def test_explore_shows_widgets_where_they_are_and_what_needs_no_kernel_where_not(folder, monkeypatch, installed):
    if installed:
        pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    else:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    data = shown_by(lambda: explorer.explore(folder))
    assert explorer.static(folder).items() <= data.items()
    assert ("application/vnd.jupyter.widget-view+json" in data) == installed


def test_explore_without_any_results_says_how_to_make_some(tmp_path):
    assert "make demo" in shown_by(lambda: explorer.explore(root=tmp_path))["text/html"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo/mnist", "optimizers"])
def test_the_gallery_can_be_explored(name):
    shown = explorer.static(GALLERY / name)["text/html"]
    assert np.count_nonzero([part in shown for part in ("<img", "<table", "held", "<iframe")]) == 4
