"""The layout of tensors in memory, which a launch updates as flat arrays."""

import itertools
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # which takes long to import

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The dtypes of states."""


def is_distributed(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "to_local")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the local shard of a DTensor; any other tensor itself."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def aligned(grad: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the part of a gradient that belongs to its parameter's local shard, after pending reductions."""
    if is_distributed(grad) and is_distributed(p) and grad.placements != p.placements:
        grad = grad.redistribute(p.device_mesh, p.placements)
    return local(grad)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Return the local tensor, viewed as real numbers `[..., 2]` if it is complex; a copy if it is `lazy`."""
    tensor = local(tensor).resolve_conj().resolve_neg()
    # Detached, because torch.utils.swap_tensors refuses a tensor that has views.
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


def real_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of the tensor's real numbers."""
    return tensor.dtype.to_real()


def lazy(tensor: torch.Tensor) -> bool:
    """Return whether memory holds not the tensor's values but their negatives or conjugates."""
    return tensor.is_neg() or tensor.is_conj()


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Return whether two elements share a location in memory."""
    reached = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reached:  # Rows may interleave without overlap, which is rare.
            places = torch.arange(extent(tensor), device="cpu").as_strided(tensor.shape, tensor.stride())
            return places.unique().numel() < tensor.numel()
        reached += (size - 1) * stride
    return False


def extent(tensor: torch.Tensor) -> int:
    """Return the number of elements in memory from the first one through the last one, gaps included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def has_memory(tensor: torch.Tensor) -> bool:
    """Return whether the storage holds all elements, which it does not after it has been made smaller or freed."""
    end = (tensor.storage_offset() + extent(tensor)) * tensor.element_size()
    return not extent(tensor) or end <= tensor.untyped_storage().nbytes()


def layout(tensor: torch.Tensor) -> tuple:
    """Return a key that is equal for tensors whose elements have the same order and strides in memory."""
    if tensor.numel() == 0:
        return ()
    return tuple((size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)


def like(p: torch.Tensor, dtype: torch.dtype, lanes: int) -> torch.Tensor:
    """Return zeros shaped like p, without gaps: lane by lane; without lanes, in p's order if p has no gaps."""
    order = torch.contiguous_format if lanes > 1 else torch.preserve_format
    return torch.zeros_like(p, dtype=dtype, memory_format=order, requires_grad=False)


def state_dtype(p_dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """Return the dtype of a parameter's states: the one wanted, by default float32 or wider; complex if p is.

    Raises: TypeError if there is no such complex dtype.
    """
    if p_dtype.is_complex:
        if wanted is not None and wanted not in (torch.float32, torch.complex64, torch.complex128):
            raise TypeError(f"state_dtype={wanted} has no complex counterpart for a parameter of {p_dtype}")
        return p_dtype if p_dtype == torch.complex128 else torch.complex64
    return wanted or (torch.float64 if p_dtype == torch.float64 else torch.float32)


def moved(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """Return the tensor on a device, if there is one."""
    return None if tensor is None else tensor.to(device, non_blocking=True)


def waves(tensors: list[torch.Tensor]) -> list[int]:
    """Return which of several successive launches updates each tensor: 0 unless it shares memory with an earlier one.

    Tied parameters and views of each other are updated one after the other, as in torch.
    """
    spans = []
    for tensor in tensors:
        start = tensor.data_ptr()
        spans.append((start, start + extent(tensor) * tensor.element_size()))
    ordered = sorted(span for span in spans if span[0] < span[1])
    if all(a[1] <= b[0] for a, b in itertools.pairwise(ordered)):
        return [0] * len(tensors)
    wave = []
    for i, (start, end) in enumerate(spans):
        shared = [wave[j] for j in range(i) if start < spans[j][1] and spans[j][0] < end]
        wave.append(1 + max(shared, default=-1))
    return wave
