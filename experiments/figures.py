"""What did the sweep find? Convergence curves, sensitivity to one hyperparameter, heatmaps over two.

Every figure is drawn from the table of runs (one row a run) of one optimizer and returned; nothing is written. See
`tables` for what is drawn, `comparison` for several optimizers.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator

from experiments import optimizers
from experiments.grid import BETAS
from experiments.tables import (
    CONFIGURATION,
    INFINITE,
    NAMES,
    aggregate,
    best_on_edge,
    held,
    label,
    lr_sensitivity,
    ranked,
    scored,
    seeds,
    short,
    unscored,
    varied_axes,
)

STYLE = ["default", Path(__file__).with_name("sandbox.mplstyle")]
"""For `matplotlib.style.context`: whatever a user's matplotlibrc or notebook has set, figures are drawn alike."""
ACCURACY = "evaluation accuracy (log scale in the error)"


def save(figure: Figure, path: Path, **options) -> None:
    """Write a figure to a file in the style in which it was drawn."""
    with style.context(STYLE):
        figure.savefig(path, **options)


def default_of(runs: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """What to call the default of the optimizer of all runs, and its value on every axis; none of a user's class."""
    choice = optimizers.OPTIMIZERS.get(runs["optimizer"].iloc[0])
    if choice is None:
        return "", {}
    return "the default" if choice.fixed or choice.alone is None else "torch's default", optimizers.axes(choice)


def finished(figure: Figure, runs: pd.DataFrame, columns: int) -> Figure:
    """Add a legend and a title that says what was trained and how many runs, seeds and diverged runs there are."""
    data, model, names = (list(runs[column].unique()) for column in ("data", "model", "optimizer"))
    optimizer = [f"{len(names)} optimizers"] if len(names) > 5 else names
    # Tables of older sweeps do not say how long they were.
    steps = [f"{steps} steps" for steps in runs["steps"].unique()] if "steps" in runs else []
    what = "; ".join(map(", ".join, (data + steps, model, optimizer)))
    n_seeds, n_diverged = runs["seed"].nunique(), (runs["status"] != "ok").sum()
    figure.suptitle(f"{what}\nruns: {len(runs)}, seeds: {n_seeds}, diverged: {n_diverged}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    # Matplotlib makes ticks on first use: without this they would miss the style.
    figure.draw_without_rendering()
    # What is laid out stays so: each file that is written would take as long again.
    figure.set_layout_engine("none")
    return figure


def loss_axis(ax: Axes, values: Any, top: float, headroom: float = 0.0) -> tuple[float, float]:
    """Make y logarithmic from just below the lowest positive value to `top`, plus a fraction of headroom."""
    low = np.fmin.reduce(np.where(np.asarray(values) > 0, values, np.nan), axis=None, initial=top / 2)
    low *= (low / top) ** 0.06
    ax.set_yscale("log")
    ax.set_ylim(low, low * (top / low) ** (1 / (1 - headroom)))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 1e3 * low else (1,)))
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.yaxis.set_minor_locator(NullLocator())
    return low, top


def explain_band(ax: Axes, text: str) -> None:
    """Add what bands are to the legend."""
    ax.plot([], [], color="0.5", alpha=0.35, linewidth=7, label=text)


def panels(curves: pd.DataFrame, loss_name: str) -> dict[str, str]:
    """The columns of curves by which a configuration is judged, and what to call them."""
    accuracy = {"eval_accuracy": ACCURACY} if curves["eval_accuracy"].notna().any() else {}
    return {"eval_loss": loss_name, **accuracy}


def highlighted(runs: pd.DataFrame, top: int = 5) -> list[tuple]:
    """What `training` draws in colour: the `top` configurations by median final evaluation loss, and the default."""
    order = ranked(runs)
    places = order[CONFIGURATION].assign(place=range(len(order)))
    ids = runs[["run_id", *CONFIGURATION]].merge(places).groupby("place")["run_id"].agg(list)
    lines = [
        (ids[place], f"{place + 1}. {label(row, varied_axes(runs) or ['lr'])}", to_hex(f"C{place}"), "-")
        for place, row in order[np.isfinite(order["eval_loss_median"])].head(top).iterrows()
    ]
    whose, values = default_of(runs)
    if values:
        default = np.isclose(order[list(values)], list(values.values()), rtol=1e-6, atol=0).all(axis=1)
        name = f"{whose} (number {default.argmax() + 1} of {len(order)})"
        lines += [(ids[place], name, "black", "--") for place in np.flatnonzero(default)]
    return lines


