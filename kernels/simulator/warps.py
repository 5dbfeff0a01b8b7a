"""Instructions by which the threads of a warp, called lanes here, see each other's values.

All lanes must be active. A GPU defines more than that, but what Triton compiles needs no more.
"""

import numpy as np

from kernels.simulator.faults import Fault, refuse
from kernels.simulator.values import signed, unsigned

ROW, BANK = 16, 4
"""Lanes of a row and of a bank, between which AMD's data parallel primitives (DPP) move values."""


def warps(launch, mask: np.ndarray | None, *operands: np.ndarray, what: str) -> list[np.ndarray]:
    """Return operands as [programs, warps, threads of a warp]. Raises: Fault if only a part of a warp is active."""
    shape = (launch.shape[0], launch.shape[1] // launch.warp_size, launch.warp_size)
    if mask is not None:
        here = np.broadcast_to(mask, launch.shape).reshape(shape)
        if (here.any(axis=2) & ~here.all(axis=2)).any():
            raise Fault(f"some threads of a warp come to {what}, and others do not")
    return [np.broadcast_to(x, launch.shape).reshape(shape) for x in operands]


def barrier(launch, mask, *_) -> None:
    """Execute a barrier of warps, which threads of a warp pass together."""
    warps(launch, mask, what="a barrier of warps")


def first_lane(launch, mask, value: np.ndarray) -> np.ndarray:
    """Give all lanes the first one's value (llvm.amdgcn.readfirstlane)."""
    (value,) = warps(launch, mask, value, what="readfirstlane")
    return np.broadcast_to(value[..., :1], value.shape).reshape(launch.shape)


def read_lane(launch, mask, value: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Give all lanes the value of one, whose number they all name (llvm.amdgcn.readlane)."""
    value, lane = warps(launch, mask, value, lane, what="readlane")
    refuse((lane != lane[..., :1]).any(axis=2), "a warp's threads name several lanes in readlane")
    return picked(launch, value, lane)


def butterfly(launch, mask, members: np.ndarray, value: np.ndarray, by: np.ndarray, clamp: np.ndarray) -> np.ndarray:
    """Give each lane the value of lane ^ by (llvm.nvvm.shfl.sync.bfly)."""
    if (members != 2**32 - 1).any() or (clamp != launch.warp_size - 1).any():
        raise NotImplementedError("shfl.sync of a part of a warp")
    value, by = warps(launch, mask, value, by, what="shfl.sync")
    return picked(launch, value, np.arange(launch.warp_size) ^ by)


def largest(launch, mask, value: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Give all lanes the largest of their signed values (llvm.nvvm.redux.sync.max)."""
    if (members != 2**32 - 1).any():
        raise NotImplementedError("redux.sync of a part of a warp")
    (value,) = warps(launch, mask, value, what="redux.sync")
    found = signed(value).max(axis=2, keepdims=True)
    return unsigned(np.broadcast_to(found, value.shape).reshape(launch.shape))


def picked(launch, value: np.ndarray, lane: np.ndarray) -> np.ndarray:
    """Return the values of these lanes of each warp; both are [programs, warps, threads of a warp]."""
    return np.take_along_axis(value, lane.astype(np.int64) % launch.warp_size, axis=2).reshape(launch.shape)


def dpp_source(control: int, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return from which lane each takes its value, and whether there is such a lane.

    Reference: AMD's ISA of GCN and CDNA, DPP_CTRL. Raises: NotImplementedError for a control that is not known.
    """
    place, by, always = lane % ROW, control % ROW, np.full(lane.shape, True)
    if control < 0x100:  # quad_perm has two bits for each of four lanes.
        return lane // 4 * 4 + ((control >> (2 * (lane % 4))) & 3), always
    if control == 0x142:  # row_bcast:15, the last lane of the row before
        return lane - place - 1, lane >= ROW
    if control == 0x143:  # row_bcast:31, the last lane of the first two rows
        return np.full(lane.shape, 2 * ROW - 1), lane >= 2 * ROW
    match control - by:
        case 0x100:  # row_shl
            return lane + by, place + by < ROW
        case 0x110:  # row_shr
            return lane - by, place >= by
        case 0x120:  # row_ror
            return lane - place + (place - by) % ROW, always
    raise NotImplementedError(f"the DPP control {control:#x}")


def update_dpp(launch, mask, old, value, control, row_mask, bank_mask, bound_control) -> np.ndarray:
    """Give each lane another's value (llvm.amdgcn.update.dpp).

    Where there is no such lane it becomes 0 with bound_control and stays old without; it also stays old in rows and
    banks that are masked out.
    """
    old, value = warps(launch, mask, old, value, what="update.dpp")
    lane = np.arange(launch.warp_size)
    source, exists = dpp_source(int(control[0, 0]), lane)
    taken = np.where(exists, value[..., source % launch.warp_size], np.where(bound_control[0, 0], 0, old))
    row, bank = lane // ROW, lane % ROW // BANK
    enabled = ((int(row_mask[0, 0]) >> row) & (int(bank_mask[0, 0]) >> bank) & 1).astype(bool)
    return np.where(enabled, taken, old).astype(value.dtype).reshape(launch.shape)
