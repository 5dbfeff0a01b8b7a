"""What may change between two steps without the optimizer being told, and how a step notices.

A launch reads and writes addresses that were laid out in an earlier step. Before each launch `RuleOptimizer` compares,
with what they were when the tables were laid out,

- groups: which rule each wants, how many parameters it owns and how many lanes its hyperparameters have, and the
  optimizer's own options;
- parameters: that they are the same objects, and their addresses and `Metadata`;
- gradients: which parameters have one, their `Metadata` and, in `Table.point_at`, their addresses;
- states: that `optimizer.state` holds them under the same names, their addresses and `Metadata`. While nobody has asked
  for them (`States`), nobody can have changed them, and this is left out;
- hyperparameters: their values. Those on a GPU are read anew in every step, by the GPU.

Of parameters without a gradient only who they are counts. This suffices: an address, a dtype, sizes and strides say
which bytes a tensor is, and its dispatch keys say how they are to be read (conjugated, negated, through a subclass).
Memory that was freed cannot lie at the same address, unless it is what the tensor has now. Whether a storage holds all
elements is looked at when it has moved, as it does when it is freed or made smaller. A storage that is freed and then
allocated too small, all between two steps, is not seen if the allocator returns the same address.
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
    # What torch.compile guards its graphs by: one C++ call compares all of it, in a fifth of the time of Python.
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None


class States(defaultdict[torch.Tensor, Any]):
    """`optimizer.state`: a defaultdict(dict) that remembers whether anybody has asked for what it holds.

    Attributes:
        handed_out: whether a state, or the dictionary of a parameter's states, may be known outside of the optimizer.
    """

    handed_out = False

    @classmethod
    def of(cls, states: dict) -> "States":
        """The same states, which somebody else may know already."""
        made = cls(dict, states)
        made.handed_out = bool(states)
        return made

    # Where this is not dict's own, dict(states) and {**states} fetch what they copy through the methods below.
    def __iter__(self):
        return super().__iter__()

    def __reduce__(self):
        return defaultdict, (dict,), None, None, iter(self.items())


def handing_out(name: str) -> Callable:
    """A method of `States` that does what defaultdict's does, and is remembered."""
    method = getattr(defaultdict, name)

    def remembered(self, *args, **kwargs):
        if not self and name in ("items", "values"):
            return getattr({}, name)()  # A view of what is there now, not of what will be.
        self.handed_out = True
        return method(self, *args, **kwargs)

    return remembered


for _name in (
    *("__getitem__", "__setitem__", "__delitem__", "__ior__", "get", "items", "values", "pop", "popitem"),
    *("setdefault", "update", "clear"),
):
    setattr(States, _name, handing_out(_name))


def own(states: dict, p: torch.Tensor) -> dict:
    """`states[p]`, made if there is none, without handing it out."""
    found = dict.get(states, p)
    if found is None:
        found = {}
        dict.__setitem__(states, p, found)
    return found


def describe(tensor: torch.Tensor) -> tuple:
    """All that says how a tensor's memory is to be read, but for where it is."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    kind = type(tensor), tensor.dtype, tensor.device, tensor.layout
    return *kind, tensor.shape, strides, tensor.is_neg(), not tensor.is_complex() and tensor.is_conj()


class Metadata:
    """Types, dtypes, devices, sizes, strides and dispatch keys (negative and conjugate bits among them) of tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.kinds = [*map(describe, tensors)]
        self._guards = None
        if TensorGuards is not None and tensors and all(t.layout == torch.strided for t in tensors):
            # Given a tensor's own sizes and strides, it compares all of them.
            sizes, strides = [[*t.shape] for t in tensors], [[*t.stride()] for t in tensors]
            # Its stub declares one tensor's sizes, and it reads those of each.
            guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)  # pyright: ignore[reportArgumentType]
            self._guards = guards

    def same(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether as many tensors are as those were. May say no where only `requires_grad` or a context differs."""
        if len(tensors) != len(self.kinds):
            return False
        return self._guards.check(*tensors) if self._guards else self.kinds == [*map(describe, tensors)]


class Seen:
    """What groups, parameters, gradients and states were like when the tables were laid out."""

    def __init__(self, structure: list, params: list, grads: list, state: dict, names: list[tuple[str, ...]]):
        """Look at everything; arguments as of `same`, and names: of the states that each parameter's rule keeps.

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
        """Whether all is as it was; may say no where it is. By C functions alone, for each step pays for it.

        Args:
            structure: what is compared as it is.
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
        """Whether tables that were laid out then fit now. Looks closer than `same`, and takes as long as it takes."""
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
        """Whether nobody outside can know a tensor among the states."""
        return state is self.state and type(state) is States and not state.handed_out

    def _has_states(self, state: dict) -> bool:
        if len(state) != len(self.keys) or not all(map(is_, self.keys, dict.keys(state))):
            return False
        if not all(map(is_, self.dicts, dict.values(state))):
            return False
        try:
            states = self._states()
            return addresses(states) == self.state_addresses and self.state_metadata.same(states)
        except (KeyError, TypeError):  # A state is missing, or is no tensor.
            return False

    def _states(self) -> list[torch.Tensor]:
        """What the rules' names stand for now."""
        found = [map(get, dicts) if n == 1 else chain.from_iterable(map(get, dicts)) for n, get, dicts in self._own]
        return self._local([*chain.from_iterable(found)])

    def _local(self, tensors: list) -> list:
        # A DTensor has no address of its own.
        return [*map(memory.local, tensors)] if self.sharded else tensors


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, tensors)]


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is nothing but a run of this machine's memory, so that an address tells all of it."""
    # pyright takes the C function for a method, and what torch defines in C++ for private.
    dispatch = type(tensor).__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
    return (
        dispatch is torch._C._disabled_torch_dispatch_impl
        and not is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage]
        and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
    )


def in_a_mode() -> bool:
    """Whether a mode wants to see every operation, as FakeTensorMode does: a launch would go past it."""
    return torch._C._len_torch_dispatch_stack() > 0


def in_a_transform() -> bool:
    """Whether torch.func (grad, vmap, ...) is at work."""
    return peek_interpreter_stack() is not None


def are_numbers(rows: list[tuple]) -> bool:
    """Whether no hyperparameter is a tensor or the like."""
    return {float, int, bool}.issuperset(map(type, chain.from_iterable(rows)))


def lanes(row: tuple) -> list[tuple[int, int]]:
    """Which hyperparameters of a group are tensors, and of how many values."""
    return [(i, v.numel()) for i, v in enumerate(row) if isinstance(v, torch.Tensor)]


def in_memory(value):
    """A hyperparameter as what tables are compared by: a float, or a tensor of several values or on a GPU."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    return value.item() if value.numel() == 1 and value.device.type == "cpu" else value


def same_values(row: tuple, before: tuple) -> bool:
    """Whether hyperparameters of a group, those on a GPU excepted, are what they were."""
    if not any(isinstance(v, torch.Tensor) for v in row):
        return row == before
    return all(same_value(v, kept) for v, kept in zip(row, before, strict=True))


def same_value(value, before) -> bool:
    if not isinstance(value, torch.Tensor):
        return value == before
    return value.is_cuda or (value.dtype == before.dtype and torch.equal(value, before))
