"""The address table: which tensors a launch works on, and with which hyperparameters.

A *row* is one contiguous run of elements: a whole parameter, or one lane of a parameter that is
stacked `[lanes, ...]`. Every backend walks the same rows.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from kernels.rules import Rule

N_PILES = 64
"""Into how many equally loaded stretches the chunks are dealt: at least as many as threads."""

P, GRAD, STEP, N_ELEMENTS, STATES = range(5)
"""Columns of the table; one column for each state follows from `STATES` on."""


@dataclass(frozen=True)
class Entry:
    """One parameter, what the optimizer keeps for it, and how many lanes it is stacked of.

    Attributes:
        p: contiguous tensor, any shape; `[lanes, ...]` where lanes > 1.
        states: tensors shaped and laid out like p, in the order of the rule's `states`.
        step: float32 tensor of `lanes` elements on p's device; the number of steps taken.
        group: which row of hyperparameters it uses (see `Table.set_hyper`).
    """

    p: torch.Tensor
    states: tuple[torch.Tensor, ...]
    step: torch.Tensor
    lanes: int = 1
    group: int = 0


@dataclass
class Table:
    """Rows of one launch: tensors that share device and dtypes.

    Attributes:
        rows: int64 [n_rows, 4 + n_states], on the device; see the column names above.
        hyper: float64 [n_rows, n_hyper], on the device.
        coefficients: [n_rows, n_coefficients] scratch, on the device, of the compute dtype.
        chunk_row, chunk_index: int32 [n_chunks], on the device: chunk c is block
            `chunk_index[c]` of row `chunk_row[c]`.
        host: the same rows in (pinned) host memory, from where they are uploaded.
        groups, lane_of_row: row r takes its hyperparameters from lane `lane_of_row[r]` of the lanes
            of `groups` laid end to end.
    """

    rule: Rule
    entries: list[Entry]
    grad_dtype: torch.dtype
    rows: torch.Tensor
    hyper: torch.Tensor
    coefficients: torch.Tensor
    chunk_row: torch.Tensor
    chunk_index: torch.Tensor
    chunk_size: int
    host: torch.Tensor
    groups: tuple[int, ...]
    lane_of_row: torch.Tensor
    grad_addresses: list[int] = field(default_factory=list)
    uploaded: "torch.cuda.Event | None" = None

    @property
    def p_dtype(self) -> torch.dtype:
        return self.entries[0].p.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        return self.entries[0].states[0].dtype if self.rule.states else self.p_dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.coefficients.dtype

    def point_at(self, grads: list[torch.Tensor]) -> None:
        """Let the rows read these gradients, one an entry, laid out like its parameter.

        Gradients move whenever `zero_grad` frees them; nothing is uploaded unless one has.
        """
        addresses = [grad.data_ptr() for grad in grads]
        if addresses == self.grad_addresses:
            return
        if self.uploaded is not None:
            self.uploaded.synchronize()
        column, start = self.host.numpy()[:, GRAD], 0
        for entry, grad in zip(self.entries, grads, strict=True):
            column[start : start + entry.lanes] = row_addresses(grad, entry.lanes)
            start += entry.lanes
        self.rows.copy_(self.host, non_blocking=True)
        if self.rows.is_cuda:
            self.uploaded = self.uploaded or torch.cuda.Event()
            self.uploaded.record()
        self.grad_addresses = addresses

    def set_hyper(self, groups: list[tuple]) -> None:
        """Set the hyperparameters: for each group, in the order of `rule.hyper`, floats or `[lanes]` tensors."""
        used = [groups[group] for group in self.groups]
        # Values that live on the device stay there: reading them would wait for it.
        on_device = any(isinstance(v, torch.Tensor) and v.is_cuda for values in used for v in values)
        device = self.hyper.device if on_device else torch.device("cpu")
        blocks = []
        for values in used:
            columns = [torch.as_tensor(v, dtype=torch.float64, device=device).reshape(-1) for v in values]
            blocks.append(torch.stack(torch.broadcast_tensors(*columns), dim=1))
        self.hyper.copy_(torch.cat(blocks)[self.lane_of_row.to(device)])


def row_addresses(tensor: torch.Tensor, lanes: int) -> np.ndarray:
    """Address of each lane of a contiguous tensor, int64 [lanes]."""
    lane_bytes = tensor.numel() // lanes * tensor.element_size()
    return tensor.data_ptr() + lane_bytes * np.arange(lanes, dtype=np.int64)


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, chunk_size: int) -> Table:
    """Lay out the table of entries that share device and dtypes; gradients and hyperparameters come later.

    Args:
        chunk_size: elements that one program (GPU) or one task (CPU) works on.
    """
    device, p_dtype = entries[0].p.device, entries[0].p.dtype
    compute_dtype = torch.float64 if p_dtype == torch.float64 else torch.float32
    lanes = np.array([entry.lanes for entry in entries])
    host = torch.zeros(int(lanes.sum()), STATES + len(rule.states), dtype=torch.int64, pin_memory=device.type == "cuda")
    rows, start = host.numpy(), 0
    for entry in entries:
        lane_rows = rows[start : start + entry.lanes]
        lane_rows[:, P] = row_addresses(entry.p, entry.lanes)
        lane_rows[:, STEP] = row_addresses(entry.step, entry.lanes)
        lane_rows[:, N_ELEMENTS] = entry.p.numel() // entry.lanes
        for i, state in enumerate(entry.states):
            lane_rows[:, STATES + i] = row_addresses(state, entry.lanes)
        start += entry.lanes

    n_chunks = -(-rows[:, N_ELEMENTS] // chunk_size)
    chunk_row = np.repeat(np.arange(len(rows), dtype=np.int32), n_chunks)
    first_chunk = np.cumsum(n_chunks) - n_chunks
    chunk_index = (np.arange(len(chunk_row)) - np.repeat(first_chunk, n_chunks)).astype(np.int32)
    # Threads take equal stretches of this list, so every stretch must hold its share of full chunks.
    size = np.minimum(rows[chunk_row, N_ELEMENTS] - chunk_index * np.int64(chunk_size), chunk_size)
    largest_first = np.argsort(-size, kind="stable")
    dealt = np.concatenate([largest_first[i::N_PILES] for i in range(N_PILES)])
    chunk_row, chunk_index = chunk_row[dealt], chunk_index[dealt]

    lanes_of_group = {entry.group: entry.lanes for entry in entries}
    first_lane = dict(zip(lanes_of_group, np.cumsum([0, *lanes_of_group.values()]), strict=False))
    lane_of_row = np.concatenate([first_lane[entry.group] + np.arange(entry.lanes) for entry in entries])
    return Table(
        rule=rule,
        entries=entries,
        grad_dtype=grad_dtype,
        rows=torch.empty_like(host, device=device, pin_memory=False),
        hyper=torch.empty(len(rows), len(rule.hyper), dtype=torch.float64, device=device),
        coefficients=torch.empty(len(rows), rule.n_coefficients, dtype=compute_dtype, device=device),
        chunk_row=torch.from_numpy(chunk_row).to(device),
        chunk_index=torch.from_numpy(chunk_index).to(device),
        chunk_size=chunk_size,
        host=host,
        groups=tuple(lanes_of_group),
        lane_of_row=torch.from_numpy(lane_of_row),
    )