@style.context(STYLE)
def convergence(runs: pd.DataFrame, curves: pd.DataFrame, loss_name: str) -> Figure:
    """Draw evaluation loss, training loss and (for classification) evaluation accuracy against the step.

    The best configurations are coloured lines (median over seeds) in bands (inter-quartile range); the default, if
    it was run, is dashed black; every other run is a thin grey line. A diverged run is dotted and leaves the panel at
    a ✕ at the step at which it diverged.

    Args:
        runs, curves: as `sweep` returns them, of one optimizer; curves may hold those of other runs.
        loss_name: what to call the loss, `provenance["loss_name"]` of a sweep.
    """
    lines, (evaluation, *rest) = highlighted(runs), panels(curves, loss_name).items()
    columns = dict([evaluation, ("train_loss", "training loss since the last evaluation"), *rest])
    figure = Figure(figsize=(4.4 * len(columns), 5))
    for ax, (column, name) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        training(ax, runs, curves, column, lines)
        ax.set(xlabel="step", ylabel=name)
    return finished(figure, runs, columns=len(columns))


@style.context(STYLE)
def wall_clock(runs: pd.DataFrame, curves: pd.DataFrame, loss_name: str, lines: list | None = None) -> Figure:
    """Draw evaluation loss and (for classification) accuracy against a run's share of its population's seconds.

    Runs are trained together: the time of their population, divided by how many they are, is what one of them costs.

    Args:
        curves: with the column run_seconds, as of `tables.run_seconds` over every run of the sweep.
        lines: as of `training`; by default the best configurations.
    """
    lines, columns = highlighted(runs) if lines is None else lines, panels(curves, loss_name)
    figure = Figure(figsize=(5.2 * len(columns), 5))
    for ax, (column, name) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True):
        training(ax, runs, curves, column, lines, x="run_seconds")
        ax.set(xlabel="wall-clock time of a run, s (its population's / number of runs in it)", ylabel=name)
    return finished(figure, runs, columns=len(columns))


def training(ax: Axes, runs: pd.DataFrame, curves: pd.DataFrame, column: str, lines: list, x: str = "step") -> None:
    """Draw a column of curves against the column x, over steps of which medians are taken.

    lines: the run_ids, label, colour and style of every highlighted line.
    """
    ids, ok = runs["run_id"], (runs["status"] == "ok").to_numpy()
    table, at = (
        curves.assign(value=curves[name]).pivot(index="step", columns="run_id", values="value").reindex(columns=ids)
        for name in (column, x)
    )
    top = 2 * runs["initial_eval_loss"].median()
    if column == "eval_accuracy":
        # Accuracy is drawn as error on an inverted log axis: 0.98 and 0.99 lie as far apart as 0.8 and 0.9.
        table, top = 1 - table, 1.0
    steps, ends = table.index.to_numpy(dtype=float), runs["diverged_step"].to_numpy(dtype=float, na_value=np.nan)
    gone = pd.DataFrame(steps[:, None] > ends, table.index, table.columns)
    table = table.where(np.isfinite(table) & ~gone)
    low, high = loss_axis(ax, table.loc[:, ok] if ok.any() else table, top)

    for place, (its, name, colour, line) in enumerate(lines):
        # After a run has diverged its loss is infinite, not missing.
        values, along = table[its].mask(gone[its], INFINITE), at[its].median(axis=1)
        q25, median, q75 = (unscored(values.quantile(q, axis=1)) for q in (0.25, 0.5, 0.75))
        shown = np.isfinite(median)
        # The best lies on top of the others; those below are wider, so that equal ones show.
        look = (4, 1.6) if line == "--" else (3 - place / 99, 1.4 + 0.5 * min(place, 4))
        ax.plot(along[shown], median[shown], line, color=colour, label=name, zorder=look[0], linewidth=look[1])
        if len(its) > 1:
            band = q25.clip(low, high), q75.clip(low, high)
            ax.fill_between(along, *band, where=shown, color=colour, alpha=0.15, linewidth=0)
    if counts := [len(its) for its, *_ in lines if len(its) > 1]:
        explain_band(ax, f"band: quartiles of {seeds(counts)}")
    # One array for each run: pandas would take a minute over 10,000 of them.
    points = np.stack([at.to_numpy(), table.to_numpy()], axis=-1)
    paths = [points[~np.isnan(points[:, i, 1]), i] for i in range(len(ids))]
    grey = ok & ~ids.isin([run_id for its, *_ in lines for run_id in its]).to_numpy()
    # Thousands of lines would make a PDF that no viewer opens.
    background = {"linewidths": 0.6, "rasterized": True}
    if grey.any():
        shown = [paths[i] for i in np.flatnonzero(grey)]
        ax.add_collection(LineCollection(joined(shown), colors="0.78", label="every other run", **background))
    if not ok.all():
        exits = [(np.interp(ends[i], steps, points[:, i, 0]), high) for i in np.flatnonzero(~ok)]
        left = [np.vstack([paths[i], end]) for i, end in zip(np.flatnonzero(~ok), exits, strict=True)]
        ax.add_collection(LineCollection(joined(left), colors="0.65", linestyles=":", **background))
        ax.plot(*np.transpose(exits), "x", color="0.35", markersize=5, clip_on=False, label="diverged at this step")
    ax.set_title("" if ok.any() else "every run diverged")
    if column == "eval_accuracy":
        ax.invert_yaxis()
        ax.yaxis.set_major_formatter(lambda error, _: f"{1 - error:.4g}")


