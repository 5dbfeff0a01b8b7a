"""Training what a plan asks for and a results folder does not have yet, so that nothing that was trained is lost."""

import contextlib
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from experiments import chunks, cluster, identity, origin, parts, store
from experiments.plan import Plan, cut
from experiments.store import Sweep

SHARE = 50
"""A checkpoint waits for so many times as long as the one before it took: writing them costs less than 2 %."""


def run(
    plan: Plan,
    out: Path | None = None,
    *,
    fresh: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    checkpoint_every: float = 20.0,
    progress: bool = True,
) -> Sweep:
    """Train a plan's runs, in chunks, except those that the folder has; arguments as of `sweep`.

    Into the folder goes every chunk as soon as it is finished, and now and then how far the one at work is.
    """
    with contextlib.ExitStack() as stack:
        if out is not None:
            store.check_out(out, plan.identity, fresh)
            stack.enter_context(parts.locked(out))
            # Another process may have written to it, before it was ours.
            store.check_out(out, plan.identity, fresh)
            if fresh:
                store.clear(out)
        slots = stack.enter_context(cluster.connected(ray_address, plan.device)) if engine == "ray" else 1
        about = provenance(plan, out) | {"engine": engine}
        keys = identity.keys(plan) if out is not None else [*map(str, plan.runs.index)]
        runs = plan.runs.assign(key=keys).set_index("key", drop=False)
        ledger = Ledger(out and out / store.PARTS, runs, plan.lanes, slots)
        what = f"{plan.problem.data.name}: {len(runs)} runs" + f", {ledger.n_done} from before" * bool(ledger.n_done)
        what += f", {len(ledger.chunks)} chunks" * (len(ledger.chunks) > 1)
        bar = tqdm(total=len(runs) * plan.steps, unit="step", unit_scale=True, disable=not progress, dynamic_ncols=True)
        bar.set_description(what)
        bar.update(ledger.n_done * plan.steps)
        stack.enter_context(bar)
        try:
            trained = (
                cluster.train(plan, ledger)
                if engine == "ray"
                else train_here(plan, ledger, checkpoint_every, lambda done: bar.update(done - bar.n))
            )
            for chunk, table in trained:
                ledger.finish(chunk, table)
                bar.update(ledger.n_done * plan.steps - bar.n)
            result = Sweep(*chunks.joined(plan, keys, ledger.tables), about)
            seconds = sum(table["chunk_seconds"].iloc[0] for table in ledger.tables)
            result.provenance.update(chunks=len(ledger.chunks), seconds={"total": round(seconds, 3)})
            if out is not None:
                store.save(out, *result)
        except KeyboardInterrupt:
            if out is None:
                raise
            kept = f"{ledger.n_done} of {len(runs)} runs are finished and kept in {out}, the same command goes on"
            raise KeyboardInterrupt(kept) from None
    return result


class Ledger:
    """Which runs of a sweep are finished, and in which chunks the others are trained; in a folder, if there is one.

    Attributes:
        todo: chunks that are left, rows of the table of runs.
        tables: of the finished chunks.
        chunks: the keys of the runs of every chunk, finished or not.
        n_done: how many runs are finished.
    """

    def __init__(self, folder: Path | None, runs: pd.DataFrame, lanes: int, slots: int):
        self.folder = folder
        known = parts.read_chunks(folder) if folder else []
        tables = parts.read(folder) if folder else []
        # The folder may also hold runs of other code, or of data as they were.
        self.tables = [table for table in tables if table["key"].iloc[0] in runs.index]
        finished = {key for table in self.tables for key in table["key"].unique()}
        self.n_done = len(finished)
        self.todo = deque(to_train(runs, finished, known, lanes, slots))
        self.chunks = [keys for keys in known if finished.issuperset(keys)] + [[*chunk["key"]] for chunk in self.todo]
        self.write()
        if folder:
            names = {parts.name_of(chunk["key"]) for chunk in self.todo}
            parts.drop_checkpoints(folder, but=names)

    def write(self) -> None:
        if self.folder:
            parts.write_chunks(self.folder, self.chunks)

    def finish(self, chunk: pd.DataFrame, table: pd.DataFrame) -> None:
        if self.folder:
            parts.save(self.folder, parts.name_of(chunk["key"]), table)
        self.tables.append(table)
        self.n_done += len(chunk)

    def halve(self, chunk: pd.DataFrame) -> None:
        """Put a chunk that memory was too small for back, as two."""
        pair = chunks.halves(chunk)
        tqdm.write(f"out of memory: {len(chunk)} runs at once become {len(pair[0])}", file=sys.stderr)
        self.chunks.remove([*chunk["key"]])
        self.chunks.extend([*half["key"]] for half in pair)
        self.write()
        self.todo.extendleft(reversed(pair))


