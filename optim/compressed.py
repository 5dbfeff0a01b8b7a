"""States of one byte, `state_dtype="int8"`: codes under a state's name, their scales under its name and "_scale".

Scales are float32 `[n_blocks]`, or `[K, n_blocks]` over parameters stacked `[K, ...]`, whose lanes have blocks of their
own. Blocks follow the order of memory.
"""

from collections.abc import Callable

import torch

from kernels import codes, compressed
from kernels.eager import in_memory_order
from kernels.rule import Rule
from optim import memory

INT8 = "int8"
P_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of parameters whose states can be compressed."""


def scale_name(name: str) -> str:
    return f"{name}_scale"


def scale_names(rule: Rule, state: dict) -> tuple[str, ...]:
    """Return the names of the scales that a parameter's state has for the rule."""
    return tuple(name for name in map(scale_name, rule.states) if name in state)


def check_group(optimizer, group: dict) -> None:
    """Raise ValueError if states are to be compressed and the group's rule takes no compressed ones."""
    if optimizer.state_dtype == INT8 and not codes.takes(rule := optimizer.rule(group)):
        raise ValueError(
            f"state_dtype='int8' accepts Adam and AdamW without amsgrad, Lion and Signum, not {rule.name} "
            f"of {type(optimizer).__name__}"
        )


def check_parameter(optimizer, p: torch.Tensor, called: Callable[[], str]) -> None:
    """Raise TypeError, with the parameter's name, if states are to be compressed and those of p cannot be."""
    if optimizer.state_dtype == INT8 and not takes(p):
        kind = "a DTensor" if memory.is_distributed(p) else str(p.dtype).removeprefix("torch.")
        raise TypeError(
            f"{called()} is {kind}, and state_dtype='int8' accepts plain parameters of "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in P_DTYPES)}"
        )


def takes(p: torch.Tensor) -> bool:
    return p.dtype in P_DTYPES and not memory.is_distributed(p)


def is_code(name: str, state) -> bool:
    """Return whether this state is compressed."""
    return name in codes.CODES and isinstance(state, torch.Tensor) and state.dtype == codes.CODES[name].dtype


def is_wanted(optimizer, p: torch.Tensor, rule: Rule, state: dict) -> bool:
    """Return whether p's states are to be compressed: if asked for, or if they are and nothing was asked for."""
    if optimizer.state_dtype is None:
        return codes.takes(rule) and takes(p) and any(is_code(name, state.get(name)) for name in rule.states)
    return optimizer.state_dtype == INT8


def make(p: torch.Tensor, rule: Rule, state: dict, lanes: int) -> dict[str, torch.Tensor]:
    """Return codes and scales of a rule's states: those of `state` where they fit; made, zero or converted, otherwise.

    Args:
        state: p's states of any dtype and layout, expanded where they are compressed otherwise than wanted: see
            `expanded`.
        lanes: the number of lanes of p.
    """
    made = {}
    for name in rule.states:
        old = state.get(name)
        if is_code(name, old):
            made |= {name: old, scale_name(name): state[scale_name(name)]}
            continue
        values = memory.like(p, torch.float32, lanes)
        if old is not None:
            values.copy_(old)
        lane_values = in_memory_order(values).view(lanes, values.numel() // lanes)
        new = memory.like(p, codes.CODES[name].dtype, lanes)
        new_codes, scale = compressed.encode(name, lane_values)
        in_memory_order(new).copy_(new_codes.reshape(-1))
        made |= {name: new, scale_name(name): scale.contiguous() if lanes > 1 else scale.reshape(-1)}
    return made


def expanded(optimizer, p: torch.Tensor, rule: Rule, state: dict, lanes: int, called: Callable[[], str]) -> dict:
    """Return p's state without those compressed states that a launch cannot use as they are: in float32 instead.

    Args:
        lanes: the number of lanes of p.
        called: returns its name in messages.
    Raises: ValueError if a scale is missing or has another shape than the codes need.
    """
    wanted, state = is_wanted(optimizer, p, rule, state), dict(state)
    for name in [name for name in rule.states if is_code(name, state.get(name))]:
        old, scale = state[name], state.get(scale_name(name))
        if not isinstance(scale, torch.Tensor):
            raise ValueError(f"{called()}: {name} of its state is {old.dtype} and lacks {scale_name(name)}")
        old_lanes = len(scale) if scale.ndim == 2 else 1
        if scale.shape != scale_shape(old, old_lanes):
            shapes = f"{name} of its state has shape {list(old.shape)}, and {scale_name(name)} {list(scale.shape)}"
            raise ValueError(f"{called()}: {shapes}")
        if wanted and old_lanes == lanes and is_usable(old, scale, p, lanes):
            continue
        if memory.extent(old) != old.numel():
            old = old.contiguous()
        lane_codes = in_memory_order(old).view(old_lanes, old.numel() // old_lanes)
        scale = scale.to(old.device, torch.float32).reshape(old_lanes, -1)
        values = torch.empty_like(old, dtype=torch.float32)
        in_memory_order(values).copy_(compressed.decode(name, lane_codes, scale).reshape(-1))
        state[name] = values
    return state


def scale_shape(state: torch.Tensor, lanes: int) -> tuple[int, ...] | None:
    """Return the shape of a state's scales; None if it cannot have so many lanes."""
    if lanes == 0 or state.numel() % lanes:
        return None
    n = compressed.n_blocks(state.numel() // lanes)
    return (lanes, n) if lanes > 1 else (n,)


def is_usable(old: torch.Tensor, scale: torch.Tensor, p: torch.Tensor, lanes: int) -> bool:
    """Return whether a launch can use codes and scales as they are."""
    like = memory.like(p, old.dtype, lanes)
    fits = memory.layout(memory.real(old)) == memory.layout(like) and old.shape == p.shape
    placed = old.device == p.device == scale.device and scale.dtype == torch.float32 and scale.is_contiguous()
    return fits and placed and not memory.lazy(old) and not memory.lazy(scale)


def drop_scales(state: dict, made: dict) -> None:
    """Remove scales from a parameter's state, in place, whose states are no longer compressed, as those in `made`."""
    for name in [name for name in map(scale_name, codes.CODES) if name in state and name not in made]:
        del state[name]
