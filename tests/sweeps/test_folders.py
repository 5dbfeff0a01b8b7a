"""Does one results folder serve grids that grow, shrink and move, and sweeps that are interrupted or watched?"""

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import explorer, report
from experiments.common.errors import OptionError
from experiments.reports import markdown, writer
from experiments.sweeps import at_work, checkpoints, cost, reading, results, space
from tests.sweeps.small import KEYS, interrupting, train

pytestmark = pytest.mark.usefixtures("no_figures")

SMALLER = {
    "fewer seeds": ({"seeds": 1}, 6),
    "a shorter axis": ({"lr": [1e-2]}, 4),
    "another default": ({"beta1": 0.9}, 6),
    "in another order": ({"lr": [1e-1, 1e-2, 1e-3]}, 12),
}


@pytest.mark.parametrize("case", SMALLER)
def test_a_part_of_what_a_folder_has_is_drawn_and_the_rest_stays(case, tmp_path, trained):
    whole = train(tmp_path)
    options, n_runs = SMALLER[case]
    part = train(tmp_path, **options)
    assert trained == [12]
    assert len(part.runs) == n_runs
    assert part.runs["run_id"].tolist() == list(range(n_runs))
    both = part.runs.merge(whole.runs, on=KEYS, suffixes=("", "_before"))
    assert (both["eval_loss"] == both["eval_loss_before"]).all()
    loaded = reading.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.runs, part.runs)
    # The share of a run in its population's time has not changed, nor has the sum.
    seconds, before = (found.curves.groupby("run_id").agg("max").loc[0, "seconds"] for found in (part, whole))
    assert seconds / n_runs == pytest.approx(before / 12)
    again = train(tmp_path)
    assert trained == [12]
    pd.testing.assert_frame_equal(again.runs, whole.runs)
    pd.testing.assert_frame_equal(again.curves, whole.curves)


OTHER = {
    "an optimizer more": ({"optimizer": ["adam", "sgd"]}, [6]),
    "another optimizer": ({"optimizer": "rmsprop", "beta1": None}, [6]),
    "values beside the old": ({"lr": [3e-3, 3e-2]}, [8]),
    "values over the old": ({"lr": [1e-2, 3e-2]}, [4]),
    "a sample": ({"lr": space.Range(1e-3, 1e-1), "beta1": 0.9, "sample": "sobol:4"}, [8]),
}


# Each optimizer has to be compiled, which takes seconds.
SLOW = pytest.param("another optimizer", marks=pytest.mark.slow)


@pytest.mark.parametrize("case", [SLOW if case == SLOW.values[0] else case for case in OTHER])
def test_what_a_folder_lacks_of_another_grid_is_trained_and_nothing_else(case, tmp_path, trained):
    options, sizes = OTHER[case]
    train(tmp_path)
    other = train(tmp_path, **options)
    assert trained == [12, *sizes]
    assert set(other.runs["optimizer"]) == {*np.atleast_1d(options.get("optimizer", "adam"))}
    train(tmp_path)
    train(tmp_path, **options)
    assert trained == [12, *sizes]


def test_a_larger_sample_goes_on_from_a_smaller_one(tmp_path, trained):
    ranges = {"lr": space.Range(1e-3, 1e-1), "beta1": space.Range(0, 0.9), "seeds": 1}
    few = train(tmp_path, **ranges, sample="sobol:4")
    many = train(tmp_path, **ranges, sample="sobol:8")
    assert trained == [4, 4]
    assert few.runs["eval_loss"].isin(many.runs["eval_loss"]).all()
    train(tmp_path, **ranges, sample="sobol:4")
    assert trained == [4, 4]


def test_confirmations_and_targets_are_those_asked_for_last(tmp_path, trained):
    assert len(train(tmp_path, confirm=2).provenance["confirmed"]["seeds"]) == 2
    for n, sizes in ((3, [1]), (1, []), (None, []), (3, [])):
        before = len(trained)
        assert len(train(tmp_path, confirm=n).provenance.get("confirmed", {"seeds": []})["seeds"]) == (n or 0)
        assert trained[before:] == sizes
        assert ("confirmed" in reading.load(tmp_path).provenance) == bool(n)
    for target in ("0.5", None):
        train(tmp_path, target=target)
        assert reading.load(tmp_path).provenance["target"] == target


