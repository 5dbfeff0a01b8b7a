"""Report the rows of `step_time` as Markdown and as figures."""

import math
from collections import defaultdict

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.bench import timing
from experiments.bench.contenders import DEFINITIONS
from experiments.bench.implementations import IMPLEMENTATIONS
from experiments.bench.step_plan import ADAMW, FLOAT32
from experiments.common import intervals, tables
from experiments.common.figure_style import STYLE

COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "0.45", "0.7", "C6")
NAMES = [*list(IMPLEMENTATIONS)[:2], FLOAT32, *list(IMPLEMENTATIONS)[2:], ADAMW]
LOOKS = {name: (COLOURS[i % len(COLOURS)], "os^DvP*X<>hpd8H1234"[i]) for i, name in enumerate(NAMES)}
"""Colour and marker of each implementation, the same in all figures."""


def times_table(rows: list[dict], unit: str) -> str:
    """Return a Markdown table of times in `unit`, "us" or "ms", ratios and verdicts."""
    scale = {"us": 1.0, "ms": 1e-3}[unit]
    return tables.markdown_table([shown(row, unit, scale) for row in rows])


def shown(row: dict, unit: str, scale: float) -> dict:
    """Return the columns of a row that the Markdown table shows, under shorter names."""

    def with_interval(name: str, new: str, factor: float = 1.0) -> dict:
        scale = {"": factor, ", low": factor, ", high": factor, ", level": 1.0}
        return {f"{new}{end}": by * row[f"{name}{end}"] for end, by in scale.items() if f"{name}{end}" in row}

    found = {name: row[name] for name in ("class", "dtype", "size", "implementation")}
    found |= with_interval("step us", f"step {unit}", scale)
    found |= {f"p{p}": scale * row[f"step us, p{p}"] for p in (20, 80)}
    found |= {f"host {unit}": scale * row["host us"]} if "host us" in row else {}
    found |= with_interval("kernel us", f"kernel {unit}", scale) if "kernel us" in row else {}
    found |= {f"graph {unit}": scale * row["graph us"]} if "graph us" in row else {}
    found |= {name: row[name] for name in ("GB/s", "warm GB/s", "copy GB/s") if name in row}
    found |= with_interval("share of copy", "of copy")
    found |= {"of datasheet": row["share of datasheet"]} if "share of datasheet" in row else {}
    for name in [name for name in row if name.endswith(", verdict")]:
        what = name.removesuffix(", verdict")
        found |= with_interval(what, what)
        found[what.replace(" / this", ": verdict")] = row[name]
    return found | ({"note": row["note"]} if row["note"] else {})


def markdown(rows: list[dict], left_out: list[tuple[str, str, str]], heading: str, unit: str, intro: str) -> str:
    """Return the report as Markdown: the table, definitions, and what was not timed.

    Args:
        left_out: (implementation, or "" for all; group; reason).
        heading: title, command and machine.
        unit: of the times in the table, "us" or "ms".
        intro: sentences above the table.
    """
    on_gpu = any("kernel us" in row for row in rows)
    baselines = ", ".join(dict.fromkeys(row["baseline"] for row in rows if row["baseline"]))
    known = {name: text for name, text in DEFINITIONS.items() if any(f"{name} us" in row for row in rows)}
    lines = [f"- {name}: {text}." for name, text in known.items()]
    lines += [
        f"- GB/s: bytes divided by {'kernel' if on_gpu else 'the step'}. Bytes: parameters and states read and "
        "written, gradients read; 8-bit states are a byte, and a float32 scale for each 256 elements.",
        "- copy: `torch.Tensor.copy_` with as large a working set, at most 4 GiB, timed in the same rounds; of copy: "
        "GB/s divided by the copy's, formed in each round"
        + ("; of datasheet: divided by the data sheet's." if on_gpu else "."),
        f"- baseline: {baselines or 'none was timed'}. X / this: how many times faster than X. Verdict: faster if all "
        "of the 95 % interval is above 1.05, slower if all of it is below 0.95, same if all of it is in between, else "
        "ambiguous.",
    ]
    if on_gpu:
        lines.append(
            "- Steps rotate among several sets of tensors (column sets of the CSV), which together exceed four times "
            "the L2, or the cache behind it: between two steps a training run reads and writes far more than caches "
            "hold. Only warm steps, and tensors below 1 MiB in all, may find their data in a cache. Gradients keep "
            "their addresses; `throughput host` moves them."
        )
    return f"""{heading}

{intro}

{times_table(rows, unit)}

Medians with
{timing.INTERVALS}.
p20, p80: percentiles. All implementations of a size were timed in turn in every round, over the same parameters and
gradients.

{chr(10).join(lines)}

{not_timed(left_out)}
"""


