"""Progress bars, or a line now and then where stderr is not a terminal, as in the log of a batch job."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.asyncio import tqdm_asyncio as text_bar
from tqdm.auto import tqdm

IS_WIDGET = tqdm is not text_bar
"""Whether bars are widgets: in a Jupyter kernel that has ipywidgets."""
EVERY = 10.0
"""Seconds between two lines of a bar that goes to a file or a pipe."""


class Lines(text_bar):
    """A bar written as separate lines, without carriage returns and escape codes.

    A line is written at the start, every `EVERY` seconds, and at the end; with `leave=False` only those in between.
    """

    next_at: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        if msg != "" and (self.leave if self.next_at is None else now >= self.next_at):
            print(self, file=self.fp, flush=True)
            self.next_at = now + EVERY
        self.next_at = self.next_at or now + EVERY
        return False

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: lines that were written stay."""

    def close(self) -> None:
        if self.leave and not self.disable:
            print(self, file=self.fp, flush=True)
        self.leave = False
        super().close()


def progress_bar(iterable: Iterable | None = None, **options) -> Any:
    """Return a tqdm bar, in a notebook a widget, or `Lines` if stderr is not a terminal; takes tqdm's options."""
    if not IS_WIDGET and not sys.stderr.isatty():
        return Lines(iterable, **options)
    return tqdm(iterable, **{"dynamic_ncols": True, **options})
