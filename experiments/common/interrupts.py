"""Interrupts that wait until what is at work can stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """What SIGTERM, by which batch systems end a job, becomes while something is trained."""


@contextlib.contextmanager
def interrupts() -> Iterator[list[type[KeyboardInterrupt]]]:
    """Put SIGINT and SIGTERM off to the end, for the first is no reason to lose what a step has changed.

    Yields a list that gets what is to be raised, and is raised at the end; a second signal is raised at once. What
    others have made of a signal stays so, as does what is not the main thread's.
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
