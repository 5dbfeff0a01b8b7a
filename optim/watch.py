"""Detection of changes between two steps of which the optimizer is not told.

A launch reads and writes addresses that an earlier step put into a table. Before each launch `RuleOptimizer` compares
with their values of that time:

- groups: the rule, the number of parameters and the lanes of the hyperparameters of each, and the optimizer's own
  options;
- parameters: that they are the same objects, and their addresses and `Metadata`;
- gradients: which parameters have one, their `Metadata` and, in `Table.point_at`, their addresses;
- states: that `optimizer.state` holds them under the same names, and their addresses and `Metadata`. This is skipped
  as long as nothing has asked for them (`States`), because then nothing can have changed them;
- hyperparameters: their values. The GPU itself reads those on a GPU in every step.

For parameters without a gradient only their identity is compared. This suffices: address, dtype, sizes and strides
determine a tensor's bytes, and dispatch keys how to read them (conjugated, negated, through a subclass). Freed memory
cannot be at the same address unless it is what the tensor has now. Whether a storage holds all elements is checked if
it has moved, as it does when it is freed or made smaller. A storage that is freed and then allocated too small between
two steps goes unnoticed if the allocator returns the same address.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack

from optim import memory

try:
    # torch.compile's guards: one C++ call compares everything, in a fifth of the time that Python takes.
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None


class States(defaultdict[torch.Tensor, Any]):
    """`optimizer.state`: a defaultdict(dict) that records whether its contents have been accessed.

    Attributes:
        handed_out: whether code outside of the optimizer may hold a state, or the dictionary of a parameter's states.
    """

    handed_out = False

    @classmethod
    def of(cls, states: dict) -> "States":
        """Return the same states, which count as handed out unless there are none."""
        made = cls(dict, states)
        made.handed_out = bool(states)
        return made

    # Overridden, so that dict(states) and {**states} copy through the methods below.
    def __iter__(self):
        return super().__iter__()

    def __reduce__(self):
        return defaultdict, (dict,), None, None, iter(self.items())


def handing_out(name: str) -> Callable:
    """Return a method of `States` that does what defaultdict's does, and sets `handed_out`."""
    method = getattr(defaultdict, name)

    def remembered(self, *args, **kwargs):
        if not self and name in ("items", "values"):
            return getattr({}, name)()  # An empty view, also later: nothing is handed out.
        self.handed_out = True
        return method(self, *args, **kwargs)

    return remembered


for _name in (
    *("__getitem__", "__setitem__", "__delitem__", "__ior__", "get", "items", "values", "pop", "popitem"),
    *("setdefault", "update", "clear"),
):
    setattr(States, _name, handing_out(_name))


def own(states: dict, p: torch.Tensor) -> dict:
    """Return `states[p]`, made if there is none, without setting `handed_out`."""
    found = dict.get(states, p)
    if found is None:
        found = {}
        dict.__setitem__(states, p, found)
    return found


