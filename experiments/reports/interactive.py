"""The part of report.html that answers questions: all configurations and runs of a sweep, in linked panels.

Everything is in the page: Plotly's JavaScript, which its Python package brings along, the numbers, and the scripts in
this folder. Without JavaScript the part stays hidden, and the page is the document that it is on paper.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from experiments.common.numbers import number
from experiments.reports import aggregation, early
from experiments.reports.aggregation import axis_name, short, varied_axes
from experiments.reports.figures import positions
from experiments.training.axes import BETA, LINEAR, LOG, WORDS, scale_of

SCRIPTS = [Path(__file__).with_name(name) for name in ("panels.js", "explore.js")]
POINTS = 300_000
"""The points of curves in a page, at most, as long as each run keeps its first and last evaluation."""
VALUES = 12
"""The values of an axis that have a tick each, at most; more have round ticks."""
RESULTS = {
    "eval_loss_low": "low",
    "eval_loss_high": "high",
    "train_loss_median": "train loss",
    "steps_to_target_median": "steps to target",
    "eval_accuracy_median": "accuracy",
    "n_diverged": "diverged",
    "stopped_step_median": "stopped at step",
    "n_seeds": "seeds",
}
"""Columns of a table of configurations, with their names in the page."""
LOSS = "eval_loss_median"


class Part(NamedTuple):
    """What a page needs for its interactive part.

    Attributes:
        section: HTML for the place where it is to appear.
        scripts: HTML for the end of the page.
        policy: a Content-Security-Policy, under which the page runs these scripts and asks nobody for anything.
    """

    section: str
    scripts: str
    policy: str


NO_SCRIPTS = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The policy of a page that only shows text and images."""
ONLY_TEXT = Part("", "", NO_SCRIPTS)
SECTION = '<section id="explore" hidden>\n<h2>Explore</h2>\n</section>\n'


@cache
def library() -> tuple[str, str]:
    """Return Plotly's JavaScript, packed for a page, and its hash for a Content-Security-Policy."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return packed(source), hashed(source)


def packed(text: str) -> str:
    """Return text as base64 of gzip: a third of its size, and equal for equal text."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def hashed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def part(runs: pd.DataFrame, curves: pd.DataFrame, summary: pd.DataFrame, loss_name: str) -> Part:
    """Return the interactive part of the page about a sweep. Args: as of `content`."""
    plotly, hash_of_plotly = library()
    ours = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    data = packed(json.dumps(content(runs, curves, summary, loss_name), allow_nan=False, separators=(",", ":")))
    blocks = {"plotly": plotly, "sweep": data}
    scripts = [f'<script type="text/plain" id="{name}">{block}</script>\n' for name, block in blocks.items()]
    policy = f"{NO_SCRIPTS}; script-src {hashed(ours)} {hash_of_plotly}"
    return Part(SECTION, "".join([*scripts, f"<script>{ours}</script>\n"]), policy)


def content(runs: pd.DataFrame, curves: pd.DataFrame, summary: pd.DataFrame, loss_name: str) -> dict[str, Any]:
    """Return the numbers of the page as data for JSON, where null stands for what is not finite.

    Configurations and runs are named by their places in the lists. An axis has the distinct values of all
    configurations: their texts, their positions on a figure's axis, in ascending order, and the one that each
    configuration has. The last axis is the loss, which is infinite where the median run diverged. If some ended early,
    `early` has the words for that, the step of each configuration, null for the others, and whether each run did.

    Args:
        summary: `aggregation.summarise` of the runs, with `steps_to_target.medians` if there is a target.
    """
    axes = (["optimizer"] if summary["optimizer"].nunique() > 1 else []) + (varied_axes(summary) or ["lr"])
    found = [axis(name, summary[name], axis_name(name, summary)) for name in axes]
    key = aggregation.configuration(summary)
    # A merge, unlike an index, takes NaN for equal to NaN.
    places = runs[["run_id", "seed", *key]].merge(summary[key].assign(configuration=range(len(summary))), how="left")
    kept = thinned(curves.loc[curves["run_id"].isin(runs["run_id"])].sort_values(["run_id", "step"], kind="stable"))
    metrics = {"eval_loss": loss_name, "train_loss": "training loss", "eval_accuracy": "accuracy"}
    metrics = {name: text for name, text in metrics.items() if kept[name].notna().any()} or {"eval_loss": loss_name}
    initial = aggregation.initial_loss(runs)
    places = places.set_index("run_id").loc[kept["run_id"].unique()]
    stopped, is_cut = early.is_early(summary), runs.set_index("run_id")["status"].isin(aggregation.EARLY)
    ended = {
        "words": early.words(runs),
        "steps": numbers(aggregation.stopped_at(summary).where(stopped)),
        "runs": is_cut.loc[places.index].tolist(),
    }
    return {
        "axes": [*found, loss_axis(summary[LOSS], initial)],
        "results": [
            {"name": name, "label": text, "values": numbers(summary[name])}
            for name, text in RESULTS.items()
            if name in summary and summary[name].notna().any()
        ],
        "runs": {
            "configuration": places["configuration"].tolist(),
            "seed": places["seed"].tolist(),
            "start": [0, *kept.groupby("run_id", sort=False).size().cumsum().tolist()],
        },
        "metrics": [{"name": name, "label": text, "values": numbers(kept[name], 6)} for name, text in metrics.items()],
        "step": kept["step"].tolist(),
        "initial": initial,
        "thinned": len(kept) < len(curves),
        "early": ended if stopped.any() else None,
    }


