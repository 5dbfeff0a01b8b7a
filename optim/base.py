"""The base class of all optimizers, which applies an update rule."""

import sys
from collections.abc import Mapping
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

from kernels import eager
from kernels import table as tables
from kernels.rule import Rule
from optim import checks, compressed, dispatched, lanes, launches, memory, saved, totals, watch
from optim.arguments import Value, accepted, check_non_negative
from optim.backends import check_name

STATE_DTYPES = (torch.float32, torch.bfloat16, compressed.INT8)
ROUNDINGS = ("nearest", "stochastic")


class RuleOptimizer(torch.optim.Optimizer):
    """Applies a rule to all parameters, in one launch for each (rule, device, dtypes).

    A subclass names the `rule` of a parameter group and translates the group into its hyperparameters.

    A hyperparameter may be a `[K]` tensor if every parameter of its group is stacked `[K, ...]`: lane k of each
    parameter is then updated with value k and has its own step count.

    Args:
        params: iterable of parameters or of group dictionaries, as in torch.
        defaults: hyperparameters of groups that do not set their own.
        backend: "triton" (GPU; CPU tensors under TRITON_INTERPRET=1), "cpu" (Numba) or "eager"; for CPU tensors also
            "compiled:sm_90" and the like, which simulate what Triton compiles for that GPU, slowly.
            None chooses triton for CUDA tensors, cpu for CPU tensors, and eager if those lack the dtype.
        state_dtype: dtype of states, torch.float32, torch.bfloat16 or "int8"; None is float32 (float64 for float64
            parameters) for new states, and for loaded ones the dtype in which they were saved. "int8" takes one byte
            an element, and a float32 scale for each 256, `exp_avg_scale` beside `exp_avg`; see `kernels.codes`.
        rounding: "nearest" or "stochastic", for everything that is stored in bfloat16.
        seed: seed of stochastic rounding, an int in [0, 2^31).
        max_grad_norm: the largest norm of the gradients of all groups that have one (of all their parameters together;
            with lanes of each lane's, and a `[K]` tensor may give each its own): larger ones are scaled down to it
            first, as by `torch.nn.utils.clip_grad_norm_`, but `p.grad` stays as it is. None does not clip.
    Raises: ValueError if a hyperparameter is out of range, or lanes and shapes do not fit.
    """

    state_names: tuple[str, ...]
    """Names of all states, except step, that the optimizer's rules keep."""

    late_states: tuple[str, ...] = ()
    """States that may be missing: the option that needs them can be switched on between steps."""

    state: watch.States
    grad_scale: torch.Tensor | None
    found_inf: torch.Tensor | None
    """Both are set by a GradScaler before a step, and deleted after it."""

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
        state_dtype: torch.dtype | str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        max_grad_norm: Value | None = None,
    ):
        check_name(backend)
        accepted(state_dtype, "state_dtype", (*STATE_DTYPES, None))
        accepted(rounding, "rounding", ROUNDINGS)
        if not (isinstance(seed, int) and 0 <= seed < 2**31):
            raise ValueError(f"Invalid seed: {seed!r} (an int in [0, 2^31))")
        self.backend, self.state_dtype, self.rounding, self.seed = backend, state_dtype, rounding, seed
        self._forget_tables()
        if max_grad_norm is not None:  # Groups have it only then: torch's checkpoints lack it.
            defaults = {**defaults, "max_grad_norm": max_grad_norm}
        self.check_group(defaults)
        super().__init__(params, defaults)
        self.state = watch.States.of(self.state)
        if defaults.get("fused"):
            # Then GradScaler leaves the division by its scale to the step.
            self._step_supports_amp_scaling = True

    def rule(self, group: dict) -> Rule:
        """Return the rule that updates the group's parameters."""
        raise NotImplementedError

    def hyper(self, group: dict) -> tuple:
        """Return the group's hyperparameters, floats or tensors, in the order of `rule.hyper`."""
        raise NotImplementedError

    def check_group(self, group: dict) -> None:
        """Raise ValueError if a hyperparameter of the group is out of range; subclasses add checks."""
        compressed.check_group(self, group)
        if group.get("max_grad_norm") is not None:
            check_non_negative(group, "max_grad_norm")
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
        """Return the initial values of states, by name, if they are not 0."""
        return {}

    def check_shapes(self, group: dict, lanes: int) -> None:
        """Raise ValueError or TypeError for parameters that the group's rule cannot update in so many lanes."""

    def make_launch(
        self, backend: ModuleType, rule: Rule, entries: list[tables.Entry], grad_dtype: torch.dtype, seed: int | None
    ) -> tuple[tables.Table, tables.Launch]:
        """Return the table of these entries, and what updates them; a subclass may do more than launch the rule."""
        table = backend.build(rule, entries, grad_dtype, seed)
        return table, backend.launcher(table)

    def advance(self, group: int, step: eager.Step) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return p and its states after a step of torch's operations, which has begun; group is its group's number."""
        return step.update()

    def add_param_group(self, param_group: dict) -> None:
        """Add a group as torch does; check its values and lanes."""
        without_compiler(super().add_param_group)(param_group)
        try:
            group = self.param_groups[-1]
            self.check_group(group)
            checks.lanes_of(self, group)
            checks.check_sums(self)
            lanes.adopt(self, group)
        except (ValueError, TypeError, RuntimeError):
            self.param_groups.pop()
            raise
        self._forget_tables()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients as torch does."""
        without_compiler(super().zero_grad)(set_to_none)

    @_disable_dynamo
    def state_dict(self) -> dict:
        """Return the state as torch does, with learning rates of lanes as plain tensors."""
        return lanes.to_save(super().state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state as torch does, except that states keep the dtype in which they were saved, and are copies.

        Entries of a state other than step and `state_names` are loaded as torch loads them, and never used.
        Raises: ValueError if the states are those of another optimizer; nothing has been changed then.
        """
        found = {}

        def inspect(_, final: dict) -> None:
            # Called after all other hooks, on the dictionary that they return.
            for i, state in final["state"].items():
                saved.check_names(self, i, state)
            for group in final["param_groups"]:
                compressed.check_group(self, {**self.defaults, **group})
            found.update(final)

        hook = self.register_load_state_dict_pre_hook(inspect)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        # New dictionaries, which nothing else refers to, and into which copies of states go.
        self.state = watch.States(
            dict, {p: dict(state) if isinstance(state, dict) else state for p, state in dict.items(self.state)}
        )
        own = {"step", *self.state_names, *map(compressed.scale_name, self.state_names)}
        for group, of_group in zip(self.param_groups, found["param_groups"], strict=True):
            for p, i in zip(group["params"], of_group["params"], strict=True):
                for name, value in found["state"].get(i, {}).items():
                    if name in own and isinstance(value, torch.Tensor):
                        watch.own(self.state, p)[name] = value.to(device=p.device, copy=True)
                    elif isinstance(value, str):  # torch would make a generator of it.
                        watch.own(self.state, p)[name] = value
        self._forget_tables()

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step: parameters, states and step counts change in place, gradients do not.

        Args:
            closure: evaluates the model again and returns the loss, which `step` then returns.
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
        groups = self.param_groups
        params = [*chain.from_iterable([group["params"] for group in groups])]
        grads = [p.grad for p in params]
        hyper = [(-1.0 if group.get("maximize") else 1.0, *totals.hyper_of(self, group)) for group in groups]
        if watch.in_a_mode() or watch.in_a_transform():
            dispatched.step(self, params, grads, hyper)
            return
        if self._sharded:
            grads = [None if g is None else memory.aligned(g, p) for g, p in zip(grads, params, strict=True)]
        are_numbers, lanes_of = watch.are_numbers(hyper), []
        if not are_numbers:
            hyper = [(*map(watch.in_memory, row),) for row in hyper]
            lanes_of = [*map(watch.lanes, hyper)]
        structure = [
            (self.backend, self.state_dtype, self.rounding, self.seed),
            *[(totals.rule_of(self, group), len(group["params"])) for group in groups],
            *(lanes_of if any(lanes_of) else []),
        ]
        if self._seen is None or not self._seen.same(structure, params, grads, self.state):
            self._look_again(structure, params, grads)
            if self._seen is None:
                dispatched.step(self, params, grads, hyper)
                return
        if any(part.table.captured for part in self._parts):
            self._leave_captured(params, grads, hyper)
        if not are_numbers or hyper != self._hyper_seen:
            self._refresh_hyper(hyper)
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        taken = [part.taken(grads) for part in self._parts]
        if len(taken) > 1:  # Before the first: each launch checks only its own.
            for part, own in zip(self._parts, taken, strict=True):
                part.table.check_memory(own)
        scaler = grad_scale, found_inf
        scalers = [[memory.moved(t, part.table.rows.device) for t in scaler] for part in self._parts]
        if any(part.launch.n_stages for part in self._parts):
            totals.run(self._parts, taken, scalers)
        else:
            for part, own, scaler in zip(self._parts, taken, scalers, strict=True):
                part.fill()
                part.launch(own, *scaler)
                part.empty()
        for part, own, scaler in zip(self._parts, taken, scalers, strict=True):
            if tables.capturing(part.table.rows.device):
                part.table.pin(own, *scaler)
        # As torch's operations do, so that autograd notices changes of tensors that it saved for a backward pass.
        torch.autograd.graph.increment_version(self._seen.written)
        if not self._seen.is_untold(self.state):
            torch.autograd.graph.increment_version(self._seen.states)
        if grad_scale is not None:
            unscale_([g for g in grads if g is not None], grad_scale, found_inf)

    def _look_again(self, structure: list, params: list, grads: list) -> None:
        """Build the tables anew unless they fit; `_seen` is then None if tensors need torch's operations."""
        present = [t for pair in zip(params, grads, strict=True) if pair[1] is not None for t in pair]
        if not all(watch.is_plain(memory.local(t)) for t in present):
            self._forget_tables()
            return

        def look() -> watch.Seen:
            names = [
                launches.names_of(self.rule(group), dict.get(self.state, p) or {})
                for group in self.param_groups
                for p in group["params"]
            ]
            return watch.Seen(structure, params, grads, self.state, names)

        if self._seen is None or not self._seen.agrees(now := look()):
            self._forget_tables()
            checks.check(self, params, grads)
            self._lay_out(params, grads)
            now = look()
        self._seen = now

    def _lay_out(self, params: list, grads: list) -> None:
        # Tensors made here are also used in steps outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self._parts = launches.build(self, params, grads)

    def _leave_captured(self, params: list, grads: list, hyper: list[tuple]) -> None:
        """Build the tables anew if those that a CUDA graph has captured would have to change.

        Replays continue with the gradients and hyperparameters that were captured, which live as long as the
        optimizer; hyperparameters on the device are read anew. Both use the same parameters, states and step
        counts, so that replays and steps may alternate.
        """
        if any(tables.capturing(part.table.rows.device) for part in self._parts):
            return
        seen = self._hyper_seen
        changed = seen is None or not all(map(watch.same_values, hyper, seen))
        if changed or any(part.moves(grads) for part in self._parts):
            self._captured += self._parts
            self._lay_out(params, grads)
            self._hyper_seen = None

    def _refresh_hyper(self, hyper: list[tuple]) -> None:
        """Update the tables' hyperparameters if one has changed."""
        on_device = any(isinstance(v, torch.Tensor) and v.is_cuda for row in hyper for v in row)
        changed = self._hyper_seen is None or not all(map(watch.same_values, hyper, self._hyper_seen))
        if not changed and not on_device:
            return
        for table, *_ in self._parts:
            reads = any(isinstance(v, torch.Tensor) and v.is_cuda for group in table.groups for v in hyper[group])
            captured = tables.capturing(table.rows.device)
            if captured and changed and not reads:
                raise RuntimeError(
                    "A hyperparameter has changed since the last step, and a CUDA graph is being captured: take a "
                    "step with it before, or make it a tensor on the device, which the graph reads at each replay"
                )
            if changed or reads:
                table.set_hyper(hyper)
        if changed:
            self._hyper_seen = [
                tuple(v.detach().clone() if isinstance(v, torch.Tensor) else v for v in row) for row in hyper
            ]

    def _forget_tables(self) -> None:
        # Each replay of a captured launch reads its table and what that points to.
        captured = [part for part in getattr(self, "_parts", []) if part.table.captured]
        self._captured = [*getattr(self, "_captured", []), *captured]
        self._parts, self._seen, self._hyper_seen = [], None, None
        params = [p for group in getattr(self, "param_groups", []) for p in group["params"]]
        self._sharded = any(map(memory.is_distributed, params))

    def __getstate__(self) -> dict:
        own = {name: getattr(self, name) for name in ("backend", "state_dtype", "rounding", "seed")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.state = watch.States.of(self.state)
        for group in self.param_groups:
            for name, value in saved.ABSENT.items():
                if name in self.defaults:
                    group.setdefault(name, value)
            if "max_grad_norm" in self.defaults:  # which torch's checkpoints lack
                group.setdefault("max_grad_norm", self.defaults["max_grad_norm"])
        self._forget_tables()


def unscale_(grads: list[torch.Tensor], grad_scale: torch.Tensor, found_inf: torch.Tensor | None) -> None:
    """Divide gradients by a GradScaler's scale, in place, unless the step was skipped, as torch's fused steps do."""
    for grad in grads:
        scale = (
            grad_scale if found_inf is None else torch.where(found_inf == 0, grad_scale, torch.ones_like(grad_scale))
        )
        grad.div_(scale.to(grad.device, grad.dtype.to_real()))


@_disable_dynamo
def untraced_step(optimizer: RuleOptimizer) -> None:
    """Take the step of a function under torch.compile, which cannot trace a launch over addresses."""
    optimizer._step()


def without_compiler(method: Any) -> Any:
    """Return a method of torch's optimizers as one whose call does not import torch's compiler, which takes a second.

    torch keeps its compiler out of some methods, and imports it to do so. Where nothing else has imported it, nothing
    can be compiling.
    """
    function: Any = getattr(method, "__func__", None)
    guarded = getattr(function, "__globals__", None) is _disable_dynamo.__globals__
    return function.__wrapped__.__get__(method.__self__) if guarded and "torch._dynamo" not in sys.modules else method
