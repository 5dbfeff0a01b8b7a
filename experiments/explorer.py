"""Which configurations are good, and what do they have in common? Show a results folder one slice at a time.

In a notebook of the folder notebooks:

    from experiments.explorer import explore

    explore("../results/first")

All but `explore` and `controls` are plain functions, from runs to the runs of a slice, and from a slice to figures.
"""

import contextlib
import html
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import compare, results
from experiments.common import ambient, run_info, values
from experiments.common.errors import OptionError
from experiments.reports import (
    aggregation,
    figures,
    grid_figures,
    interactive,
    markdown,
    pictures,
    sampled_figures,
    training_figures,
)
from experiments.reports.html import framed
from experiments.sweeps import reading
from experiments.sweeps.results import Sweep
from experiments.training.axes import axes_in

RESULTS = Path(__file__).parents[1] / "results"


class View(NamedTuple):
    """A slice of a sweep, drawn.

    Attributes:
        sentence: what was trained, which values are held, and how many runs are left.
        convergence: losses of these runs while training; see `training_figures.convergence`.
        over: final losses over one axis or two; see `grid_figures` and `sampled_figures`.
        best: the ten best configurations as short strings, best first.
    """

    sentence: str
    convergence: Figure
    over: Figure
    best: pd.DataFrame


def folders(root: str | os.PathLike[str] = RESULTS) -> list[Path]:
    """Return the folders, `root` and below, that hold the results of a sweep, also of one that is not finished."""
    return reading.folders(root)


