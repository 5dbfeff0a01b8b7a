"""Progress bars; where nobody watches, as in the log of a batch job, a line now and then instead."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.asyncio import tqdm_asyncio as text_bar
from tqdm.auto import tqdm

EVERY = 10.0
"""Seconds between two lines of a bar that is written to a file or a pipe."""


class Lines(text_bar):
    """A bar as lines of their own, without carriage returns and escape codes: at its start, then every so many seconds,
    and at its end; of one that does not stay (`leave=False`) only those in between."""

    next_at: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        if msg != "" and (self.leave if self.next_at is None else now >= self.next_at):
            print(self, file=self.fp, flush=True)
            self.next_at = now + EVERY
        self.next_at = self.next_at or now + EVERY
        return False

    def clear(self, nolock: bool = False) -> None:
        """Leave what was written."""

    def close(self) -> None:
        if self.leave and not self.disable:
            print(self, file=self.fp, flush=True)
        self.leave = False
        super().close()


def progress_bar(iterable: Iterable | None = None, **options) -> Any:
    """A bar of tqdm with its options, in a notebook as a widget; where stderr is no terminal, its `Lines`."""
    if tqdm is text_bar and not sys.stderr.isatty():
        return Lines(iterable, **options)
    return tqdm(iterable, **{"dynamic_ncols": True, **options})
