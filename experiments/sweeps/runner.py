"""Training of the runs of a plan that a results folder does not have yet."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.common import interrupts, run_info
from experiments.common.progress import progress_bar
from experiments.sweeps import (
    checkpoints,
    chunks,
    live,
    ray_runner,
    reading,
    results,
    run_keys,
    rungs,
    stages,
    watching,
)
from experiments.sweeps.ledger import Ledger, steps_of
from experiments.sweeps.plan import Plan
from experiments.sweeps.results import Sweep
from experiments.sweeps.stages import Ends
from experiments.training import diagnostics


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


def run(
    plan: Plan,
    out: Path | None = None,
    budget: float = math.inf,
    show: Callable[[Callable[[], watching.State]], object] = lambda state: None,
) -> Sweep:
    """Train a plan's runs, in chunks, except those that the folder, which is `opened`, has already.

    Every finished chunk is written to the folder at once, and the state of the current one from time to time. The
    folder's tables hold this plan's runs; other runs that were trained there stay in its parts.

    budget: seconds, after which training ends at the next evaluation. The sweep is then as `reading.read_unfinished`
        returns it, and the folder as after an interrupt.
    show: called when there is more to see, with what returns how far the sweep is.
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
                ends = Ends(caught, time.time() + budget)
                bar = None

                def of_runs() -> dict:
                    return {"runs": asked, "about": about, "going": ledgers[-1].runs["run_key"]}

                def look(running: Callable[[], pd.DataFrame | None]) -> None:
                    show(lambda: state_of(plan, of_runs(), ledgers, running()))

                for ledger in stages.stages(plan, out and out / results.PARTS, asked["key"], slots):
                    ledgers.append(ledger)
                    if out is not None:
                        results.begin(out, asked, about, ledger.runs["run_key"], stage_of(plan, ledgers))
                    bar = bar or stack.enter_context(bar_of(plan, ledger))
                    works = len(ledger.todo) > 0
                    train_stage(plan, ledgers, bar, ends, log, look)
                    is_over = works and ends.are_here() and stages.n_ended(plan, ledger) < len(plan.runs)
                    if ledger.todo or is_over:
                        break
            tables = chunks.by_run(table for ledger in ledgers for table in ledger.tables)
            if stages.n_ended(plan, ledgers[-1]) < len(plan.runs):
                return reading.so_far(of_runs(), tables)
            result = Sweep(*chunks.joined(asked, tables), about)
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
            done = stages.n_ended(plan, ledgers[-1])
            kept = f"{done} of {len(plan.runs)} runs are finished and kept in {out}, the same command goes on"
            raise type(interrupt)("\n".join([kept, *map(str, interrupt.args)])) from None
    return result


def bar_of(plan: Plan, ledger: Ledger):
    """Return a progress bar over the steps of all runs, including the finished ones. ledger: of the first stage."""
    total, done = stages.steps_left(plan, [ledger]), ledger.steps_done
    what = f"{plan.problem.data.name}: {len(plan.runs)} runs" + f", {ledger.n_done} from before" * bool(done)
    n_chunks = len(ledger.tables) + len(ledger.todo)
    what += f", {n_chunks} chunks" * (n_chunks > 1)
    progress = plan.config.progress and sys.stderr is not None
    options = {"unit": "step", "unit_scale": True, "disable": not progress or done == total}
    return progress_bar(total=total, initial=done, desc=what, **options)


def stage_of(plan: Plan, ledgers: list[Ledger]) -> dict:
    """Return the number of the stage at work, of how many, the keys of its runs, and the steps of the whole sweep."""
    *finished, ledger = ledgers
    steps = sum(steps_of(one.runs) for one in finished) + stages.steps_left(plan, ledgers)
    return {"number": len(ledgers), "of": len(rungs.exponents(plan)), "keys": [*ledger.runs.index], "steps": steps}


def state_of(plan: Plan, asked: dict, ledgers: list[Ledger], running: pd.DataFrame | None) -> watching.State:
    """Return how far a sweep is. asked, running: as of `reading.so_far`."""
    tables = [table for ledger in ledgers for table in ledger.tables]
    running = reading.unless_finished(running, tables)
    stage = stage_of(plan, ledgers)
    return watching.state_of({**asked, "stage": stage}, tables, running, ledgers[-1].chunks, time.time())


def train_stage(plan: Plan, ledgers: list[Ledger], bar, ends: Ends, log: live.Log | None, look: stages.Look) -> None:
    """Train what the last of the ledgers has left, until `ends` are here, and keep it there.

    log, look: get the values of every evaluation.
    """
    *finished, ledger = ledgers
    before = sum(steps_of(one.runs) for one in finished)
    bar.total = before + stages.steps_left(plan, ledgers)

    def show(done: int) -> None:
        bar.update(before + done - bar.n)

    if log:
        for table in ledger.tables:
            log.add(table)
    if plan.config.engine == "ray":
        trained = ray_runner.train(plan, ledger, partial(stages.start_of, plan, ledger), ends.deadline)
    else:
        trained = stages.train_here(plan, ledger, show, ends, log, look)
    if ledger.todo:
        look(lambda: None)
    for chunk, table, state in trained:
        ledger.finish(chunk, table, state)
        if log:
            log.add(table, written=plan.config.engine == "local")
        show(ledger.steps_done)
        look(lambda: None)


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
