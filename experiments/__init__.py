"""Data, stacked models, populations, sweeps and what is drawn from them."""

from typing import Any

from kernels import __version__ as __version__
from kernels.commands import refuse_others

refuse_others(__name__)


def __getattr__(name: str) -> Any:
    """Import `Problem` when it is asked for: torch comes with it."""
    if name == "Problem":
        from experiments.tasks.own import Problem

        return Problem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
