"""Training of the runs of a plan that a results folder does not have yet, with checkpoints."""

import contextlib
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd
import torch

from experiments.common import interrupts, run_info
from experiments.common.progress import progress_bar
from experiments.sweeps import checkpoints, chunks, live, ray_runner, results, run_keys, rungs
from experiments.sweeps.ledger import STATE, Ledger, steps_of
from experiments.sweeps.plan import Plan
from experiments.sweeps.results import Sweep
from experiments.training import diagnostics
from experiments.training import lanes as lanes_

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
    config, ledgers = plan.config, []
    with contextlib.ExitStack() as stack:
        slots = 1
        if config.engine == "ray":
            slots = stack.enter_context(ray_runner.connected(config.ray_address, plan.device))
        # There are no checkpoints to wait for on a cluster or without a folder.
        deferred = interrupts.interrupts() if out is not None and config.engine == "local" else None
        try:
            with deferred or contextlib.nullcontext([]) as caught:
                about = provenance(plan, out) | {"engine": config.engine}
                asked = chunks.asked_runs(
                    plan, run_keys.keys(plan) if out is not None else [*map(str, plan.runs.index)]
                )
                log = live.Log(out, asked, about) if config.log and out is not None else None
                bar = None
                for ledger in stages(plan, out and out / results.PARTS, asked["key"], slots):
                    ledgers.append(ledger)
                    if out is not None:
                        results.begin(out, asked, about, ledger.runs["run_key"])
                    bar = bar or stack.enter_context(bar_of(plan, ledger))
                    train_stage(plan, ledgers, bar, caught, log)
                    if ledger.todo:
                        break
            tables = [table for ledger in ledgers for table in ledger.tables]
            result = Sweep(*chunks.joined(asked, chunks.by_run(tables)), about)
            seconds = round(chunks.seconds(tables), 3)
            result.provenance.update(chunks=len(tables), seconds={"total": seconds} | chunks.phases(tables))
            if out is not None:
                started = time.perf_counter()
                results.save(out, *result)
                result.provenance["seconds"]["write"] = round(time.perf_counter() - started, 3)
                results.end(out)
        except KeyboardInterrupt as interrupt:
            if out is None or not ledgers:
                raise
            done = n_ended(plan, ledgers[-1])
            kept = f"{done} of {len(plan.runs)} runs are finished and kept in {out}, the same command goes on"
            raise type(interrupt)("\n".join([kept, *map(str, interrupt.args)])) from None
    return result


def stages(plan: Plan, folder: Path | None, keys: Iterable[str], slots: int) -> Iterator[Ledger]:
    """Yield the ledger of each stage; before the next is asked for, nothing may be left to train in it.

    Args:
        keys: of the plan's runs.
        slots: number of chunks that can be trained side by side.
    """
    runs, earlier = plan.runs.assign(run_key=[*keys]), None
    for exponent in rungs.exponents(plan):
        runs = rungs.stage(plan, runs, exponent)
        ledger = Ledger(folder, runs, [setting.lanes for setting in plan.settings], slots, earlier)
        yield ledger
        if earlier:
            earlier.drop_states()
        if not exponent:
            if folder:  # Lost states were trained again.
                checkpoints.drop_checkpoints(folder, but=set(), suffix=STATE)
            break
        runs, earlier = rungs.survivors(plan, runs, ledger.tables, exponent), ledger


def n_ended(plan: Plan, ledger: Ledger) -> int:
    """Return how many runs of the plan will not be trained further, given the ledger of the stage at work."""
    is_last = bool((ledger.runs["end"] == ledger.runs["steps"]).all())
    return len(plan.runs) - len(ledger.runs) + is_last * ledger.n_done


def bar_of(plan: Plan, ledger: Ledger):
    """Return a progress bar over the steps of all runs, including the finished ones. ledger: of the first stage."""
    total, done = steps_left(plan, [ledger]), ledger.steps_done
    what = f"{plan.problem.data.name}: {len(plan.runs)} runs" + f", {ledger.n_done} from before" * bool(done)
    n_chunks = len(ledger.tables) + len(ledger.todo)
    what += f", {n_chunks} chunks" * (n_chunks > 1)
    progress = plan.config.progress and sys.stderr is not None
    options = {"unit": "step", "unit_scale": True, "disable": not progress or done == total}
    return progress_bar(total=total, initial=done, desc=what, **options)


def steps_left(plan: Plan, ledgers: list[Ledger]) -> int:
    """Return the steps of all runs from the stage at work on; halving lets no more go on than planned."""
    planned = rungs.planned(plan)
    later = planned[planned["stage"] >= len(ledgers)]
    return steps_of(ledgers[-1].runs) + round(float((later["runs"] * later["steps"]).sum()))


