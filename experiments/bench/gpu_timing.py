"""What it takes to measure on a GPU: events, graphs, a full queue, copies, and what state the GPU is in."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from experiments.bench import gpu_info
from experiments.bench.gpu_info import Device
from experiments.bench.timing import median_interval
from experiments.training import cuda_graph

L2_MULTIPLE = 4
SMALLEST_SET = 2**20
"""Bytes of one set of buffers: that many such sets as exceed the caches are enough for smaller ones."""

CLOCK_HZ = 3e9
"""No GPU's clock is faster, so that a spin of so many cycles a second lasts at least a second."""
LEAD = 2
"""How much longer than the host has needed so far the device spins."""


def event_seconds(call: Callable[[], object], device: Device) -> float:
    """Seconds of one call between two CUDA events on the current stream, on a device that was idle before."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def queued_seconds(calls: Sequence[Callable[[], object]], device: Device, host_seconds: float) -> float | None:
    """Seconds that the device works on the calls, one after the other, if their launches wait in its queue already.

    The device spins while the host launches, so that the host's time does not count.

    Args:
        host_seconds: how long the host takes to launch all of the calls, about.
    Returns: None if the device was done spinning before the host had launched everything: too many launches for the
        queue, a call that waits for the device, or a host that was held up.
    """
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(LEAD * host_seconds * CLOCK_HZ))
        start.record()
        for call in calls:
            call()
        late = start.query()
        end.record()
        end.synchronize()
    return None if late else start.elapsed_time(end) / 1e3


def graph_of(calls: Sequence[Callable[[], object]], device: Device) -> Callable[[], None]:
    """Capture the calls, one after the other, into one CUDA graph, and return its replay.

    Every call runs once before, on a side stream. What the calls use has to outlive the graph.
    Raises: what a call raises, or the capture; see `cuda_graph.record`.
    """

    def run() -> None:
        for call in calls:
            call()

    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        cuda_graph.aside(run, side)
        return cuda_graph.record(run, side).replay


def n_sets(bytes_of_one: int, device: Device) -> int:
    """How many sets of buffers together exceed four times the last cache; 1 on a CPU.

    Sets below 1 MiB are as many as sets of 1 MiB, and may all lie in the cache: more of them take too long to prepare.
    """
    if torch.device(device).type == "cpu":
        return 1
    return L2_MULTIPLE * gpu_info.cache_bytes(device) // max(SMALLEST_SET, bytes_of_one) + 1


def copies(device: Device, n_bytes: int) -> list[Callable[[], object]]:
    """Calls of `torch.Tensor.copy_`, each reading n_bytes / 2 and writing as many, over `n_sets` pairs of buffers."""
    n_elements = max(1, n_bytes // 2 // torch.float32.itemsize)
    pairs = [
        (torch.empty(n_elements, device=device), torch.rand(n_elements, device=device))
        for _ in range(n_sets(n_bytes, device))
    ]
    return [lambda target=target, source=source: target.copy_(source) for target, source in pairs]


def copy_seconds(device: Device, n_bytes: int, rounds: int) -> np.ndarray:
    """Device seconds of one copy that reads and writes n_bytes altogether, one value a round, float64 [rounds]."""
    calls = copies(device, n_bytes)
    seconds = []
    for _ in range(rounds + 1):  # one more, that warms up
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        host = time.perf_counter() - started
        found = queued_seconds(calls, device, host)
        # A host that was held up makes a copy seem slower; events then say no more than that.
        seconds.append(event_seconds(lambda: [call() for call in calls], device) if found is None else found)
    return np.array(seconds[1:]) / len(calls)


def copy_bandwidth(device: Device, n_bytes: int, rounds: int) -> tuple[float, float, float]:
    """Bytes/s, read and written, of a copy whose working set is n_bytes: `timing.median_interval`.

    Small copies rotate among buffers that together exceed four times the last cache (see `n_sets`).
    """
    moved = max(1, n_bytes // 2 // torch.float32.itemsize) * 2 * torch.float32.itemsize
    return median_interval(pd.Series(moved / copy_seconds(device, n_bytes, rounds)))