def not_timed(left_out: list[tuple[str, str, str]]) -> str:
    """List the implementations and sizes that have no row, with the reasons, as Markdown."""
    where = defaultdict(list)
    for name, group, reason in left_out:
        where[name, reason].append(group)
    lines = []
    for (name, reason), groups in where.items():
        some = f" ({', '.join(groups)})" if name and any(groups) and len(groups) <= 3 else ""
        lines.append(f"- {name or ', '.join(groups)}{some}: {reason}.")
    return "\n".join(["Not timed:", "", *lines]) if lines else "Everything asked for was timed."


def groups(data: pd.DataFrame, columns: list[str]) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """Split rows by their strings in some columns, in the order of their first appearance."""
    return [(tuple(part[columns].iloc[0]), part) for _, part in data.groupby(columns, sort=False)]


def panels(data: pd.DataFrame, height: float) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Make a figure with a panel for each class and dtype, up to three in a row; return each panel with its rows."""
    kinds = groups(data, ["class", "dtype"])
    columns = min(2 if len(kinds) == 4 else 3, len(kinds))
    lines = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(max(6.4, 4.3 * columns), 1.5 + height * lines))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(kinds) :]:
        ax.remove()
    for ax, (key, _) in zip(axes, kinds, strict=False):
        ax.set_title(", ".join(key))
    return figure, [(ax, part) for ax, (_, part) in zip(axes, kinds, strict=False)]


def finished(figure: Figure, title: str, columns: int = 4) -> Figure:
    """Add a title and one legend for all panels, and return the figure."""
    found = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    # Implementations first, in their order.
    labels = sorted(found, key=lambda label: NAMES.index(label) if label in NAMES else len(NAMES))
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.suptitle(title)
    figure.draw_without_rendering()
    return figure


def drawn_of(data: pd.DataFrame, name: str) -> str:
    """Describe what a figure draws of a time: the median and, for two or more rounds, bars with the lowest level."""
    level = data[f"{name}, level"].min()
    bars = "95 % interval" if level >= intervals.LEVEL else f"interval of {100 * level:g} % or more"
    return f"median and {bars}" if level == level else "median"


@style.context(STYLE)
def bandwidth(rows: list[dict], device: str) -> Figure | None:
    """Draw bandwidth against the elements of one tensor; None if no class has two sizes.

    Each implementation has a line. Dotted lines are steps over one set of tensors, which stays in the L2 as far as it
    fits. Black is the copy of the same run, grey the data sheet. The vertical line marks where our parameters,
    gradients and states fill the L2.
    """
    data = pd.DataFrame(rows)
    data = data.loc[data["size"].str.startswith("2^")].sort_values("elements", kind="stable")
    data = data.loc[data.groupby(["class", "dtype"])["elements"].transform("nunique") > 1]
    if data.empty:
        return None
    time = "kernel us" if "kernel us" in data else "step us"
    figure, drawn = panels(data, height=3.4)
    for ax, part in drawn:
        for (name,), own in groups(part, ["implementation"]):
            colour, marker = LOOKS[name]
            look = {"color": to_hex(colour), "marker": marker, "markersize": 4.5, "linewidth": 1.3}
            # The upper end of the time is the lower end of the bandwidth.
            ends = [np.abs(own["bytes"] / 1e3 / own[f"{time}, {end}"] - own["GB/s"]) for end in ("high", "low")]
            ax.errorbar(own["elements"], own["GB/s"], ends, label=name, **look)
            if name in ("ours", "torch fused") and "warm GB/s" in own and own["warm GB/s"].notna().any():
                look |= {"linestyle": ":", "markerfacecolor": "white"}
                ax.plot(own["elements"], own["warm GB/s"], label=f"{name}, tensors in the L2", **look)
        copy = part.groupby("elements")["copy GB/s"].median()
        ax.plot(copy.index, copy, "--", color="black", linewidth=1.3, label="copy, as large a working set", zorder=4)
        if "datasheet GB/s" in part and part["datasheet GB/s"].notna().any():
            ax.axhline(part["datasheet GB/s"].max(), color="0.35", linestyle="-.", linewidth=1.1, label="data sheet")
        if "l2 bytes" in part:
            knee = (part["elements"] * part["l2 bytes"] / part["set bytes"]).median()
            ax.axvline(knee, color="0.55", linewidth=1, linestyle=(0, (1, 1)), label="our tensors fill the L2")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator([m * 10**e for e in range(-2, 5) for m in (1, 2, 5)]))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="elements of one tensor", ylabel="GB/s")
    what = "device time" if time == "kernel us" else "wall time"
    return finished(figure, f"{device}: bytes that a step has to move / its {what}, {drawn_of(data, time)}")


@style.context(STYLE)
def roofline(rows: list[dict], device: str, matrix_rate: float) -> Figure | None:
    """Draw operations per second against operations per byte, for the largest size of each class and dtype.

    The slanted lines are the limits by the copy's and the data sheet's bandwidth, the level line is the rate of a
    float32 matrix product, and each implementation has a marker.

    Args:
        matrix_rate: operations per second of the matrix product.
    Returns: None if no time is known.
    """
    data = pd.DataFrame(rows)
    data = data.loc[data["GB/s"].notna()]
    data = data.loc[data["elements"] == data.groupby(["class", "dtype"])["elements"].transform("max")]
    if data.empty:
        return None
    figure = Figure(figsize=(8, 5.6))
    ax = figure.subplots()
    intensity = data["flops"] / data["bytes"]
    rate = intensity * data["GB/s"]
    x = np.geomspace(intensity.min() / 3, max(200.0, 3 * matrix_rate / 1e9 / data["copy GB/s"].median()), 200)
    roofs = {"copy bandwidth": (data["copy GB/s"].median(), "black", "-")}
    if "datasheet GB/s" in data and data["datasheet GB/s"].notna().any():
        roofs["data sheet's bandwidth"] = data["datasheet GB/s"].max(), "0.35", "-."
    for name, (gb, colour, line) in roofs.items():
        roof = np.minimum(x * gb, matrix_rate / 1e9)
        ax.plot(x, roof, line, color=colour, linewidth=1.3, label=f"{name}, {gb:.0f} GB/s", zorder=1)
    ax.text(
        x[-1], matrix_rate / 1e9, f"float32 matrix product, {matrix_rate / 1e12:.3g} TFLOP/s ", ha="right", va="bottom"
    )
    for name in NAMES:
        own = data["implementation"] == name
        if not own.any():
            continue
        colour, marker = LOOKS[name]
        look = {"linestyle": "", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.4}
        ax.plot(intensity[own], rate[own], marker, color=to_hex(colour), label=name, **look)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(rate.min() / 3, 2.5 * matrix_rate / 1e9)
    ax.set(xlabel="operations a byte that a step has to move", ylabel="10⁹ operations a second")
    kinds = groups(data, ["class", "dtype"])
    what = " ".join(kinds[0][0]) if len(kinds) == 1 else f"the largest size of {len(kinds)} classes and dtypes"
    return finished(figure, f"{device}: steps and the roofline, {what}", 3)


@style.context(STYLE)
def models(rows: list[dict], device: str) -> Figure:
    """Draw the milliseconds of a step over the parameters of each network.

    Filled markers are wall times, median and 95 % interval; hollow ones the device's time alone, where it is known.
    """
    data = pd.DataFrame(rows)
    names = [name for name in NAMES if name in set(data["implementation"])]
    figure, drawn = panels(data, height=0.6 + 0.12 * len(names) * data["size"].nunique())
    for ax, part in drawn:
        lists = list(dict.fromkeys(part.sort_values("elements")["size"]))
        for i in range(0, len(lists), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0)
        for (name,), own in groups(part, ["implementation"]):
            colour, marker = LOOKS[name]
            look = {"color": to_hex(colour), "marker": marker, "linestyle": "", "markersize": 5}
            # Each network has a band of the y axis, in which its implementations lie below each other.
            y = own["size"].map({size: i for i, size in enumerate(lists)}) + 0.8 * (
                (names.index(name) + 0.5) / len(names) - 0.5
            )
            ms = own.filter(regex="us") / 1e3
            ends = [np.abs(ms[f"step us, {end}"] - ms["step us"]) for end in ("low", "high")]
            ax.errorbar(ms["step us"], y, xerr=ends, label=name, **look)
            if "kernel us" in ms:
                ax.plot(ms["kernel us"], y, **(look | {"markerfacecolor": "white", "zorder": 1}))
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_yticks(range(len(lists)), lists)
        ax.set_ylim(len(lists) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("ms a step")
    hollow = "; hollow: device time alone" if "kernel us" in data else ""
    return finished(figure, f"{device}: wall time of a step, {drawn_of(data, 'step us')}{hollow}")
