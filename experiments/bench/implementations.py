"""Implementations of optimizer steps, by name: torch's, ours, and those of other packages.

An implementation that is not installed, or lacks a class, dtype or device, is left out with a reason.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from kernels.rule import Rule

Params = list[torch.nn.Parameter]


class OptimizerCase(NamedTuple):
    """An optimizer to time: its class's name in `torch.optim` and `optim`, its arguments, its parameters' dtype."""

    name: str
    arguments: dict
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])

    @property
    def rule(self) -> Rule:
        import optim
        from optim import totals

        optimizer = getattr(optim, self.name)([torch.zeros(1, 1, requires_grad=True)], **self.arguments)
        return totals.rule_of(optimizer, optimizer.param_groups[0])

    @property
    def n_states(self) -> int:
        """Number of state tensors for each parameter that have its shape."""
        return len(self.rule.states)


class Implementation(NamedTuple):
    """How to make an optimizer, and what limits where it can be timed.

    Attributes:
        make: (case, parameters) -> optimizer; may raise any exception.
        state_bytes: (dtype of a parameter, its number of elements) -> bytes per element of one state.
        devices: device types on which it is timed.
        dtypes: parameter dtypes with which it is timed; None for all.
        captures: whether its step can be captured into a CUDA graph.
        compiles: whether its first step takes minutes to compile.
        scratch: number of temporary tensors, each as large as all parameters, that a step allocates.
    """

    make: Callable[[OptimizerCase, Params], torch.optim.Optimizer]
    state_bytes: Callable[[torch.dtype, int], float]
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] | None = None
    captures: bool = False
    compiles: bool = False
    scratch: int = 0


def of_torch(**flags) -> Callable[[OptimizerCase, Params], torch.optim.Optimizer]:
    """Return a function that makes torch's class, whose steps clip gradients first if the case has a max_grad_norm."""

    def make(case: OptimizerCase, params: Params) -> torch.optim.Optimizer:
        arguments = {name: value for name, value in case.arguments.items() if name != "max_grad_norm"}
        optimizer = getattr(torch.optim, case.name)(params, **arguments, **flags)
        if (max_norm := case.arguments.get("max_grad_norm")) is not None:
            step = optimizer.step

            def clipped_step() -> None:
                torch.nn.utils.clip_grad_norm_(params, max_norm)
                step()

            optimizer.step = clipped_step
        return optimizer

    return make


def ours(**flags) -> Callable[[OptimizerCase, Params], torch.optim.Optimizer]:
    def make(case: OptimizerCase, params: Params) -> torch.optim.Optimizer:
        import optim  # and Triton with it, which the names of implementations do without

        return getattr(optim, case.name)(params, **case.arguments, **flags)

    return make


def of_package(module: str, name: str, **flags) -> Callable[[OptimizerCase, Params], torch.optim.Optimizer]:
    """Return a function that makes the class `name` of a package, where {} stands for Adam or AdamW."""
    return lambda case, params: getattr(importlib.import_module(module), name.format(case.name))(
        params, **case.arguments, **flags
    )


def apex_like(module: str) -> Callable[[OptimizerCase, Params], torch.optim.Optimizer]:
    """Return a function that makes FusedAdam of apex or of a package that copied it, as Adam or AdamW."""

    def make(case: OptimizerCase, params: Params) -> torch.optim.Optimizer:
        decays = {"Adam": {"adam_w_mode": False}, "AdamW": {"adam_w_mode": True, "weight_decay": 0.01}}
        if case.name not in decays:
            raise ValueError(f"FusedAdam is no {case.name}")
        return importlib.import_module(module).FusedAdam(params, lr=1e-3, **decays[case.name], **case.arguments)

    return make


def compiled(case: OptimizerCase, params: Params) -> torch.optim.Optimizer:
    """Make an optimizer of `torch.optim` whose step is compiled when it is first called."""
    optimizer = of_torch()(case, params)
    # Without a reset, the ninth optimizer of a process would silently run uncompiled.
    torch.compiler.reset()
    optimizer.step = torch.compile(optimizer.step)
    return optimizer


def like_parameter(dtype: torch.dtype, n_elements: int) -> float:
    return dtype.itemsize


def in_float32(dtype: torch.dtype, n_elements: int) -> float:
    return max(4, dtype.itemsize)


def in_bfloat16(dtype: torch.dtype, n_elements: int) -> float:
    return 2


def like_ours(dtype: torch.dtype, n_elements: int) -> float:
    """Count bfloat16 states for bfloat16 parameters, as torch keeps them, and float32 states for float16."""
    return 2 if dtype == torch.bfloat16 else max(4, dtype.itemsize)


def in_8_bits(dtype: torch.dtype, n_elements: int) -> float:
    """Count a byte per element and a float32 scale per 256 elements; tensors below 4096 elements keep float32."""
    return 1 + 4 / 256 if n_elements >= 4096 else 4


def in_8_bits_of_torchao(dtype: torch.dtype, n_elements: int) -> float:
    """Count as `in_8_bits` does; tensors below 4096 elements, or not a multiple of 256, keep the parameter's dtype."""
    return 1 + 4 / 256 if n_elements >= 4096 and n_elements % 256 == 0 else dtype.itemsize


def in_blocks_of_8_bits(dtype: torch.dtype, n_elements: int) -> float:
    """Count a byte per element and a float32 scale per 256 elements."""
    return 1 + 4 / 256


