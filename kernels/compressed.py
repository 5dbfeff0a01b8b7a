"""Compressed states in torch's operations, on any device: blocks of codes and their scales; see `codes`."""

from types import SimpleNamespace

import torch
from torch.nn.functional import pad

from kernels.codes import BLOCK, CODES, Code
from kernels.rule import Rule, rebind

LANGUAGE = SimpleNamespace(
    **{"abs": torch.abs, "where": torch.where, "int32": torch.int32, "float32": torch.float32},
    **{"div_rn": lambda x, y: x / y, "maximum": torch.clamp_min, "cast": lambda x, dtype, bitcast: x.view(dtype)},
)
"""What `tl` means in the functions of `codes`."""
IN_TORCH = {
    name: Code(code.dtype, rebind(code.encode, LANGUAGE), rebind(code.decode, LANGUAGE)) for name, code in CODES.items()
}


def n_blocks(n: int) -> int:
    """Return the number of blocks of so many elements."""
    return -(-n // BLOCK)


def blocks(x: torch.Tensor) -> torch.Tensor:
    """Return `[lanes, n]` as `[lanes, n_blocks, BLOCK]`, filled up with zeros."""
    return pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (n_blocks(x.shape[1]), BLOCK))


def encode(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compress a state.

    A block with an element that is infinite or NaN becomes NaN as a whole.

    Args:
        name: of the state, one of `CODES`.
        x: float32 [lanes, n].
    Returns: codes [lanes, n], of the state's dtype, and scales, float32 [lanes, n_blocks].
    """
    code, in_blocks = IN_TORCH[name], blocks(x)
    # As integers, so that a NaN is the largest on all backends.
    scale = (in_blocks.view(torch.int32) & 0x7FFFFFFF).amax(-1).view(torch.float32)
    codes = code.encode(in_blocks, scale.unsqueeze(-1)).to(code.dtype)
    return codes.flatten(1)[:, : x.shape[1]], scale


def decode(name: str, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the float32 [lanes, n] that codes [lanes, n] and scales [lanes, n_blocks] stand for."""
    in_blocks = blocks(codes.to(torch.float32))
    return IN_TORCH[name].decode(in_blocks, scale.unsqueeze(-1)).flatten(1)[:, : codes.shape[1]]


def load(rule: Rule, states: list[torch.Tensor], scales: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Return a rule's states in float32; states [lanes, n], scales of lanes * n_blocks elements."""
    each = zip(rule.states, states, scales, strict=True)
    return [decode(name, codes, scale.view(len(codes), n_blocks(codes.shape[1]))) for name, codes, scale in each]


def store(rule: Rule, states: list[torch.Tensor], scales: tuple[torch.Tensor, ...], values) -> None:
    """Compress a rule's states, float32 [lanes, n], into those that `load` reads."""
    for name, codes, scale, value in zip(rule.states, states, scales, values, strict=True):
        new_codes, new_scale = encode(name, value)
        codes.copy_(new_codes)
        scale.copy_(new_scale.view(scale.shape))
