"""Run a process with a time limit, and leave none of its child processes behind.

Processes that leave its process group, as daemons do, are not followed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[2]
GRACE = 10.0
"""Seconds before its limit at which a stage is interrupted, so that it can write its results."""
REAP = 5.0
"""Seconds to wait for a killed process; one that a driver blocks for longer is left to the kernel."""


class Stage(NamedTuple):
    """A process to run, and the files that it writes.

    Attributes:
        command: the words after `python`.
        page: Markdown file that becomes a part of the report; None if there is none.
        figures: image files that the report shows.
        limit: seconds after which the process is killed; it is interrupted `GRACE` seconds earlier.
        rows: CSV file that becomes a part of throughput.csv; None if there is none.
    """

    name: str
    command: list[str]
    page: str | None
    figures: tuple[str, ...]
    limit: float
    rows: str | None = None


class Outcome(NamedTuple):
    """How a stage ended.

    Attributes:
        ended: "done", "failed", "cut short" or "interrupted".
        seconds: run time.
        tail: the output.
        code: exit code; -n if signal n ended the process; None if it did not end.
    """

    stage: Stage
    ended: str
    seconds: float
    tail: str
    code: int | None = None


def run(stage: Stage, limit: float, environment: dict[str, str], watched: bool = False) -> Outcome:
    """Run a stage; interrupt it `GRACE` seconds before the limit, as Ctrl-C would, and kill it at the limit.

    Ctrl-C reaches only this process, which interrupts the stage and gives it `GRACE` seconds to end. A second Ctrl-C
    kills the stage.

    Args:
        limit: seconds, in place of the stage's own limit.
        environment: all environment variables of the process.
        watched: whether its stderr, with progress bars, goes to the terminal instead of the outcome.
    """
    started, ended = time.monotonic(), None
    # A file, because a pipe that some child process keeps open has no end.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if watched else subprocess.STDOUT,
            # A group of its own lets signals reach the stage and all its children.
            start_new_session=True,
        )
        try:
            try:
                process.wait(max(1.0, limit - GRACE))
            except subprocess.TimeoutExpired:
                ended = "cut short"
            except KeyboardInterrupt:
                ended = "interrupted"
            if ended:
                send(process, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        except KeyboardInterrupt:
            ended = "interrupted"
        finally:
            send(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP)
        printed = read(output)
    ended = ended or ("done" if process.returncode == 0 else "failed")
    return Outcome(stage, ended, time.monotonic() - started, printed, process.returncode)


def send(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the process's group, also if the process itself has ended."""
    # For a group whose processes have all ended, some systems deny permission.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def read(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode("utf-8", "replace")


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a closed terminal raise KeyboardInterrupt, so that `run` ends its stage."""
    # Shells have background programs ignore Ctrl-C; stages would inherit that and could not be interrupted.
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Programs started by nohup keep running.
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
