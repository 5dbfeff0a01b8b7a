"""How the elements of a table are added up: in pieces of one size, whose sums are added in a fixed order.

The order depends on the shapes alone: not on a launch configuration, the number of threads or of lanes. So totals have
the same bits in every run of a backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.rule import Stage

PIECE = 2048
"""Elements of a piece; a power of two."""


@dataclass
class Totals:
    """The scratch of a stage, on the device of its table. A *slot* is what a total goes over: a row, or a lane's rows.

    Attributes:
        piece_row, piece_index: int32 [n_pieces]: a piece's row, and which of the row's pieces it is. Pieces of a slot
            follow each other, as do rows.
        first_piece: int32 [n_slots + 1]: where the pieces of a slot start.
        slot_rows: int32 [n_rows]: the rows, slot by slot.
        first_row: int32 [n_slots + 1]: where the rows of a slot start in `slot_rows`.
        partials: float64 [n_pieces, n_sums].
        totals: float64 [n_slots, n_sums].
        values: [n_rows, n_totals] of the compute dtype: what the update takes.
        slot_is_row: whether slots are rows.
        combined: whether totals are changed between the two halves of `Launch`, as where they go over several tables.
    """

    piece_row: torch.Tensor
    piece_index: torch.Tensor
    first_piece: torch.Tensor
    slot_rows: torch.Tensor
    first_row: torch.Tensor
    partials: torch.Tensor
    totals: torch.Tensor
    values: torch.Tensor
    slot_is_row: bool
    combined: bool = False

    @property
    def n_slots(self) -> int:
        return len(self.totals)


def build(
    stage: Stage, n_elements: np.ndarray, lanes: Sequence[int], by_row: bool, dtype: torch.dtype, device: torch.device
) -> Totals:
    """Return the scratch of a stage.

    Args:
        n_elements: int64 [n_rows]: the elements of each row.
        lanes: the number of rows of each entry, of which the table has them one after the other.
        by_row: whether slots are rows, whatever the stage's sums go over.
        dtype: the compute dtype.
    Raises: ValueError if totals go over lanes and entries have different numbers of them.
    """
    by_row = by_row or stage.over == "tensor"
    if not by_row and len({*lanes}) > 1:
        raise ValueError(f"Sums over lanes need as many lanes in every tensor, not {sorted({*lanes})}")
    rows = np.arange(len(n_elements))
    slot_of_row = rows if by_row else np.concatenate([np.arange(n) for n in lanes])
    n_slots = len(rows) if by_row else lanes[0]
    slot_rows = np.argsort(slot_of_row, kind="stable")
    n_pieces = -(-n_elements[slot_rows] // PIECE)
    piece_row = np.repeat(slot_rows, n_pieces)
    first = np.cumsum(n_pieces) - n_pieces
    piece_index = np.arange(len(piece_row)) - np.repeat(first, n_pieces)
    slots = np.arange(n_slots + 1)

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(device)

    return Totals(
        piece_row=on_device(piece_row),
        piece_index=on_device(piece_index),
        first_piece=on_device(np.searchsorted(slot_of_row[piece_row], slots)),
        slot_rows=on_device(slot_rows),
        first_row=on_device(np.searchsorted(slot_of_row[slot_rows], slots)),
        partials=torch.zeros(len(piece_row), stage.n_sums, dtype=torch.float64, device=device),
        totals=torch.zeros(n_slots, stage.n_sums, dtype=torch.float64, device=device),
        values=torch.zeros(len(rows), stage.n_totals, dtype=dtype, device=device),
        slot_is_row=by_row,
    )
