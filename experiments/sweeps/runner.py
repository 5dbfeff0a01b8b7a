"""Training of the runs of a plan that a results folder does not have yet, with checkpoints."""

import contextlib
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from experiments.common import interrupts, run_info
from experiments.common.progress import progress_bar
from experiments.sweeps import checkpoints, chunks, live, ray_runner, results, run_keys
from experiments.sweeps.chunks import cut
from experiments.sweeps.plan import Plan
from experiments.sweeps.results import Sweep
from experiments.training import diagnostics

SHARE = 50
"""The time between checkpoints is at least so many times that of writing one, which then costs less than 2 %."""


@contextlib.contextmanager
def opened(plan: Plan, out: Path | None, fresh: bool = False) -> Iterator[None]:
    """Lock a folder, if there is one, for this plan and this process. Raises: OptionError.

    fresh: whether to remove the results in the folder first.
    """
    if out is None:
        yield
        return
    # The owner of the lock may be writing the files that say which sweep the folder belongs to.
    if not (out / results.PARTS / results.LOCK).exists():
        results.check_out(out, plan.identity, fresh)
    with checkpoints.locked(out):
        results.check_out(out, plan.identity, fresh)
        if fresh:
            results.clear(out)
        yield


def run(plan: Plan, out: Path | None = None) -> Sweep:
    """Train a plan's runs, in chunks, except those that the folder, which is `opened`, has already.

    Every finished chunk is written to the folder at once, and the state of the current one from time to time. The
    folder's tables hold this plan's runs; other runs that were trained there stay in its parts.
    """
    config = plan.config
    engine, every = config.engine, config.checkpoint_every
    with contextlib.ExitStack() as stack:
        slots = stack.enter_context(ray_runner.connected(config.ray_address, plan.device)) if engine == "ray" else 1
        # There are no checkpoints to wait for on a cluster or without a folder.
        deferred = interrupts.interrupts() if out is not None and engine == "local" else contextlib.nullcontext([])
        ledger = None
        try:
            with deferred as caught:
                about = provenance(plan, out) | {"engine": engine}
                asked = chunks.asked_runs(
                    plan, run_keys.keys(plan) if out is not None else [*map(str, plan.runs.index)]
                )
                if out is not None:
                    results.begin(out, asked, about)
                runs = plan.runs.assign(key=asked["key"]).set_index("key", drop=False)
                lanes = [setting.lanes for setting in plan.settings]
                ledger = Ledger(out and out / results.PARTS, runs, lanes, slots)
                log = live.Log(out, asked, about, ledger.tables) if config.log and out is not None else None
                bar = stack.enter_context(bar_of(plan, ledger, config.progress and sys.stderr is not None))
                trained = (
                    ray_runner.train(plan, ledger)
                    if engine == "ray"
                    else train_here(plan, ledger, every, lambda done: bar.update(done - bar.n), caught, log)
                )
                for chunk, table in trained:
                    ledger.finish(chunk, table)
                    if log and engine == "ray":
                        log.add(table)
                    bar.update(ledger.steps_done - bar.n)
            result = Sweep(*chunks.joined(asked, ledger.tables), about)
            seconds = round(chunks.seconds(ledger.tables), 3)
            result.provenance.update(
                chunks=len(ledger.tables), seconds={"total": seconds} | chunks.phases(ledger.tables)
            )
            if out is not None:
                started = time.perf_counter()
                results.save(out, *result)
                result.provenance["seconds"]["write"] = round(time.perf_counter() - started, 3)
                results.end(out)
        except KeyboardInterrupt as interrupt:
            if out is None or ledger is None:
                raise
            kept = f"{ledger.n_done} of {len(plan.runs)} runs are finished and kept in {out}, the same command goes on"
            raise type(interrupt)("\n".join([kept, *map(str, interrupt.args)])) from None
    return result


