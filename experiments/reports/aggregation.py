"""Summaries of a table of runs: its configurations over seeds, the best of them, and the sensitivity to lr.

In medians and quartiles over seeds a diverged run counts as infinite, and a stopped one with its loss at its rung. The
best configuration has the lowest median final evaluation loss of those that went furthest. The configurations of an
optimizer are NaN in axes that it does not have.
"""

from collections.abc import Collection
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import intervals
from experiments.common.numbers import number
from experiments.training.axes import OF_MODEL, axes_in


def recorded(confirmed: dict) -> pd.DataFrame:
    """Return the runs of a `confirmation.record` as a table like runs.parquet."""
    runs = pd.DataFrame(confirmed["runs"])
    # Axes that the winners lack are empty.
    missing = [axis for axis in axes_in(runs) if runs[axis].isna().all()]
    numbers = ("train_loss", "eval_loss", "eval_accuracy", "initial_eval_loss", *missing)
    return runs.astype({**dict.fromkeys(numbers, "float64"), "diverged_step": "Int64"})


def console_table(summary: pd.DataFrame, n: int = 10) -> str:
    """Return the n best configurations of `summarise` as aligned text."""
    return best_configurations(summary, n).to_string(index=False)


# Stands for infinity inside quantiles, where interpolating between two true infinities gives NaN.
INFINITE = 1e100

EARLY = "stopped", "unfinished"
"""The status of runs that halving ended before their last step, or that have not ended; both are at stopped_step."""
NAMES = {"hidden": "hidden width", "n_train": "training set size"}
"""The names of axes in tables and figures, where their options are no words for them."""
LONGER_IS_BETTER = "epochs", "steps", "n_train"
SMALLEST = {"batch_size": 1, "accumulate": 1, "hidden": 1}
"""The smallest values of axes that cannot be 0."""


def axis_name(axis: str, runs: pd.DataFrame | None = None) -> str:
    """Return the name of an axis in tables and figures; with runs, also those of axes that always have its values."""
    names = [axis, *(twins(runs, axis) if runs is not None else [])]
    return " = ".join(NAMES.get(name) or name.replace("beta", "β").replace("_", " ") for name in names)


def configuration(table: pd.DataFrame) -> list[str]:
    """Return the columns that tell a configuration from others, of a table of runs or of configurations."""
    return ["data", "task", "model", "optimizer", *axes_in(table)]


def twins(table: pd.DataFrame, axis: str) -> list[str]:
    """Return the other axes that vary and have the values of `axis` in every row, as tied ones do."""
    if table[axis].nunique() < 2:
        return []
    return [other for other in axes_in(table) if other != axis and table[other].equals(table[axis])]


def varied_axes(runs: pd.DataFrame) -> list[str]:
    """Return the axes that have more than one value in some optimizer; of axes that are tied, the first."""
    found = []
    for axis in axes_in(runs):
        if runs.groupby("optimizer")[axis].nunique().max() > 1 and not {*twins(runs, axis)} & {*found}:
            found.append(axis)
    return found


def short(value: Any) -> str:
    """Return a value of an axis as people write it: 1e-3, 0.9, 0.9999, 0, 60000; "-" if the optimizer lacks it."""
    if isinstance(value, str):
        return value
    if value is None or np.isnan(value):
        return "-"
    if 1 <= abs(value) < 1e7 and value == int(value):
        return f"{value:.0f}"
    scientific = np.format_float_scientific(value, precision=2, trim="-", exp_digits=1)
    return scientific if 0 < value < 0.1 else f"{value:.{6 if 0.9 < value < 1 else 3}g}"


def resolution(initial: float) -> float:
    """Return the loss below which float32 does not resolve a minimum, from the loss before training.

    Near a minimum the loss is a square of the distance to it, and parameters have a relative precision of epsilon. Only
    at the origin, where they have more, are lower losses more than rounding.
    """
    return float(np.finfo(np.float32).eps) ** 2 * max(initial, float(np.finfo(np.float32).tiny))


