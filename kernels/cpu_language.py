# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""What a rule's functions mean where Numba compiles them."""

from collections.abc import Callable
from types import FunctionType, ModuleType

import numpy as np

from kernels.cpu_storage import inner
from kernels.rule import NUMPY


def language() -> ModuleType:
    """What `tl` means in a rule that Numba compiles."""
    language = ModuleType("tl")
    vars(language).update(vars(NUMPY))
    language.div_rn = inner(lambda x, y: x / y)
    language.rsqrt = inner(lambda x: 1 / np.sqrt(x))
    language.where = inner(lambda condition, x, y: x if condition else y)
    return language


def single(function: FunctionType):
    """Compile it with its constants in float32: Python's float64 would make float64 of everything they touch."""

    def cast(constant):
        if isinstance(constant, tuple):
            return tuple(map(cast, constant))
        return np.float32(constant) if type(constant) is float else constant

    constants = cast(function.__code__.co_consts)
    return inner(FunctionType(function.__code__.replace(co_consts=constants), function.__globals__, function.__name__))


def casting(n: int, number: type) -> Callable:
    """A function that makes `number`s of the first n elements of a tuple: integers in a rule make float64 of some."""
    if n == 0:
        return inner(lambda values: values)
    others, i = casting(n - 1, number), n - 1
    if n == 1:
        return inner(lambda values: (number(values[0]),))
    return inner(lambda values: (*others(values), number(values[i])))