def joined(paths: list[np.ndarray], size: int = 50) -> list[np.ndarray]:
    """Paths, `[points, 2]` each, as few long ones with gaps of NaN: matplotlib takes its time for every path."""
    gap = np.full((1, 2), np.nan)
    parts = [part for path in paths for part in (path, gap)]
    return [np.concatenate(parts[i : i + 2 * size]) for i in range(0, len(parts), 2 * size)]


def positions(values: Any, axis: str, grid: np.ndarray) -> np.ndarray:
    """Where values go on a linear axis: log10, or -log10(1 - value) for `BETAS`; 0 has a slot left of the grid."""
    values, positive = np.asarray(values, dtype=float), np.log10(grid[grid > 0])
    if axis in BETAS:
        return -np.log10(1 - values)
    slot = positive.min(initial=0.0) - (np.diff(positive).mean() if len(positive) > 1 else 1.0)
    return np.log10(values, where=values > 0, out=np.full(values.shape, slot))


@style.context(STYLE)
def sensitivity(runs: pd.DataFrame, axis: str, loss_name: str) -> Figure:
    """Draw the final evaluation loss against one hyperparameter.

    Thick line and band: median and inter-quartile range over seeds, everything else as in the best configuration.
    Thin line: the lowest such median over everything else. Dots: single runs. Strip at the top: how many runs
    diverged; a line touches it where its median is infinite. Values are spaced in log, `BETAS` in log(1 - value).

    Args:
        runs: as `sweep` returns them, of one optimizer.
        axis: one of `grid.AXES` that the optimizer has.
        loss_name: as of `convergence`.
    """
    order, grid, initial = ranked(runs), np.sort(runs[axis].unique()), runs["initial_eval_loss"].median()
    best, curve, lowest = order.iloc[0], held(runs, [axis]), order.groupby(axis)["eval_loss_median"].min()
    losses = runs[scored(runs, "eval_loss") < INFINITE].set_index(axis)["eval_loss"]
    diverged = aggregate(runs, [axis]).query("n_diverged > 0")
    figure = Figure(figsize=(7.5, 5.4))
    ax = figure.subplots()
    top = 1.2 * max(initial, losses.clip(upper=10 * initial).max() if len(losses) else 0.0)
    low, high = loss_axis(ax, losses, top, headroom=0.12 if len(diverged) else 0.0)

    at = partial(positions, axis=axis, grid=grid)
    ax.plot(at(losses.index), losses.clip(low, high), "o", color="0.65", markersize=3, alpha=0.5, label="one run")
    others = label(best, [other for other in varied_axes(runs) if other != axis]) or "and only configuration"
    median, q25, q75 = (curve[f"eval_loss_{name}"].clip(low, high) for name in ("median", "q25", "q75"))
    kwargs = {"linewidth": 3.5, "markersize": 7, "label": f"with the best {others}"}
    ax.plot(at(median.index), median, "o-", color=to_hex("C0"), **kwargs)
    ax.fill_between(at(median.index), q25, q75, color=to_hex("C0"), alpha=0.2, linewidth=0)
    if curve["n_seeds"].max() > 1:
        explain_band(ax, f"band: quartiles of {seeds(curve['n_seeds'])}")
    kwargs = {"linewidth": 1, "markersize": 3.5, "label": "best over all other hyperparameters"}
    ax.plot(at(lowest.index), lowest.clip(low, high), "s-", color=to_hex("C1"), **kwargs)
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
    whose, default = default_of(runs)
    if grid[0] <= default.get(axis, np.nan) <= grid[-1]:
        kwargs = {"linestyle": ":", "linewidth": 1.2, "zorder": 1, "label": f"{whose}, {short(default[axis])}"}
        ax.axvline(float(at(default[axis])), ymax=0.88 if len(diverged) else 1.0, color="black", **kwargs)
    if len(diverged):
        ax.axhspan(high, ax.get_ylim()[1], color="0.93", zorder=0)
        x, strip = at(diverged.index), ax.get_xaxis_transform()
        ax.plot(x, np.full(len(x), 0.97), "x", color="0.2", transform=strip, label="diverged runs / all runs")
        for left, n_diverged, n in zip(x, diverged["n_diverged"], diverged["n_seeds"], strict=True):
            ax.text(left, 0.92, f"{n_diverged}/{n}", transform=strip, ha="center", va="center", fontsize=8)
    ax.set_xticks(at(grid), [short(value) for value in grid], rotation=60 if len(grid) > 10 else 0)
    note = f"best {NAMES[axis]} {short(best[axis])}" if len(losses) else "every run diverged"
    note += ": best value on the edge of the grid" if best_on_edge(runs, axis) else ""
    note += f"; lr sensitivity {lr_sensitivity(runs):.3g} (0 is flat)" if axis == "lr" and len(losses) else ""
    ax.set(xlabel=NAMES[axis], ylabel=f"final {loss_name}", title=note)
    ax.margins(x=0.07)
    return finished(figure, runs, columns=2)