def run_length(runs: pd.DataFrame) -> list[str]:
    """Return the length of a sweep's runs in words; [] for an older sweep, whose table lacks it."""
    steps = sorted(runs["steps"].unique()) if "steps" in runs else []
    return [f"{steps[0]} to {steps[-1]} steps" if len(steps) > 1 else f"{steps[0]} steps"] if steps else []


def listed(values: pd.Series, most: int = 1) -> str:
    """Return the different values of a column in words, or how many there are: "3 models", "mlp (3 variants)"."""
    found = list(values.unique())
    if len(found) <= most:
        return ", ".join(found)
    words = zip(*(value.split() for value in found), strict=False)
    shared = " ".join(first for first, *_ in takewhile(lambda same: len(set(same)) == 1, words))
    return f"{shared} ({len(found)} variants)" if shared else f"{len(found)} {values.name}s"


def label(row: pd.Series, axes: list[str], runs: pd.DataFrame | None = None) -> str:
    """Return the values of a configuration on these axes as text: "lr 1e-3, β1 0.9". runs: as of `axis_name`."""
    return ", ".join(f"{axis_name(axis, runs)} {short(row.loc[axis])}" for axis in axes)


def scored(runs: pd.DataFrame, column: str) -> pd.Series:
    """Return a column in which lower is better, with `INFINITE` where the run diverged or the value is not finite."""
    return runs[column].where((runs["status"] != "diverged") & np.isfinite(runs[column]), INFINITE)


def unscored(values: pd.Series) -> pd.Series:
    """Return quantiles of `scored` values, with infinity in place of `INFINITE`."""
    # An interpolated quantile may be a fraction of INFINITE.
    return values.where(values < INFINITE**0.5, np.inf)


def seeds(counts: Collection[int]) -> str:
    """Return numbers of seeds in words: "3 seeds", "1 to 3 seeds"."""
    fewest, most = int(min(counts)), int(max(counts))
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"


