"""What a simulated GPU traps."""

import numpy as np


class Fault(Exception):
    """What a GPU would trap, or silently get wrong; the text says which thread did what."""


def refuse(wrong: np.ndarray, message: str, *values: np.ndarray) -> None:
    """Raise Fault for the first thread that has done wrong, if one has.

    Args:
        wrong: bool [programs, threads], or what broadcasts with the values to it.
        message: with a {} for each of the values.
        values: of all threads.
    """
    if not wrong.any():
        return
    wrong, *those = np.broadcast_arrays(wrong, *values)
    program, thread = (int(i) for i in np.argwhere(wrong)[0][:2])
    found = (value[program, thread] for value in those)
    raise Fault(f"program {program}, thread {thread}: {message.format(*found)}")