def bar_of(plan: Plan, ledger: "Ledger", progress: bool):
    """Return a progress bar over the steps of all runs, including the finished ones."""
    total, done = int(plan.runs["steps"].sum()), ledger.steps_done
    what = f"{plan.problem.data.name}: {len(plan.runs)} runs" + f", {ledger.n_done} from before" * bool(done)
    n_chunks = len(ledger.tables) + len(ledger.todo)
    what += f", {n_chunks} chunks" * (n_chunks > 1)
    options = {"unit": "step", "unit_scale": True, "disable": not progress or done == total}
    return progress_bar(total=total, initial=done, desc=what, **options)


class Ledger:
    """The state of a sweep: its finished runs, and the chunks of the others. It is kept in a folder, if there is one.

    Attributes:
        todo: chunks that are left, each as rows of the table of runs.
        tables: the sweep's runs in the tables of finished chunks.
        chunks: keys of the runs of every chunk, finished or not.
        n_done, steps_done: number of finished runs, and of their steps.
    """

    def __init__(self, folder: Path | None, runs: pd.DataFrame, lanes: Sequence[int], slots: int):
        self.folder = folder
        known = checkpoints.read_chunks(folder) if folder else []
        tables = checkpoints.read(folder) if folder else []
        # The folder may also hold runs of other grids, other code or other data.
        finished = {key for table in tables for key in table["key"].unique()}
        self.tables = chunks.of_runs(runs, tables)
        done = runs.loc[runs.index.isin(finished)]
        self.n_done, self.steps_done = len(done), int(done["steps"].sum())
        self.todo = deque(to_train(runs, finished, known, lanes, slots))
        todo = [[*chunk["key"]] for chunk in self.todo]
        # Keep chunks that were begun for a grid that is not asked for now, but may be again.
        origins = {key[: run_keys.ORIGIN] for key in runs.index}
        waiting = [
            keys
            for keys in known
            if finished.isdisjoint(keys) and keys[0][: run_keys.ORIGIN] in origins and not set(keys) <= {*runs.index}
        ]
        self.chunks = [keys for keys in known if finished.issuperset(keys)] + waiting + todo
        self.write()
        if folder:
            checkpoints.drop_checkpoints(folder, but={checkpoints.name_of(keys) for keys in waiting + todo})

    def write(self) -> None:
        if self.folder:
            checkpoints.write_chunks(self.folder, self.chunks)

    def finish(self, chunk: pd.DataFrame, table: pd.DataFrame) -> None:
        if self.folder:
            checkpoints.save(self.folder, checkpoints.name_of(chunk["key"]), table)
        self.tables.append(table)
        self.n_done += len(chunk)
        self.steps_done += int(chunk["steps"].sum())

    def halve(self, chunk: pd.DataFrame) -> None:
        """Put a chunk that did not fit into memory back as two halves."""
        pair = chunks.halves(chunk)
        tqdm.write(f"out of memory: {len(chunk)} runs at once become {len(pair[0])}", file=sys.stderr)
        self.chunks.remove([*chunk["key"]])
        self.chunks.extend([*half["key"]] for half in pair)
        self.write()
        self.todo.extendleft(reversed(pair))


