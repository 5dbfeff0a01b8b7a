"""From an update rule to a `torch.optim.Optimizer`."""

import functools
import importlib
import warnings
from collections import defaultdict
from importlib.util import find_spec
from itertools import chain

import torch

from kernels import table as tables
from kernels.rules import Rule

BACKENDS = {"triton": "kernels.multi_tensor", "cpu": "kernels.cpu", "eager": "kernels.eager"}


class RuleOptimizer(torch.optim.Optimizer):
    """Applies one rule to all parameters, in one launch for each (device, dtypes).

    A subclass names its `rule` and translates a parameter group into the rule's hyperparameters.

    Any hyperparameter may be a `[K]` tensor when every parameter of its group is stacked
    `[K, ...]`: lane k of each parameter is then updated with value k and counts steps of its own.

    Args:
        params: iterable of parameters or of group dictionaries, as in torch.
        defaults: hyperparameters of groups that do not set their own.
        backend: "triton" (GPU; CPU tensors under TRITON_INTERPRET=1), "cpu" (Numba) or "eager".
            None chooses triton for CUDA tensors and cpu for CPU tensors.
    Raises: ValueError if a hyperparameter is out of range, or lanes and shapes do not fit.
    """

    rule: Rule

    def __init__(self, params, defaults: dict, backend: str | None = None):
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"Invalid backend: {backend!r} (one of {', '.join(BACKENDS)}, or None)")
        self.backend = backend
        self._forget_tables()
        super().__init__(params, defaults)

    def hyper(self, group: dict) -> tuple:
        """The rule's hyperparameters of a group, in the order of `rule.hyper`: floats or tensors."""
        raise NotImplementedError

    def check_group(self, group: dict) -> None:
        """Raise ValueError if a hyperparameter of the group is out of range."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; also checks the values, and lane counts against shapes."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            self.check_group(group)
            self._lanes(group)
        except ValueError:
            self.param_groups.pop()
            raise
        self._forget_tables()

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, except that states keep the dtype in which they were saved, and are copies."""
        super().load_state_dict(state_dict)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for p, i in zip(params, ids, strict=True):
            for name, saved in state_dict["state"].get(i, {}).items():
                if name == "step" or name in self.rule.states:
                    self.state[p][name] = torch.as_tensor(saved).to(device=p.device, copy=True)
        self._forget_tables()

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

        found = [(g, p) for g, group in enumerate(self.param_groups) for p in group["params"] if p.grad is not None]
        layout = [(p.data_ptr(), p.grad.dtype, p.grad.layout, id(self.state.get(p))) for _, p in found]
        if layout != self._layout:
            self._forget_tables()
            self._tables = self._build_tables(found)
            self._layout = [(*key[:-1], id(self.state[p])) for key, (_, p) in zip(layout, found, strict=True)]
        self._refresh_hyper()
        for table, params, backend in self._tables:
            backend.update_(table, [p.grad if p.grad.is_contiguous() else p.grad.contiguous() for p in params])
        return loss

    def _refresh_hyper(self) -> None:
        """Bring the tables up to date with the groups, if any value has changed."""
        values = [self.hyper(group) for group in self.param_groups]
        seen = [[(id(v), v._version) if isinstance(v, torch.Tensor) else v for v in row] for row in values]
        if seen != self._hyper_seen:
            for table, _, _ in self._tables:
                table.set_hyper(values)
            # The values are kept too: an id means something only as long as its object lives.
            self._hyper_seen, self._hyper_values = seen, values

    def _build_tables(self, found: list) -> list[tuple]:
        buckets = defaultdict(list)
        for g, p in found:
            backend = self._backend(p.device)
            self._check_tensor(p, g, backend)
            buckets[p.device, p.dtype, p.grad.dtype, backend].append((g, p))
        built = []
        for (_, _, grad_dtype, backend), members in buckets.items():
            entries = []
            for g, p in members:
                lanes = self._lanes(self.param_groups[g])
                state = self._state(p, lanes)
                entries.append(
                    tables.Entry(p, tuple(state[name] for name in self.rule.states), state["step"], lanes, g)
                )
            table = tables.build(self.rule, entries, grad_dtype, backend.CHUNK_SIZE)
            built.append((table, [p for _, p in members], backend))
        return built

    def _state(self, p: torch.Tensor, lanes: int) -> dict:
        """The state of p, made if there is none; step is a float32 tensor on p's device, as a launch needs it."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(lanes) if lanes > 1 else torch.tensor(0.0)
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            for name in self.rule.states:
                state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.contiguous_format)
        step = torch.as_tensor(state["step"], dtype=torch.float32, device=p.device)
        if step.numel() == 1 < lanes:
            step = step.reshape(1).repeat(lanes)
        shapes = {name: state[name].shape for name in self.rule.states}
        if step.numel() != lanes or any(shape != p.shape for shape in shapes.values()):
            found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ValueError(
                f"State does not fit a parameter of shape {list(p.shape)} with {lanes} lanes: "
                f"step has {step.numel()}, {found}"
            )
        state["step"] = step
        return state

    def _check_tensor(self, p: torch.Tensor, g: int, backend) -> None:
        """Raise if p or its gradient is of a kind that the backend cannot update."""
        if p.grad.layout != torch.strided:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients, consider SparseAdam instead")
        for tensor, what in ((p, "parameter"), (p.grad, "gradient")):
            if tensor.dtype not in backend.DTYPES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.DTYPES)
                raise TypeError(f"{self._name(p, g)}: a {what} of {tensor.dtype} (this backend takes {known})")
        if not p.is_contiguous():
            raise ValueError(f"{self._name(p, g)}: not contiguous (strides {tuple(p.stride())})")

    def _name(self, p: torch.Tensor, g: int) -> str:
        index = next(i for i, other in enumerate(self.param_groups[g]["params"]) if other is p)
        return f"parameter {index} of group {g}, shape {list(p.shape)}"

    def _lanes(self, group: dict) -> int:
        """The number of lanes of a group: 1 where all its hyperparameters are single values.

        Raises: ValueError if lane counts differ, or a parameter is not stacked accordingly.
        """
        tensors = dict(zip(self.rule.hyper, self.hyper(group), strict=True))
        sizes = {name: v.numel() for name, v in tensors.items() if isinstance(v, torch.Tensor) and v.numel() != 1}
        if not sizes:
            return 1
        lanes = max(sizes.values())
        if min(sizes.values()) != lanes:
            counts = ", ".join(f"{name} has {n}" for name, n in sizes.items())
            raise ValueError(f"Hyperparameter tensors of a group must have as many lanes as each other: {counts}")
        for i, p in enumerate(group["params"]):
            if p.ndim == 0 or p.shape[0] != lanes:
                raise ValueError(
                    f"Hyperparameters have {lanes} lanes, so parameter {i} must be stacked [{lanes}, ...]; "
                    f"its shape is {list(p.shape)}"
                )
        return lanes

    def _backend(self, device: torch.device):
        name = self.backend or {"cuda": "triton", "cpu": "cpu"}.get(device.type, "eager")
        if name == "cpu" and not has_numba():
            name = "eager"
        return importlib.import_module(BACKENDS[name])

    def _forget_tables(self) -> None:
        self._layout, self._tables, self._hyper_seen, self._hyper_values = None, [], None, []

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "backend": self.backend}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._forget_tables()


@functools.cache
def has_numba() -> bool:
    """Whether Numba is installed; says once what it means if not."""
    if find_spec("numba"):
        return True
    warnings.warn(
        "Numba is not installed: CPU tensors are updated by eager formulas, about twenty times slower", stacklevel=2
    )
    return False
