"""Contenders: steps that are timed in turn, by wall time and, on a GPU, by the device's own time.

On a CPU a sample is the wall time of a step. On a GPU it has all the times of `DEFINITIONS`.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd
import torch

from experiments.bench import gpu_timing, implementations
from experiments.common.progress import progress_bar

STEPS_OF, MOST_STEPS = 2**21, 32
"""On a CPU a sample updates at least 2^21 elements, in at most 32 steps."""
LEAST_ROUNDS = 6
"""A comparison runs at least this many rounds, even past its deadline: fewer give no 95 % interval."""

QUEUED_BYTES, MOST_QUEUED = 3e9, 16
"""A sample of device time moves about 3 GB, in a millisecond or so, but takes at most 16 steps."""
MOST_SPIN = 0.1
"""Seconds that the host may take to launch a sample; slower contenders get no device time."""
GRAPH_LAUNCH = 1e-3
"""Seconds that the host may take to launch a graph."""

DEFINITIONS = {
    "step": "wall time of one `step()`, from an idle device until the device is done",
    "host": "until that `step()` returns",
    "kernel": "the device's time for a step whose launches wait in its queue: it spins while the host launches, and "
    "events stand around the steps; empty where the host was slower than the queue is long, or a step waits for the "
    "device",
    "warm": "the same, over one set of tensors again and again, which the L2 keeps as far as they fit",
    "graph": "the device's time for a step inside a CUDA graph of several; empty where a step cannot be captured "
    "(torch's fused step is captured with `capturable=True`, which changes nothing that it does)",
}


@dataclass
class Contender:
    """An implementation's step over its own states, timed in turn with other contenders.

    Attributes:
        name: the implementation's, or "copy".
        calls: one step for each set of tensors.
        moved: bytes that one step has to move.
        n_queued: steps in one sample of device time.
        host_seconds: time allowed to the host for launching one step of a sample; doubled whenever it was too short.
        replay: launches a CUDA graph of `n_replayed` steps; None if there is no graph.
        note: why a time is missing.
        turn: cycles through `calls`.
    """

    name: str
    calls: list[Callable[[], object]]
    moved: float
    n_queued: int = 1
    host_seconds: float = 0.0
    replay: Callable[[], None] | None = None
    n_replayed: int = 0
    note: str = ""
    turn: Iterator[Callable[[], object]] = field(init=False)

    def __post_init__(self):
        self.turn = itertools.cycle(self.calls)


def ready_on_gpu(contender: Contender, captured: list[torch.optim.Optimizer], device: torch.device) -> None:
    """Measure how long the host takes to launch a step, and capture the optimizers' steps, if any, into a graph."""
    contender.n_queued = math.ceil(min(MOST_QUEUED, max(1, QUEUED_BYTES / contender.moved)))
    calls = [next(contender.turn) for _ in range(contender.n_queued)]
    # The first pass warms up; the second is kept.
    for _ in range(2):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        contender.host_seconds = (time.perf_counter() - started) / contender.n_queued
    torch.cuda.synchronize(device)
    contender.n_queued = max(1, min(contender.n_queued, int(MOST_SPIN / 8 / contender.host_seconds)))
    if captured:
        steps = [implementations.capturable(optimizer) for optimizer in captured]
        contender.n_replayed = max(contender.n_queued, len(steps))
        steps = list(itertools.islice(itertools.cycle(steps), contender.n_replayed))
        try:
            contender.replay = gpu_timing.graph_of(steps, device)
        except RuntimeError as error:
            contender.note = f"no graph: {str(error).strip().splitlines()[0]}"


def device_seconds(contender: Contender, calls: list[Callable[[], object]], device: torch.device) -> float:
    """Return the device time of one call, in seconds; NaN if the host could not launch the calls fast enough."""
    if contender.host_seconds * len(calls) > MOST_SPIN:
        return math.nan
    seconds = gpu_timing.queued_seconds(calls, device, contender.host_seconds * len(calls))
    if seconds is None:
        contender.host_seconds *= 2
        return math.nan
    return seconds / len(calls)


def sample_on_gpu(contender: Contender, device: torch.device) -> dict[str, float]:
    """Measure one sample: seconds of a step, by the names of `DEFINITIONS`."""
    found = {"kernel": device_seconds(contender, [next(contender.turn) for _ in range(contender.n_queued)], device)}
    if contender.name == "copy":
        return found
    if len(contender.calls) > 1:
        contender.calls[0]()
        found["warm"] = device_seconds(contender, [contender.calls[0]] * contender.n_queued, device)
    step = next(contender.turn)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    returned = time.perf_counter()
    torch.cuda.synchronize(device)
    found |= {"step": time.perf_counter() - started, "host": returned - started}
    if contender.replay:
        seconds = gpu_timing.queued_seconds([contender.replay], device, GRAPH_LAUNCH)
        found["graph"] = math.nan if seconds is None else seconds / contender.n_replayed
    return found


def sample_on_cpu(contender: Contender, steps: int) -> dict[str, float]:
    """Return the mean wall seconds of a step over several, after one untimed step."""
    (call,) = contender.calls
    call()
    started = time.perf_counter()
    for _ in range(steps):
        call()
    return {"step": (time.perf_counter() - started) / steps}


def time_contenders(
    contenders: list[Contender], n_elements: int, rounds: int, device: torch.device, deadline: float, **bar
) -> pd.DataFrame:
    """Time every contender once a round; stop early when `time.monotonic()` passes the deadline.

    Returns: seconds, a row a round, with columns (name of the contender, name in `DEFINITIONS`).
    """
    steps = max(1, min(MOST_STEPS, STEPS_OF // n_elements))
    records = []
    for done in progress_bar(range(rounds), unit="round", **bar):
        if done >= min(LEAST_ROUNDS, rounds) and time.monotonic() > deadline:
            break
        record = {}
        for contender in contenders:
            found = sample_on_cpu(contender, steps) if device.type == "cpu" else sample_on_gpu(contender, device)
            record |= {(contender.name, what): seconds for what, seconds in found.items()}
        records.append(record)
    return pd.DataFrame(records)
