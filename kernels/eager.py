"""The backend that applies a rule by torch's eager operations, on any device: slow, but without a compiler.

It replaces `cpu` if Numba is not installed, and serves the dtypes and devices that the other backends lack.
"""

import dis
import functools
from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace

import torch

from kernels import table as tables
from kernels.rule import NUMPY, Rule, check_portable, rebind
from kernels.table import Entry, Launch, Table

CHUNK_SIZE = 8192
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lift(function: Callable) -> Callable:
    """Let a function of tensors take Python numbers beside them."""

    def lifted(*args):
        like = next(a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())
        return function(*(a if isinstance(a, torch.Tensor) else torch.full_like(like, a) for a in args))

    return lifted


def where(dtype: torch.dtype) -> Callable:
    """Return a `torch.where` that converts Python numbers to this dtype instead of torch's default."""

    def chosen(condition, *values):
        make = functools.partial(torch.full, (), dtype=dtype, device=condition.device)
        return torch.where(condition, *(v if isinstance(v, torch.Tensor) else make(v) for v in values))

    return chosen


def out_of_place(function: FunctionType) -> FunctionType:
    """Return the function with `x += y` as `x = x + y`: torch would also change the tensors that share x's memory."""
    code = bytearray(function.__code__.co_code)
    for at in dis.get_instructions(function):
        if at.opname == "BINARY_OP" and 13 <= (at.arg or 0) < 26:  # the in-place twins of the first 13
            code[at.offset + 1] -= 13
        elif at.opname.startswith("INPLACE_"):  # Python 3.10
            code[at.offset] = dis.opmap[at.opname.replace("INPLACE", "BINARY")]
    return FunctionType(function.__code__.replace(co_code=bytes(code)), function.__globals__, function.__name__)


LANGUAGE = SimpleNamespace(
    **{name: getattr(torch, name) for name in vars(NUMPY) if hasattr(torch, name)},
)
LANGUAGE.sqrt_rn, LANGUAGE.div_rn, LANGUAGE.static_range = torch.sqrt, lift(torch.div), range
LANGUAGE.minimum, LANGUAGE.maximum = lift(torch.minimum), lift(torch.maximum)

MASK = 0xFFFFFFFF  # uint32 arithmetic in int64, whose products may wrap


def mix(x: torch.Tensor) -> torch.Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def stochastic(x: torch.Tensor, key: torch.Tensor, which: int) -> torch.Tensor:
    """Round float32 `[lanes, n]` to bfloat16 as `rounding.bfloat16_stochastic` does. key: int64 [lanes, 1]."""
    element = torch.arange(x.shape[1], device=x.device)
    high = (element >> 32) * 0x9E3779B9
    noise = mix((element & MASK) ^ mix((key + which + high) & MASK))
    bits = x.view(torch.int32).to(torch.int64) & MASK
    rounded = (bits + (noise & 0xFFFF)) & 0xFFFF0000
    rounded = torch.where(x.isnan(), bits | 0x400000, rounded)
    return (rounded - ((rounded >> 31) << 32)).to(torch.int32).view(torch.float32).bfloat16()


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None = None) -> Table:
    """Build a table with chunks of this backend's size; see `table.build`."""
    return tables.build(rule, entries, grad_dtype, CHUNK_SIZE, seed)


@functools.cache
def functions(rule: Rule, dtype: torch.dtype) -> tuple[Callable, Callable]:
    """Return a rule's `coefficients` for float64 tensors, and its `update` for tensors of this dtype."""

    def over(function: Callable, dtype: torch.dtype) -> Callable:
        language = SimpleNamespace(**{**vars(LANGUAGE), "where": where(dtype)})
        return rebind(function, language, out_of_place)

    return over(rule.coefficients, torch.float64), over(rule.update, dtype)


def advance(
    rule: Rule,
    p: torch.Tensor,
    grad: torch.Tensor,
    states: Sequence[torch.Tensor],
    step: torch.Tensor,
    scalars: Sequence[torch.Tensor],
    hyper: Sequence[torch.Tensor],
    lanes: int = 1,
    grad_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return p and its states after one step; step and scalars are updated in place.

    Args:
        p, grad, states: real tensors of one shape, `[lanes, ...]` where lanes > 1; any dtypes.
        step, scalars: float32 tensors of `lanes` elements.
        hyper: float64 tensors of `lanes` elements or one: the gradient's factor, then the values of `rule.hyper`.
        grad_scale: a tensor of one element, by which gradients are divided.
    """
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    coefficients_of, update = functions(rule, dtype)
    shape = (-1, *[1] * (p.ndim - 1)) if lanes > 1 else ()
    factor, *values = hyper
    step.add_(1)
    steps = step.to(factor.device, torch.float64).view(-1)
    if rule.scalars:
        before = tuple(scalar.to(factor.device, torch.float64).view(-1) for scalar in scalars)
        coefficients, after = coefficients_of(tuple(values), steps, before)
        for tensor, value in zip(scalars, after, strict=True):
            tensor.copy_(value.view(tensor.shape))
    else:
        coefficients = coefficients_of(tuple(values), steps)
    if grad_scale is not None:
        factor = factor / grad_scale.to(factor.device, torch.float64)
    # float64 values stay on their device: not every device has float64.
    factor, *coefficients = (
        value.to(dtype).to(p.device).expand(lanes).reshape(shape) for value in (factor, *coefficients)
    )
    # Copies, because a rule may return its inputs, which would be overwritten before they are read.
    p, *states = (t.to(dtype, copy=True) for t in (p, *states))
    return update(p, factor * grad.to(dtype), tuple(states), tuple(coefficients))


def launcher(table: Table) -> Launch:
    """Return the table's `Launch`. Raises: NotImplementedError if the rule calls a function that this backend lacks."""
    rule = table.rule
    check_portable(rule)

    def launch(grads, grad_scale, found_inf) -> None:
        if found_inf is not None and found_inf.item() != 0:
            return
        table.check_memory(grads)
        row = 0
        for entry, grad in zip(table.entries, grads, strict=True):
            hyper = table.hyper[row : row + entry.lanes].unbind(1)
            row += entry.lanes
            # Lanes are rows: [lanes, n] tensors in the order of memory.
            shape = (entry.lanes, entry.p.numel() // entry.lanes)
            p, grad, *states = (in_memory_order(t).view(shape) for t in (entry.p, grad, *entry.states))
            counts = entry.step, entry.scalars
            new_p, new_states = advance(rule, p, grad, states, *counts, hyper, entry.lanes, grad_scale)
            key = None
            if table.seed is not None:
                step = entry.step.view(-1).to(torch.int64)
                key = (mix(torch.full_like(step, table.seed)) + entry.parameter) & MASK
                key = mix((mix(key) + step) & MASK).view(-1, 1)
            for which, (tensor, value) in enumerate(zip((p, *states), (new_p, *new_states), strict=True)):
                if key is not None and tensor.dtype == torch.bfloat16:
                    value = stochastic(value, key, which)
                tensor.copy_(value)

    return launch


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return the flat view of a tensor without gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))
