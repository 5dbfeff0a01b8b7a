"""What a sweep has trained and what is left, in the stage at work: tables, chunks, and the states between stages."""

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from experiments.sweeps import at_work, checkpoints, chunks, run_keys
from experiments.sweeps.chunks import cut
from experiments.sweeps.results import STATE


class Ledger:
    """The state of a stage of a sweep: its finished runs, and the chunks of the others. It is kept in a folder, if any.

    Attributes:
        runs: as `rungs.stage` returns them.
        earlier: the ledger of the stage before, None of the first.
        todo: chunks that are left, each as rows of the table of runs.
        tables: the stage's runs in the tables of finished chunks.
        chunks: keys of the runs of every chunk, finished or not, of any stage.
        states: of finished chunks by name, if there is no folder.
        n_done, steps_done: number of finished runs, and of their steps in this stage.
    """

    def __init__(
        self,
        folder: Path | None,
        runs: pd.DataFrame,
        lanes: Sequence[int],
        slots: int,
        earlier: "Ledger | None" = None,
    ):
        self.folder, self.runs, self.earlier = folder, runs, earlier
        self.states: dict[str, dict] = {}
        known = checkpoints.read_chunks(folder) if folder else []
        tables = checkpoints.read(folder) if folder else []
        # The folder may also hold runs of other grids, stages, code or data.
        finished = chunks.keys_of(tables)
        self.tables = chunks.of_runs(runs, tables)
        done = runs.loc[runs.index.isin(finished)]
        self.n_done, self.steps_done = len(done), steps_of(done)
        self.todo = deque(to_train(runs, finished, known, lanes, slots))
        todo = [[*chunk["key"]] for chunk in self.todo]
        # Keep chunks that were begun for a grid that is not asked for now, but may be again, or in a later stage.
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

    def finish(self, chunk: pd.DataFrame, table: pd.DataFrame, state: dict | None) -> None:
        """Keep a chunk's table and, before it, the state from which its runs may go on."""
        name = checkpoints.name_of(chunk["key"])
        if state:
            self.keep_state(name, state)
        if self.folder:
            checkpoints.save(self.folder, name, table)
            at_work.remove(self.folder)
        self.tables.append(table)
        self.n_done += len(chunk)
        self.steps_done += steps_of(chunk)

    def keep_state(self, name: str, state: dict) -> None:
        if self.folder:
            checkpoints.save_checkpoint(self.folder, name, state, STATE)
        else:
            self.states[name] = state

    def state(self, name: str, device: str) -> dict | None:
        """Return the state of a finished chunk; None if it is lost, or all its runs have diverged."""
        return checkpoints.read_checkpoint(self.folder, name, device, STATE) if self.folder else self.states.get(name)

    def drop_states(self) -> None:
        """Forget the states of this stage's chunks, from which nothing has to go on any more."""
        self.states.clear()
        own = {*self.runs.index}
        for keys in self.chunks:
            if self.folder and not own.isdisjoint(keys):
                for path in self.folder.glob(f"{checkpoints.name_of(keys)}-*{STATE}"):
                    path.unlink()

    def halve(self, chunk: pd.DataFrame) -> None:
        """Put a chunk that did not fit into memory back as two halves."""
        pair = chunks.halves(chunk)
        tqdm.write(f"out of memory: {len(chunk)} runs at once become {len(pair[0])}", file=sys.stderr)
        self.chunks.remove([*chunk["key"]])
        self.chunks.extend([*half["key"]] for half in pair)
        self.write()
        self.todo.extendleft(reversed(pair))


def steps_of(runs: pd.DataFrame) -> int:
    """Return the number of steps of all these runs in their stage."""
    return int((runs["end"] - runs["begin"]).sum())


def to_train(
    runs: pd.DataFrame, finished: set[str], known: Iterable[list[str]], lanes: Sequence[int], slots: int
) -> list[pd.DataFrame]:
    """Return the chunks that are left: those of an earlier process unchanged, then new ones of the remaining runs.

    Args:
        runs: rows of a stage's runs, with their keys as index.
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
