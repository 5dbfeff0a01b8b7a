"""Report a search: a Markdown page, and a figure of each candidate's time."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from experiments.common import figure_style, files, run_info
from experiments.common.figure_style import STYLE
from experiments.common.tables import markdown_table
from experiments.tune import race, static_analysis
from experiments.tune.tuner import TABLE, TuningResult
from kernels.config import WALKS, Device

FIGURE, PAGE = "search.png", "search.md"
ON_GPU = "on buffers that together exceed four times the L2: medians of a CUDA graph's replays between events"
ON_CPU = "on one set of buffers, on all threads of torch unless a configuration says otherwise: medians"
FIRST = "fewest elements per thread, then the smallest block"
WORST = 25
"""The heatmap's colours end at this many per cent above the fastest."""


def entries_table(entries: dict[str, dict]) -> str:
    """Return a Markdown table with a line for each registry entry."""

    def triple(values: list[float] | None) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*values) if values else "-"

    rows = []
    for key, entry in sorted(entries.items(), key=lambda item: order(item[0])):
        low, high = entry.get("interval_us", ["-", "-"])
        rows.append(
            {
                "case": key,
                "configuration": entry["config"].label,
                "us": f"{entry.get('median_us', '-')} [{low}, {high}]",
                "of copy bandwidth": f"{entry['copy_share']:.0%}" if "copy_share" in entry else "-",
                "default / this": triple(entry.get("default_over_this")),
                "ties": len(entry.get("ties", [])),
                "compiler": compiler(entry),
            }
        )
    return markdown_table(rows)


def compiler(entry: dict) -> str:
    return next((f"{name.title()} {entry[name]}" for name in ("triton", "numba") if name in entry), "-")


def order(key: str) -> tuple[str, int]:
    """Return the sort key of a registry key: everything but the size, then the size."""
    kind, _, bucket = key.rpartition("/")
    return kind, int(bucket)


def markdown(found: TuningResult, device: Device, provenance: dict) -> str:
    states = [f"{key}: {state_line(state)}" for key, state in found.states.items() if state]
    notes = [*([f"The file is {found.file}"] if found.file else []), *found.notes]
    timed, chosen = (ON_CPU, "the default, else the smallest chunks") if device.arch == "cpu" else (ON_GPU, FIRST)
    return f"""# Launch configurations measured on {device.name}

    {provenance["command"]}

{run_info.machine_line(provenance)}.

{entries_table(found.entries) if found.entries else "Nothing was measured."}

Case: rule, dtypes of parameters, gradients and states, rounding, alignment, kind of rows, log2 of the number of all
elements. Times are of one step, prologue included, {timed}, with 95 % intervals.
All candidates were measured in every round, in random order, until they dropped out; ratios are formed within rounds.
Of the candidates that could not be told from the fastest by more than {race.TIE - 1:.0%}, the first is chosen:
{chosen}. Each candidate's update was compared with the eager formulas' beforehand.

{bullets(notes)}

Clocks, temperature, power after each case:

{bullets(states or ["not known"])}
"""


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def state_line(state: dict) -> str:
    words = ", ".join(state.get("throttle", [])) or "none"
    return (
        f"SM {state.get('sm_mhz')} MHz, memory {state.get('memory_mhz')} MHz, {state.get('temperature_c')} °C, "
        f"{state.get('power_w')} W, reasons for lower clocks: {words}"
    )


def write(found: TuningResult, device: Device, provenance: dict, out: Path) -> str:
    """Write page and figure beside the table of all candidates, and return the page's text."""
    text = markdown(found, device, provenance)
    files.replace(out / PAGE, lambda path: path.write_text(text, encoding="utf-8"))
    if (out / TABLE).exists():
        table = pd.read_csv(out / TABLE, keep_default_na=False, na_values=[""])
        if drawn := search_figure(table, found.entries, device):
            files.replace(out / FIGURE, partial(figure_style.save, drawn))
    return text


