"""How far a sweep is, from what it has written, for other processes, which never lock its folder."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from experiments.sweeps import at_work, checkpoints, chunks, reading, results


class State(NamedTuple):
    """A sweep that has not ended.

    Attributes:
        sweep: what there is of it, of `reading.so_far`.
        chunks: those of the stage at work, in their order: runs; share, of their steps that is done; and status:
            "finished", "running" or "waiting".
        stage, stages: number of the stage at work, and of how many.
        done, total: steps of all runs; halving may leave fewer to do.
        seconds: that training has taken so far.
        lowest: the lowest evaluation loss of any run until then, at every evaluation: seconds, loss.
        step, end: where the chunk at work is, and where it ends; 0 if it cannot be seen.
        alive, lanes: how many of its lanes have not diverged, and of how many.
        written: when the last of it was written, in seconds since 1970.
    """

    sweep: results.Sweep
    chunks: pd.DataFrame
    stage: int
    stages: int
    done: int
    total: int
    seconds: float
    lowest: pd.DataFrame
    step: int
    end: int
    alive: int
    lanes: int
    written: float


def read(out: Path, known: dict[Path, pd.DataFrame]) -> State | None:
    """Read how far a sweep is; return None if it has not begun, or has ended.

    known: tables of finished chunks that were read before, which need not be read again; new ones are added.
    """
    parts = out / results.PARTS
    try:
        asked = reading.read_asked(out)
        # The chunk at work comes first: if it ends meanwhile, its table is there.
        running = at_work.read(parts)
        paths = sorted(parts.glob("[!.]*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths:
            if path not in known and checkpoints.is_intact(path):
                known[path] = results.read_table(path)
        files = [parts / results.ASKED, *paths, *([] if running is None else [parts / at_work.FILE])]
        written = max(path.stat().st_mtime for path in files)
        tables = [known[path] for path in paths if path in known]
        running = reading.unless_finished(running, tables)
        return state_of(asked, tables, running, checkpoints.read_chunks(parts), written)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def state_of(
    asked: dict, tables: list[pd.DataFrame], running: pd.DataFrame | None, cut: list[list[str]], written: float
) -> State:
    """Return the state of a sweep.

    Args:
        asked, tables, running: as of `reading.so_far`; the tables in the order in which they were written.
        cut: keys of the runs of every chunk.
    """
    runs, stage = asked["runs"], asked.get("stage") or {}
    steps = dict(zip(runs["key"], runs["steps"], strict=True))
    every = [*tables, *([] if running is None else [running])]
    own = chunks.of_runs(runs, chunks.by_run(every))
    finished = chunks.keys_of(tables)
    at, end, alive, lanes, share = 0, 0, 0, 0, 0.0
    if running is not None:
        begin, at, end = (int(running[name].max()) for name in ("begin", "step", "end"))
        last = running.drop_duplicates("key", keep="last")
        alive, lanes, share = int(last["diverged_step"].isna().sum()), len(last), (at - begin) / (end - begin)
    keys, found = {*stage.get("keys", runs["key"])}, []
    for chunk in cut:
        if keys.isdisjoint(chunk):
            continue
        if finished.issuperset(chunk):
            found.append((len(chunk), 1.0, "finished"))
        elif running is not None and running["key"].isin(chunk).any():
            found.append((len(chunk), share, "running"))
        else:
            found.append((len(chunk), 0.0, "waiting"))
    total = stage.get("steps", int(runs["steps"].sum()))
    done = 0
    for table in own:
        begin = int(table["begin"].iloc[0]) if "begin" in table else 0
        reached = int(table["step"].max())
        if stage.get("of", 1) == 1 and (running is None or table is not own[-1]):
            # Where every run has diverged, the table ends before the runs would have.
            reached = int(steps[table["key"].iloc[0]])
        done += table["key"].nunique() * (reached - begin)
    return State(
        sweep=reading.so_far(asked, tables, running),
        chunks=pd.DataFrame(found, columns=["runs", "share", "status"]),
        stage=stage.get("number", 1),
        stages=stage.get("of", 1),
        done=min(done, total),
        total=total,
        seconds=float(chunks.seconds(own)),
        lowest=lowest_losses(own),
        step=at,
        end=end,
        alive=alive,
        lanes=lanes,
        written=written,
    )


def lowest_losses(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the lowest evaluation loss of any run until then, at every evaluation, with the seconds of training.

    tables: of chunks, in the order in which they were trained.
    """
    found, before = [pd.DataFrame({"seconds": [], "loss": []}, dtype="float64")], 0.0
    for table in tables:
        points = table.groupby("step").agg({"seconds": "max", "eval_loss": "min"}).astype("float64")
        found.append(pd.DataFrame({"seconds": points["seconds"] + before, "loss": points["eval_loss"]}))
        before += float(table["chunk_seconds"].iloc[0])
    lowest = pd.concat(found, ignore_index=True).dropna()
    return lowest.assign(loss=lowest["loss"].cummin())
