"""Stages end with all their processes, whatever these do and whatever ends the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.common import processes
from tests.stages import stage

HOLDS = """
import os, signal, subprocess, sys, time
ignores = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
workers = [subprocess.Popen([sys.executable, "-c", ignores], stdout=out) for out in (None, subprocess.PIPE)]
workers[1].stdout.readline()  # Here it says that it ignores interrupts; the first one has the stage's stdout.
open(sys.argv[1], "w").write(" ".join(str(worker.pid) for worker in workers))
print("at work", flush=True)
END
"""
"""A stage with two processes of its own, which hold its output and ignore interrupts; END says what it does itself."""
ENDS = {
    "cut short": "signal.pause()",
    "killed": "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(100)",
    "failed": "sys.exit(3)",
    "done": "sys.exit(0)",
}


def is_alive(pid: int) -> bool:
    try:
        # Of what has ended and is not yet collected there is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: str, within: float = 5.0) -> bool:
    """Whether none of the processes is left, which the kernel may take a moment to end."""
    until = time.monotonic() + within
    while any(is_alive(int(pid)) for pid in pids.split()):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("how", ENDS)
def test_no_process_of_a_stage_outlives_it_or_keeps_anybody_waiting(how, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 1.0)
    started = time.monotonic()
    made = processes.run(stage("holds", HOLDS.replace("END", ENDS[how]), 30, None, str(tmp_path / "pids")), 3, {})
    assert time.monotonic() - started < 10
    assert made.ended == {"killed": "cut short"}.get(how, how)
    assert "at work" in made.tail
    assert gone((tmp_path / "pids").read_text())


WAITS = """
import os, sys, time
try:
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(100)
except KeyboardInterrupt:
    open(sys.argv[1] + ".md", "w").write("# What was known")
"""
RUNS = """
import sys
from experiments.common import processes
from experiments.common.processes import Stage
processes.GRACE = float(sys.argv[3])
with processes.ended_by_interrupts():
    print(processes.run(Stage("stage", ["-c", sys.argv[1], sys.argv[2]], None, (), 200), 200, {}).ended)
"""
REPORTS = """
import sys
from pathlib import Path
from experiments import gpu
from experiments.common.processes import Stage
from tests.stages import pretended
out = Path(sys.argv[2])
pretended(setattr, out.parent, [Stage("stage", ["-c", sys.argv[1], str(out)], out.name + ".md", (), 200)])
sys.exit(gpu.main([]))
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a script whose stage does what another script says; the process and the stage's ids."""
    running, said = [], tmp_path / "pids"

    def start(script: str, does: str, grace: float) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", script, does, str(said), str(grace)]
        environment = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
        running.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment))
        until = time.monotonic() + 60
        while not (said.exists() and said.read_text()):
            assert time.monotonic() < until
            assert running[0].poll() is None, running[0].communicate()
            time.sleep(0.02)
        return running[0], said.read_text()

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_parent_interrupts_the_stage(number, start, tmp_path):
    process, pids = start(RUNS, WAITS, 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("interrupted\n", "")
    assert (tmp_path / "pids.md").read_text() == "# What was known"
    assert gone(pids)


def test_a_second_interrupt_waits_for_nobody(start):
    process, pids = start(RUNS, HOLDS.replace("END", ENDS["killed"]), 60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("interrupted\n", "")
    assert gone(pids)


@pytest.mark.slow
def test_make_gpu_that_is_ended_from_outside_reports_what_its_stage_knew(start, tmp_path):
    process, pids = start(REPORTS, WAITS, 60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 130
    text = (tmp_path / "report.md").read_text()
    assert "| stage | interrupted |" in text
    assert "## What was known" in text
    assert gone(pids)


def test_handlers_of_signals_are_put_back_and_what_nohup_started_stays():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.ended_by_interrupts():
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
