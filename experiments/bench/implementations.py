"""Who else takes a step: torch's ways, other packages that are installed, and ours, by name.

Whatever cannot be had, because it is not installed or does not know a class, dtype or device, says why.
"""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch

import optim
from kernels.rule import Rule

Params = list[torch.nn.Parameter]


class Case(NamedTuple):
    """One optimizer to time: its class in torch.optim and here, its arguments, and the dtype of its parameters."""

    name: str
    arguments: dict
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])

    @property
    def rule(self) -> Rule:
        optimizer = getattr(optim, self.name)([torch.zeros(1, requires_grad=True)], **self.arguments)
        return optimizer.rule(optimizer.param_groups[0])

    @property
    def n_states(self) -> int:
        """Tensors shaped like its parameter that an optimizer keeps for each."""
        return len(self.rule.states)


class Implementation(NamedTuple):
    """How an optimizer is made, and what is known of it.

    Attributes:
        make: (case, parameters) -> optimizer; raises whatever it likes.
        state_bytes: (dtype of a parameter, its number of elements) -> bytes of one state of one element.
        devices: types of devices that it is timed on.
        dtypes: of parameters that it is timed with; None is all.
        captures: whether its step may be captured into a CUDA graph.
        compiles: whether it starts a compiler of its own, for minutes.
        scratch: temporary tensors as large as its parameters that a step makes.
    """

    make: Callable[[Case, Params], torch.optim.Optimizer]
    state_bytes: Callable[[torch.dtype, int], float]
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] | None = None
    captures: bool = False
    compiles: bool = False
    scratch: int = 0


def of_torch(**flags) -> Callable[[Case, Params], torch.optim.Optimizer]:
    return lambda case, params: getattr(torch.optim, case.name)(params, **case.arguments, **flags)


def ours(**flags) -> Callable[[Case, Params], torch.optim.Optimizer]:
    return lambda case, params: getattr(optim, case.name)(params, **case.arguments, **flags)


def of_package(module: str, name: str, **flags) -> Callable[[Case, Params], torch.optim.Optimizer]:
    """Of Adam and AdamW, a package's class `name`, in which {} stands for that of the case."""
    return lambda case, params: getattr(importlib.import_module(module), name.format(case.name))(
        params, **case.arguments, **flags
    )


def apex_like(module: str) -> Callable[[Case, Params], torch.optim.Optimizer]:
    """FusedAdam of apex and of packages that took it over: one class for Adam and AdamW."""

    def make(case: Case, params: Params) -> torch.optim.Optimizer:
        decays = {"Adam": {"adam_w_mode": False}, "AdamW": {"adam_w_mode": True, "weight_decay": 0.01}}
        if case.name not in decays:
            raise ValueError(f"FusedAdam is no {case.name}")
        return importlib.import_module(module).FusedAdam(params, lr=1e-3, **decays[case.name], **case.arguments)

    return make


def compiled(case: Case, params: Params) -> torch.optim.Optimizer:
    """torch.optim with a compiled step, which is compiled in the first one."""
    optimizer = getattr(torch.optim, case.name)(params, **case.arguments)
    # Otherwise the ninth optimizer of a process would run uncompiled, without a word.
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
    """bfloat16 states for bfloat16 parameters, as torch has them, float32 for float16."""
    return 2 if dtype == torch.bfloat16 else max(4, dtype.itemsize)


def in_8_bits(dtype: torch.dtype, n_elements: int) -> float:
    """A byte, and a float32 scale for each 256 elements; tensors below 4096 elements keep float32."""
    return 1 + 4 / 256 if n_elements >= 4096 else 4


def in_8_bits_of_torchao(dtype: torch.dtype, n_elements: int) -> float:
    """Likewise; tensors below 4096 elements, or of no multiple of 256, keep the parameter's dtype."""
    return 1 + 4 / 256 if n_elements >= 4096 and n_elements % 256 == 0 else dtype.itemsize


def ours_like_torch(case: Case, params: Params, **flags) -> torch.optim.Optimizer:
    """States in bfloat16 where torch's would be."""
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
"""The most telling first: where memory is short, the last ones are left out."""
DEFAULT = [name for name in IMPLEMENTATIONS if name != "ours eager"]
"""Those that are timed if none is named: the eager formulas of a CPU take longer than all others together."""


def missing(name: str, case: Case, device: torch.device, compile: bool) -> str | None:
    """Why an implementation is not timed, as far as that is known without making it; None if it may be."""
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


def step_bytes(name: str, case: Case, n_elements: list[int]) -> float:
    """Bytes that a step has to move: parameters and states are read and written, gradients are read.

    The fewest of any code that keeps such states; temporary tensors of foreach and for-loop come on top, and our
    address table, 8 bytes for each block of a thousand elements.

    Args:
        n_elements: of each parameter.
    """
    n_states, state_bytes = case.n_states, IMPLEMENTATIONS[name].state_bytes
    return sum(n * (3 * case.dtype.itemsize + 2 * n_states * state_bytes(case.dtype, n)) for n in n_elements)


def make(name: str, case: Case, params: Params) -> torch.optim.Optimizer:
    """The optimizer over parameters that have gradients, after its first step, which makes states and compiles.

    Raises: RuntimeError with the reason in a line if it cannot be had, or torch.OutOfMemoryError.
    """
    try:
        optimizer = IMPLEMENTATIONS[name].make(case, params)
        optimizer.step()
    except torch.OutOfMemoryError:
        raise
    # Packages that were built for other versions, or lack a dtype, fail in every way there is.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(lines[0]) from error
    return optimizer


def capturable(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The step as it may be captured into a CUDA graph.

    torch's fused step does the same with and without `capturable=True`, and refuses a capture only without: it is set
    for the captured step alone, because steps outside of a graph would warn of it.
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
