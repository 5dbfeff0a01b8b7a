"""A step of training as one CUDA graph: the host says "again" instead of launching each kernel anew."""

import sys
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels, gradients and states come to lie where they stay."""


def replayed(step: Callable[[], object], device: str | torch.device) -> Callable[[], object]:
    """`step`, which on a GPU is captured in its fourth call, and replayed from then on; each call takes one step.

    Where the capture fails, a sentence on stderr says why, and calls go on to run `step` itself.

    Args:
        step: on a GPU it must read and write the same tensors in each call, wait for nothing, and leave to the device
            whatever differs between calls: what Python does in it is done once.
        device: of those tensors. On the CPU `step` is returned as it is.
    Raises: torch.OutOfMemoryError, which running it in another way would meet as well.
    """
    if torch.device(device).type != "cuda":
        return step
    # Autograd remembers on which stream a gradient was made: warm-up and capture share one.
    side = torch.cuda.Stream(device)
    calls, again = 0, None

    def call() -> None:
        nonlocal calls, again
        if again is None and calls == WARM_UP:
            again = captured(step, side)
        if again is not None:
            again()
            return
        calls += 1
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream(device).wait_stream(side)

    return call


def captured(step: Callable[[], object], stream: torch.cuda.Stream | None = None) -> Callable[[], object]:
    """What replays a step that has been warmed up, or the step itself if it cannot be captured."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        tqdm.write(f"without a CUDA graph, more slowly: the step cannot be captured ({reason})", file=sys.stderr)
        return step
    return graph.replay