@pytest.mark.parametrize(
    ("options", "differing"),
    [({"steps": 13}, "steps"), ({"evaluations": 2}, "evaluations"), ({"model": "linear"}, "model, data, data_source")],
)
def test_runs_that_are_trained_otherwise_are_another_sweep(options, differing, tmp_path):
    train(tmp_path)
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != checkpoints.OWNER
    }
    with pytest.raises(OptionError, match=rf"holds another sweep \(it differs in {differing}\), which --fresh removes"):
        train(tmp_path, **options)
    assert {path: path.read_bytes() for path in before} == before


def test_figures_that_no_longer_belong_to_the_sweep_go(tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        path.write_text("drawn")
    (tmp_path / results.PARTS).mkdir()
    results.write_drawn(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"])
    results.write_drawn(tmp_path, [tmp_path / "b.png"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"b.png", "mine.png"}


def interrupted_after_two_chunks(out: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cost, "lanes_at_once", lambda *_: 4)
        interrupting(patch, 2 * 12 + 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="8 of 12 runs are finished"):
            train(out)


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_unfinished_sweep_is_drawn_as_far_as_it_is(drawn, tmp_path, monkeypatch, capsys):
    interrupted_after_two_chunks(tmp_path, monkeypatch)
    monkeypatch.undo()
    if not drawn:
        monkeypatch.setattr(writer, "drawings", lambda *_: {})
    told = "Unfinished: 8 of 12 runs are finished, and shown here, 4 more to their last evaluation so far"
    assert report.main([str(tmp_path)]) == 0
    assert told in capsys.readouterr().out
    assert f"**{told}" in (tmp_path / "report.md").read_text()
    loaded = reading.load(tmp_path)
    assert loaded.runs["status"].value_counts().to_dict() == {"ok": 8, "unfinished": 4}
    if drawn:
        assert (tmp_path / "convergence.png").exists()
        assert told in explorer.first_view(loaded).sentence
    assert tmp_path in explorer.folders(tmp_path)
    monkeypatch.setattr(writer, "write", lambda *_: [])
    whole = train(tmp_path)
    finished = loaded.runs[loaded.runs["status"] == "ok"]
    both = finished.merge(whole.runs, on=["run_id", *KEYS], suffixes=("", "_now"))
    assert len(both) == 8
    assert (both["eval_loss"] == both["eval_loss_now"]).all()
    assert markdown.unfinished_sentence(reading.load(tmp_path).provenance) == ""
    # The report of the unfinished sweep has been removed.
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("report.*")]


def test_while_a_sweep_grows_what_is_finished_of_it_is_shown(tmp_path, monkeypatch):
    train(tmp_path, seeds=1)
    with monkeypatch.context() as patch:
        interrupting(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="6 of 12 runs"):
            train(tmp_path)
    sweep_ = reading.load(tmp_path)
    assert sweep_.provenance["unfinished"] == {"finished": 6, "of": 12, "begun": 6}
    assert set(sweep_.runs.loc[sweep_.runs["status"] == "ok", "seed"]) == {0}


def test_a_sweep_without_a_finished_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupting(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    at_work.remove(tmp_path / results.PARTS)
    assert report.main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path} holds no results: 0 of the 12 runs of its sweep are finished\n" in told
    assert "0 of the 12 runs" in explorer.static(tmp_path)["text/html"]


def test_looking_at_a_folder_removes_nothing(tmp_path, monkeypatch):
    interrupted_after_two_chunks(tmp_path, monkeypatch)
    first, _ = sorted((tmp_path / "parts").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-1])
    assert reading.load(tmp_path).provenance["unfinished"]["finished"] == 4
    assert first.exists()
