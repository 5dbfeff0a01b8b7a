"""Errors of a simulated GPU."""

import numpy as np


class Fault(Exception):
    """A kernel does what a GPU would trap or silently get wrong; the text says which thread did what."""


def refuse(wrong: np.ndarray, message: str, *values: np.ndarray) -> None:
    """Raise Fault for the first thread that did wrong, if there is one.

    Args:
        wrong: bool [programs, threads], or a shape that broadcasts to it with the values.
        message: has a {} for each of the values.
        values: arrays with the values of all threads.
    """
    if not wrong.any():
        return
    wrong, *those = np.broadcast_arrays(wrong, *values)
    program, thread = (int(i) for i in np.argwhere(wrong)[0][:2])
    found = (value[program, thread] for value in those)
    raise Fault(f"program {program}, thread {thread}: {message.format(*found)}")
