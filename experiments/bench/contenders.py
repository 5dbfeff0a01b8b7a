"""What is timed in turn with others, and how: wall time, and on a GPU the device's own.

On a CPU a sample is the wall time of a step. On a GPU it is all the times of `DEFINITIONS`.
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
"""On a CPU a sample updates so many elements at least, but in at most so many steps."""
LEAST_ROUNDS = 6
"""When time is up, a comparison that has begun stops after so many rounds, the fewest that give a 95 % interval."""

QUEUED_BYTES, MOST_QUEUED = 3e9, 16
"""On a GPU so much is moved in one sample of device time, a millisecond or so, but in at most so many steps."""
MOST_SPIN = 0.1
"""Seconds for which the host may be busy launching a sample: beyond, there is none."""
GRAPH_LAUNCH = 1e-3
"""Seconds in which the host launches a graph."""

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
class Side:
    """What is timed in turn with others.

    Attributes:
        calls: a step over each set of tensors.
        moved: bytes that one has to move.
        n_queued: how many make one sample of device time.
        host_seconds: that a sample of device time allows for the launches of one call; doubled by each that is late.
        replay, n_replayed: of a CUDA graph, and how many steps it holds.
        note: why something was not measured.
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


def ready_on_gpu(side: Side, captured: list[torch.optim.Optimizer], device: torch.device) -> None:
    """Find out how long the host takes, and capture the graph of those that can be captured."""
    side.n_queued = math.ceil(min(MOST_QUEUED, max(1, QUEUED_BYTES / side.moved)))
    calls = [next(side.turn) for _ in range(side.n_queued)]
    for _ in range(2):  # The second is not the first.
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        side.host_seconds = (time.perf_counter() - started) / side.n_queued
    torch.cuda.synchronize(device)
    side.n_queued = max(1, min(side.n_queued, int(MOST_SPIN / 8 / side.host_seconds)))
    if captured:
        steps = [implementations.capturable(optimizer) for optimizer in captured]
        side.n_replayed = max(side.n_queued, len(steps))
        steps = list(itertools.islice(itertools.cycle(steps), side.n_replayed))
        try:
            side.replay = gpu_timing.graph_of(steps, device)
        except RuntimeError as error:
            side.note = f"no graph: {str(error).strip().splitlines()[0]}"


def device_seconds(side: Side, calls: list[Callable[[], object]], device: torch.device) -> float:
    """Of one call whose launches wait in the queue, or NaN."""
    if side.host_seconds * len(calls) > MOST_SPIN:
        return math.nan
    seconds = gpu_timing.queued_seconds(calls, device, side.host_seconds * len(calls))
    if seconds is None:
        side.host_seconds *= 2
        return math.nan
    return seconds / len(calls)


def sample_on_gpu(side: Side, device: torch.device) -> dict[str, float]:
    """Seconds of a step, by what `DEFINITIONS` calls them."""
    found = {"kernel": device_seconds(side, [next(side.turn) for _ in range(side.n_queued)], device)}
    if side.name == "copy":
        return found
    if len(side.calls) > 1:
        side.calls[0]()
        found["warm"] = device_seconds(side, [side.calls[0]] * side.n_queued, device)
    step = next(side.turn)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    returned = time.perf_counter()
    torch.cuda.synchronize(device)
    found |= {"step": time.perf_counter() - started, "host": returned - started}
    if side.replay:
        seconds = gpu_timing.queued_seconds([side.replay], device, GRAPH_LAUNCH)
        found["graph"] = math.nan if seconds is None else seconds / side.n_replayed
    return found


def sample_on_cpu(side: Side, steps: int) -> dict[str, float]:
    """Wall seconds of a step, by one call that runs untimed and several that are timed."""
    (call,) = side.calls
    call()
    started = time.perf_counter()
    for _ in range(steps):
        call()
    return {"step": (time.perf_counter() - started) / steps}


def time_in_turn(
    sides: list[Side], n_elements: int, rounds: int, device: torch.device, deadline: float, **bar
) -> pd.DataFrame:
    """Seconds of every side, a row a round, by (side, what); fewer rounds if time.monotonic() passes the deadline."""
    steps = max(1, min(MOST_STEPS, STEPS_OF // n_elements))
    records = []
    for done in progress_bar(range(rounds), unit="round", **bar):
        if done >= min(LEAST_ROUNDS, rounds) and time.monotonic() > deadline:
            break
        record = {}
        for side in sides:
            found = sample_on_cpu(side, steps) if device.type == "cpu" else sample_on_gpu(side, device)
            record |= {(side.name, what): seconds for what, seconds in found.items()}
        records.append(record)
    return pd.DataFrame(records)
