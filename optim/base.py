"""From an update rule to a `torch.optim.Optimizer`."""

import contextlib
import functools
import importlib
import warnings
import weakref
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from operator import is_
from typing import NamedTuple

import torch

from kernels import table as tables
from kernels.rule import Rule
from optim import memory

BACKENDS = {"triton": "kernels.multi_tensor", "cpu": "kernels.cpu", "eager": "kernels.eager"}
STATE_DTYPES = (torch.float32, torch.bfloat16)
ROUNDINGS = ("nearest", "stochastic")
Value = float | torch.Tensor


class Part(NamedTuple):
    """One launch of a step.

    Attributes:
        launch: see `kernels.table.Launch`.
        index: which of the gradients it takes.
        special: (position in index, buffer) of gradients that are complex, or laid out in memory otherwise than
            their parameter: those are copied into the buffer first.
        gaps: (copy, parameter) of parameters that have gaps in memory: the copy is what is updated.
    """

    table: tables.Table
    launch: tables.Launch
    index: list[int]
    special: list[tuple[int, torch.Tensor | None]]
    gaps: list[tuple[torch.Tensor, torch.Tensor]]


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
        accepted(backend, "backend", (*BACKENDS, None))
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
            self._lanes(group)
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise
        self._forget_tables()

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
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        if self._sharded:
            grads = [g if g is None else memory.aligned(g, p) for g, p in zip(grads, params, strict=True)]
            params = [memory.local(p) for p in params]  # a DTensor has no address of its own
        # Of the same tensors at the same places nothing else can have changed.
        places = [*map(torch.Tensor.data_ptr, params)], [*map(id, self.state.values())]
        seen = [nothing if g is None else g for g in grads]
        if places != self._places or not all(map(is_, [ref() for ref in self._refs], seen)):
            self._look_again(grads, places)
        self._refresh_hyper()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for table, launch, index, special, gaps in self._parts:
            own = [grads[i] for i in index]
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

    def _look_again(self, grads: list, places: tuple) -> None:
        """Lay the tables out anew if parameters, states or the layout of gradients are not those of the last step."""
        kinds = None
        with contextlib.suppress(RuntimeError):  # A sparse gradient has no strides, and `_build` says so.
            kinds = [g if g is None else (g.dtype, g.stride()) for g in grads]
        if kinds is None or places != self._places or kinds != self._kinds:
            self._forget_tables()
            self._parts = self._build([p for group in self.param_groups for p in group["params"]], grads)
            # States that were made just now have places now.
            places = places[0], [*map(id, self.state.values())]
        self._places, self._kinds = places, kinds
        self._refs = [nothing if g is None else weakref.ref(g) for g in grads]

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

    def _build(self, params: list, grads: list) -> list[Part]:
        """Check every tensor, make the states that are missing, and lay the tables out."""
        if any(tables.capturing(p.device) for p in params):
            raise RuntimeError(
                "Parameters, states or the layout of gradients have changed since the last step, and a CUDA graph is "
                "being captured: take a step with them before the capture"
            )
        groups = [g for g, group in enumerate(self.param_groups) for _ in group["params"]]
        present = [i for i, grad in enumerate(grads) if grad is not None]
        for i in present:
            self._check_tensors(params[i], grads[i], groups[i], i)
        buckets = defaultdict(list)
        waves = memory.waves([memory.real(params[i]) for i in present])
        for i, wave in zip(present, waves, strict=True):
            p, group = params[i], self.param_groups[groups[i]]
            rule, lanes = self.rule(group), self._lanes(group)
            state = self._state(p, group, rule, lanes, i)
            template = state[rule.states[0]] if rule.states else memory.like(p, p.dtype, lanes)
            backend = self._backend(p, grads[i])
            dtypes = memory.real(p).dtype, memory.real(grads[i]).dtype, memory.real(template).dtype
            copy = None
            if memory.layout(memory.real(p)) != memory.layout(memory.real(template)):
                copy = torch.empty_like(memory.real(template), dtype=dtypes[0])
            entry = tables.Entry(
                p=memory.real(p) if copy is None else copy,
                states=tuple(memory.real(state[name]) for name in rule.states),
                step=state["step"],
                scalars=tuple(state[name] for name in rule.scalars),
                lanes=lanes,
                group=groups[i],
                parameter=i,
            )
            buckets[(wave, rule.name, p.device, *dtypes, backend)].append((i, rule, entry, copy))

        parts = []
        for (_, _, _, _, grad_dtype, _, backend), members in sorted(buckets.items(), key=lambda item: item[0][0]):
            _, (rule, *_), entries, _ = map(list, zip(*members, strict=True))
            seed = self.seed if self.rounding == "stochastic" else None
            table = tables.build(rule, entries, grad_dtype, backend.CHUNK_SIZE, seed)
            special, gaps = [], []
            for position, (i, _, entry, copy) in enumerate(members):
                grad = memory.real(grads[i])
                moved = memory.layout(grad) != memory.layout(entry.p)
                if moved or grads[i].is_complex():
                    special.append((position, torch.empty_like(entry.p, dtype=grad_dtype) if moved else None))
                if copy is not None:
                    gaps.append((copy, memory.real(params[i])))
            parts.append(Part(table, backend.launcher(table), [i for i, *_ in members], special, gaps))
        return parts

    def _state(self, p: torch.Tensor, group: dict, rule: Rule, lanes: int, i: int) -> dict:
        """The state of p as a launch needs it, made or mended where it is not.

        Step and scalars are float32 on p's device, one a lane; states are laid out like p, or without gaps if p has.
        """
        state, initial = self.state[p], self.initial(group)
        fresh = not any(name in state for name in rule.states) and (bool(rule.states) or "step" not in state)
        # torch.optim.SGD does not count: it has taken a step if it has a momentum buffer.
        made = {"step": torch.tensor(0.0) if fresh else torch.as_tensor(state.get("step", 1.0))}
        for name in rule.scalars:
            made[name] = torch.as_tensor(state.get(name, initial.get(name, 0.0)))
        for name, value in made.items():
            if value.numel() not in (1, lanes):
                raise ValueError(f"{self._name(p, i)} has {lanes} lanes, and {name} of its state {value.numel()}")
            value = value.to(p.device, torch.float32)
            made[name] = value.reshape(-1).expand(lanes).contiguous() if lanes > 1 else value.reshape(())
            if name in state and made[name].data_ptr() == state[name].data_ptr():
                made[name] = state[name]

        dtype = self.state_dtype or next((state[n].dtype for n in rule.states if n in state), None)
        dtype = memory.state_dtype(p.dtype, dtype)
        for name in rule.states:
            old, new = state.get(name), memory.like(p, dtype, lanes)
            if old is None:
                value = torch.as_tensor(initial.get(name, 0.0), dtype=torch.float64)
                if value.numel() > 1 or value.item() != 0:
                    real = memory.real(new)
                    real.copy_(value.to(real.device).reshape(-1, *[1] * (real.ndim - 1)) if value.ndim else value)
            elif old.shape != p.shape:
                raise ValueError(f"{self._name(p, i)}: {name} of its state has shape {list(old.shape)}")
            elif old.dtype == dtype and memory.layout(memory.real(old)) == memory.layout(memory.real(new)):
                new = old
            else:
                new.copy_(old)
            made[name] = new
        state.update(made)
        return state

    def _check_tensors(self, p: torch.Tensor, grad: torch.Tensor, g: int, i: int) -> None:
        """Raise if p or its gradient is of a kind that the backend cannot update."""
        name = self._name(p, i)
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients, consider SparseAdam instead: {name}"
            )
        if any(stride == 0 and size > 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
            raise RuntimeError(f"{name}: several elements share one place in memory (strides {tuple(p.stride())})")
        backend = self._backend(p, grad)
        for tensor, what in ((p, "parameter"), (grad, "gradient")):
            dtype = memory.real(tensor).dtype
            if dtype not in backend.DTYPES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.DTYPES)
                raise TypeError(f"{name}: a {what} of {tensor.dtype} (this backend takes {known})")
        if self.rounding == "stochastic" and memory.real(p).dtype == torch.float16:
            raise TypeError(f"{name} is float16, and rounding='stochastic' is for bfloat16")
        if self._lanes(self.param_groups[g]) > 1 and hasattr(p, "to_local"):
            raise TypeError(f"{name} is a DTensor, whose lanes could lie on several machines: lanes need plain tensors")

    def _name(self, p: torch.Tensor, i: int) -> str:
        """What messages call parameter i of all groups laid end to end."""
        names = [name for group in self.param_groups for name in group.get("param_names", group["params"])]
        called = f" ({names[i]})" if isinstance(names[i], str) else ""
        return f"parameter {i}{called} of shape {list(p.shape)}"

    def _lanes(self, group: dict) -> int:
        """The number of lanes of a group: 1 where all its hyperparameters are single values.

        Raises: ValueError if lane counts differ, or a parameter is not stacked accordingly.
        """
        values = dict(zip(self.rule(group).hyper, self.hyper(group), strict=True)) | dict(self.initial(group))
        hyper = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
        for name, value in hyper.items():
            for p in group["params"]:
                if value.device.type != "cpu" and value.device != p.device:
                    raise ValueError(
                        f"{name} is on {value.device}, and a parameter of shape {list(p.shape)} on {p.device}"
                    )
        sizes = {name: v.numel() for name, v in hyper.items() if v.numel() != 1}
        if not sizes:
            return 1
        lanes = max(sizes.values())
        if min(sizes.values()) != lanes:
            counts = ", ".join(f"{name} has {n}" for name, n in sizes.items())
            raise ValueError(f"Hyperparameter tensors of a group must have as many lanes as each other: {counts}")
        for i, p in enumerate(group["params"]):
            if p.ndim == 0 or p.shape[0] != lanes:
                raise ValueError(
                    f"Tensor {next(iter(sizes))} must be 1-element, or have as many elements as parameters have lanes: "
                    f"it has {lanes}, so parameter {i} must be stacked [{lanes}, ...]; its shape is {list(p.shape)}"
                )
        return lanes

    def _backend(self, p: torch.Tensor, grad: torch.Tensor):
        """The module that updates p: the one asked for, or else the fastest that takes the tensors."""
        if self.backend:
            return backend_module(self.backend)
        module = backend_module({"cuda": "triton", "cpu": "cpu"}.get(p.device.type, "eager"))
        takes_both = all(memory.real(tensor).dtype in module.DTYPES for tensor in (p, grad))
        return module if takes_both else backend_module("eager")

    def _forget_tables(self) -> None:
        self._parts, self._places, self._kinds, self._refs = [], None, None, []
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
    """Stands for a gradient that is not there, and for the weak reference to it; a freed one's returns None."""
    return nothing


