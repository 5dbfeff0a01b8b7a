"""Which axes matter: the share of the variation of the final loss that each axis of an optimizer takes part in.

A random forest predicts the log final loss of configurations from their axes; how far its error on configurations that
it was not fitted to rises when the values of one axis are shuffled is the importance of that axis (Breiman 2001,
https://doi.org/10.1023/A:1010933404324). scikit-learn does both. Optuna's fANOVA would be one more dependency on top of
it, and its forest is not tested on configurations that were left out, which is how one sees that there are too few.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.reports import aggregation, comparison, figures, layout, looks
from experiments.reports.aggregation import axis_name
from experiments.reports.markup import markdown_frame, plain
from experiments.training.axes import WORDS, scale_of

LEAST = 10
"""The fewest configurations of an optimizer whose axes are looked at."""
PER_AXIS, TRUSTED = 10, 0.3
"""With fewer configurations for each axis, or a lower R² on those left out, importances say little."""
FOLDS, REPEATS, SHUFFLES, TREES = 4, 2, 2, 20
SPLITS = FOLDS * REPEATS


class Importance(NamedTuple):
    """How much the axes of an optimizer matter.

    Attributes:
        n: configurations.
        stopped: how many of them halving has stopped; their loss is that of their last evaluation.
        r2: R² of the predictions for configurations that a forest was not fitted to; 1 is perfect, 0 is no better than
            the mean, and below 0 worse.
        shares: indexed by axis, the most important first: mean, q25 and q75, over splits, of the share of the variance
            of the log loss. 0 is no effect that is told from chance. Axes that act together count in each other's
            share, so that shares may add up to more than 1.
        names: of the axes, in their order, for people.
    """

    optimizer: str
    n: int
    stopped: int
    r2: float
    shares: pd.DataFrame
    names: list[str]

    @property
    def doubts(self) -> list[str]:
        """Why the importances say little; [] if they can be trusted."""
        found = {"few configurations": self.n < PER_AXIS * len(self.shares), "low R²": self.r2 < TRUSTED}
        return [why for why, holds in found.items() if holds]


class Samples(NamedTuple):
    """The configurations of an optimizer: table, its axes that vary, values `[n, axes]` as drawn, log losses `[n]`."""

    table: pd.DataFrame
    axes: list[str]
    values: np.ndarray
    losses: np.ndarray


def log_losses(medians: pd.Series, initial: float) -> np.ndarray:
    """Return the log of median final losses. initial: the loss before training.

    A configuration that diverged, or ended far above the loss before training, counts as the worst of the others, or as
    no training if that is worse.
    """
    worst = max(initial, medians[medians <= figures.ABOVE * initial].max())
    return np.log(medians.clip(aggregation.resolution(initial), worst).to_numpy(float))


def samples(runs: pd.DataFrame, order: pd.DataFrame) -> dict[str, Samples]:
    """Return the configurations of each optimizer, the best first, that has enough of them and axes to compare.

    order: as of `aggregation.ranked`.
    """
    found, initial = {}, aggregation.initial_loss(runs)
    for name in aggregation.best_of_each(order)["optimizer"].astype(str):
        own = aggregation.of_optimizer(order, name)
        axes, losses = aggregation.varied_axes(own), log_losses(own["eval_loss_median"], initial)
        if len(axes) > 1 and len(own) >= LEAST and np.ptp(losses) > 0:
            values = np.column_stack([figures.positions(own[axis], axis, own[axis].to_numpy()) for axis in axes])
            # The same configurations give the same splits, in whichever order they were trained.
            places = np.lexsort((losses, *values.T))
            found[name] = Samples(own, axes, values[places], losses[places])
    return found


def forest(words: list[int]):
    """Return a model that predicts a loss from the values of axes. words: the columns whose values are categories."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    trees = RandomForestRegressor(TREES, random_state=0)
    if not words:
        return trees
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(make_column_transformer((categories, words), remainder="passthrough"), trees)