def axes_of(runs: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the axes with more than one value, and their sorted values. runs: of one optimizer."""
    return {axis: sorted(runs[axis].dropna().unique().tolist()) for axis in aggregation.varied_axes(runs)}


def best_values(runs: pd.DataFrame) -> dict[str, Any]:
    """Return the values that the best configuration has on the axes of `axes_of`."""
    best = aggregation.ranked(runs).iloc[0]
    return {axis: best[axis] for axis in axes_of(runs)}


def select(runs: pd.DataFrame, held: Mapping[str, Any]) -> pd.DataFrame:
    """Return the runs that have these values on these axes, as a new table in the same order."""
    same = np.ones(len(runs), dtype=bool)
    for axis, value in held.items():
        same &= figures.is_close(runs[axis], value)
    return runs.loc[same].reset_index(drop=True)


@ambient.pinned()
def view(
    sweep: Sweep,
    optimizer: str | None = None,
    x: str | None = None,
    y: str | None = None,
    held: Mapping[str, Any] | None = None,
) -> View:
    """Draw one slice of a sweep.

    Args:
        optimizer: the optimizer to show; by default the best one.
        x, y: axes of the second figure; by default x is the first axis that varies, and there is no y.
        held: values of other axes, numbers or words; runs with other values are left out. By default nothing is held.
    Raises: OptionError if no run is left.
    """
    whole = sweep.runs
    names = axes_in(whole)
    axis = values.optional(values.Kind(f"one of {', '.join(names)}", lambda name: names[names.index(name)]))
    x, y = values.taken("x", x, axis), values.taken("y", y, axis)

    def word(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)

    def chosen(given: Mapping) -> dict[str, Any]:
        words = {name for name in names if whole[name].dtype.kind == "O"}
        return {axis.take(name): (word if name in words else values.number)(value) for name, value in given.items()}

    wanted: dict[str, Any] = values.taken("held", held or {}, values.Kind("a dictionary of values by axis", chosen))
    optimizer = optimizer or str(aggregation.ranked(whole).loc[0, "optimizer"])
    runs = select(whole.loc[whole["optimizer"] == optimizer], wanted)
    kept = (
        ", ".join(f"{aggregation.axis_name(name)} {aggregation.short(value)}" for name, value in wanted.items())
        or "nothing"
    )
    if runs.empty:
        raise OptionError(f"{optimizer} was not run with {kept}")
    order = aggregation.ranked(runs)
    what = f"{sweep.provenance.get('data', {}).get('name', 'data')}, {aggregation.listed(runs['model'])}"
    loss_name = sweep.provenance.get("loss_name", "evaluation loss")
    x = x or next(iter(axes_of(runs)), "lr")
    sampled = bool(markdown.sampled(sweep.provenance))
    if y is None:
        over = (sampled_figures.sensitivity if sampled else grid_figures.sensitivity)(runs, x, loss_name, order)
    else:
        over = (sampled_figures.pair if sampled else grid_figures.heatmap)(runs, x, y, loss_name, order)
    top = runs.merge(order.head(10)[aggregation.configuration(order)])
    return View(
        sentence=" ".join(
            [
                f"{what}, {optimizer}; held: {kept}. {len(runs)} of {len(whole)} runs.",
                *([markdown.DIVERGED] if (runs["status"] == "diverged").any() else []),
                *([markdown.STOPPED] if runs["status"].isin(aggregation.EARLY).any() else []),
                *([left] if (left := markdown.unfinished_sentence(sweep.provenance)) else []),
            ]
        ),
        convergence=training_figures.convergence(runs, sweep.curves, loss_name, order),
        over=over,
        best=aggregation.best_configurations(aggregation.summarise(top)),
    )


def first_view(sweep: Sweep) -> View:
    """Return the first slice of `controls`: two axes of the best optimizer, all others as in its best configuration."""
    optimizer = str(aggregation.ranked(sweep.runs).loc[0, "optimizer"])
    runs = sweep.runs.loc[sweep.runs["optimizer"] == optimizer]
    x, y, *others = [*axes_of(runs), None, None]
    best = best_values(runs)
    held = {} if markdown.sampled(sweep.provenance) else {axis: best[axis] for axis in others if axis}
    return view(sweep, optimizer, x, y, held)


@ambient.pinned()
def html_of(shown: View) -> str:
    """Return a view as self-contained HTML: the sentence, the best configurations, and both figures as images."""

    def beside(content: str, share: int) -> str:
        return f'<div style="flex: {share} 1 20em; overflow-x: auto">{content}</div>'

    best = shown.best.to_html(index=False, border=0)
    return (
        f"<p>{html.escape(shown.sentence)}</p>{pictures.image(shown.convergence, 'convergence')}"
        f'<div style="display: flex; flex-wrap: wrap; gap: 2em; align-items: center">'
        f"{beside(pictures.image(shown.over, 'over'), 3)}{beside(best, 2)}</div>"
    )


def html_of_error(error: OptionError) -> str:
    return f"<p>{html.escape(str(error))}.</p>"


@ambient.pinned()
def static(folder: compare.Folders) -> dict[str, str]:
    """Return what shows a folder without a kernel, as a MIME bundle, or the sentence that says why nothing does.

    It is HTML, the panels of report.html over the `first_view`; for pages without HTML, its convergence and sentence.
    """
    try:
        sweep = compare.load_all(folder)
        first = first_view(sweep)
    except OptionError as error:
        return {"text/html": html_of_error(error), "text/plain": f"{error}."}
    loss_name = sweep.provenance.get("loss_name", "evaluation loss")
    part = interactive.part(sweep.runs, sweep.curves, results.summary_of(*sweep), loss_name)
    return {
        "text/html": framed(part, html_of(first)),
        "image/png": pictures.encoded(first.convergence),
        "text/plain": first.sentence,
    }


def explore(folder: compare.Folders | None = None, root: str | os.PathLike[str] = RESULTS) -> None:
    """Show the results of a sweep, with controls, in the notebook whose cell calls this.

    Without a kernel, a user (`nbconvert --execute`) or ipywidgets it shows all runs in the panels of report.html, which
    need no server; where frames or scripts are removed, as on GitHub, the `first_view`, which stands still. A notebook
    that is saved with outputs holds both: 2.6 MB for 135 runs, most of it Plotly's code, and 6 MB for 10,000.

    Args:
        folder: results folder of a sweep, or several of one task; by default the first below `root`. The optimizers
            of several are called "adam (first)", and "all" of them can be chosen, too.
        root: folder below which results can be chosen.
    """
    from IPython.display import display

    chosen = folder or next(iter(folders(root)), None)
    none = {"text/html": f"<p>There are no results below {html.escape(str(root))}: make demo makes some.</p>"}
    data = static(chosen) if chosen else none
    # Of a notebook that it executes, nbconvert would export the widgets: blank without a network, and never moving.
    if chosen and run_info.attended():
        with contextlib.suppress(ModuleNotFoundError):
            data = (controls(chosen, root)._repr_mimebundle_() or {}) | data
    display(data, raw=True)


def controls(folder: compare.Folders, root: str | os.PathLike[str] = RESULTS):
    """Return an ipywidgets.VBox in which to choose folder, optimizer and axes, and to hold values of the other axes."""
    import ipywidgets as widgets

    def close(widget) -> None:
        """Close a widget and all its parts, because ipywidgets keeps every one until it is closed."""
        for child in getattr(widget, "children", ()):
            close(child)
        for part in (widget.layout, getattr(widget, "style", None), widget):
            if part is not None:
                part.close()

    def below(choosers: list, make: Callable):
        """Show choosers and, under them, the result of `make` on their values, updated when a value changes."""
        made = widgets.VBox()

        def remake(_=None) -> None:
            old = made.children
            made.children = [make(*(chooser.value for chooser in choosers))]
            for widget in old:
                close(widget)

        for chooser in choosers:
            chooser.observe(remake, "value")
        remake()
        row = widgets.Box(choosers, layout=widgets.Layout(flex_flow="row wrap"))
        return widgets.VBox([row, made])

    def of_folder(chosen: tuple[Path, ...], typed: str):
        try:
            sweep = compare.load_all(typed or chosen)
        except OptionError as error:
            return widgets.HTML(html_of_error(error))
        names = aggregation.best_of_each(aggregation.ranked(sweep.runs))["optimizer"].tolist()
        options = [*zip(names, names, strict=True), *[("all", None)] * (len(names) > 1)]
        chooser = widgets.Dropdown(options=options, description="optimizer")
        return below([chooser], lambda name: of_optimizer(sweep, name))

    def of_optimizer(sweep: Sweep, name: str | None):
        if name is None:
            return widgets.HTML(pictures.comparison_of(*sweep))
        runs = sweep.runs.loc[sweep.runs["optimizer"] == name]
        axes = list(axes_of(runs)) or ["lr"]
        return below([dropdown("x", runs, axes)], lambda x: of_x(sweep, name, runs, x))

    def of_x(sweep: Sweep, name: str, runs: pd.DataFrame, x: str):
        others = [axis for axis in axes_of(runs) if axis != x]
        chooser = dropdown("y", runs, others, ("none", None))
        return below([chooser], lambda y: of_axes(sweep, name, runs, x, y))

    def of_axes(sweep: Sweep, name: str, runs: pd.DataFrame, x: str, y: str | None):
        best, held = best_values(runs), {} if markdown.sampled(sweep.provenance) else axes_of(runs)
        sliders = {axis: slider(runs, axis, values, best[axis]) for axis, values in held.items() if axis not in (x, y)}

        def draw(*values: Any):
            try:
                return widgets.HTML(html_of(view(sweep, name, x, y, dict(zip(sliders, values, strict=True)))))
            except OptionError as error:
                return widgets.HTML(html_of_error(error))

        return below([*sliders.values()], draw)

    def dropdown(which: str, runs: pd.DataFrame, axes: list[str], *more: tuple):
        options = [*((aggregation.axis_name(axis, runs), axis) for axis in axes), *more]
        return widgets.Dropdown(options=options, description=which)

    def slider(runs: pd.DataFrame, axis: str, values: list[Any], value: Any):
        given = {"value": value, "description": aggregation.axis_name(axis, runs)}
        given |= {"options": [(aggregation.short(v), v) for v in values], "style": {"description_width": "initial"}}
        # Words have no order.
        if isinstance(value, str):
            return widgets.Dropdown(**given)
        return widgets.SelectionSlider(**given, continuous_update=False)

    def name_of(path: Path) -> str:
        return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)

    chosen = compare.paths_of(folder)
    known = {tuple(path.resolve() for path in paths): paths for paths in (*zip(folders(root)), chosen)}
    options = [(", ".join(map(name_of, paths)), paths) for paths in known.values()]
    chooser = widgets.Dropdown(options=options, value=chosen, description="results")
    typed = widgets.Text(placeholder="or another folder", continuous_update=False)
    return below([chooser, typed], of_folder)
