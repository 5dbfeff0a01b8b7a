"""A process with a limit, after which nothing is left of it and of what it has started.

What leaves its process group, as daemons do, is not followed.
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
"""Seconds, the last of its limit, that a stage has to write what it knows once it was asked to stop."""
REAP = 5.0
"""Seconds in which the kernel ends what was killed; what a driver holds longer than that is left to it."""


class Stage(NamedTuple):
    """One process.

    Attributes:
        command: what follows `python`.
        page: the file that it writes for readers, which becomes a part of the report.
        figures: that the report shows.
        limit: seconds after which it is killed; it is interrupted `GRACE` before.
        rows: its table, which becomes a part of throughput.csv; None if there is none, or the report holds all of it.
    """

    name: str
    command: list[str]
    page: str | None
    figures: tuple[str, ...]
    limit: float
    rows: str | None = None


class Outcome(NamedTuple):
    """How a stage ended: "done", "failed", "cut short" or "interrupted"; what it printed; its exit code, if it has one.

    An exit code below 0 is that of a process that the signal of this number has ended.
    """

    stage: Stage
    ended: str
    seconds: float
    tail: str
    code: int | None = None


def run(stage: Stage, limit: float, environment: dict[str, str], watched: bool = False) -> Outcome:
    """Run a stage; `GRACE` before its limit interrupt it, as Ctrl-C would, and kill it if it does not end then.

    Ctrl-C reaches this process alone: it is passed on, and the stage has the same time to end. A second one kills it.

    Args:
        limit: seconds, instead of the stage's own.
        watched: whether what it writes to stderr, its progress bars, is to be seen and not to be kept.
    """
    started, ended = time.monotonic(), None
    # A file, for a pipe that a process of the stage holds open could not be read to its end.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if watched else subprocess.STDOUT,
            # Signals are for the stage and all that it has started.
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
    """Send a signal to the process and to all in its group, those too that have outlived it."""
    # Where all of the group have ended, some systems do not permit it rather than find none.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def read(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode("utf-8", "replace")


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a terminal that is closed interrupt this process, which then ends its stage."""
    # In the background a shell lets programs ignore Ctrl-C, which stages would inherit, and end by.
    numbers = [signal.SIGINT, signal.SIGTERM]
    # What nohup has started stays.
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
