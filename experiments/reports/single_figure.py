"""One figure of a sweep as a file of its own: for a paper, at the width of its columns."""

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import style

from experiments.common import ambient, files
from experiments.common.errors import OptionError
from experiments.common.figure_style import STYLE
from experiments.common.values import Kind, one_of, shown, taken
from experiments.reports import aggregation, steps_to_target, writer

INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}
FORMATS = "pdf", "png", "svg"
OVER = {"sensitivity": ("x",), "heatmap": ("x", "y")}
"""Figures that are over axes, with the options that name these."""
LIMITS = 2.0, 40.0


def inches(text: str) -> float:
    """Return a width with a unit in inches. Raises: ValueError."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt)\s*", text)
    if not match or not LIMITS[0] <= (found := float(match[1]) * INCHES[match[2]]) <= LIMITS[1]:
        raise ValueError
    return found


WIDTH = Kind(f"a width with its unit, as 3.4in, 8.6cm, 86mm or 245pt, from {LIMITS[0]:g}in to {LIMITS[1]:g}in", inches)


class Asked(NamedTuple):
    """What a user asks for, as typed; None where nothing was given.

    Attributes:
        figure: the name of a file of a report without its suffix, or `sensitivity` or `heatmap` with axes.
        optimizer: whose axes these are; by default those of the best.
        out: the file to write; by default one in the folder of the sweep, named after the figure and its width.
    """

    figure: str
    x: str | None = None
    y: str | None = None
    optimizer: str | None = None
    width: str | None = None
    format: str | None = None
    out: Path | None = None


@ambient.pinned()
def write(
    folder: Path, runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict, asked: Asked, target: str | None = None
) -> Path:
    """Draw a figure into a file and return its path. target: as of `writer.target_of`. Raises: OptionError, OSError."""
    width = None if asked.width is None else taken("--width", asked.width, WIDTH)
    kind = format_of(asked)
    summary = aggregation.summarise(runs)
    goal = writer.target_of(runs, provenance, target, summary)
    reached = steps_to_target.reach(runs, curves, goal) if goal else None
    drawings = writer.drawings(runs, curves, provenance, reached, goal, summary)
    name, drawing = chosen(drawings, runs, summary, provenance, asked)
    drawn = drawing.draw(figsize=None if width is None else (width, None))
    of_width = f"_{asked.width.replace(' ', '')}" if asked.width else ""
    path = asked.out or folder / f"{name}{of_width}.{kind}"
    # Without a date, equal results give equal files.
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with style.context(STYLE):
        return files.replace(path, partial(drawn.savefig, format=kind, metadata=metadata, dpi=300))


def format_of(asked: Asked) -> str:
    """Return the format of the file: as asked for, else as its name says, else PDF. Raises: OptionError."""
    accepted = one_of(f"one of {', '.join(FORMATS)}", FORMATS)
    suffix = asked.out.suffix[1:].lower() if asked.out and asked.out.suffix else None
    kind = taken("--format", asked.format or (suffix if suffix in FORMATS else "pdf"), accepted)
    if suffix and suffix != kind:
        raise OptionError(
            f"--out accepts a name that ends in .{kind} with --format {kind}, not {shown(str(asked.out))}"
        )
    return kind


def chosen(
    drawings: dict[str, writer.Drawing], runs: pd.DataFrame, order: pd.DataFrame, provenance: dict, asked: Asked
) -> tuple[str, writer.Drawing]:
    """Return a figure, and the name for its file. order: as of `aggregation.ranked`. Raises: OptionError."""
    names = list(aggregation.best_of_each(order)["optimizer"].astype(str))
    optimizer = asked.optimizer and taken("--optimizer", asked.optimizer, one_of(f"one of {', '.join(names)}", names))
    one = writer.of_one(runs, order, provenance, optimizer)
    varied = aggregation.varied_axes(one.runs)
    plain = [name for name in drawings if name.partition("_")[0] not in ("sensitivity", "heatmap", "pair")]
    over = [name for name, axes in OVER.items() if len(varied) >= len(axes)]
    if asked.figure == "wall_clock" and (reason := writer.without_clock(provenance)):
        raise OptionError(f"--figure accepts another one: {reason[0].lower()}{reason[1:-1]}")
    figure = taken("--figure", asked.figure, one_of(f"one of {', '.join([*plain, *over])}", [*plain, *over]))
    needed = OVER.get(figure, ())
    for option, value in (("x", asked.x), ("y", asked.y)):
        if value is not None and option not in needed:
            raise OptionError(
                f"--{option} goes with --figure {' or '.join(n for n in OVER if option in OVER[n])}, not {figure}"
            )
    if asked.optimizer and not needed:
        raise OptionError(f"--optimizer goes with --figure {' or '.join(OVER)}, not {figure}")
    axes = []
    for option in needed:
        accepts = f"an axis of {one.runs['optimizer'].iloc[0]} that varies, one of {', '.join(varied)}"
        if (value := getattr(asked, option)) is None:
            raise OptionError(f"--figure {figure} needs --{option}, {accepts}")
        axes.append(taken(f"--{option}", value, one_of(accepts, varied)))
    if len(axes) == 2 and axes[0] == axes[1]:
        raise OptionError(f"--y accepts another axis than --x, not {axes[1]} again")
    of = "_" + re.sub(r"[^\w.-]+", "_", optimizer) if optimizer else ""
    if not axes:
        return figure, drawings[figure]
    return "_".join([figure, *axes]) + of, one.against(*axes) if figure == "sensitivity" else one.over(*axes)