def train_stage(plan: Plan, ledgers: list[Ledger], bar, caught: Sequence, log: live.Log | None) -> None:
    """Train what the last of the ledgers has left, as far as no interrupt is `caught`, and keep it there.

    log: gets the values of every evaluation.
    """
    *finished, ledger = ledgers
    before = sum(steps_of(one.runs) for one in finished)
    bar.total = before + steps_left(plan, ledgers)

    def show(done: int) -> None:
        bar.update(before + done - bar.n)

    if log:
        for table in ledger.tables:
            log.add(table)
    if plan.config.engine == "ray":
        trained = ray_runner.train(plan, ledger, partial(state_before, plan, ledger))
    else:
        trained = train_here(plan, ledger, show, caught, log)
    for chunk, table, state in trained:
        ledger.finish(chunk, table, state)
        if log:
            log.add(table, written=plan.config.engine == "local")
        show(ledger.steps_done)


def train_here(
    plan: Plan, ledger: Ledger, on_step: Callable[[int], object], caught: Sequence, log: live.Log | None
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, dict | None]]:
    """Train the chunks that are left until an interrupt is `caught`; yield each with its table and its state.

    on_step: called with the sum of the steps of all runs of this stage so far.
    """
    while ledger.todo and not caught:
        chunk = ledger.todo.popleft()
        try:
            found = train_chunk(plan, chunk, ledger, on_step, caught, log)
        except (RuntimeError, MemoryError) as error:
            if not chunks.is_out_of_memory(error):
                raise
            found = None
        if found is None:
            # The error no longer exists here, nor the tensors that it kept alive.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            ledger.halve(chunk)
        else:
            yield chunk, *found


def train_chunk(
    plan: Plan,
    chunk: pd.DataFrame,
    ledger: Ledger,
    on_step: Callable[[int], object] = lambda done: None,
    caught: Sequence = (),
    log: live.Log | None = None,
) -> tuple[pd.DataFrame, dict | None]:
    """Train a chunk, from its checkpoint if there is one; return its table, and its state unless its runs have ended.

    Raises: the interrupt that is `caught`.
    """
    name, options, seconds = checkpoints.name_of(chunk["key"]), {}, 0.0
    if ledger.folder and (state := checkpoints.read_checkpoint(ledger.folder, name, plan.device)):
        options["resume"], seconds = state["training"], state["seconds"]
    else:
        options["resume"] = state_before(plan, ledger, chunk)
    started = time.perf_counter() - seconds
    if ledger.folder:
        save = partial(checkpoints.save_checkpoint, ledger.folder, name)
        told = f"what was at work goes on from step {{}} of {chunk['steps'].iloc[0]}"
        options |= checkpointing(save, plan.config.checkpoint_every, started, told, caught)
    if log:
        options["on_points"] = log.follow(chunk["run_key"])
    before = ledger.steps_done - len(chunk) * int(chunk["begin"].iloc[0])
    table, state = chunks.train(plan, chunk, on_step=lambda step: on_step(before + len(chunk) * step), **options)
    return table.assign(chunk_seconds=time.perf_counter() - started), state


def state_before(plan: Plan, ledger: Ledger, chunk: pd.DataFrame) -> dict | None:
    """Return the state in which the stage before left the runs of a chunk, to resume from; None in the first stage."""
    if (earlier := ledger.earlier) is None:
        return None
    wanted, order = [*chunk["before"]], []

    def parts() -> Iterator[tuple[dict, list[int]]]:
        for keys, state in states_of(plan, earlier, wanted):
            numbers = [i for i, key in enumerate(keys) if key in left]
            left.difference_update(keys)
            order.extend(keys[i] for i in numbers)
            yield state, numbers

    left = set(wanted)
    state = lanes_.gathered(parts())
    place = {key: i for i, key in enumerate(order)}
    return lanes_.gathered([(state, [place[key] for key in wanted])])


def states_of(plan: Plan, ledger: Ledger, wanted: Sequence[str]) -> Iterator[tuple[list[str], dict]]:
    """Yield the states of a stage's chunks that have wanted runs, with the keys of their runs; train what is lost."""
    left = set(wanted)

    def unknown() -> Iterator[list[str]]:
        """Yield the runs that are in no chunk, if the list of chunks was damaged."""
        yield [key for key in wanted if key in left]

    for keys in chain(ledger.chunks, unknown()):
        if left.isdisjoint(keys):
            continue
        if state := ledger.state(checkpoints.name_of(keys), plan.device):
            left.difference_update(keys)
            yield keys, state
            continue
        rows = ledger.runs.loc[[key for key in keys if key in ledger.runs.index]]
        for chunk in chunks.cut(rows, [setting.lanes for setting in plan.settings]):
            _, state = train_chunk(plan, chunk, ledger)
            left.difference_update(chunk["key"])
            if state:
                ledger.keep_state(checkpoints.name_of(chunk["key"]), state)
                yield [*chunk["key"]], state


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
