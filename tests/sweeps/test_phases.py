"""Do the phases of a sweep add up, also if other processes trained a part of it?"""

import json
import signal

import pytest

from experiments import report, sweep
from experiments.sweeps import chunks, cost, reading, results
from tests.sweeps.small import interrupting, train

TRAINING = ("compile", "train", "evaluate")


def seconds_of(out) -> dict:
    return json.loads((out / results.PROVENANCE).read_text())["seconds"]


def assert_adds_up(seconds: dict) -> None:
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds[phase] for phase in TRAINING) == pytest.approx(seconds["total"], abs=5e-3)


@pytest.mark.usefixtures("no_figures")
def test_phases_are_told_and_kept(tmp_path, capsys):
    assert sweep.main(["regression", "--steps", "12", "--out", str(tmp_path)]) == 0
    seconds = seconds_of(tmp_path)
    assert list(seconds) == ["total", *TRAINING, "write", "draw"]
    assert_adds_up(seconds)
    line = ", ".join(f"{phase} {seconds[phase]:.1f} s" for phase in (*TRAINING, "write", "draw"))
    assert line in capsys.readouterr().out.splitlines()
    # Another process finds the seconds of training in the tables.
    again = train(tmp_path / "grid").provenance["seconds"]
    assert_adds_up(again)
    assert {**train(tmp_path / "grid").provenance["seconds"], "write": 0, "draw": 0} == {**again, "write": 0, "draw": 0}


@pytest.mark.usefixtures("no_figures")
def test_phases_of_an_interrupted_sweep_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 4)
    with monkeypatch.context() as patch:
        interrupting(patch, 20, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    result = train(tmp_path)
    assert result.provenance["chunks"] == 3
    assert_adds_up(result.provenance["seconds"])
    # Half of the grid has half of the seconds.
    assert_adds_up(train(tmp_path, seeds=1).provenance["seconds"])


def test_a_sweep_without_a_folder_has_the_phases_of_training():
    seconds = train(None).provenance["seconds"]
    assert list(seconds) == ["total", *TRAINING]
    assert_adds_up(seconds)


def test_tables_and_folders_of_older_versions_need_no_phases(tmp_path, monkeypatch, capsys):
    original = chunks.train

    def older(*given, **named):
        table, state = original(*given, **named)
        return table.drop(columns="compile_seconds"), state

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "train", older)
        assert sweep.main(["regression", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert seconds_of(tmp_path)["compile"] == 0
    assert_adds_up(seconds_of(tmp_path))
    provenance = json.loads((tmp_path / results.PROVENANCE).read_text())
    provenance["seconds"] = {"total": provenance["seconds"]["total"]}
    (tmp_path / results.PROVENANCE).write_text(json.dumps(provenance))
    assert report.main([str(tmp_path)]) == 0
    capsys.readouterr()
    sweep.show(reading.load(tmp_path), tmp_path)
    assert "compile" not in capsys.readouterr().out