def to_train(
    runs: pd.DataFrame, finished: set[str], known: Iterable[list[str]], lanes: int, slots: int
) -> list[pd.DataFrame]:
    """The chunks that are left: those of an earlier process as they were, then what is in none of them.

    Args:
        runs: with their keys as index.
        slots: how many chunks can be trained side by side.
    """
    wanted = set(runs.index) - finished
    left = [runs.loc[keys] for keys in known if wanted.issuperset(keys)]
    wanted.difference_update(*(chunk.index for chunk in left))
    new = runs.loc[[key in wanted for key in runs.index]]
    return left + cut(new, max(1, min(lanes, -(-len(new) // slots))))


def train_here(
    plan: Plan, ledger: Ledger, every: float, on_step: Callable[[int], object]
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Train what is left, chunk by chunk; yields each with its table. on_step: given the steps of all runs so far."""
    while ledger.todo:
        chunk = ledger.todo.popleft()
        try:
            table = train_chunk(plan, chunk, ledger, every, on_step)
        except (RuntimeError, MemoryError) as error:
            if not chunks.is_out_of_memory(error):
                raise
            table = None
        if table is None:
            # The error is gone by now, and with it all that it kept alive.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            ledger.halve(chunk)
        else:
            yield chunk, table


def train_chunk(plan: Plan, chunk: pd.DataFrame, ledger: Ledger, every: float, on_step: Callable[[int], object]):
    """Train a chunk from its checkpoint, if there is one, to its table."""
    name, options, seconds = parts.name_of(chunk["key"]), {}, 0.0
    if ledger.folder and (state := parts.read_checkpoint(ledger.folder, name, plan.device)):
        options["resume"], seconds = state["training"], state["seconds"]
    started = time.perf_counter() - seconds
    if ledger.folder:
        options |= checkpoints(ledger.folder, name, every, started)
    before = ledger.n_done * plan.steps
    table = chunks.train(plan, chunk, on_step=lambda step: on_step(before + len(chunk) * step), **options)
    return table.assign(chunk_seconds=time.perf_counter() - started)


def checkpoints(folder: Path, name: str, every: float, started: float) -> dict:
    """Arguments of `population.train` that keep a chunk's state every so many seconds, less often if that is slow."""
    next_at = time.perf_counter() + every

    def keep(training: dict) -> None:
        nonlocal next_at
        before = time.perf_counter()
        parts.save_checkpoint(folder, name, {"training": training, "seconds": before - started})
        next_at = time.perf_counter() + max(every, SHARE * (time.perf_counter() - before))

    return {"due": lambda: time.perf_counter() >= next_at, "keep": keep}


def provenance(plan: Plan, out: Path | None) -> dict:
    """What provenance.json begins with. In the folder it is written at once, which makes the folder this sweep's."""
    dataset = plan.problem.data
    about = {
        **origin.provenance(plan.device),
        "data": {
            "name": dataset.name,
            "source": dataset.source.replace(str(Path.home()), "~"),
            "n_train": len(dataset.x_train),
            "n_eval": len(dataset.x_eval),
            "warning": dataset.warning,
        },
        "sweep": plan.identity,
        "loss_name": plan.problem.loss_name,
    }
    if out is not None:
        if not (out / store.PROVENANCE).exists():
            store.write_provenance(out, about)
        before = json.loads((out / store.PROVENANCE).read_text(encoding="utf-8"))
        # What goes on has started when it did first.
        if before["sweep"] == json.loads(json.dumps(plan.identity)):
            about["started"] = before["started"]
    return about