def of_one(name: str, of: Samples) -> Importance:
    """Return the importances of an optimizer's axes: equal configurations and losses give equal ones.

    Of a perfect prediction f, shuffling axis j raises the mean squared error by 2 E[Var(f | all other axes)]: half of
    that, as a share of the variance, is the total-effect index of Sobol' (Homma & Saltelli 1996).
    """
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import RepeatedKFold

    x, y = of.values, of.losses
    model = forest([i for i, axis in enumerate(of.axes) if scale_of(axis, of.table[axis].unique()) == WORDS])
    squares, rises = 0.0, []
    for seed, (fitted, left) in enumerate(RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0).split(x)):
        model.fit(x[fitted], y[fitted])
        squares += float(np.square(model.predict(x[left]) - y[left]).sum())
        shuffled: Any = permutation_importance(
            model, x[left], y[left], scoring="neg_mean_squared_error", n_repeats=SHUFFLES, random_state=seed
        )
        # A shuffle leaves one of n, on average, where it was.
        rises.append(shuffled.importances_mean / (1 - 1 / len(left)))
    shares = np.array(rises) / (2 * y.var(ddof=1))
    low, high = np.quantile(shares, (0.25, 0.75), axis=0)
    table = pd.DataFrame({"mean": shares.mean(axis=0), "q25": low, "q75": high}, index=of.axes)
    table = table.sort_values("mean", ascending=False, kind="stable")
    names = [axis_name(axis, of.table) for axis in table.index]
    stopped = int(aggregation.stopped_at(of.table).notna().sum())
    return Importance(name, len(y), stopped, 1 - squares / (REPEATS * len(y) * y.var()), table, names)


def of_each(runs: pd.DataFrame, order: pd.DataFrame) -> list[Importance]:
    """Return the importances of the optimizers of `samples`, the best first. order: as of `aggregation.ranked`."""
    return [of_one(name, of) for name, of in samples(runs, order).items()]


