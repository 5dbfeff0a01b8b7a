"""The address table: which tensors a launch updates, and with which hyperparameters.

A *row* is contiguous memory: a whole parameter, or one lane of a parameter that is stacked
`[lanes, ...]`. Every backend works on the same rows.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from kernels import pieces
from kernels.config import Choice, Config, Work, rows_class
from kernels.rule import Rule

N_PILES = 64

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""The tolerance between the steps of two backends, relative to a value plus the largest update: a few roundings in
float32, one in the other dtypes."""

P, GRAD, STEP, N_ELEMENTS, PARAMETER, STATES = range(6)
"""Columns of the table; from `STATES` on, one column for each state, then one for each scalar."""


@dataclass(frozen=True)
class Entry:
    """A parameter, its states, and the number of lanes that are stacked in it.

    Attributes:
        p: real tensor without gaps in memory, any shape; `[lanes, ...]` where lanes > 1.
        states: tensors shaped and laid out like p, in the order of the rule's `states`.
        step: float32 tensor of `lanes` elements on p's device; the number of steps taken.
        scalars: tensors like step, in the order of the rule's `scalars`.
        lanes: the number of its rows.
        group: its parameter group, whose hyperparameters it uses (see `Table.set_hyper`).
        parameter: its number in the optimizer, which stochastic rounding depends on.
        scales: of compressed states, float32 [lanes, n_blocks] in the order of the states; see `codes`.
        sharded: whether p is a part of a tensor, the rest of which is in other processes.
    """

    p: torch.Tensor
    states: tuple[torch.Tensor, ...]
    step: torch.Tensor
    scalars: tuple[torch.Tensor, ...] = ()
    lanes: int = 1
    group: int = 0
    parameter: int = 0
    scales: tuple[torch.Tensor, ...] = ()
    sharded: bool = False

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors that a step updates."""
        return (self.p, *self.states, self.step, *self.scalars, *self.scales)


N_UPLOADS = 4


class Uploads:
    """`N_UPLOADS` copies of the rows in pinned host memory: while the device reads one, the next can be written.

    The host waits only if it is that many steps ahead of the device, counting those before which a gradient moved.
    """

    def __init__(self, rows: torch.Tensor, device: torch.device):
        """Keep the rows, int64 [n_rows, n_columns], pinned if the device is a GPU."""
        self.device, self.turn = device, 0
        on_gpu = device.type == "cuda"
        self.hosts = [rows, *(rows.clone().pin_memory() for _ in range(N_UPLOADS - 1))] if on_gpu else [rows]
        self.read: list = [None] * len(self.hosts)

    def send(self, target: torch.Tensor, column: int, values: np.ndarray) -> None:
        """Copy the rows to target on its device's current stream, after writing values into a column."""
        host, read = self.hosts[self.turn], self.read[self.turn]
        if read is not None:
            read.synchronize()
        host.numpy()[:, column] = values
        target.copy_(host, non_blocking=True)
        if self.device.type == "cuda":
            # The stream of the copy's device, which need not be the current one.
            self.read[self.turn] = torch.cuda.current_stream(self.device).record_event(read)
        self.turn = (self.turn + 1) % len(self.hosts)


