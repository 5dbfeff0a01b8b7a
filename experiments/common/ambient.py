"""What a process may have set for all that runs in it, as it is where nobody has set anything.

A run has the same bits whatever the program or notebook around it likes, and that finds its settings as they were.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

PANDAS = {
    "display.chop_threshold": None,
    "display.colheader_justify": "right",
    "display.float_format": None,
    "display.max_colwidth": 50,
    "display.precision": 6,
    "io.parquet.engine": "auto",
}

PRECISE = ("ieee", "none")
"""Products of float32 from all their bits."""


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Gradients on, no autocast, new tensors of float32 on the CPU, full precision, and numpy and pandas as they come.

    The number of threads stays the caller's: it decides how fast a run is, and its last bits.
    """
    options = [item for name, value in PANDAS.items() for item in (name, value)]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        enter(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            # Where it is off, the context would only cost time.
            if torch.is_autocast_enabled(kind):
                enter(torch.autocast(kind, enabled=False))
        # A mode that each call of torch's goes through, so only where there is another.
        if torch.get_default_device() != torch.device("cpu"):
            enter(torch.device("cpu"))
        enter(restored(torch.get_default_dtype, torch.set_default_dtype, torch.float32))
        enter(restored(torch.are_deterministic_algorithms_enabled, deterministic(), False))
        enter(restored(flushes_denormals, torch.set_flush_denormal, False))
        for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul):
            enter(restored(lambda of=backend: of.fp32_precision, functools.partial(precision, backend), *PRECISE))
        enter(pd.option_context(*options))
        yield


@contextlib.contextmanager
def restored(get: Callable, set_: Callable, *accepted) -> Iterator[None]:
    """A setting has one of the accepted values inside, the first if need be, and outside the one that it had."""
    before = get()
    if before in accepted:
        yield
        return
    set_(accepted[0])
    try:
        yield
    finally:
        set_(before)


def deterministic() -> Callable[[bool], None]:
    """Set torch's deterministic algorithms, and leave whether lacking ones only raise a warning as it is."""
    return functools.partial(
        torch.use_deterministic_algorithms, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
    )


def precision(backend, value: str) -> None:
    """Set from how many bits a backend computes products of float32."""
    backend.fp32_precision = value


def flushes_denormals() -> bool:
    """Whether this thread takes numbers for zero that are smaller than normal ones: torch sets it, and cannot say."""
    return bool(np.float64(5e-324) * np.float64(1) == 0)
