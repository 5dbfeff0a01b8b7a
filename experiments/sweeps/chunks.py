"""Chunks: runs that are trained as one population, as rows of a plan's table of runs, seed by seed."""

from collections import defaultdict
from collections.abc import Iterable

import pandas as pd
import torch

from experiments.common.errors import OptionError
from experiments.sweeps.plan import Plan
from experiments.training import population
from experiments.training.axes import AXES

CURVES = ["step", "epoch", "train_loss", "eval_loss", "eval_accuracy", "seconds"]


def halves(chunk: pd.DataFrame) -> list[pd.DataFrame]:
    """Two chunks out of one that does not fit into the memory. Raises: OptionError if it is a single run."""
    if len(chunk) == 1:
        raise OptionError("--device accepts one with memory for at least one run, and this one has not enough")
    return cut(chunk, -(-len(chunk) // 2))


def train(plan: Plan, chunk: pd.DataFrame, **options) -> pd.DataFrame:
    """Train a chunk: one row a run and evaluation, with the columns of the run, diverged_step and `CURVES`.

    options: further arguments of `population.train`.
    """
    seeds = chunk["seed"].unique().tolist()
    configs = chunk.loc[chunk["seed"] == seeds[0], list(AXES)].reset_index(drop=True)
    runs, curves = population.train(
        plan.problem,
        configs,
        seeds,
        optimizer=chunk["optimizer"].iloc[0],
        evaluations=plan.identity["evaluations"],
        **plan.training,
        **options,
    )
    lanes = chunk.assign(lane=range(len(chunk)), diverged_step=runs["diverged_step"].array)
    return lanes.merge(curves, on="lane").drop(columns=["lane", "config"])


def of_runs(runs: pd.DataFrame, tables: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """What the tables of chunks hold of these runs. Of the seconds of a chunk a part of its runs has its share."""
    found = []
    for table in tables:
        mine = table["key"].isin(runs["key"])
        if mine.all():
            found.append(table)
        elif mine.any():
            share = table.loc[mine, "key"].nunique() / table["key"].nunique()
            found.append(table[mine].assign(**{name: share * table[name] for name in ("seconds", "chunk_seconds")}))
    return found


def seconds(tables: Iterable[pd.DataFrame]) -> float:
    """What chunks have taken, evaluation and compilation included."""
    return sum(table["chunk_seconds"].iloc[0] for table in tables)


def asked(plan: Plan, keys: list[str]) -> pd.DataFrame:
    """A plan's runs, one row each in their order: key, data, task, model, steps, optimizer, the axes, seed."""
    runs = plan.runs.drop(columns="config")
    for i, column in enumerate(("data", "task", "model", "steps")):
        runs.insert(i, column, plan.identity[column])
    runs.insert(0, "key", keys)
    return runs


def joined(runs: pd.DataFrame, tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves of a sweep, numbered by run_id in its order, as far as the tables of its chunks have them.

    Args:
        runs: all that the sweep is to train, as of `asked`.
        tables: as of `of_runs`; at least one.
    """
    lanes = pd.Series(range(len(runs)), index=runs["key"])
    table = pd.concat(tables)
    table = table.assign(lane=table["key"].map(lanes).astype("int64")).sort_values(["lane", "step"], ignore_index=True)
    table = table.drop_duplicates(["lane", "step"], ignore_index=True)
    ends = table.drop_duplicates("lane")
    runs = runs.iloc[ends["lane"]].drop(columns="key").reset_index(drop=True)
    runs.insert(0, "lane", ends["lane"].array)
    runs["diverged_step"] = ends["diverged_step"].array
    curves = table[["lane", *CURVES]]
    runs = population.summarise_lanes(runs, curves)
    return runs.rename(columns={"lane": "run_id"}), curves.rename(columns={"lane": "run_id"})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small, of a GPU or of the machine."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def cut(runs: pd.DataFrame, lanes: int) -> list[pd.DataFrame]:
    """The runs in chunks of at most so many, of nearly equal sizes, each every combination of its configurations
    and seeds under one optimizer.

    Args:
        runs: rows of `Plan.runs`, any of them.
    """
    seeds_of, blocks = defaultdict(list), defaultdict(list)
    for row in zip(runs.index, runs["config"], runs["seed"], strict=True):
        seeds_of[row[1]].append((row[2], row[0]))
    # Configurations that lack the same seeds, as after a grid or the number of seeds has grown, go together.
    names = dict(zip(runs["config"], runs["optimizer"], strict=True))
    for config, lacking in seeds_of.items():
        blocks[names[config], tuple(seed for seed, _ in lacking)].append([row for _, row in lacking])
    chunks = []
    for rows in blocks.values():
        for of_seeds in pieces(list(zip(*rows, strict=True)), lanes):
            for of_configs in pieces(list(zip(*of_seeds, strict=True)), max(1, lanes // len(of_seeds))):
                by_seed = zip(*of_configs, strict=True)
                chunks.append(runs.loc[[row for of_seed in by_seed for row in of_seed]])
    return chunks


def pieces(items: list, size: int) -> list[list]:
    """The items in as few pieces as will do, of nearly equal sizes."""
    n = -(-len(items) // size)
    return [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]