@dataclass
class Table:
    """The rows of a launch: tensors that share a rule, device and dtypes.

    Attributes:
        rows: int64 [n_rows, 5 + n_states + n_scalars], on the device; see the column names above.
        hyper: float64 [n_rows, 1 + n_hyper], on the device; first the gradient's factor, 1 or -1.
        coefficients: [n_rows, 1 + n_coefficients] scratch, on the device, of the compute dtype; first the
            gradient's factor, which is 0 if the step is skipped.
        keys: int32 [n_rows] scratch, on the device: keys of this step's stochastic rounding.
        chunk_row, chunk_index: int32 [n_chunks], on the device: chunk c is the
            `chunk_index[c]`-th of row `chunk_row[c]`.
        uploads: copies of the rows in host memory.
        entry_of_row, lane_offset: for each row its entry, and its offset in the gradient in bytes.
        groups, lane_of_row: row r takes its hyperparameters from lane `lane_of_row[r]` of the lanes
            of `groups` laid end to end.
        seed: the seed of stochastic rounding; None rounds to nearest.
        choice: the launch configuration; None if none was looked up.
        grad_bytes: the size of each entry's gradient in bytes.
        captured: arguments of the launch that a CUDA graph has captured, if one has; see `pin`.
        pinned: the memory that the captured launch reads and writes, even if tensors have moved since.
        stages: the scratch of each of the rule's stages.
        scales: int64 [n_rows, n_states], on the device: addresses of compressed states' scales; else [n_rows, 0].
    """

    rule: Rule
    entries: list[Entry]
    grad_dtype: torch.dtype
    rows: torch.Tensor
    hyper: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor
    chunk_row: torch.Tensor
    chunk_index: torch.Tensor
    chunk_size: int
    uploads: Uploads
    entry_of_row: np.ndarray
    lane_offset: np.ndarray
    groups: tuple[int, ...]
    lane_of_row: torch.Tensor
    seed: int | None = None
    choice: Choice | None = None
    grad_bytes: tuple[int, ...] = ()
    grad_addresses: list[int] | None = None
    captured: tuple | None = None
    pinned: tuple[torch.UntypedStorage, ...] = ()
    stages: tuple[pieces.Totals, ...] = ()
    scales: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    @property
    def p_dtype(self) -> torch.dtype:
        return self.entries[0].p.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        return self.entries[0].states[0].dtype if self.rule.states else self.p_dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.coefficients.dtype

    @property
    def clip(self) -> torch.Tensor | None:
        """What gradients are multiplied by, [n_rows, 1]; None if the rule does not clip them."""
        return self.stages[0].values if self.rule.clips else None

    @property
    def values(self) -> torch.Tensor | None:
        """The totals that `update` takes, [n_rows, n_totals]; None if the rule has none."""
        return self.stages[-1].values if self.rule.sums else None

    def point_at(self, grads: list[torch.Tensor]) -> None:
        """Point the rows at these gradients, one per entry, laid out like its parameter.

        Gradients move whenever `zero_grad` frees them; nothing is uploaded unless one has moved.
        Raises: RuntimeError if one has moved while a CUDA graph is being captured, or its storage is too small.
        """
        addresses = [*map(torch.Tensor.data_ptr, grads)]
        if addresses == self.grad_addresses:
            return
        self.check_memory(grads)
        if capturing(self.rows.device):
            raise RuntimeError(
                "A gradient has moved since the last step, and a CUDA graph is being captured: the address table is "
                "frozen then. Take a step with these gradients before, and keep them: zero_grad(set_to_none=False)"
            )
        starts = np.array(addresses, dtype=np.int64)
        self.uploads.send(self.rows, GRAD, starts[self.entry_of_row] + self.lane_offset)
        self.grad_addresses = addresses

    def check_memory(self, grads: list[torch.Tensor]) -> None:
        """Raise RuntimeError if the storage of a gradient ends before the gradient does."""
        ends, sizes = self.grad_bytes, map(torch.UntypedStorage.nbytes, map(torch.Tensor.untyped_storage, grads))
        if any(map(torch.Tensor.storage_offset, grads)):
            starts = (grad.storage_offset() * grad.element_size() for grad in grads)
            ends = [n and start + n for start, n in zip(starts, self.grad_bytes, strict=True)]
        if not all(map(operator.ge, sizes, ends)):
            raise RuntimeError("The memory of a gradient has been freed or made smaller")

    def pin(self, grads: list[torch.Tensor], grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Keep alive what replays of a captured launch read and write; the table may not change afterwards."""
        self.captured = grads, grad_scale, found_inf
        updated = (t for entry in self.entries for t in entry.tensors)
        self.pinned = tuple(t.untyped_storage() for t in (*updated, *grads))

    def check_config(self, config: Config) -> None:
        """Raise ValueError unless the chunks are of the configuration's size."""
        if self.chunk_size != config.chunk_size:
            raise ValueError(
                f"The table's chunks are of {self.chunk_size} elements, and the launch's {config.chunk_size}"
            )

    def set_hyper(self, groups: list[tuple]) -> None:
        """Set each group's values: the gradient's factor, then those of `rule.hyper`; floats or `[lanes]` tensors."""
        used, lanes = [groups[group] for group in self.groups], {entry.group: entry.lanes for entry in self.entries}
        # Values on the device stay there: reading them would wait for it.
        on_device = any(isinstance(v, torch.Tensor) and v.is_cuda for values in used for v in values)
        device = self.hyper.device if on_device else torch.device("cpu")
        blocks = []
        for group, values in zip(self.groups, used, strict=True):
            columns = [
                v.to(device, torch.float64).reshape(-1)
                if isinstance(v, torch.Tensor)
                # Unlike a copy, a fill can be captured into a CUDA graph.
                else torch.full((1,), v, dtype=torch.float64, device=device)
                for v in values
            ]
            blocks.append(torch.stack([column.expand(lanes[group]) for column in columns], dim=1))
        if self.lane_of_row.device != device:
            self.lane_of_row = self.lane_of_row.to(device)
        rows = torch.cat(blocks)[self.lane_of_row]
        # From pageable memory the copy would wait for all pending work of the device.
        self.hyper.copy_(rows.pin_memory() if self.hyper.is_cuda and not on_device else rows, non_blocking=True)


def no_stage(stage: int) -> None:
    raise IndexError(f"The rule has no stage {stage}")


class Launch(NamedTuple):
    """`launch(grads, grad_scale, found_inf)` advances every row of a table by one step, in place: parameters, states,
    scalars and step counts. grads has one gradient per entry, laid out like its parameter; the others come from a
    GradScaler, tensors of one element on the device, or None. Each backend's `launcher(table)` returns one.

    Attributes:
        begin: takes these arguments; counts the step and computes coefficients.
        update: updates all elements, at the end.
        measure: takes the number of a stage and adds up its terms; afterwards `table.stages[i].totals` are there, if
            they are `combined`.
        conclude: takes the number of a stage and makes of its totals what the update takes.
        n_stages: the number of the rule's stages, which come between begin and update, each measured and concluded.
    """

    begin: Callable[[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None], None]
    update: Callable[[], None]
    measure: Callable[[int], None] = no_stage
    conclude: Callable[[int], None] = no_stage
    n_stages: int = 0

    def __call__(
        self, grads: list[torch.Tensor], grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None
    ) -> None:
        self.begin(grads, grad_scale, found_inf)
        for stage in range(self.n_stages):
            self.measure(stage)
            self.conclude(stage)
        self.update()


def capturing(device: torch.device) -> bool:
    """Return whether work on the device is being captured into a CUDA graph."""
    if device.type != "cuda":
        return False
    if device.index in (None, torch.cuda.current_device()):
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def row_addresses(tensor: torch.Tensor, lanes: int) -> np.ndarray:
    """Return the address of each lane of a tensor without gaps, int64 [lanes]."""
    lane_bytes = tensor.numel() // lanes * tensor.element_size()
    return tensor.data_ptr() + lane_bytes * np.arange(lanes, dtype=np.int64)


def takes_wide_path(entry: Entry, grad_dtype: torch.dtype) -> bool:
    """Return whether every lane starts at a multiple of 16 bytes, in the gradient if its first one does."""
    tensors = (entry.p, *entry.states)
    lane_size = entry.p.numel() // entry.lanes
    lane_bytes = [lane_size * dtype.itemsize for dtype in (grad_dtype, *(t.dtype for t in tensors))]
    # The first lane starts where the tensor does.
    return all(n % 16 == 0 for n in ([] if entry.lanes == 1 else lane_bytes) + [t.data_ptr() for t in tensors])


def n_columns(rule: Rule) -> int:
    """Return the number of columns of a rule's table."""
    return STATES + len(rule.states) + len(rule.scalars)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def work_of(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None) -> Work:
    """Return the properties of a launch over these entries that its speed depends on."""
    n_elements = sum(entry.p.numel() for entry in entries)
    n_wide = sum(entry.p.numel() for entry in entries if takes_wide_path(entry, grad_dtype))
    p_dtype = entries[0].p.dtype
    state_dtype = entries[0].states[0].dtype if rule.states else p_dtype
    return Work(
        rule=rule.name,
        n_elements=n_elements,
        dtypes=(name_of(p_dtype), name_of(grad_dtype), name_of(state_dtype)),
        rounding="nearest" if seed is None else "stochastic",
        aligned=2 * n_wide >= n_elements,
        rows=rows_class(n_elements, sum(entry.lanes for entry in entries)),
    )


def build(
    rule: Rule,
    entries: list[Entry],
    grad_dtype: torch.dtype,
    chunk_size: int,
    seed: int | None = None,
    piles: int = N_PILES,
) -> Table:
    """Build the table of entries that share a device and dtypes; gradients and hyperparameters are set later.

    Args:
        chunk_size: elements that one program (GPU) or one task (CPU) works on; a power of two.
        piles: into how many equally loaded stretches the chunks are dealt: at least as many as there are threads.
    """
    device, p_dtype = entries[0].p.device, entries[0].p.dtype
    compute_dtype = torch.float64 if p_dtype == torch.float64 else torch.float32
    lanes = np.array([entry.lanes for entry in entries])
    entry_of_row = np.repeat(np.arange(len(entries)), lanes)
    on_gpu = device.type == "cuda"
    host = torch.zeros(len(entry_of_row), n_columns(rule), dtype=torch.int64, device="cpu", pin_memory=on_gpu)
    rows, lane_offset, start = host.numpy(), np.zeros(len(entry_of_row), dtype=np.int64), 0
    for entry in entries:
        lane_rows = rows[start : start + entry.lanes]
        lane_size = entry.p.numel() // entry.lanes
        lane_rows[:, P] = row_addresses(entry.p, entry.lanes)
        lane_rows[:, STEP] = row_addresses(entry.step, entry.lanes)
        lane_rows[:, N_ELEMENTS] = lane_size
        lane_rows[:, PARAMETER] = entry.parameter
        for i, state in enumerate((*entry.states, *entry.scalars)):
            lane_rows[:, STATES + i] = row_addresses(state, entry.lanes)
        lane_offset[start : start + entry.lanes] = lane_size * grad_dtype.itemsize * np.arange(entry.lanes)
        start += entry.lanes

    of_entry = (
        np.array([row_addresses(t, e.lanes) for t in e.scales], dtype=np.int64).reshape(len(e.scales), e.lanes).T
        for e in entries
    )
    scales = np.ascontiguousarray(np.concatenate([*of_entry]))

    n_chunks = -(-rows[:, N_ELEMENTS] // chunk_size)
    chunk_row = np.repeat(np.arange(len(rows), dtype=np.int32), n_chunks)
    first_chunk = np.cumsum(n_chunks) - n_chunks
    chunk_index = (np.arange(len(chunk_row)) - np.repeat(first_chunk, n_chunks)).astype(np.int32)
    # Threads take equal parts of this list, so each part needs its share of full chunks.
    size = np.minimum(rows[chunk_row, N_ELEMENTS] - chunk_index * np.int64(chunk_size), chunk_size)
    # Full chunks stay in the order of their addresses.
    full, rest = np.flatnonzero(size == chunk_size), np.flatnonzero(size < chunk_size)
    rest = rest[np.argsort(-size[rest], kind="stable")]
    dealt = np.concatenate(
        [part for i, run in enumerate(np.array_split(full, piles)) for part in (run, rest[i::piles])]
    )
    chunk_row, chunk_index = chunk_row[dealt], chunk_index[dealt]

    lanes_of_group = {entry.group: entry.lanes for entry in entries}
    first_lane = dict(zip(lanes_of_group, np.cumsum([0, *lanes_of_group.values()]), strict=False))
    lane_of_row = np.concatenate([first_lane[entry.group] + np.arange(entry.lanes) for entry in entries])
    n_rows, by_row = len(rows), any(entry.sharded for entry in entries)
    stages = [
        pieces.build(stage, rows[:, N_ELEMENTS], lanes.tolist(), by_row, compute_dtype, device) for stage in rule.stages
    ]
    return Table(
        rule=rule,
        entries=entries,
        grad_dtype=grad_dtype,
        rows=torch.empty_like(host, device=device, pin_memory=False),
        hyper=torch.empty(n_rows, 1 + len(rule.hyper), dtype=torch.float64, device=device),
        coefficients=torch.empty(n_rows, 1 + rule.n_coefficients, dtype=compute_dtype, device=device),
        keys=torch.empty(n_rows, dtype=torch.int32, device=device),
        chunk_row=torch.from_numpy(chunk_row).to(device),
        chunk_index=torch.from_numpy(chunk_index).to(device),
        chunk_size=chunk_size,
        uploads=Uploads(host, device),
        entry_of_row=entry_of_row,
        lane_offset=lane_offset,
        groups=tuple(lanes_of_group),
        lane_of_row=torch.from_numpy(lane_of_row),
        seed=seed,
        grad_bytes=tuple(entry.p.numel() * grad_dtype.itemsize for entry in entries),
        stages=tuple(stages),
        scales=torch.from_numpy(scales).to(device),
    )
