"""From an update rule to a `torch.optim.Optimizer`."""

import contextlib
import weakref
from collections.abc import Mapping
from itertools import chain
from operator import is_

import torch

from kernels import table as tables
from kernels.rule import Rule
from optim import lanes, memory, parts
from optim.arguments import Value, accepted

STATE_DTYPES = (torch.float32, torch.bfloat16)
ROUNDINGS = ("nearest", "stochastic")


class RuleOptimizer(torch.optim.Optimizer):
    """Applies a rule to all parameters, in one launch for each (rule, device, dtypes).

    A subclass names the `rule` of a parameter group and translates the group into its hyperparameters.

    Any hyperparameter may be a `[K]` tensor when every parameter of its group is stacked
    `[K, ...]`: lane k of each parameter is then updated with value k and counts steps of its own.

    Args:
        params: iterable of parameters or of group dictionaries, as in torch.
        defaults: hyperparameters of groups that do not set their own.
        backend: "triton" (GPU; CPU tensors under TRITON_INTERPRET=1), "cpu" (Numba) or "eager".
            None chooses triton for CUDA tensors, cpu for CPU tensors, and eager where those lack the dtype.
        state_dtype: torch.float32 or torch.bfloat16, in which to keep states; None is float32 (float64 for float64
            parameters) for new states, and for loaded ones the dtype in which they were saved.
        rounding: "nearest" or "stochastic", for all that is stored in bfloat16.
        seed: of stochastic rounding, an int in [0, 2^31).
    Raises: ValueError if a hyperparameter is out of range, or lanes and shapes do not fit.
    """

    state_names: tuple[str, ...]
    """Names of all states, beside step, that any of the optimizer's rules keeps."""

    # GradScaler leaves the gradients scaled, and sets grad_scale and found_inf around a step.
    _step_supports_amp_scaling = True

    # Kept in __dict__ as torch keeps it.
    param_groups = property(  # pyright: ignore[reportAssignmentType]
        lanes.param_groups, lambda self, groups: vars(self).update(param_groups=groups)
    )

    def __init__(
        self,
        params,
        defaults: dict,
        *,
        backend: str | None = None,
        state_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        seed: int = 0,
    ):
        accepted(backend, "backend", (*parts.BACKENDS, None))
        accepted(state_dtype, "state_dtype", (*STATE_DTYPES, None))
        accepted(rounding, "rounding", ROUNDINGS)
        if not (isinstance(seed, int) and 0 <= seed < 2**31):
            raise ValueError(f"Invalid seed: {seed!r} (an int in [0, 2^31))")
        self.backend, self.state_dtype, self.rounding, self.seed = backend, state_dtype, rounding, seed
        self._forget_tables()
        self.check_group(defaults)
        super().__init__(params, defaults)

    def rule(self, group: dict) -> Rule:
        """The rule that the group's parameters are updated by."""
        raise NotImplementedError

    def hyper(self, group: dict) -> tuple:
        """The rule's hyperparameters of a group, in the order of `rule.hyper`: floats or tensors."""
        raise NotImplementedError

    def check_group(self, group: dict) -> None:
        """Raise ValueError if a hyperparameter of the group is out of range; subclasses add to it."""
        if group.get("fused") and group.get("differentiable"):
            raise RuntimeError("`fused` does not support `differentiable`")
        if group.get("fused") and group.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if group.get("differentiable"):
            name = type(self).__name__
            raise ValueError(
                f"Invalid differentiable value: True (autograd cannot see into the launch of {name}; use torch.optim)"
            )

    def initial(self, group: dict) -> Mapping[str, Value]:
        """Values that states start from, by name, where that is not 0."""
        return {}

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; also checks the values, and lane counts against shapes."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            self.check_group(group)
            parts.lanes_of(self, group)
            lanes.adopt(self, group)
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise
        self._forget_tables()

    @torch._disable_dynamo
    def state_dict(self) -> dict:
        """As torch's; whatever lanes are in a group, they are plain tensors here."""
        return lanes.to_save(super().state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, except that states keep the dtype in which they were saved, and are copies.

        Raises: ValueError if the states are those of another optimizer; nothing has been changed then.
        """
        found = {}

        def inspect(_, final: dict) -> None:
            # The last hook to be called: it sees what the others made of the dictionary.
            for i, state in final["state"].items():
                self._check_names(i, state)
            found.update(final)

        hook = self.register_load_state_dict_pre_hook(inspect)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for group, saved in zip(self.param_groups, found["param_groups"], strict=True):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for p, i in zip(group["params"], saved["params"], strict=True):
                for name, value in found["state"].get(i, {}).items():
                    self.state[p][name] = torch.as_tensor(value).to(device=p.device, copy=True)
        self._forget_tables()

    def _check_names(self, parameter: int | str, state: dict) -> None:
        known = {"step", *self.state_names}
        if unknown := [name for name in state if name not in known]:
            raise ValueError(
                f"The loaded state of parameter {parameter} has {', '.join(map(str, unknown))}: it is not one of "
                f"{type(self).__name__}, which keeps {', '.join(sorted(known))}"
            )

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step: parameters, states and step counts change in place, gradients do not.

        Args:
            closure: re-evaluates the model and returns the loss, which is then returned.
        Raises: ValueError, TypeError or RuntimeError for tensors that the rule cannot be applied
            to; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            untraced_step(self)
        else:
            self._step()
        return loss

    def _step(self) -> None:
        params = [*chain.from_iterable([group["params"] for group in self.param_groups])]
        grads = [nothing if (g := p.grad) is None else g for p in params]
        if self._sharded:
            grads = [g if g is nothing else memory.aligned(g, p) for g, p in zip(grads, params, strict=True)]
        fits = self._fits(params)
        # The same gradients as in the last step have the same dtypes and strides.
        if not fits or not all(map(is_, [ref() for ref in self._refs], grads)):
            self._look_again(params, grads, fits)
        self._refresh_hyper()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for table, launch, index, special, gaps in self._parts:
            own = grads if len(index) == len(grads) and not special else [grads[i] for i in index]
            for i, buffer in special:
                grad = memory.real(own[i])
                own[i] = grad if buffer is None else buffer.copy_(grad)
            for copy, p in gaps:
                copy.copy_(p)
            scaler = (grad_scale, found_inf)
            if grad_scale is not None or found_inf is not None:
                scaler = (t if t is None else t.to(table.rows.device, non_blocking=True) for t in scaler)
            launch(own, *scaler)
            for copy, p in gaps:
                p.copy_(copy)

    def _fits(self, params: list) -> bool:
        """Whether parameters and states are where the tables say. By C functions alone: each step pays for it."""
        if self._sharded:
            params = [memory.local(p) for p in params]  # a DTensor has no address of its own
        states = chain.from_iterable(map(dict.values, self.state.values()))
        return self._places == [*map(torch.Tensor.data_ptr, params)] and all(map(is_, self._states, chain(states, END)))

    def _look_again(self, params: list, grads: list, fits: bool) -> None:
        """Lay the tables out anew if they do not fit, or gradients are of other kinds than in the last step."""
        kinds = None
        with contextlib.suppress(RuntimeError):  # A sparse gradient has no strides, and `parts.build` says so.
            kinds = [g if g is nothing else (g.dtype, g.stride()) for g in grads]
        if kinds is None or kinds != self._kinds or not fits:
            self._forget_tables()
            self._parts = parts.build(self, params, [None if g is nothing else g for g in grads])
            self._kinds, self._places = kinds, [memory.local(p).data_ptr() for p in params]
            self._states = [value for state in self.state.values() for value in state.values()] + [*END]
        self._refs = [nothing if g is nothing else weakref.ref(g) for g in grads]

    def _refresh_hyper(self) -> None:
        """Bring the tables up to date with the groups, if any value has changed."""
        values = [(-1.0 if group.get("maximize") else 1.0, *self.hyper(group)) for group in self.param_groups]
        seen = [[(id(v), v._version) if isinstance(v, torch.Tensor) else v for v in row] for row in values]
        changed = seen != self._hyper_seen
        captured = any(tables.capturing(table.rows.device) for table, *_ in self._parts)
        if not changed and not captured:
            return
        for table, *_ in self._parts:
            used = [v for group in table.groups for v in values[group]]
            if not captured or any(isinstance(v, torch.Tensor) and v.is_cuda for v in used):
                table.set_hyper(values)
            elif changed:
                raise RuntimeError(
                    "A hyperparameter has changed since the last step, and a CUDA graph is being captured: take a "
                    "step with it before, or make it a tensor on the device, which the graph reads at each replay"
                )
        # The values are kept too: an id means something only as long as its object lives.
        self._hyper_seen, self._hyper_values = seen, values

    def _forget_tables(self) -> None:
        self._parts, self._places, self._states, self._kinds, self._refs = [], None, [], None, []
        self._hyper_seen, self._hyper_values = None, []
        params = [p for group in getattr(self, "param_groups", []) for p in group["params"]]
        self._sharded = any(hasattr(p, "to_local") for p in params)

    def __getstate__(self) -> dict:
        own = {name: getattr(self, name) for name in ("backend", "state_dtype", "rounding", "seed")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._forget_tables()


def nothing() -> object:
    """Stands for a gradient that is not there, and for the weak reference to it; that to a freed one returns None."""
    return nothing


END = (nothing,)
"""Ends two sequences that are compared element by element, so that one cannot be the beginning of the other."""


@torch._disable_dynamo
def untraced_step(optimizer: RuleOptimizer) -> None:
    """The step in a function under torch.compile, which cannot trace a launch over addresses."""
    optimizer._step()