def describe(tensor: torch.Tensor) -> tuple:
    """Return all that determines how a tensor's memory is read, except its address."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    kind = type(tensor), tensor.dtype, tensor.device, tensor.layout
    return *kind, tensor.shape, strides, tensor.is_neg(), not tensor.is_complex() and tensor.is_conj()


class Metadata:
    """Types, dtypes, devices, sizes, strides and dispatch keys (with negative and conjugate bits) of tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.kinds = [*map(describe, tensors)]
        self._guards = None
        if TensorGuards is not None and tensors and all(t.layout == torch.strided for t in tensors):
            # Given a tensor's own sizes and strides, it compares all of them; its stub expects those of one tensor.
            sizes, strides = [[*t.shape] for t in tensors], [[*t.stride()] for t in tensors]
            guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)  # pyright: ignore[reportArgumentType]
            self._guards = guards

    def same(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Return whether tensors are alike; may be False if only `requires_grad` or a context differs."""
        if len(tensors) != len(self.kinds):
            return False
        return self._guards.check(*tensors) if self._guards else self.kinds == [*map(describe, tensors)]


class Seen:
    """Groups, parameters, gradients and states as they were when the tables were built."""

    def __init__(self, structure: list, params: list, grads: list, state: dict, names: list[tuple[str, ...]]):
        """Record everything; arguments as of `same`, and the names of the states that each parameter's rule keeps.

        Raises: RuntimeError if a tensor has no address.
        """
        present = [
            (p, grad, own_names) for p, grad, own_names in zip(params, grads, names, strict=True) if grad is not None
        ]
        self.sharded = any(map(memory.is_distributed, params))
        self.structure, self.params, self.absent = structure, params, [grad is None for grad in grads]
        self.written = [p for p, *_ in present]
        places = self._local(self.written)
        self.addresses = addresses(places)
        self.metadata = Metadata([*places, *(grad for _, grad, _ in present)])
        self.written = [*self.written, *places] if self.sharded else self.written

        self.state, self.keys, self.dicts = state, [*dict.keys(state)], [*dict.values(state)]
        by_names = defaultdict(dict)
        for p, _, own_names in present:
            by_names[own_names][id(p)] = dict.get(state, p) or {}
        self._own = [(len(names), itemgetter(*names), [*found.values()]) for names, found in by_names.items()]
        try:
            self.states = self._states()
        except KeyError:
            self.states = []
        self.states = [t for t in self.states if isinstance(t, torch.Tensor)]
        self.state_addresses, self.state_metadata = addresses(self.states), Metadata(self.states)

    def same(self, structure: list, params: list, grads: list, state: dict) -> bool:
        """Return whether nothing has changed; may be False even so. By C functions alone, because each step calls it.

        Args:
            structure: properties of groups and optimizer, compared with ==.
            params: all parameters, groups laid end to end.
            grads: their gradients, None where there is none.
            state: `optimizer.state`.
        """
        moving, present = params, [grad for grad in grads if grad is not None]
        if len(present) != len(params):
            if [grad is None for grad in grads] != self.absent:
                return False
            moving = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
        places = self._local(moving)
        return (
            structure == self.structure
            and len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and addresses(places) == self.addresses
            and self.metadata.same([*places, *present])
            and (self.is_untold(state) or self._has_states(state))
        )

    def agrees(self, other: "Seen") -> bool:
        """Return whether tables that were built then still fit: an exact but slower comparison than `same`."""
        return (
            other.structure == self.structure
            and len(other.params) == len(self.params)
            and all(map(is_, other.params, self.params))
            and other.absent == self.absent
            and other.addresses == self.addresses
            and other.metadata.kinds == self.metadata.kinds
            and other.state_addresses == self.state_addresses
            and other.state_metadata.kinds == self.state_metadata.kinds
        )

    def is_untold(self, state: dict) -> bool:
        """Return whether no code outside of the optimizer can hold one of the states."""
        return state is self.state and type(state) is States and not state.handed_out

    def _has_states(self, state: dict) -> bool:
        if len(state) != len(self.keys) or not all(map(is_, self.keys, dict.keys(state))):
            return False
        if not all(map(is_, self.dicts, dict.values(state))):
            return False
        try:
            states = self._states()
            return addresses(states) == self.state_addresses and self.state_metadata.same(states)
        except (KeyError, TypeError):  # A state is missing or not a tensor.
            return False

    def _states(self) -> list[torch.Tensor]:
        """Return the current states by the rules' names."""
        found = [map(get, dicts) if n == 1 else chain.from_iterable(map(get, dicts)) for n, get, dicts in self._own]
        return self._local([*chain.from_iterable(found)])

    def _local(self, tensors: list) -> list:
        # A DTensor has no address of its own.
        return [*map(memory.local, tensors)] if self.sharded else tensors


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, tensors)]


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is only memory of this machine, so that its address suffices to update it."""
    # pyright takes the C function for a method, and functions that torch defines in C++ for private.
    dispatch = type(tensor).__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
    return (
        dispatch is torch._C._disabled_torch_dispatch_impl
        and not is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage]
        and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
    )


def in_a_mode() -> bool:
    """Return whether a mode that must see every operation is active, such as FakeTensorMode."""
    return torch._C._len_torch_dispatch_stack() > 0


def in_a_transform() -> bool:
    """Return whether a transform of torch.func (grad, vmap, ...) is active."""
    return peek_interpreter_stack() is not None


def are_numbers(rows: list[tuple]) -> bool:
    """Return whether all hyperparameters are Python numbers."""
    return {float, int, bool}.issuperset(map(type, chain.from_iterable(rows)))


def lanes(row: tuple) -> list[tuple[int, int]]:
    """Return (index, number of values) of the hyperparameters of a group that are tensors."""
    return [(i, v.numel()) for i, v in enumerate(row) if isinstance(v, torch.Tensor)]


def in_memory(value):
    """Convert a hyperparameter to a float, unless it is a tensor of several values or on a GPU."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    return value.item() if value.numel() == 1 and value.device.type == "cpu" else value


def same_values(row: tuple, before: tuple) -> bool:
    """Return whether the hyperparameters of a group, except those on a GPU, are the same as before."""
    if not any(isinstance(v, torch.Tensor) for v in row):
        return row == before
    return all(same_value(v, kept) for v, kept in zip(row, before, strict=True))


def same_value(value, before) -> bool:
    if not isinstance(value, torch.Tensor):
        return value == before
    return value.is_cuda or (value.dtype == before.dtype and torch.equal(value, before))