@style.context(STYLE)
def heatmap(runs: pd.DataFrame, x: str = "lr", y: str = "beta1", loss_name: str = "evaluation loss") -> Figure:
    """Draw the median final evaluation loss over two hyperparameters, everything else as in the best configuration.

    Numbers: loss and, for classification, accuracy. Hatched: every seed diverged, with the median step. Grey: most did,
    and the median is infinite. Solid frame: best cell. Dashed frame: the default values of the two.

    Args:
        runs: as `sweep` returns them, of one optimizer.
        x, y: two of `grid.AXES` that the optimizer has.
        loss_name: as of `convergence`.
    """
    cells, initial = held(runs, [y, x]), runs["initial_eval_loss"].median()
    losses, (whose, default) = cells["eval_loss_median"].unstack(x), default_of(runs)
    finite = losses.to_numpy()[np.isfinite(losses) & (losses > 0)]
    low, high = finite.min(initial=initial), finite.max(initial=0.0, where=finite < 2 * initial)
    figure = Figure(figsize=(3.2 + min(losses.shape[1], 12) * 1.05, 2.9 + min(losses.shape[0], 12) * 0.75))
    ax = figure.subplots()
    ax.grid(False)
    size, crowded = (7, True) if losses.shape[1] > 12 else (10, False)
    norm = LogNorm(low, max(high, 1.2 * low), clip=True)
    image = ax.imshow(losses.where(np.isfinite(losses)), cmap="viridis_r", norm=norm, origin="lower", aspect="auto")
    if len(finite):
        ticks = LogLocator(subs=(1, 2, 5) if norm.vmax < 1e3 * low else (1,))
        figure.colorbar(image, ticks=ticks, format="{x:.3g}", label="brighter is better").minorticks_off()
    for cell in cells.reset_index().itertuples():
        loss, accuracy, n, at = cell.eval_loss_median, cell.eval_accuracy_median, cell.n_diverged, (cell[1], cell[2])
        i, j = losses.columns.get_loc(at[1]), losses.index.get_loc(at[0])
        ink, lines = "black", [f"✕ {n} of {cell.n_seeds}"] if n else []
        if np.isfinite(loss):
            ink = "black" if np.dot(image.to_rgba(loss)[:3], (0.3, 0.6, 0.1)) > 0.5 else "white"
            lines = [f"{loss:.3g}", *([f"{accuracy:.2%}"] if np.isfinite(accuracy) else []), *lines]
        else:
            lines += [f"step {cell.diverged_step_median:.0f}"] if n else ["not finite"]
            kwargs = {"facecolor": "0.93", "edgecolor": "0.8", "hatch": "///" if n == cell.n_seeds else None}
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, linewidth=0, **kwargs))
        rest = "\n".join(lines[1:])
        ax.text(i, j, lines[0], color=ink, ha="center", va="bottom" if rest else "center", fontsize=size)
        ax.text(i, j, rest, color=ink, ha="center", va="top", fontsize=0.8 * size)
        is_default = np.allclose(at, [default.get(axis, np.nan) for axis in (y, x)], rtol=1e-6, atol=0)
        frames = [("best", 0.94, "-")] if np.isfinite(loss) and at == cells["eval_loss_median"].idxmin() else []
        frames += [(f"{whose} for both", 0.82, "--")] if is_default else []
        for name, width, line in frames:
            frame = Rectangle((i - width / 2, j - width / 2), width, width, fill=False, linewidth=2, linestyle=line)
            ax.add_patch(frame).set(label=name, path_effects=[withStroke(linewidth=4, foreground="white")])
    ax.set_xticks(range(losses.shape[1]), [short(value) for value in losses.columns], rotation=60 * crowded)
    ax.set_yticks(range(losses.shape[0]), [short(value) for value in losses.index])
    others = label(ranked(runs).iloc[0], [axis for axis in varied_axes(runs) if axis not in (x, y)])
    title = f"final {loss_name}" if len(finite) else "every run diverged"
    title += f"\nwith the best {others}" if others and len(finite) else ""
    title += "\n✕: how many seeds diverged, and the median step" if cells["n_diverged"].any() else ""
    ax.set(xlabel=NAMES[x], ylabel=NAMES[y], title=title)
    return finished(figure, runs, columns=2)
