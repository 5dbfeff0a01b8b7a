"""Chunks: runs that are trained as one population; each is some rows of a plan's table of runs, seed by seed."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch

from experiments.common.errors import OptionError
from experiments.sweeps.plan import Plan
from experiments.training import diagnostics, optimizers, population
from experiments.training.axes import axes_in

OF_PLAN = ["config", "setting", "steps", "before", "end"]
"""Columns of a plan's runs that the tables of chunks do not have."""
CURVES = ["step", "epoch", "train_loss", "eval_loss", "eval_accuracy", "seconds", "run_seconds"]


class Paused(Exception):
    """Raised when the time of a training is over. Attributes: state, from which it goes on."""

    def __init__(self, state: dict):
        super().__init__("the time is over")
        self.state = state


def halves(chunk: pd.DataFrame) -> list[pd.DataFrame]:
    """Cut a chunk that does not fit into memory into two. Raises: OptionError if it is a single run."""
    if len(chunk) == 1:
        raise OptionError("--device accepts one with memory for at least one run, and this one has not enough")
    return cut_alike(chunk, -(-len(chunk) // 2))


def train(
    plan: Plan,
    chunk: pd.DataFrame,
    due: Callable[[], bool] = lambda: False,
    keep: Callable[[dict], object] = lambda state: None,
    deadline: float = math.inf,
    **options,
) -> tuple[pd.DataFrame, dict | None]:
    """Train a chunk through its stage; return a row per run and evaluation: the run's columns, diverged_step, `CURVES`.

    A column compile_seconds says in each row how many of the seconds were compilation. Also return the state at the end
    of the stage, from which runs go on; None if this is their end, or all have diverged.

    Args:
        due, keep, options: further arguments of `population.train_lanes`.
        deadline: seconds since 1970, after which to stop at an evaluation.
    Raises: Paused at the deadline, after `keep` got the state.
    """
    end, ended = int(chunk["end"].iloc[0]), []

    def is_over(evaluated: bool) -> bool:
        return evaluated and time.time() >= deadline

    def keep_or_end(state: dict) -> None:
        if state["step"] == end:
            ended.append(state)
            return
        keep(state)
        if is_over(evaluated=state["since"] == 0):
            raise Paused(state)

    seeds, setting = chunk["seed"].unique().tolist(), plan.settings[chunk["setting"].iloc[0]]
    configs = chunk.loc[chunk["seed"] == seeds[0], axes_in(chunk)].reset_index(drop=True)
    runs, curves = population.train_lanes(
        setting.problem,
        configs,
        seeds,
        optimizer=chunk["optimizer"].iloc[0],
        evaluations=plan.identity["evaluations"],
        **setting.training,
        device=plan.device,
        until=end,
        due=lambda evaluated: due() or is_over(evaluated),
        keep=keep_or_end,
        **options,
    )
    lanes = chunk.assign(lane=range(len(chunk)), diverged_step=runs["diverged_step"].array)
    table = lanes.merge(curves, on="lane").drop(columns=["lane", *OF_PLAN])
    return table.assign(compile_seconds=curves.attrs["compile_seconds"]), ended[0] if ended else None


def of_runs(runs: pd.DataFrame, tables: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the rows of these runs in the tables of chunks, with their share of the seconds of each chunk."""
    found = []
    for table in tables:
        mine = table["key"].isin(runs["key"])
        if mine.all():
            found.append(table)
        elif mine.any():
            share = table.loc[mine, "key"].nunique() / table["key"].nunique()
            own = [name for name in ("seconds", "chunk_seconds", "compile_seconds") if name in table]
            found.append(table[mine].assign(**{name: share * table[name] for name in own}))
    return found


def seconds(tables: Iterable[pd.DataFrame]) -> float:
    """Return the seconds that chunks have taken, evaluation and compilation included."""
    return sum(table["chunk_seconds"].iloc[0] for table in tables)


def phases(tables: Iterable[pd.DataFrame]) -> dict[str, float]:
    """Return the seconds that chunks have taken to compile, to train, and to evaluate and write checkpoints."""
    found = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
    for table in tables:
        # Tables of older versions do not tell compilation from training.
        compiling = table["compile_seconds"].iloc[0] if "compile_seconds" in table else 0.0
        training = table["seconds"].max()
        found["compile"] += compiling
        found["train"] += training - compiling
        found["evaluate"] += table["chunk_seconds"].iloc[0] - training
    return {name: round(float(seconds), 3) for name, seconds in found.items()}


def asked_runs(plan: Plan, keys: list[str]) -> pd.DataFrame:
    """Return a plan's runs, one row each in their order: key, data, task, model, steps, optimizer, the axes, seed."""
    models = [plan.settings[number].problem.model.name for number in plan.runs["setting"]]
    about = {"key": keys, "data": plan.identity["data"], "task": plan.identity["task"], "model": models}
    about, runs = pd.DataFrame(about, index=plan.runs.index), plan.runs.drop(columns=["config", "setting"])
    # Steps that are an axis stay among the axes.
    if "steps" not in axes_in(runs):
        about["steps"] = runs.pop("steps")
    return pd.concat([about, runs], axis=1)


def joined(runs: pd.DataFrame, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the finished runs of a sweep and their curves, numbered by run_id in the order of the sweep.

    Args:
        runs: all runs that the sweep is to train, as `asked_runs` returns them.
        tables: as `of_runs` returns them, by the keys of runs (see `by_run`); at least one. A run of several stages is
            in one of each, and its seconds continue from one to the next.
    """
    lanes = pd.Series(range(len(runs)), index=runs["key"])
    table = pd.concat(tables)
    table = table.assign(lane=table["key"].map(lanes).astype("int64")).sort_values(["lane", "step"], ignore_index=True)
    table = table.drop_duplicates(["lane", "step"], ignore_index=True)
    ends = table.drop_duplicates("lane")
    runs = runs.iloc[ends["lane"]].drop(columns="key").reset_index(drop=True)
    runs.insert(0, "lane", ends["lane"].array)
    runs["diverged_step"] = table.drop_duplicates("lane", keep="last")["diverged_step"].array
    if "begin" in table and table["begin"].any():
        last = table.groupby(["lane", "begin"])[["seconds"]].agg("max")
        earlier = (last.groupby("lane").cumsum() - last).rename(columns={"seconds": "earlier"})
        table["seconds"] += table.join(earlier, on=["lane", "begin"])["earlier"]
    curves = table.loc[:, ["lane", *curve_columns(table)]]
    runs = population.summarise_lanes(runs, curves)
    reached = table.drop_duplicates("lane", keep="last")["step"].array
    stopped = (runs["status"] == "ok") & (reached < runs["steps"])
    runs.loc[stopped, "status"] = "stopped"
    steps = pd.array(reached, dtype="Int64")
    runs.insert(list(runs).index("diverged_step") + 1, "stopped_step", pd.Series(steps).where(stopped))
    return runs.rename(columns={"lane": "run_id"}), curves.rename(columns={"lane": "run_id"})


def curve_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of a chunk's table that curves have."""
    metrics = [name for name in table if name.startswith("eval_") and name not in CURVES]
    # Tables of older versions lack run_seconds.
    return [*(name for name in CURVES if name in table), *metrics, *diagnostics.columns_of(table)]


def keys_of(tables: Iterable[pd.DataFrame]) -> set[str]:
    """Return the keys of the runs in tables of chunks."""
    return {key for table in tables for key in table["key"].unique()}


def by_run(tables: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the tables of chunks of any stage with the keys of their runs; see `rungs.stage`."""
    return [table.assign(key=table["run_key"]) if "run_key" in table else table for table in tables]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU or of the machine is too small."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def cut(runs: pd.DataFrame, lanes: Sequence[int]) -> list[pd.DataFrame]:
    """Cut runs into chunks of nearly equal sizes, each with every combination of its configurations and seeds.

    The runs of a chunk share the optimizer, the setting, and all values that are words.

    Args:
        runs: any rows of `Plan.runs`.
        lanes: largest number of runs in a chunk, of each setting.
    """
    return [chunk for rows in together(runs) for chunk in cut_alike(rows, lanes[rows["setting"].iloc[0]])]


def together(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Return runs in groups of those that can be trained together."""
    words = [name for name in optimizers.words_of(runs) if name in axes_in(runs)]
    shared = runs[["optimizer", "setting", *words]]
    return [runs.loc[rows.index] for _, rows in shared.groupby(list(shared), sort=False, dropna=False)]


def cut_alike(runs: pd.DataFrame, lanes: int) -> list[pd.DataFrame]:
    """Cut runs that can all be trained together, as `cut` does."""
    seeds_of, blocks = defaultdict(list), defaultdict(list)
    for row in zip(runs.index, runs["config"], runs["seed"], strict=True):
        seeds_of[row[1]].append((row[2], row[0]))
    # Put configurations together that lack the same seeds, as after a grid or the number of seeds has grown.
    for lacking in seeds_of.values():
        blocks[tuple(seed for seed, _ in lacking)].append([row for _, row in lacking])
    chunks = []
    for rows in blocks.values():
        for of_seeds in pieces(list(zip(*rows, strict=True)), lanes):
            for of_configs in pieces(list(zip(*of_seeds, strict=True)), max(1, lanes // len(of_seeds))):
                by_seed = zip(*of_configs, strict=True)
                chunks.append(runs.loc[[row for of_seed in by_seed for row in of_seed]])
    return chunks


def pieces(items: list, size: int) -> list[list]:
    """Cut items into as few pieces of at most `size` as possible, of nearly equal sizes."""
    n = -(-len(items) // size)
    return [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]
