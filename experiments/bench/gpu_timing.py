"""Measure on a GPU: events, CUDA graphs, launches queued ahead, and copies to compare with."""

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
"""Bytes: a smaller set of buffers counts as this large when `n_sets` decides how many are needed."""

CLOCK_HZ = 3e9
"""Faster than any GPU's clock, so a spin of this many cycles lasts at least a second."""
LEAD = 2
"""The device spins this many times as long as the host is expected to need."""


def event_seconds(call: Callable[[], object], device: Device) -> float:
    """Return the seconds between two CUDA events around one call on the current stream of an idle device."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def queued_seconds(calls: Sequence[Callable[[], object]], device: Device, host_seconds: float) -> float | None:
    """Return the device time of the calls, one after the other, in seconds, with their launches queued beforehand.

    The device spins while the host launches, so the host's time does not count.

    Args:
        host_seconds: about how long the host takes to launch all the calls.
    Returns: None if the device stopped spinning before the host had launched everything: the queue was too short, a
        call waits for the device, or the host was delayed.
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
    """Capture the calls, one after the other, into one CUDA graph, and return the function that replays it.

    Every call runs once beforehand, on a side stream. All tensors that the calls use must outlive the graph.
    Raises: any exception of a call or of the capture; see `cuda_graph.record`.
    """

    def run() -> None:
        for call in calls:
            call()

    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        cuda_graph.aside(run, side)
        return cuda_graph.record(run, side).replay


def n_sets(bytes_of_one: int, device: Device) -> int:
    """Return how many sets of buffers together exceed four times the last-level cache; 1 on a CPU.

    Sets below 1 MiB count as 1 MiB, because more of them would take too long to prepare; all of them may lie in the
    cache.
    """
    if torch.device(device).type == "cpu":
        return 1
    return L2_MULTIPLE * gpu_info.cache_bytes(device) // max(SMALLEST_SET, bytes_of_one) + 1


def copies(device: Device, n_bytes: int) -> list[Callable[[], object]]:
    """Return calls of `torch.Tensor.copy_`, one for each of `n_sets` pairs; each reads and writes n_bytes / 2 bytes."""
    n_elements = max(1, n_bytes // 2 // torch.float32.itemsize)
    pairs = [
        (torch.empty(n_elements, device=device), torch.rand(n_elements, device=device))
        for _ in range(n_sets(n_bytes, device))
    ]
    return [lambda target=target, source=source: target.copy_(source) for target, source in pairs]


def copy_seconds(device: Device, n_bytes: int, rounds: int) -> np.ndarray:
    """Return the device seconds of a copy that reads and writes n_bytes altogether: float64 [rounds]."""
    calls = copies(device, n_bytes)
    seconds = []
    for _ in range(rounds + 1):  # the first one warms up
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        host = time.perf_counter() - started
        found = queued_seconds(calls, device, host)
        # If the host was delayed, events still measure, though they make the copy seem slower.
        seconds.append(event_seconds(lambda: [call() for call in calls], device) if found is None else found)
    return np.array(seconds[1:]) / len(calls)


def copy_bandwidth(device: Device, n_bytes: int, rounds: int) -> tuple[float, float, float]:
    """Return the bandwidth of a copy that reads and writes n_bytes, in bytes/s, as `timing.median_interval`.

    Small copies rotate among buffers that together exceed four times the last-level cache (see `n_sets`).
    """
    moved = max(1, n_bytes // 2 // torch.float32.itemsize) * 2 * torch.float32.itemsize
    return median_interval(pd.Series(moved / copy_seconds(device, n_bytes, rounds)))
