"""Chunks on a Ray cluster, each as a task. Ray schedules them, and repeats the task of a lost worker.

Workers need neither the results folder nor a shared disk: they return the tables to the process that runs the sweep.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pandas as pd
import torch
from torch.utils._pytree import tree_map_only

from experiments.common.errors import OptionError
from experiments.common.processes import ROOT
from experiments.sweeps import checkpoints, chunks
from experiments.sweeps.ledger import Ledger
from experiments.sweeps.plan import Plan
from experiments.tasks import own
from experiments.training import optimizers

RETRIES = 3
"""How often a chunk is trained again after its worker was lost."""
AHEAD = 2
"""How many chunks are submitted for each that can be trained at once. The states of the others stay where they are."""
REACH_SECONDS = 5.0
PACKAGES = ("kernels", "optim", "experiments")


@contextlib.contextmanager
def connected(address: str | None, device: str) -> Iterator[int]:
    """Connect to the cluster at an address, or to one of this machine; yield how many chunks it can train at once.

    Args:
        address: HOST:PORT, ray://HOST:PORT or "auto"; None takes RAY_ADDRESS, and without it starts a local cluster.
        device: device of the plan; a chunk takes one GPU, or one CPU core.
    Raises: OptionError if Ray is not installed, the cluster cannot be reached, or has no such device.
    """
    if not find_spec("ray"):
        raise OptionError("--engine ray needs the extra cluster: pip install -e '.[cluster]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]

    address = address or os.environ.get("RAY_ADDRESS")
    options: dict = {"include_dashboard": False}
    if address:
        check_reachable(address)
        # The workers run this code, whatever is installed there.
        options = {"address": address, "runtime_env": {"py_modules": [str(ROOT / name) for name in PACKAGES]}}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise OptionError(refusal(address, str(error).partition("\n")[0])) from error
    try:
        slots = slots_of(device)
        if not slots:
            raise OptionError(f"--device accepts one that the Ray cluster has, and it has no {kind_of(device)}")
        yield slots
    finally:
        ray.shutdown()


def kind_of(device: str) -> str:
    """Return what Ray calls a device of which a chunk takes one."""
    return "GPU" if device.startswith("cuda") else "CPU"


def slots_of(device: str) -> int:
    """Return how many chunks the connected cluster, as it is now, can train at once."""
    import ray  # pyright: ignore[reportMissingImports]

    return int(ray.cluster_resources().get(kind_of(device), 0))


def check_reachable(address: str) -> None:
    """Raise OptionError if nothing listens at an address: Ray would wait for minutes, and some versions abort."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise OptionError(refusal(address, str(error))) from error


def refusal(address: str | None, reason: str) -> str:
    return f"--ray-address accepts HOST:PORT of a Ray cluster that can be reached, and {address} cannot ({reason})"


def train(
    plan: Plan, ledger: Ledger, start_of: Callable[[pd.DataFrame], tuple[dict | None, float]], deadline: float
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, dict | None]]:
    """Train the chunks that a stage has left on the connected cluster; yield each with its table and its state.

    Chunks that are not finished at the deadline are left, with a checkpoint if they have begun and there is a folder.

    Args:
        start_of: returns the state from which a chunk goes on, and the seconds that it has taken.
        deadline: seconds since 1970.
    """
    import ray  # pyright: ignore[reportMissingImports]
    import ray.exceptions  # pyright: ignore[reportMissingImports]
    from ray import cloudpickle  # pyright: ignore[reportMissingImports]

    gpu = plan.device.startswith("cuda")
    if own.is_own(plan.problem.task):
        # Workers cannot import it.
        cloudpickle.register_pickle_by_value(sys.modules[own.function_of(plan.problem.task).__module__])
    given = {name: optimizers.GIVEN[name] for name in plan.n_runs if name in optimizers.GIVEN}
    # A task sees only the GPU that Ray gave it.
    shared = ray.put(plan._replace(device="cuda" if gpu else plan.device))
    task = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=RETRIES)(train_one)
    running, paused, is_first = {}, [], True
    while True:
        most = AHEAD * max(1, slots_of(plan.device))
        # Some chunk gets on, however short the time is.
        while ledger.todo and len(running) < most and (is_first or time.time() < deadline):
            chunk = ledger.todo.popleft()
            running[task.remote(shared, chunk, given, *start_of(chunk), deadline, not is_first)] = chunk
            is_first = False
        if not running:
            break
        (done, *_), _ = ray.wait(list(running))
        chunk = running.pop(done)
        try:
            found = ray.get(done)
        except ray.exceptions.OutOfMemoryError:
            found = None
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
            reason = str(error).partition("\n")[0]
            raise OptionError(f"--engine ray lost a worker of the same chunk {RETRIES + 1} times ({reason})") from error
        if found is None:
            ledger.halve(chunk)
        elif isinstance(found, dict):
            paused.append(chunk)
            if found and ledger.folder:
                checkpoints.save_checkpoint(ledger.folder, checkpoints.name_of(chunk["key"]), found)
        else:
            yield chunk, *found
    ledger.todo.extend(paused)


def train_one(
    plan: Plan,
    chunk: pd.DataFrame,
    given: dict[str, type],
    state: dict | None,
    seconds: float,
    deadline: float,
    may_wait: bool,
) -> tuple[pd.DataFrame, dict | None] | dict | None:
    """Train a chunk in a worker; return its table and its state, or None if memory was too small.

    If the deadline comes first, return the checkpoint; an empty one if there is no time to begin.

    Args:
        given: the user's optimizer classes, which a worker cannot import.
        state, seconds: from which the chunk goes on, and what it has taken so far.
        deadline: seconds since 1970.
        may_wait: whether not to begin after the deadline.
    """
    if may_wait and time.time() >= deadline:
        return {}
    optimizers.GIVEN.update(given)
    started = time.perf_counter() - seconds
    try:
        table, state = chunks.train(plan, chunk, resume=state, deadline=deadline)
        return table.assign(chunk_seconds=time.perf_counter() - started), on_cpu(state)
    except chunks.Paused as pause:
        return {"training": on_cpu(pause.state), "seconds": time.perf_counter() - started}
    except (RuntimeError, MemoryError) as error:
        if chunks.is_out_of_memory(error):
            return None
        raise


def on_cpu(state: dict | None) -> dict | None:
    """Return a state whose tensors a process without a GPU can read."""
    return tree_map_only(torch.Tensor, torch.Tensor.cpu, state)
