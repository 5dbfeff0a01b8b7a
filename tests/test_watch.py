"""Does a sweep show how far it is, to another process, from its first evaluation to its end?"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from experiments import watch
from experiments.reports import aggregation
from experiments.sweeps import at_work, checkpoints, cost, reading, results, watching
from tests.sweeps.processes import end_of, kill, start, wait_for
from tests.sweeps.small import interrupting, train

ROOT = Path(__file__).parents[1]
GRID = {"optimizer": "nesterov", "lr": [1e-3, 1e4], "beta1": None, "momentum": [0.1, 0.5, 0.9]}


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """A sweep of three chunks of four runs that was interrupted in the second, of which two diverge at once."""
    monkeypatch.setattr(at_work, "EVERY", 0.0)
    monkeypatch.setattr(at_work, "SHARE", 0)
    with monkeypatch.context() as patch:
        patch.setattr(cost, "lanes_at_once", lambda *_: 4)
        interrupting(patch, 12 + 9, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="4 of 12 runs are finished"):
            train(tmp_path, **GRID)
    return tmp_path


def test_the_chunk_at_work_is_seen_up_to_its_last_evaluation(interrupted):
    state = watching.read(interrupted, {})
    assert state is not None
    assert state.chunks.values.tolist() == [[4, 1.0, "finished"], [4, 8 / 12, "running"], [4, 0.0, "waiting"]]
    assert (state.done, state.total, state.step, state.end) == (4 * 12 + 4 * 8, 144, 8, 12)
    runs, curves, provenance = state.sweep
    assert provenance["unfinished"] == {"finished": 4, "of": 12, "begun": 4}
    assert runs["status"].value_counts().to_dict() == {"ok": 4, "diverged": 2, "unfinished": 2}
    assert (runs.loc[runs["status"] == "unfinished", "stopped_step"] == 8).all()
    assert (state.alive, state.lanes) == (2, 4)
    assert state.lowest["loss"].iloc[-1] == curves["eval_loss"].min()
    assert state.lowest["loss"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(reading.load(interrupted).runs, runs)


def test_an_interrupted_sweep_is_one_sentence_and_goes_on(interrupted, monkeypatch, capsys):
    assert watch.main([str(interrupted)]) == 1
    state, left = capsys.readouterr().out.splitlines()
    assert state.startswith("4 of 12 runs finished, 2 diverged; chunk 2 of 3 at step 8 of 12, 2 of 4 lanes alive; ")
    assert left.startswith("Nobody works at it any more: 4 of 12 runs finished")
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 4)
    whole = train(interrupted, **GRID)
    assert not [*interrupted.rglob("*.curves")]
    assert watch.main([str(interrupted)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("The sweep has ended: 6 ok and 6 diverged.")
    assert aggregation.console_table(aggregation.summarise(whole.runs)) in told


@pytest.mark.parametrize("width", [40, 60, 200])
def test_a_terminal_of_any_width_shows_all(width, interrupted):
    state = watching.read(interrupted, {})
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(watch.screen(str(interrupted), state, (time.time(), 0), console))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for told in ("sweep", "chunk 2", "67%", "best so far", "ends", "lowest loss of a run", "█"):
        assert told in words, told


@pytest.mark.parametrize("what", ["none", "file", "other"])
def test_a_folder_that_holds_no_sweep_is_one_sentence(what, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    assert watch.main([str(tmp_path / what)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"python -m experiments.watch: {tmp_path / what} ")
    assert told.err.count("\n") == 1
    assert not told.out


def test_reading_while_the_file_is_replaced_never_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(at_work, "EVERY", 0.0)
    monkeypatch.setattr(at_work, "SHARE", 0)
    chunk = pd.DataFrame({"key": ["a", "b"], "run_key": ["a", "b"], "begin": 0, "end": 9})
    write = at_work.writer(tmp_path, chunk, time.perf_counter())
    points, ended, written = [{"lane": torch.arange(2), "step": 0, "eval_loss": torch.ones(2)}], threading.Event(), []

    def replace() -> None:
        while not ended.is_set():
            write(points, torch.tensor([0, 7]))
            written.append(1)

    write(points, torch.tensor([0, 7]))
    writer = threading.Thread(target=replace)
    writer.start()
    until, n_read = time.monotonic() + 60, 0
    while min(n_read, len(written)) <= 20 and time.monotonic() < until:
        table = at_work.read(tmp_path)
        assert table is not None
        assert table["diverged_step"].isna().tolist() == [True, False]
        n_read += 1
    ended.set()
    writer.join()
    assert min(n_read, len(written)) > 20
    at_work.remove(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_another_process_sees_a_sweep_killed_and_then_to_its_end(tmp_path):
    out, words = tmp_path / "out", ["--steps", 1000, "--evaluations", 10]
    command = [sys.executable, "-m", "experiments.watch", str(out)]

    def watched() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for killed in (True, False):
        process = start(out, *words)
        wait_for(lambda: f"process {process.pid} " in (checkpoints.owner(out / "parts") or ""), process)  # noqa: B023
        wait_for(lambda: (out / "parts" / at_work.FILE).exists(), process)
        # It waits for the other process to be there.
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        with watched() as watcher:
            assert watcher.stdout
            first = watcher.stdout.readline()
            assert "runs finished" in first
            if killed:
                kill(process)
            else:
                os.kill(process.pid, signal.SIGCONT)
            rest, err = watcher.communicate(timeout=120)
        assert err == ""
        assert "\x1b" not in rest
        if killed:
            assert watcher.returncode == 1
            assert "Nobody works at it any more" in rest
            begun = json.loads((out / "parts" / results.ASKED).read_text())
            assert begun["stage"]["of"] == 1
    assert end_of(process) == 0
    assert watcher.returncode == 0
    assert "The sweep has ended: " in rest


@pytest.mark.slow
def test_ctrl_c_ends_the_view_and_not_the_sweep(interrupted, tmp_path):
    # This process stands for the one that trains.
    owner = interrupted / "parts" / ".owner"
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    command = [sys.executable, "-m", "experiments.watch", str(interrupted)]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as watcher:
        assert watcher.stdout
        assert "4 of 12 runs finished" in watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        rest = watcher.communicate(timeout=60)
    assert watcher.returncode == 130
    assert rest == ("", "")
