"""Does TensorBoard see the values of a sweep at every evaluation, also after an interruption, and of all its runs?"""

import signal
from pathlib import Path

import pytest

from experiments.common.errors import OptionError
from experiments.sweeps import live, results
from tests.sweeps.small import interrupting, train
from tests.trackers import reading

pytestmark = pytest.mark.usefixtures("no_figures")


def shown(out: Path) -> dict[str, dict[tuple[str, int], float]]:
    return {name: read.values for name, read in reading.tensorboard(out / results.LOG, "").items()}


def losses(sweep: results.Sweep) -> dict[tuple[int, int], float]:
    curves = sweep.curves
    return dict(zip(zip(curves["run_id"], curves["step"], strict=True), curves["eval_loss"], strict=True))


def logged(out: Path) -> dict[tuple[int, int], float]:
    found = {}
    for name, values in shown(out).items():
        found |= {(int(name[:5]), step): value for (tag, step), value in values.items() if tag == "eval_loss"}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("option", [{}, {"diagnostics": True}])
def test_values_of_all_runs_are_logged(option, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    sweep = train(tmp_path, log="tensorboard", **option)
    assert logged(tmp_path) == pytest.approx(losses(sweep), rel=1e-6)
    columns = {*sweep.curves} - {"run_id", "step", "eval_accuracy"}
    for values in shown(tmp_path).values():
        assert {tag for tag, _ in values} == columns
    (name, *_), read = sorted(shown(tmp_path)), reading.tensorboard(tmp_path / results.LOG, "")
    assert name == "00000-adam-lr_0.001-beta1_0-seed_0"
    assert (read[name].config["lr"], read[name].config["optimizer"]) == (1e-3, "adam")


@pytest.mark.slow
def test_values_are_there_before_their_chunk_is_finished_and_once_after_it_has_gone_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    with monkeypatch.context() as patch:
        interrupting(patch, 10, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="0 of 12 runs are finished"):
            train(tmp_path, log="tensorboard")
    assert {step for _, step in logged(tmp_path)} == {0, 4, 8}
    whole = train(tmp_path, log="tensorboard")
    assert logged(tmp_path) == pytest.approx(losses(whole), rel=1e-6)
    assert len([*(tmp_path / results.LOG).rglob("*tfevents*")]) == len(whole.runs)


@pytest.mark.slow
def test_a_folder_that_grows_logs_the_runs_that_it_has_and_drops_others(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    train(tmp_path, lr=[1e-3])
    grown = train(tmp_path, log="tensorboard")
    assert logged(tmp_path) == pytest.approx(losses(grown), rel=1e-6)
    smaller = train(tmp_path, log="tensorboard", lr=[1e-2])
    assert logged(tmp_path) == pytest.approx(losses(smaller), rel=1e-6)
    (tmp_path / results.LOG / "mine.txt").touch()
    train(tmp_path, lr=[1e-2], steps=5, fresh=True)
    assert [path.name for path in (tmp_path / results.LOG).iterdir()] == ["mine.txt"]


def test_logging_needs_a_folder_and_a_tracker_that_is_known():
    with pytest.raises(OptionError, match=r"^--log needs --out, the folder that it writes to$"):
        train(None, log="tensorboard")
    with pytest.raises(OptionError, match=r"^--log accepts tensorboard, not 'wandb'$"):
        train(None, log="wandb")


def test_logging_without_the_library_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(live.installed, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"^--log tensorboard needs the extra tensorboard: pip install"):
        train(tmp_path / "out", log="tensorboard")
    assert not (tmp_path / "out").exists()
