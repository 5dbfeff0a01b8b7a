"""Delay interrupts until the work in progress can stop safely."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM, with which batch systems end a job."""


@contextlib.contextmanager
def interrupts() -> Iterator[list[type[KeyboardInterrupt]]]:
    """Delay the first SIGINT or SIGTERM to the end of the block, so that no completed work is lost.

    Yields a list to which the exception of each signal is added. The first one is raised at the end of the block, a
    second one at once. Signals that have another handler than Python's default keep it, and outside the main thread
    nothing changes.
    """
    caught: list[type[KeyboardInterrupt]] = []
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    ordinary = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def on_signal(number: int, frame: object) -> None:
        caught.append(kinds[signal.Signals(number)])
        if len(caught) > 1:
            raise caught[-1]

    ours = {number: handler for number, handler in ordinary.items() if signal.getsignal(number) is handler}
    if threading.current_thread() is not threading.main_thread():
        ours = {}
    for number in ours:
        signal.signal(number, on_signal)
    try:
        yield caught
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    if caught:
        raise caught[0]
