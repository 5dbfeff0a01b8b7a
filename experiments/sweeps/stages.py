"""Stages of a sweep, from rung to rung: which runs go on, from which states, and training their chunks here."""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from experiments.sweeps import at_work, checkpoints, chunks, live, rungs
from experiments.sweeps.ledger import Ledger, steps_of
from experiments.sweeps.plan import Plan
from experiments.sweeps.results import STATE
from experiments.training import lanes as lanes_

SHARE = 50
"""The time between checkpoints is at least so many times that of writing one, which then costs less than 2 %."""


class Ends(NamedTuple):
    """What ends the training before its time: an interrupt that was `caught`, or a deadline, seconds since 1970."""

    caught: Sequence[type[KeyboardInterrupt]] = ()
    deadline: float = math.inf

    def are_here(self) -> bool:
        return bool(self.caught) or time.time() >= self.deadline


NEVER = Ends()
Look = Callable[[Callable[[], pd.DataFrame | None]], object]
"""Called when there is more to see of a sweep, with what returns the table of the chunk at work, if there is one."""


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


def steps_left(plan: Plan, ledgers: list[Ledger]) -> int:
    """Return the steps of all runs from the stage at work on; halving lets no more go on than planned."""
    planned = rungs.planned(plan)
    later = planned[planned["stage"] >= len(ledgers)]
    return steps_of(ledgers[-1].runs) + round(float((later["runs"] * later["steps"]).sum()))


def train_here(
    plan: Plan, ledger: Ledger, on_step: Callable[[int], object], ends: Ends, log: live.Log | None, look: Look
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, dict | None]]:
    """Train the chunks that are left until `ends` are here; yield each with its table and its state.

    At least one chunk is trained to its next evaluation, unless there is an interrupt.

    on_step: called with the sum of the steps of all runs of this stage so far.
    """
    while ledger.todo and not ends.caught:
        chunk = ledger.todo.popleft()
        try:
            found = train_chunk(plan, chunk, ledger, on_step, ends, log, look)
        except chunks.Paused:
            ledger.todo.appendleft(chunk)
            return
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
            continue
        yield chunk, *found
        if ends.are_here():
            return


def train_chunk(
    plan: Plan,
    chunk: pd.DataFrame,
    ledger: Ledger,
    on_step: Callable[[int], object] = lambda done: None,
    ends: Ends = NEVER,
    log: live.Log | None = None,
    look: Look = lambda running: None,
) -> tuple[pd.DataFrame, dict | None]:
    """Train a chunk, from its checkpoint if there is one; return its table, and its state unless its runs have ended.

    Raises: the interrupt that is caught; chunks.Paused at the deadline.
    """
    resume, seconds = start_of(plan, ledger, chunk)
    started, options = time.perf_counter() - seconds, {}
    if ledger.folder:
        save = partial(checkpoints.save_checkpoint, ledger.folder, checkpoints.name_of(chunk["key"]))
        told = f"what was at work goes on from step {{}} of {chunk['steps'].iloc[0]}"
        options = checkpointing(save, plan.config.checkpoint_every, started, told, ends.caught)
    followers: list[Callable[..., None]] = [log.follow(chunk["run_key"])] if log else []
    if ledger.folder:
        followers.append(at_work.writer(ledger.folder, chunk, started))

    def follow(points: list[dict], diverged_at: torch.Tensor) -> None:
        for follower in followers:
            follower(points, diverged_at)
        look(lambda: at_work.table_of(chunk, points, diverged_at, time.perf_counter() - started))

    options["on_points"] = follow
    before = ledger.steps_done - len(chunk) * int(chunk["begin"].iloc[0])
    options |= {"resume": resume, "deadline": ends.deadline}
    table, state = chunks.train(plan, chunk, on_step=lambda step: on_step(before + len(chunk) * step), **options)
    return table.assign(chunk_seconds=time.perf_counter() - started), state


def start_of(plan: Plan, ledger: Ledger, chunk: pd.DataFrame) -> tuple[dict | None, float]:
    """Return the state from which a chunk is trained, of its checkpoint or of the stage before, and seconds so far."""
    name = checkpoints.name_of(chunk["key"])
    if ledger.folder and (saved := checkpoints.read_checkpoint(ledger.folder, name, plan.device)):
        return saved["training"], saved["seconds"]
    return state_before(plan, ledger, chunk), 0.0


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