@torch._disable_dynamo
def untraced_step(optimizer: RuleOptimizer) -> None:
    """The step in a function under torch.compile, which cannot trace a launch over addresses."""
    optimizer._step()


def backend_module(name: str):
    if name == "cpu" and not has_numba():
        name = "eager"
    return importlib.import_module(BACKENDS[name])


@functools.cache
def has_numba() -> bool:
    """Whether Numba is installed; says once what it means if not."""
    if find_spec("numba"):
        return True
    warnings.warn(
        "Numba is not installed: CPU tensors are updated by eager formulas, about twenty times slower", stacklevel=2
    )
    return False


def accepted(value, name: str, values: tuple) -> None:
    """Raise ValueError unless the value is one of those."""
    if value not in values:
        raise ValueError(f"Invalid {name}: {value!r} (one of {', '.join(map(str, values))})")


def check(name: str, value: Value, accepts) -> None:
    """Raise ValueError unless every element of the value is accepted."""
    if isinstance(value, torch.Tensor) and value.is_meta:
        return
    values = torch.as_tensor(value, dtype=torch.float64)
    bad = ~torch.as_tensor(accepts(values))
    if bad.any():
        first = values[bad].flatten()[0].item() if isinstance(value, torch.Tensor) else value
        raise ValueError(f"Invalid {name}: {first}")


def check_betas(betas: tuple[Value, Value]) -> None:
    """Raise ValueError unless both betas are in [0, 1)."""
    for i, beta in enumerate(betas):
        check(f"beta parameter at index {i}", beta, lambda v: (v >= 0) & (v < 1))


def options(arguments: dict) -> dict:
    """The defaults of a group: all arguments of a constructor but what is not an option of groups."""
    return {k: v for k, v in arguments.items() if k not in ("self", "params", "own", "__class__")}
