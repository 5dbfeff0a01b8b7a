"""Does a Ray cluster train what one process does, though a worker dies, and is one that is not there named?"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import sweep
from experiments.sweeps import ray_runner, reading
from tests.pages import ROOT
from tests.sweeps.processes import COMMAND, end_of, start
from tests.sweeps.small import assert_same


def test_a_ray_cluster_that_is_not_there_is_one_sentence(tmp_path, capsys, monkeypatch):
    words = [*COMMAND, "--engine", "ray", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(ray_runner, "find_spec", lambda name: None)
    assert sweep.main(words) == 2
    assert "--engine ray needs the extra cluster: pip install -e '.[cluster]'" in capsys.readouterr().err
    monkeypatch.setattr(ray_runner, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "ray", object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}", "nowhere"):
            assert sweep.main([*words, "--ray-address", given]) == 2
            told = capsys.readouterr().err
            assert f"--ray-address accepts HOST:PORT of a Ray cluster that can be reached, and {given} cannot" in told
            assert told.count("\n") == 1
    assert sweep.main([*COMMAND, "--engine", "dask", "--out", str(tmp_path / "out")]) == 2
    assert "--engine accepts local or ray, not 'dask'" in capsys.readouterr().err


LOSE_A_WORKER = """
import json, os, pathlib, signal, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from experiments import sweep
from experiments.reports import writer
from tests.sweeps.small import write_report

writer.write = write_report


def add(**options):
    # Ray gives up on a node after 30 s, which is short where tests share a machine.
    for left in (2, 1, 0):
        try:
            return nodes.add_node(num_cpus=1, **options)
        except Exception:
            if not left:
                raise

nodes = Cluster()
add(include_dashboard=False)
add()
killed = []

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def busy():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            # The worker's parent is a node's daemon, whose parent is this process.
            if open(f"/proc/{pid}/cmdline").read().startswith("ray::train_one") and parent(parent(pid)) == os.getpid():
                yield int(pid)
        except OSError:
            pass

def kill_one():
    while not killed:
        for pid in busy():
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            break
        time.sleep(0.05)

threading.Thread(target=kill_one, daemon=True).start()
for words in json.loads(sys.argv[1]):
    if code := sweep.main([*words, "--engine", "ray", "--ray-address", nodes.address]):
        break
    parts = pathlib.Path(words[-1]) / "parts"
    print(f"killed {len(killed)}", *sorted(path.suffix for path in parts.glob("*-*")))
nodes.shutdown()
sys.exit(code)
"""
ASKED = ["--steps", "4000", "--evaluations", "16", "--halving", "2"]
"""The first rung is at the second evaluation. A plain sweep is the same with one stage."""
N_CHUNKS = 9


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """Train a sweep on nodes that are processes of this machine, of which one is killed in its first chunk, to `ray`.

    Train it again, with a budget that is over at its first evaluation and then to its end, to `again`. Return their
    folder, and what the process said.
    """
    pytest.importorskip("ray", reason="needs the extra cluster")
    folder = tmp_path_factory.mktemp("cluster")
    budget = ["--time-budget", "0.000001s"]
    commands = [("ray", []), ("again", budget), ("again", [])]
    words = [[*COMMAND, *ASKED, *options, "--out", str(folder / name)] for name, options in commands]
    command = [sys.executable, "-c", LOSE_A_WORKER, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_train_what_one_process_does_though_one_is_killed(trained):
    folder, said = trained
    assert f"killed 1{N_CHUNKS * ' .parquet'}\n" in said
    assert end_of(start(folder / "here", *ASKED)) == 0
    ray, local = reading.load(folder / "ray"), reading.load(folder / "here")
    assert ray.provenance["engine"] == "ray"
    keys = ["run_id", "lr", "beta1", "seed", "status", "stopped_step"]
    assert ray.runs[keys].equals(local.runs[keys])
    # Chunks have other sizes here, on one thread each, so the runs are equal up to rounding.
    np.testing.assert_allclose(ray.runs.initial_eval_loss, local.runs.initial_eval_loss, rtol=1e-5)
    np.testing.assert_allclose(ray.runs.eval_loss.median(), local.runs.eval_loss.median(), rtol=0.2)


@pytest.mark.slow
def test_a_sweep_on_a_cluster_ends_in_time_and_goes_on_to_the_same_bits(trained):
    folder, said = trained
    _, early, ended, _ = said.split("killed 1")
    assert "The time budget is over. Unfinished: 0 of 24 runs are finished" in early
    # Some chunk gets on, to its first evaluation, and the others have not begun.
    assert ended.startswith(" .pt\n")
    assert "Unfinished" not in ended
    assert_same(reading.load(folder / "again"), reading.load(folder / "ray"))
    chunks = [
        sorted(path.name.partition("-")[0] for path in (folder / name).glob("parts/*-*")) for name in ("ray", "again")
    ]
    assert chunks[0] == chunks[1]