def run_seconds(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.Series:
    """Return the seconds of each row of curves: the time of its population divided by the number of runs in it.

    Curves of older versions do not say it: their runs of one optimizer with the same time at their end were trained
    together.
    """
    if "run_seconds" in curves and curves["run_seconds"].notna().all():
        return curves["run_seconds"]
    end = runs["run_id"].map(curves.groupby("run_id")[["seconds"]].agg("max").loc[:, "seconds"])
    lanes = end.groupby([runs["optimizer"], end]).transform("size")
    shares = curves["seconds"] / curves["run_id"].map(lanes.set_axis(runs["run_id"]))
    return curves["run_seconds"].fillna(shares) if "run_seconds" in curves else shares


def aggregate(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Aggregate runs over all columns but `by`, whose values are the index of the result.

    Columns: n_seeds, n_diverged, eval_loss_{median, q25, q75}, train_loss_median, eval_accuracy_median,
    diverged_step_median (over the diverged runs) and, if runs were stopped or are unfinished, stopped_step_median (over
    these). In medians a diverged run has infinite loss and the lowest accuracy; a median accuracy that depends on one
    is NaN.
    """
    table = runs[by].assign(
        eval_loss=scored(runs, "eval_loss"),
        train_loss=scored(runs, "train_loss"),
        inaccuracy=scored(runs.assign(inaccuracy=-runs["eval_accuracy"]), "inaccuracy"),
        diverged=runs["status"] == "diverged",
        diverged_step=runs["diverged_step"].astype(float),
    )
    groups = table.groupby(by, dropna=False)
    columns: dict[str, Any] = {"n_seeds": groups.size(), "n_diverged": groups["diverged"].sum()}
    for name, q in {"median": 0.5, "q25": 0.25, "q75": 0.75}.items():
        columns[f"eval_loss_{name}"] = unscored(groups["eval_loss"].quantile(q))
    columns["train_loss_median"] = unscored(groups["train_loss"].median())
    columns["eval_accuracy_median"] = -unscored(groups["inaccuracy"].median()).replace(np.inf, np.nan)
    found = pd.DataFrame(columns).assign(diverged_step_median=groups["diverged_step"].median())
    if (stopped := runs["status"].isin(EARLY)).any():
        steps = runs.loc[stopped, by].assign(step=runs["stopped_step"].astype(float))
        found["stopped_step_median"] = steps.groupby(by, dropna=False)["step"].median()
    return found


def stopped_at(table: pd.DataFrame) -> pd.Series:
    """Return the step at which halving stopped each configuration of a table, NaN for those that it did not."""
    return table["stopped_step_median"] if "stopped_step_median" in table else pd.Series(np.nan, table.index)


def ends(runs: pd.DataFrame) -> str:
    """Return how many runs ended in which way, in words: "12 ok, 45 stopped and 7 diverged"."""
    n = runs["status"].value_counts().reindex(["ok", *EARLY, "diverged"], fill_value=0)
    return f"{n['ok']} ok{early_ends(runs)} and {n['diverged']} diverged"


def early_ends(runs: pd.DataFrame) -> str:
    """Return how many runs have ended early, or have not ended, to append to other counts: ", 45 stopped"."""
    n = runs["status"].value_counts()
    return "".join(f", {n[status]} {status}" for status in EARLY if status in n)


def runs_of(runs: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Return the runs of a configuration. row: of a table of configurations."""
    return rows_like(runs, row.loc[configuration(runs)])


def rows_like(table: pd.DataFrame, wanted: pd.Series) -> pd.DataFrame:
    """Return the rows with the values `wanted`, by column. NaN, for an axis that an optimizer lacks, equals NaN."""
    columns = table[list(wanted.index)]
    return table.loc[((columns == wanted) | (columns.isna() & wanted.isna())).all(axis=1)]


def ranked(runs: pd.DataFrame, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return `aggregate` by configuration, best first; of equally good ones first the one with fewer diverged runs.

    Those that halving has stopped come after those that it has not, the latest first, and before those without a loss.

    known: the same table, or that of `summarise`, from a caller that has it: it is returned as it is.
    """
    if known is not None:
        return known
    table = aggregate(runs, configuration(runs)).reset_index()
    table = table.assign(lost=~np.isfinite(table["eval_loss_median"]), early=-stopped_at(table).fillna(np.inf))
    by = ["lost", "early", "eval_loss_median", "n_diverged", "eval_loss_q75"]
    return table.sort_values(by, kind="stable", ignore_index=True).drop(columns=["lost", "early"])


def of_optimizer(order: pd.DataFrame, name: object) -> pd.DataFrame:
    """Return the rows of `ranked` that belong to one optimizer: `ranked` of its runs alone."""
    return order.loc[order["optimizer"] == name].reset_index(drop=True)


def held(order: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    """Return the configurations that differ from the best one in `axes` alone, in order of `axes`, which are the index.

    order: as of `ranked`.
    """
    given = {*axes, *(other for axis in axes for other in twins(order, axis))}
    # The name of a model tells its width, which may be one of these axes.
    given |= {"model"} if given & {*OF_MODEL} else set()
    rest = [column for column in configuration(order) if column not in given]
    return rows_like(order, order.loc[0, rest]).set_index(axes).sort_index()


def best_on_edge(order: pd.DataFrame, axis: str) -> bool:
    """Return whether the best value of `axis` ends its grid, and a better one may lie beyond.

    Nothing lies below zero or beyond infinity, words have no order, and more data or steps are no discovery.

    order: as of `ranked`, of one optimizer.
    """
    if axis not in varied_axes(order) or order[axis].dtype.kind == "O" or axis in LONGER_IS_BETTER:
        return False
    best, edges = order.iloc[0], {order[axis].min(), order[axis].max()} - {0.0, np.inf, SMALLEST.get(axis)}
    return bool(np.isfinite(best["eval_loss_median"])) and best[axis] in edges


def initial_loss(runs: pd.DataFrame) -> float:
    """Return the median loss before training, of those that are finite; 1 if none is."""
    finite = runs["initial_eval_loss"].where(np.isfinite(runs["initial_eval_loss"])).dropna()
    return float(finite.median()) if len(finite) else 1.0


def lr_sensitivity(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> float:
    """Return the mean over the lr grid of min(loss, initial loss) - best loss; 0 is perfectly insensitive.

    loss is the median final evaluation loss over seeds with everything but lr as in the best configuration; where it
    diverged, the initial loss stands in. NaN if every run diverged, there is one lr, not all have such runs, or some of
    these were stopped.
    Reference: Wortsman et al. 2023, arXiv:2309.14322.

    Args:
        runs: of one optimizer.
        order: as of `ranked`.
    """
    alike = held(ranked(runs, order), ["lr"])
    losses = alike["eval_loss_median"]
    regret = losses.clip(upper=initial_loss(runs)) - losses.min()
    known = np.isfinite(losses.min()) and len(losses) == runs["lr"].nunique() > 1 and stopped_at(alike).isna().all()
    return float(regret.mean()) if known else np.nan


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise each configuration over its seeds: one row each, best (lowest median final evaluation loss) first.

    Columns: data, task, model, optimizer, the axes, n_seeds, n_diverged, eval_loss_{median, q25, q75, low, high,
    level}, train_loss_median, eval_accuracy_median, diverged_step_median and, if runs were stopped,
    stopped_step_median. Low and high are the ends of `intervals.interval_or_range`, and level is its exact level, 0.75
    at three seeds; NaN for one seed. A diverged run has infinite losses, and a median accuracy that depends on one is
    NaN.
    """
    summary = ranked(runs)
    columns = configuration(runs)
    groups = runs[columns].assign(losses=scored(runs, "eval_loss")).groupby(columns, dropna=False)
    # A merge, unlike an index, takes NaN for equal to NaN.
    losses = summary[columns].merge(groups["losses"].agg(list).reset_index(), how="left")["losses"].to_numpy()
    found = np.full((len(summary), 3), np.nan)
    counts = summary["n_seeds"].to_numpy()
    for n in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == n)
        ends = intervals.interval_or_range(np.array(losses[rows].tolist()))
        found[rows] = np.column_stack([*ends, np.full(len(rows), intervals.attained(n))])
    # INFINITE losses become infinite; NaN stays NaN.
    found[found >= INFINITE] = np.inf
    for i, name in enumerate(("low", "high", "level")):
        summary.insert(list(summary).index("eval_loss_q75") + 1 + i, f"eval_loss_{name}", found[:, i])
    return summary


def best_configurations(summary: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """Return the first n rows of `summarise` as short strings: the varied hyperparameters, then the results."""
    top = summary.head(n)
    axes = varied_axes(summary) or [axis for axis in axes_in(summary) if summary[axis].notna().any()]
    table = pd.DataFrame({"#": [str(i + 1) for i in range(len(top))]})
    if summary["optimizer"].nunique() > 1:
        table["optimizer"] = top["optimizer"].to_numpy()
    for axis in axes:
        table[axis_name(axis, summary)] = [short(value) for value in top[axis]]
    table["eval loss"] = [number(value, 4) for value in top["eval_loss_median"]]
    ends = top["eval_loss_low"], top["eval_loss_high"], top["n_seeds"]
    table = table.assign(**intervals.column(*ends, "{:.4g}"))
    table["train loss"] = [number(value, 4) for value in top["train_loss_median"]]
    for name, unit in {"steps_to_target": "steps", "seconds_to_target": "seconds"}.items():
        if f"{name}_median" in summary:
            values = top[f"{name}_median"]
            table[f"{unit} to target"] = values.map("{:.3g}".format if unit == "seconds" else "{:.0f}".format)
            missed = np.where(stopped_at(top).notna(), "stopped", "missed")
            table[f"{unit} to target"] = table[f"{unit} to target"].where(np.isfinite(values), missed)
    if summary["eval_accuracy_median"].notna().any():
        table["accuracy"] = top["eval_accuracy_median"].map("{:.2%}".format).replace("nan%", "-")
    if stopped_at(summary).notna().any():
        table["stopped"] = ["-" if np.isnan(step) else f"at step {step:.0f}" for step in stopped_at(top)]
    table["diverged"] = [f"{k} of {n}" for k, n in zip(top["n_diverged"], top["n_seeds"], strict=True)]
    return table


def best_of_each(ranked: pd.DataFrame) -> pd.DataFrame:
    """Return the best configuration of every optimizer, best first. ranked: as of `ranked`."""
    return ranked.groupby("optimizer", sort=False).head(1).reset_index(drop=True)
