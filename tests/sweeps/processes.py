"""Sweeps in processes of their own, to be watched and killed."""

import multiprocessing
import os
import random
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments import sweep
from experiments.reports import writer
from experiments.sweeps import checkpoints
from tests.sweeps.small import write_report

COMMAND = ["regression", "--lr", "1e-3..1e-1:6", "--beta1", "0", "0.9", "--seeds", "2", "--batch-size", "64"]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])


def run_command(words: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    writer.write = write_report  # this process has no fixtures
    sys.exit(sweep.main(words))


def start(out: Path, *words: object) -> BaseProcess:
    """Start the command in a process of its own, whose output goes to a file beside the folder.

    It is forked from a process that has imported everything, which takes seconds.
    """
    command = [*COMMAND, *map(str, words), "--out", str(out)]
    process = FORKED.Process(target=run_command, args=(command, out.with_suffix(".log")))
    process.start()
    return process


def wait_for(what, process: BaseProcess, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def end_of(process: BaseProcess) -> int | None:
    process.join(timeout=300)
    return process.exitcode


def survives_twenty_kills(folder: Path, words: list, seed: int) -> None:
    """Kill a sweep at moments from just after its start to its last files, and let it end; train it once in one go.

    Asserts that nothing is said to be damaged, and that no finished chunk is trained again. The sweeps are in "killed"
    and "whole", in the folder.
    """
    rng, out, seen = random.Random(seed), folder / "killed", []
    for i in range(20):
        process = start(out, *words, "--checkpoint-every", 0)
        if i % 4:
            owner = out / "parts" / checkpoints.OWNER
            wait_for(lambda: owner.exists() and f"process {process.pid} " in owner.read_text(), process)  # noqa: B023
        time.sleep(rng.uniform(0.0, 2.0))
        kill(process)
        seen.append({path: path.stat().st_mtime_ns for path in out.glob("parts/*-*.parquet")})
    for name in ("killed", "whole"):
        assert end_of(start(folder / name, *words)) == 0
        assert "WARNING" not in (folder / f"{name}.log").read_text()
    final = {path: path.stat().st_mtime_ns for path in out.glob("parts/*-*.parquet")}
    assert all(before.items() <= final.items() for before in seen), "a finished chunk was trained again"
    assert not [*out.rglob("*.pt"), *out.rglob("*.state"), *out.rglob(".*.*.*")]