@layout.styled
def figure(
    runs: pd.DataFrame, order: pd.DataFrame, matter: Callable[[], list[Importance]], figsize: layout.Size = None
) -> Figure:
    """Draw the importance of axes as bars, in one panel per optimizer; bars are pale where they say little.

    Args:
        runs, order: as of `aggregation.ranked`.
        matter: returns what `of_each` does, not empty.
        figsize: as of `layout.finished`.
    """
    found = matter()
    styles, n, most = comparison.looks_of(order), len(found), max(len(one.shares) for one in found)
    narrow = figsize is not None and figsize[0] < layout.NARROW
    columns = min(n, (3 if n > 6 else 2) if narrow else 5 if n > 12 else 4 if n > 3 else 3)
    letters = ("small", "x-small" if narrow else "small") if n > 6 else (None, None)
    width = figsize[0] if figsize else (6.5 if n == 1 else 10.5 if columns > 3 else 3.5 * columns)
    drawn, axes = layout.canvas(n, (width, None), 3.0, 1.5, width / columns)
    tall = 0.3 + (0.14 if narrow else 0.2) * most
    drawn.set_figheight((figsize and figsize[1]) or tall * -(-n // columns) + 0.4)
    low, high = min(one.shares["q25"].min() for one in found), max(one.shares["q75"].max() for one in found)
    for place, (ax, one) in enumerate(zip(axes, found, strict=True)):
        at, shares, look = np.arange(len(one.shares)), one.shares, styles[one.optimizer]
        ax.barh(at, shares["mean"], height=0.7, color=look.colour, alpha=0.3 if one.doubts else 1)
        ax.hlines(at, shares["q25"], shares["q75"], color="black", linewidth=1.2)
        ax.axvline(0, color=looks.INK, linewidth=0.8)
        ax.set_yticks(at, one.names)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(labelsize=letters[1], labelbottom=place + columns >= n)
        ax.grid(visible=False, axis="y")
        ax.set_xlim(min(0.0, 1.05 * low), max(1.0, 1.05 * high))
        ax.set_ylim(most - 0.5, -0.5)
        title = f"{one.optimizer}, R² {one.r2:.2f}" if n > 1 else f"R² {one.r2:.2f} on configurations left out"
        ax.set_title(title, pad=3, fontsize=letters[0])
        ax.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    drawn.supxlabel("share of the variance of log loss", fontsize="medium")
    return layout.finished(drawn, runs, 1, figsize, caption(found))


def caption(found: list[Importance]) -> list[str]:
    """Return sentences on the figure of these importances."""
    several = len(found) > 1
    doubted = [one.optimizer for one in found if one.doubts]
    which = "Pale bars say little: " if several else "The bars are pale, because they say little: "
    return [
        "The share of the variance of the log final loss that each axis takes part in, alone and with others "
        f"(permutation importance of a random forest); lines run from quartile to quartile of {SPLITS} splits of the "
        f"configurations into fitted and left out.{' One panel per optimizer, the best first.' * several}",
        f"{which}R² on configurations left out is below {TRUSTED:g}, or there are fewer than {PER_AXIS} for each axis."
        if doubted
        else "",
        "A configuration that ended early counts with its loss then." if any(one.stopped for one in found) else "",
    ]


def table(found: list[Importance]) -> pd.DataFrame:
    """Return one row per optimizer as short strings: each axis with its share and the quartiles over splits."""
    names = {axis: name for one in found for axis, name in zip(one.shares.index, one.names, strict=True)}
    rows = []
    for one in found:
        row = {"optimizer": one.optimizer, "configurations": str(one.n), "R²": f"{one.r2:.2f}"}
        for axis, name in names.items():
            known = axis in one.shares.index
            mean, low, high = one.shares.loc[axis] if known else (np.nan,) * 3
            row[name] = f"{rounded(mean)} ({rounded(low)} to {rounded(high)})" if known else "-"
        rows.append(row | {"caution": ", ".join(one.doubts)})
    of = pd.DataFrame(rows)
    return of if any(of["caution"]) else of.drop(columns="caution")


def cautions(found: list[Importance]) -> list[str]:
    """Return a sentence on the importances that say little; none if all can be trusted."""
    few = [one for one in found if "few configurations" in one.doubts]
    low = [one for one in found if "low R²" in one.doubts]
    why = [f"of {listed(few)} there are fewer than {PER_AXIS} configurations for each axis"] * bool(few)
    why += [f"the forest predicts {listed(low)} badly, with an R² below {TRUSTED:g}"] * bool(low)
    which = "These" if all(one.doubts for one in found) else "Some of these"
    return [f"**{which} shares say little: {'; '.join(why)}.**"] * bool(why)


def rounded(share: float) -> str:
    """Return a share as text, without a sign if it is 0."""
    return f"{round(share, 2) + 0.0:.2f}"


def listed(some: list[Importance]) -> str:
    return ", ".join(plain(one.optimizer) for one in some)


def blocks(found: list[Importance], picture: str) -> list[str]:
    """Return the blocks of a report on which axes matter; [] if none was found. picture: Markdown of the figure."""
    if not found:
        return []
    what = (
        "The share of the variance of the log final loss that depends on an axis, alone or together with others, so "
        "that shares may add up to more than 1. A random forest predicts the loss from the axes; an axis matters as "
        "much as the error rises, on configurations that the forest was not fitted to, when the values of that axis "
        "are shuffled (permutation importance, Breiman 2001, scaled to Sobol's total-effect index). In parentheses: "
        f"quartiles over {SPLITS} splits of the configurations. R² is how well the forest predicts those left out: 1 "
        "is perfectly, 0 no better than by their mean."
    )
    limits = (
        "Shares hold for the values tried: an axis with a wider range matters more. A configuration that diverged, or "
        f"ended above {figures.ABOVE:g} times the loss before training, counts as the worst of the others, or as no "
        "training if that is worse."
    )
    if any(one.stopped for one in found):
        limits += " One that ended early counts with its loss then, which is higher than it might have become."
    return ["## Which axes matter", what, limits, *cautions(found), markdown_frame(table(found)), picture]
