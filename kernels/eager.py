"""The rule on torch tensors of any device, one eager operation after another: slow, and free of compilers.

It stands in for `cpu` where Numba is not installed, and takes the dtypes that it lacks.
"""

from types import SimpleNamespace

import torch

from kernels.rules import rebind
from kernels.table import Table

CHUNK_SIZE = 8192
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LANGUAGE = SimpleNamespace(
    exp=torch.exp,
    log=torch.log,
    sqrt=torch.sqrt,
    sqrt_rn=torch.sqrt,
    div_rn=torch.div,
    abs=torch.abs,
    minimum=torch.minimum,
    maximum=torch.maximum,
    where=torch.where,
)


def update_(table: Table, grads: list[torch.Tensor]) -> None:
    """Advance every entry by one step of the table's rule, in place; grads hold one tensor an entry."""
    coefficients_of, update = (rebind(f, LANGUAGE) for f in (table.rule.coefficients, table.rule.update))
    dtype, row = table.compute_dtype, 0
    for entry, grad in zip(table.entries, grads, strict=True):
        entry.step.add_(1)
        hyper = table.hyper[row : row + entry.lanes].unbind(1)
        row += entry.lanes
        lane_shape = (entry.lanes,) + (1,) * (entry.p.ndim - 1) if entry.lanes > 1 else ()
        coefficients = tuple(
            value.to(dtype).view(lane_shape) for value in coefficients_of(hyper, entry.step.double().view(-1))
        )
        state = tuple(tensor.to(dtype) for tensor in entry.states)
        p, state = update(entry.p.to(dtype), grad.to(dtype), state, coefficients)
        entry.p.copy_(p)
        for tensor, value in zip(entry.states, state, strict=True):
            tensor.copy_(value)