def axis(name: str, values: pd.Series, label: str) -> dict[str, Any]:
    """Return the distinct values of an axis and the one of each configuration; "-" for those that lack the axis."""
    given = values.dropna()
    scale = WORDS if name == "optimizer" else scale_of(name, given)
    distinct = np.asarray(sorted(given.unique()))
    at = positions(distinct, name, distinct) if name != "optimizer" else np.arange(len(distinct), dtype=float)
    texts = [short(value) for value in distinct]
    codes = np.searchsorted(distinct, given)
    all_codes = pd.Series(codes, index=given.index).reindex(values.index)
    if values.isna().any():
        gap = (at[-1] - at[0]) / max(len(at) - 1, 1) or 1.0
        at, texts, all_codes = np.append(at[0] - gap, at), ["-", *texts], all_codes.add(1).fillna(0)
    ticks = list(zip(at, texts, strict=True))
    if scale != WORDS and len(distinct) > VALUES:
        tried = round_values(scale, distinct)
        # Zero and infinity have places beside the others, and so have configurations without the axis.
        ticks = [tick for tick in ticks if tick[1] in ("-", "0", "inf")]
        ticks = sorted({*ticks, *zip(positions(tried, name, distinct), map(short, tried), strict=True)})
    return described(name, label, scale, texts, at, all_codes.astype(int), ticks)


def round_values(scale: str, values: np.ndarray) -> np.ndarray:
    """Return round values between the lowest and the highest, on a scale of `axes`, for the ticks of an axis."""
    values = values[np.isfinite(values) & ((values > 0) | (scale != LOG))]
    if not len(values):
        return values
    low, high = values.min(), values.max()
    if scale == LINEAR:
        found = MaxNLocator(8).tick_values(low, high)
    else:
        ends = np.log10([low, high] if scale == LOG else [1 - high, 1 - low])
        decades = np.arange(np.floor(ends[0]), np.ceil(ends[1]) + 1)
        steps = (1, 2, 5) if ends[1] - ends[0] < 4 else (1,)
        found = np.sort(np.concatenate([step * 10.0**decades for step in steps]))
        found = found if scale == LOG else np.round(1 - found[::-1], 12)
    return found[(low <= found) & (found <= high)]


def loss_axis(losses: pd.Series, initial: float) -> dict[str, Any]:
    """Return the axis of the results, which also has the position of the loss before training.

    The axis is logarithmic unless a loss is negative. Losses that are not finite stand above all others, as "diverged".
    """
    finite = np.unique(losses[np.isfinite(losses)])
    scale = LINEAR if len(finite) and finite[0] < 0 else LOG
    # An optimum of 0 has a place a decade below the others.
    positive = [value for value in (*finite, initial) if value > 0]
    least = min(positive, default=1.0) / 10

    def place(values: Any) -> np.ndarray:
        return np.asarray(values, dtype=float) if scale == LINEAR else np.log10(np.maximum(values, least))

    at, texts, tried = place(finite), [number(value, 4) for value in finite], round_values(scale, finite)
    ticks = list(zip(place(tried), map(short, tried), strict=True))
    if not np.isfinite(losses).all():
        spread = at[-1] - at[0] if len(at) > 1 else 1.0
        at, texts = np.append(at, at[-1] + 0.1 * spread if len(at) else 0.0), [*texts, "diverged"]
        ticks.append((at[-1], "diverged"))
    codes = np.where(np.isfinite(losses), np.searchsorted(finite, losses), len(finite))
    return described(LOSS, "eval loss", scale, texts, at, codes, ticks) | {"initial": float(place(initial))}


def described(
    name: str, label: str, scale: str, texts: list[str], at: np.ndarray, codes: Any, ticks: Iterable[tuple[Any, str]]
) -> dict[str, Any]:
    """Return an axis as the page has it. ticks: positions and texts, in ascending order."""
    return {
        "name": name,
        "label": label,
        "note": {BETA: " (log of 1 - value)", LOG: " (log)"}.get(scale, ""),
        "words": scale == WORDS,
        "texts": texts,
        "at": at.tolist(),
        "ticks": [[float(at), text] for at, text in ticks],
        "codes": np.asarray(codes).tolist(),
    }


def thinned(curves: pd.DataFrame, points: int | None = None) -> pd.DataFrame:
    """Return the evaluations of each run that a page shows: evenly chosen, first and last included.

    curves: sorted by run and step. points: the most of them, by default `POINTS`; each run keeps at least two.
    """
    groups = curves.groupby("run_id", sort=False)
    n = groups["step"].transform("size").to_numpy()
    most = max(2, (POINTS if points is None else points) // max(groups.ngroups, 1))
    place = groups.cumcount().to_numpy()
    # The k-th of `most` chosen evaluations is the first whose share of the curve reaches k / (most - 1).
    share = place * (most - 1) // np.maximum(n - 1, 1)
    before = np.where(place > 0, (place - 1) * (most - 1) // np.maximum(n - 1, 1), -1)
    return curves.loc[(n <= most) | (share > before)]


def numbers(values: pd.Series, digits: int = 17) -> list[float | None]:
    """Return numbers with so many significant digits; None for those that are not finite."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.astype(float)]