def ours_like_torch(case: OptimizerCase, params: Params, **flags) -> torch.optim.Optimizer:
    """Make our optimizer with states of the dtype that torch would use for bfloat16 parameters."""
    if case.dtype == torch.bfloat16:
        flags["state_dtype"] = torch.bfloat16
    return ours(**flags)(case, params)


BOTH = ("cpu", "cuda")
BFLOAT16 = (torch.bfloat16,)

IMPLEMENTATIONS: dict[str, Implementation] = {
    "torch fused": Implementation(of_torch(fused=True), like_parameter, BOTH, captures=True),
    "ours": Implementation(ours_like_torch, like_ours, BOTH, captures=True),
    "ours, stochastic": Implementation(
        ours(state_dtype=torch.bfloat16, rounding="stochastic"), in_bfloat16, BOTH, BFLOAT16, captures=True
    ),
    "ours, bfloat16 states": Implementation(
        ours(state_dtype=torch.bfloat16), in_bfloat16, BOTH, (torch.float32,), captures=True
    ),
    "ours, int8 states": Implementation(
        ours(state_dtype="int8"), in_blocks_of_8_bits, BOTH, (torch.float32, torch.bfloat16), captures=True
    ),
    "ours, float32 states": Implementation(ours(state_dtype=torch.float32), in_float32, BOTH, BFLOAT16, captures=True),
    "torch foreach": Implementation(of_torch(foreach=True), like_parameter, BOTH, scratch=2),
    "torch for-loop": Implementation(of_torch(foreach=False), like_parameter, BOTH, scratch=2),
    "apex FusedAdam": Implementation(apex_like("apex.optimizers"), in_float32),
    "Transformer Engine FusedAdam": Implementation(apex_like("transformer_engine.pytorch.optimizers"), in_float32),
    "bitsandbytes 8-bit": Implementation(of_package("bitsandbytes.optim", "{}8bit"), in_8_bits),
    "bitsandbytes 32-bit": Implementation(of_package("bitsandbytes.optim", "{}32bit"), in_float32),
    "torch compiled": Implementation(compiled, like_parameter, BOTH, compiles=True, scratch=2),
    "torchao 8-bit": Implementation(of_package("torchao.optim", "{}8bit"), in_8_bits_of_torchao, compiles=True),
    "ours eager": Implementation(functools.partial(ours_like_torch, backend="eager"), like_ours, ("cpu",), scratch=4),
}
"""Most informative first, because the last ones are left out where memory is short."""
DEFAULT = [name for name in IMPLEMENTATIONS if name != "ours eager"]
"""The implementations that are timed by default. Eager formulas on a CPU take longer than all others together."""


def missing(name: str, case: OptimizerCase, device: torch.device, compile: bool) -> str | None:
    """Return why an implementation cannot be timed, as far as that is known without making it; None if it may work."""
    implementation = IMPLEMENTATIONS[name]
    if device.type not in implementation.devices:
        return f"only on {' and '.join(implementation.devices)}"
    if implementation.dtypes is not None and case.dtype not in implementation.dtypes:
        return f"only for {', '.join(str(dtype).removeprefix('torch.') for dtype in implementation.dtypes)}"
    if case.n_states == 0 and "states" in name:
        return f"{case.label} has no states"
    if implementation.compiles and not compile:
        return "takes minutes to compile: --compiled"
    return None


def step_bytes(name: str, case: OptimizerCase, n_elements: list[int]) -> float:
    """Return the bytes that a step has to move: parameters and states are read and written, gradients are read.

    A rule that has sums reads all of them once more, and gradients to be clipped are read once more.

    This is the least for any code that keeps such states. The temporary tensors of foreach and for-loop come on top,
    as does our address table, 8 bytes for each block of a thousand elements.

    Args:
        n_elements: number of elements of each parameter.
    """
    state_bytes, rule = (
        IMPLEMENTATIONS[name].state_bytes,
        OptimizerCase("AdamW", {}).rule if name == "ours, AdamW" else case.rule,
    )
    passes = 1 if rule.sums else 0
    tensors, states = 3 + 2 * passes + rule.clips, len(rule.states) * (2 + passes)
    return sum(n * (tensors * case.dtype.itemsize + states * state_bytes(case.dtype, n)) for n in n_elements)


def make(name: str, case: OptimizerCase, params: Params) -> torch.optim.Optimizer:
    """Make an optimizer and take its first step, which allocates states and may compile.

    Args:
        params: have gradients; updated in place.
    Raises: torch.OutOfMemoryError, or RuntimeError with the reason in one line if the package fails otherwise.
    """
    try:
        optimizer = IMPLEMENTATIONS[name].make(case, params)
        optimizer.step()
    except torch.OutOfMemoryError:
        raise
    # Packages that were built for other versions, or lack a dtype, raise all kinds of exceptions.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(lines[0]) from error
    return optimizer


def capturable(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Return a step that can be captured into a CUDA graph.

    torch's fused step does the same work with and without `capturable=True`, but refuses capture without it. The flag
    is set only while capturing, because a step outside a graph would warn about it.
    """

    def step() -> None:
        capturing = torch.cuda.is_current_stream_capturing()
        groups = [group for group in optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = capturing
        try:
            optimizer.step()
        finally:
            for group in groups:
                group["capturable"] = False

    return step
