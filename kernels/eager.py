"""The backend that applies a rule by torch's eager operations, on any device: slow, but without a compiler.

It replaces `cpu` if Numba is not installed, and serves the dtypes and devices that the other backends lack.
"""

import dis
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace

import torch

from kernels import compressed
from kernels import table as tables
from kernels.rule import NUMPY, Rule, Stage, check_portable, clip_factor, rebind
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
def bound(function: Callable, dtype: torch.dtype) -> Callable:
    """Return a rule's function for tensors of this dtype."""
    return rebind(function, SimpleNamespace(**{**vars(LANGUAGE), "where": where(dtype)}), out_of_place)


@dataclass
class Step:
    """A step of one parameter, between its parts.

    Attributes:
        rule, lanes: see `table.Entry`, as are the tensors.
        p, grad, states: real tensors of one shape, `[lanes, ...]` where lanes > 1; any dtypes.
        step, scalars: float32 tensors of `lanes` elements, updated in place.
        hyper: float64 tensors of `lanes` elements or one: the gradient's factor, then the values of `rule.hyper`.
        grad_scale: a tensor of one element, by which gradients are divided.
    """

    rule: Rule
    p: torch.Tensor
    grad: torch.Tensor
    states: Sequence[torch.Tensor]
    step: torch.Tensor
    scalars: Sequence[torch.Tensor]
    hyper: Sequence[torch.Tensor]
    lanes: int = 1
    grad_scale: torch.Tensor | None = None
    factor: torch.Tensor = field(init=False)  # float64 [lanes], as are coefficients
    coefficients: tuple[torch.Tensor, ...] = ()
    totals: tuple[torch.Tensor, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return torch.float64 if self.p.dtype == torch.float64 else torch.float32

    def begin(self) -> None:
        """Count the step, and compute coefficients."""
        self.factor, *hyper = self.hyper
        values = tuple(hyper[: self.rule.n_hyper])
        self.step.add_(1)
        steps = self.step.to(self.factor.device, torch.float64).view(-1)
        of = bound(self.rule.coefficients, torch.float64)
        if self.rule.scalars:
            self.coefficients, scalars = of(values, steps, self.doubles(self.scalars))
            self.set_scalars(scalars)
        else:
            self.coefficients = of(values, steps)
        if self.grad_scale is not None:
            self.factor = self.factor / self.grad_scale.to(self.factor.device, torch.float64)

    def operands(self) -> tuple:
        """Return p, grad, state and coefficients as the rule's functions of elements take them."""
        # Copies, because a rule may return its inputs, which would be overwritten before they are read.
        p, *states = (t.to(self.dtype, copy=True) for t in (self.p, *self.states))
        factor, *coefficients = self.for_elements((self.factor, *self.coefficients))
        return p, factor * self.grad.to(self.dtype), tuple(states), tuple(coefficients)

    def measure(self, stage: Stage) -> torch.Tensor:
        """Return the sums of a stage, float64 `[lanes, n_sums]`."""
        terms = bound(stage.sums, self.dtype)(*self.operands())
        # Not every device has float64.
        device = self.factor.device
        whole = [term if isinstance(term, torch.Tensor) else torch.full((), term) for term in terms]
        return torch.stack(
            [t.expand(self.p.shape).reshape(self.lanes, -1).to(device, torch.float64).sum(1) for t in whole], dim=1
        )

    def conclude(self, stage: Stage, totals: torch.Tensor) -> None:
        """Make of the totals of a stage, float64 `[lanes, n_sums]`, what the update takes."""
        sums = totals.unbind(1)
        if stage.clips:
            clip = bound(clip_factor, torch.float64)(sums[0], self.hyper[-1])
            self.factor = self.factor * clip.to(self.dtype).to(torch.float64)
            return
        if stage.finish:
            rounded = tuple(c.to(self.dtype).to(torch.float64) for c in self.coefficients)
            sums, scalars = bound(stage.finish, torch.float64)(sums, rounded, self.doubles(self.scalars))
            self.set_scalars(scalars)
        like = totals[:, 0]
        self.totals = tuple(x if isinstance(x, torch.Tensor) else torch.full_like(like, x) for x in sums)

    def update(self) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return p and its states after the step."""
        totals = (self.for_elements(self.totals),) if self.rule.sums else ()
        return bound(self.rule.update, self.dtype)(*self.operands(), *totals)

    def for_elements(self, values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return values of lanes so that elements can be computed with them."""
        shape = (-1, *[1] * (self.p.ndim - 1)) if self.lanes > 1 else ()
        # float64 values stay on their device: not every device has float64.
        return tuple(v.to(self.dtype).to(self.p.device).expand(self.lanes).reshape(shape) for v in values)

    def doubles(self, scalars: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(scalar.to(self.factor.device, torch.float64).view(-1) for scalar in scalars)

    def set_scalars(self, values: Sequence[torch.Tensor]) -> None:
        for tensor, value in zip(self.scalars, values, strict=True):
            tensor.copy_(value.expand(self.lanes).view(tensor.shape))


def launcher(table: Table) -> Launch:
    """Return the table's `Launch`. Raises: NotImplementedError if the rule calls a function that this backend lacks."""
    rule, steps, keys = table.rule, [], []
    check_portable(rule)

    def begin(grads, grad_scale, found_inf) -> None:
        steps.clear()
        keys.clear()
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
            if entry.scales:
                states = compressed.load(rule, states, entry.scales)
            step = Step(rule, p, grad, states, entry.step, entry.scalars, hyper, entry.lanes, grad_scale)
            step.begin()
            steps.append(step)
            keys.append(None if table.seed is None else key_of(table.seed, entry))

    def measure(i: int) -> None:
        if steps:
            totals = table.stages[i].totals
            found = torch.cat([step.measure(rule.stages[i]) for step in steps])
            totals.copy_(found if table.stages[i].slot_is_row else by_lane(found, table.entries[0].lanes))

    def conclude(i: int) -> None:
        row, totals = 0, table.stages[i]
        for step in steps:
            rows = slice(row, row + step.lanes) if totals.slot_is_row else slice(None)
            step.conclude(rule.stages[i], totals.totals[rows])
            row += step.lanes

    def update() -> None:
        for entry, step, key in zip(table.entries, steps, keys, strict=False):
            new_p, new_states = step.update()
            for which, (tensor, value) in enumerate(zip((step.p, *step.states), (new_p, *new_states), strict=True)):
                if key is not None and tensor.dtype == torch.bfloat16:
                    value = stochastic(value, key, which)
                tensor.copy_(value)
            if entry.scales:
                shape = (entry.lanes, entry.p.numel() // entry.lanes)
                codes = [in_memory_order(t).view(shape) for t in entry.states]
                compressed.store(rule, codes, entry.scales, step.states)
        steps.clear()

    return Launch(begin, update, measure, conclude, len(rule.stages))


def key_of(seed: int, entry: Entry) -> torch.Tensor:
    """Return the keys of this step's stochastic rounding, int64 [lanes, 1]."""
    count = entry.step.view(-1).to(torch.int64)
    key = (mix(torch.full_like(count, seed)) + entry.parameter) & MASK
    return mix((mix(key) + count) & MASK).view(-1, 1)


def by_lane(sums: torch.Tensor, lanes: int) -> torch.Tensor:
    """Return the totals of lanes: sums has a row for each lane of each tensor, one tensor after the other."""
    return added(sums.split(lanes))


def added(sums: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the total of tensors of one shape, in their order, on the first one's device."""
    total = sums[0]
    for other in sums[1:]:
        total = total + other.to(total.device)
    return total


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return the flat view of a tensor without gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))
