"""Is nothing lost or left behind when a sweep is interrupted or killed, or its folder is in use? And are logs short?"""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments import sweep
from experiments.common import interrupts, progress
from experiments.common.errors import OptionError
from experiments.reports import writer
from experiments.sweeps import checkpoints, results
from experiments.training import population
from tests.sweeps.small import KEYS, interrupting, train

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupts.Terminated)]
)
def test_what_was_at_work_goes_on_from_the_step_at_which_it_was_interrupted(number, kind, tmp_path, monkeypatch):
    whole, handlers = train(None), [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupting(patch, 7, number)
        told = rf"^0 of 12 runs are finished and kept in {tmp_path}, .*\nwhat was at work goes on from step 7 of 12$"
        with pytest.raises(kind, match=told):
            train(tmp_path)
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    seen, original = [], population.train_lanes

    def spy(*arguments, resume, **options):
        seen.append(resume["step"])
        return original(*arguments, resume=resume, **options)

    monkeypatch.setattr(population, "train_lanes", spy)
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
    # The interrupted chunk has been trained by now; the others start over.
    train(tmp_path, lr=[1e-2])
    pd.testing.assert_frame_equal(train(tmp_path)[0].loc[:, KEYS], train(None)[0].loc[:, KEYS])
    assert not list(tmp_path.rglob("*.pt"))


def hold(out: Path, ready, done) -> None:
    with checkpoints.locked(out):
        ready.set()
        done.wait()


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of a folder."""
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    assert ready.wait(60)
    yield process
    done.set()
    process.join()


@pytest.mark.parametrize("told", [None, "process 999999999 on {host}", "process 99999999999 on {host}", "nonsense"])
def test_a_lock_whose_owner_has_not_told_its_name_is_a_sentence(told, tmp_path, holder):
    owner = tmp_path / "parts" / checkpoints.OWNER
    if told is None:
        owner.unlink()
    else:
        owner.write_text(told.format(host=checkpoints.socket.gethostname()))
    with (
        pytest.raises(OptionError, match=f"and another process is writing to {tmp_path}"),
        checkpoints.locked(tmp_path),
    ):
        pass


def test_a_live_owner_is_named(tmp_path, holder):
    with pytest.raises(OptionError, match=f"process {holder.pid} on .* is writing"), checkpoints.locked(tmp_path):
        pass


@pytest.mark.parametrize("what", ["a folder as lock", "a file as folder"])
def test_a_lock_that_cannot_be_had_is_a_sentence(what, tmp_path, capsys):
    train(tmp_path, lr=[1e-3], seeds=1)
    lock = tmp_path / "parts" / results.LOCK
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
        with pytest.raises(OptionError, match="is writing to"), checkpoints.locked(out):
            pass
        seen.append(out)
        return []

    monkeypatch.setattr(writer, "write", write)
    train(tmp_path)
    assert seen == [tmp_path]


def test_a_folder_that_is_removed_while_a_sweep_works_is_one_sentence(tmp_path, monkeypatch, capsys):
    out, original = tmp_path / "out", population.train_lanes

    def removing(*arguments, **options):
        shutil.rmtree(out)
        return original(*arguments, **options)

    monkeypatch.setattr(population, "train_lanes", removing)
    for every in ("0", "60"):
        assert sweep.main(["regression", "--steps", "3", "--out", str(out), "--checkpoint-every", every]) == 2
        told = capsys.readouterr().err
        assert f"{out} was removed while the sweep was writing to it\n" in told
        assert "Traceback" not in told


def test_what_killed_processes_have_left_goes_and_what_others_write_stays(tmp_path):
    train(tmp_path, lr=[1e-3], seeds=1)
    dead = ["parts/.asked.999999999.json", ".runs.999999999.parquet", ".report.999999999.md", ".a-b.999999999.old.png"]
    alive = [f".report.{os.getppid()}.md", ".vimrc", ".mine.md.backup", ".mine.2024.tar"]
    for name in (*dead, *alive):
        (tmp_path / name).write_text("half")
    train(tmp_path, lr=[1e-3], seeds=1)
    assert not any((tmp_path / name).exists() for name in dead)
    assert all((tmp_path / name).exists() for name in alive)


def test_a_bar_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    for leave in (True, False):
        started = time.monotonic()
        with progress.progress_bar(total=10**6, desc="runs", leave=leave, mininterval=0.0) as bar:
            while time.monotonic() < started + 0.2:
                bar.update(1)
                bar.set_postfix_str("still")
        lines = capsys.readouterr().err.splitlines()
        assert 1 <= len(lines) - 2 * leave <= 5
        assert all(line.startswith("runs: ") for line in lines)
    with progress.progress_bar(range(3), leave=False) as bar:
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