def to_train(
    runs: pd.DataFrame, finished: set[str], known: Iterable[list[str]], lanes: Sequence[int], slots: int
) -> list[pd.DataFrame]:
    """Return the chunks that are left: those of an earlier process unchanged, then new ones of the remaining runs.

    Args:
        runs: rows of a plan's runs, with their keys as index.
        known: keys of the runs of each chunk of earlier processes.
        lanes: largest number of runs in a chunk, of each setting.
        slots: number of chunks that can be trained side by side.
    """
    wanted, left = set(runs.index) - finished, []
    for keys in known:
        if wanted.issuperset(keys):
            left.append(runs.loc[keys])
            wanted.difference_update(keys)
    new = runs.loc[[key in wanted for key in runs.index]]
    share = max(1, -(-len(new) // slots))
    return left + cut(new, [min(share, most) for most in lanes])


def train_here(
    plan: Plan,
    ledger: Ledger,
    every: float,
    on_step: Callable[[int], object],
    caught: Sequence = (),
    log: live.Log | None = None,
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Train the chunks that are left until an interrupt is `caught`; yield each chunk with its table.

    Args:
        on_step: called with the sum of the steps of all runs so far.
        log: gets the values of every evaluation.
    """
    while ledger.todo and not caught:
        chunk = ledger.todo.popleft()
        try:
            table = train_chunk(plan, chunk, ledger, every, on_step, caught, log)
        except (RuntimeError, MemoryError) as error:
            if not chunks.is_out_of_memory(error):
                raise
            table = None
        if table is None:
            # The error no longer exists here, nor the tensors that it kept alive.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            ledger.halve(chunk)
        else:
            yield chunk, table


def train_chunk(
    plan: Plan,
    chunk: pd.DataFrame,
    ledger: Ledger,
    every: float,
    on_step: Callable[[int], object],
    caught: Sequence,
    log: live.Log | None,
) -> pd.DataFrame:
    """Train a chunk, from its checkpoint if there is one; return its table. Raises: the interrupt that is `caught`."""
    name, options, seconds = checkpoints.name_of(chunk["key"]), {}, 0.0
    if ledger.folder and (state := checkpoints.read_checkpoint(ledger.folder, name, plan.device)):
        options["resume"], seconds = state["training"], state["seconds"]
    started = time.perf_counter() - seconds
    if ledger.folder:
        save = partial(checkpoints.save_checkpoint, ledger.folder, name)
        options |= checkpointing(
            save, every, started, f"what was at work goes on from step {{}} of {chunk['steps'].iloc[0]}", caught
        )
    if log:
        options["on_points"] = log.follow(chunk["key"])
    before = ledger.steps_done
    table = chunks.train(plan, chunk, on_step=lambda step: on_step(before + len(chunk) * step), **options)
    return table.assign(chunk_seconds=time.perf_counter() - started)


def checkpointing(save: Callable[[dict], object], every: float, started: float, told: str, caught: Sequence) -> dict:
    """Return arguments of `population.train_lanes` that save a chunk's state every so many seconds, or more if slow.

    When an interrupt is caught, the state is saved and the interrupt raised with the message `told`, which takes the
    step.
    """
    next_at = time.perf_counter() + every

    def keep(training: dict) -> None:
        nonlocal next_at
        before = time.perf_counter()
        save({"training": training, "seconds": before - started})
        if caught:
            raise caught[0](told.format(training["step"]))
        next_at = time.perf_counter() + max(every, SHARE * (time.perf_counter() - before))

    return {"due": lambda: bool(caught) or time.perf_counter() >= next_at, "keep": keep}


def provenance(plan: Plan, out: Path | None) -> dict:
    """Return the provenance known at the start. It is written at once, so that the folder belongs to this sweep."""
    dataset = plan.problem.data
    warning, _, reason = dataset.warning.partition("\n")
    about = {
        **run_info.provenance(plan.device),
        "data": {
            "name": dataset.name,
            "source": dataset.source.replace(str(Path.home()), "~"),
            "n_train": len(dataset.x_train),
            "n_eval": len(dataset.x_eval),
            "warning": warning,
            "reason": reason,
        },
        "sweep": plan.identity,
        "loss_name": plan.problem.loss_name,
    }
    if plan.config.diagnostics:
        about["class_groups"] = diagnostics.group_sizes(dataset.y_train)
    if out is not None:
        if not (out / results.PROVENANCE).exists():
            results.write_provenance(out, about)
        before = json.loads((out / results.PROVENANCE).read_text(encoding="utf-8"))
        # A sweep that continues keeps its first start time.
        if before["sweep"] == json.loads(json.dumps(plan.identity)):
            about["started"] = before["started"]
    return about
