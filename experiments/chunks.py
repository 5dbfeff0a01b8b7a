"""Chunks: runs that are trained as one population, as rows of a plan's table of runs, seed by seed."""

import pandas as pd
import torch

from experiments import population
from experiments.grid import AXES, OptionError
from experiments.plan import Plan, cut

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


def joined(plan: Plan, keys: list[str], tables: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves of a sweep, numbered by run_id in the order of the plan, from the tables of its chunks.

    Args:
        keys: of the plan's runs, as in the tables' column `key`; tables may hold other runs, too.
    """
    table = pd.concat(tables, ignore_index=True)
    table["lane"] = table["key"].map(pd.Series(range(len(keys)), index=keys))
    table = table[table["lane"].notna()].astype({"lane": "int64"}).sort_values(["lane", "step"], ignore_index=True)
    runs = plan.runs.drop(columns="config")
    runs.insert(0, "lane", range(len(runs)))
    runs["diverged_step"] = table.drop_duplicates("lane")["diverged_step"].array
    curves = table[["lane", *CURVES]]
    for i, column in enumerate(("data", "task", "model")):
        runs.insert(i + 1, column, plan.identity[column])
    runs = population.summarise_lanes(runs, curves)
    return runs.rename(columns={"lane": "run_id"}), curves.rename(columns={"lane": "run_id"})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small, of a GPU or of the machine."""
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)