@style.context(STYLE)
def search_figure(table: pd.DataFrame, entries: dict[str, dict], device: Device) -> Figure | None:
    """Draw the times of the first case's candidates, and below each entry's gain over the default.

    Args:
        table: rows of `race.rows_of`, for one case or several.
        entries: registry entries, by key.
    Returns: None if nothing was measured.
    """
    timed = table.loc[table["us"].notna() & table["case"].isin(entries)]
    if timed.empty:
        return None
    case = timed["case"].iloc[0]
    of_case = timed.loc[timed["case"] == case]
    gains = {key: e["default_over_this"] for key, e in sorted(entries.items()) if "default_over_this" in e}
    drawn = Figure(figsize=(13, 4.4 + 0.28 * len(gains)))
    top, bottom = drawn.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 0.8 + 0.28 * len(gains)]).ravel()
    if device.arch == "cpu":
        cpu_candidates(top, of_case)
    else:
        gpu_candidates(top, of_case.assign(eviction=of_case["eviction"].fillna("")), device.warp_size)
    top.suptitle(f"{case} on {device.name}: time of each candidate (frame: chosen; dashed: the default)")
    ax = bottom.subplots()
    keys = [*gains]
    medians, lows, highs = np.array([gains[key] for key in keys]).clip(max=10).T
    y = np.arange(len(keys))
    bars = 100 * np.array([medians - lows, highs - medians])
    ax.errorbar(100 * (medians - 1), y, xerr=bars, fmt="o", markersize=4, capsize=2)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(y, keys, fontsize=8)
    ax.set(ylim=(len(keys) - 0.5, -0.5), xlabel="the default takes longer than the tuned configuration, % (95 %)")
    drawn.draw_without_rendering()
    return drawn


def gpu_candidates(figure: SubFigure, rows: pd.DataFrame, warp_size: int) -> None:
    """Draw a heatmap for each walk."""
    axes = figure.subplots(1, len(WALKS), sharey=True)
    images = []
    for ax, walk in zip(axes, WALKS, strict=True):
        of_walk = rows.loc[
            (rows["blocks_per_chunk"] == walk[0]) & (rows["num_stages"] == walk[1]) & (rows["eviction"] == walk[2])
        ]
        images.append(heatmap(ax, of_walk, rows, warp_size))
        ax.set_title(static_analysis.walk_name(*walk), fontsize=9)
    axes[0].set_ylabel("elements per thread")
    figure.supxlabel("block size (elements)", fontsize=10)
    figure.colorbar(images[-1], ax=list(axes), label="longer than the fastest, %", pad=0.01)


def cpu_candidates(figure: SubFigure, rows: pd.DataFrame) -> None:
    """Draw times over chunk sizes, with a line for each number of threads and piles."""
    ax = figure.subplots()
    slower = rows.assign(slower=100 * (rows["over_chosen"] / rows["over_chosen"].min() - 1))
    for threads, piles in sorted({*zip(slower["threads"], slower["piles"], strict=True)}):
        line = slower.loc[(slower["threads"] == threads) & (slower["piles"] == piles)].sort_values("chunk_size")
        team = f"{threads} thread{'s' * (threads > 1)}" if threads else "a thread for 2^14 elements"
        label = f"{team}, {piles} piles"
        ax.plot(line["chunk_size"], line["slower"], "o-", markersize=4, label=label)
    for holds, line_style in ((slower["fate"] == "chosen", "solid"), (slower["default"].astype(bool), "dashed")):
        at = slower.loc[holds]
        ax.scatter(at["chunk_size"], at["slower"], s=160, marker="s", facecolors="none", edgecolors="black",
                   linestyles=line_style, zorder=3)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=10)
    ax.set(xlabel="chunk size (elements)", ylabel="longer than the fastest, %", ylim=(-1, None))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def heatmap(ax: Axes, rows: pd.DataFrame, whole: pd.DataFrame, warp_size: int):
    """Draw one walk's times in per cent above the fastest of all walks; blank cells were dropped before the race."""
    whole = whole.assign(per_thread=whole["block_size"] // (whole["num_warps"] * warp_size))
    blocks, threads = sorted(whole["block_size"].unique()), sorted(whole["per_thread"].unique())
    grid = np.full((len(threads), len(blocks)), np.nan)
    # A candidate that dropped out early is compared in the rounds that it took part in.
    slower = 100 * (whole["over_chosen"] / whole["over_chosen"].min() - 1)
    for index, row in rows.iterrows():
        at = threads.index(row["block_size"] // (row["num_warps"] * warp_size)), blocks.index(row["block_size"])
        grid[at] = slower[index]
        ax.text(at[1], at[0], f"{slower[index]:.0f}", ha="center", va="center", fontsize=8,
                color="white" if slower[index] > WORST / 2 else "black")  # fmt: skip
        for holds, line in ((row["fate"] == "chosen", "-"), (bool(row["default"]), "--")):
            if holds:
                box = (at[1] - 0.45, at[0] - 0.45), 0.9, 0.9
                ax.add_patch(Rectangle(*box, fill=False, edgecolor="C1", linewidth=2, linestyle=line))
    ax.set_xticks(range(len(blocks)), [str(block) for block in blocks], rotation=60, fontsize=8)
    ax.set_yticks(range(len(threads)), [str(n) for n in threads])
    ax.grid(visible=False)
    return ax.imshow(grid, cmap="cividis_r", vmin=0, vmax=WORST, aspect="auto", origin="lower")
