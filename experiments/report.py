"""What did the sweep find, in numbers and words? A table of configurations, the figures, and a page about them.

python -m experiments.report results/first

draws everything again from runs.parquet, curves.parquet and provenance.json, without training.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from experiments import figures, store
from experiments.figures import CONFIGURATION, NAMES, short
from experiments.grid import AXES

RUN_COLUMNS = [
    *["run_id", *CONFIGURATION, "seed", "status", "diverged_step"],
    *["train_loss", "eval_loss", "eval_accuracy", "initial_eval_loss"],
]
CURVE_COLUMNS = ["run_id", "step", "train_loss", "eval_loss", "eval_accuracy"]
# The 2.5 % and 97.5 % points of a median hardly move beyond this, and 1000 configurations stay a matter of a second.
RESAMPLES = 1999

CONVERGENCE = (
    "Losses (and accuracy) while training: coloured lines are the best configurations, with their inter-quartile range "
    "over seeds; dashed black is torch's default, grey is every other run, and a ✕ is where a run diverged."
)
SENSITIVITY = (
    "Final loss against {0}: the thick line changes {0} alone, starting from the best configuration, the thin line "
    "is the best one can do by tuning everything else, and the strip at the top counts diverged runs."
)
HEATMAP = (
    "Final loss over {0} and {1}, everything else as in the best configuration: brighter is better, "
    "hatched cells diverged."
)


class InputError(ValueError):
    """A results folder that cannot be read; the message is one sentence that names the file."""


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration, over its seeds; best (lowest median final evaluation loss) first.

    Columns: data, task, model, optimizer, lr, beta1, beta2, eps, weight_decay, n_seeds, n_diverged,
    eval_loss_{median, q25, q75, low, high}, train_loss_median, eval_accuracy_median and diverged_step_median. From low
    to high is the 95 % percentile bootstrap interval of the median; NaN below three seeds. A diverged run has
    infinite losses, and a median accuracy that rests on one is NaN.
    """
    summary = figures.ranked(runs)
    losses = figures.scored(runs, "eval_loss").groupby([runs[column] for column in CONFIGURATION]).agg(list)
    losses = losses.reindex(pd.MultiIndex.from_frame(summary[CONFIGURATION])).to_numpy()
    interval = np.full((len(summary), 2), np.nan)
    for n, rows in summary.groupby("n_seeds").indices.items():
        if n >= 3:
            interval[rows] = np.column_stack(median_interval(np.array(losses[rows].tolist())))
    for i, end in enumerate(("low", "high")):
        known = figures.unscored(pd.Series(interval[:, i])).where(summary["n_seeds"] >= 3)
        summary.insert(summary.columns.get_loc("eval_loss_q75") + 1 + i, f"eval_loss_{end}", known)
    return summary


def median_interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % percentile bootstrap interval of each row's median. samples: configurations x seeds."""
    rng = np.random.default_rng(0)
    options = {"axis": 1, "vectorized": True, "method": "percentile", "n_resamples": RESAMPLES, "batch": 200}
    interval = bootstrap((samples,), np.median, random_state=rng, **options).confidence_interval
    return interval.low, interval.high


def edge_warnings(runs: pd.DataFrame) -> list[str]:
    """A sentence for every varied hyperparameter whose best value ends its grid; none if every run diverged."""
    best = figures.ranked(runs).iloc[0]
    return [
        f"The best {NAMES[axis]}, {short(best[axis])}, is on the edge of the grid (its "
        f"{'largest' if best[axis] == runs[axis].max() else 'smallest'} value): a better one may lie beyond."
        for axis in figures.varied_axes(runs)
        if figures.best_on_edge(runs, axis)
    ]


def best_configurations(summary: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The first n rows of `summarise` as short strings: the varied hyperparameters, then what came of them."""
    top = summary.head(n)
    axes = figures.varied_axes(summary) or list(AXES)
    table = pd.DataFrame({"#": [str(i + 1) for i in range(len(top))]})
    for axis in axes:
        table[NAMES[axis]] = [short(value) for value in top[axis]]
    table["eval loss"] = top["eval_loss_median"].map("{:.4g}".format)
    if top["eval_loss_low"].notna().any():
        ends = zip(top["eval_loss_low"], top["eval_loss_high"], strict=True)
        table["95 % interval"] = [f"{low:.4g} to {high:.4g}" if low == low else "-" for low, high in ends]
    table["train loss"] = top["train_loss_median"].map("{:.4g}".format)
    if summary["eval_accuracy_median"].notna().any():
        table["accuracy"] = top["eval_accuracy_median"].map("{:.2%}".format).replace("nan%", "-")
    table["diverged"] = [f"{k} of {n}" for k, n in zip(top["n_diverged"], top["n_seeds"], strict=True)]
    return table


def console_table(summary: pd.DataFrame, n: int = 10) -> str:
    """The n best configurations of `summarise` as aligned text."""
    return best_configurations(summary, n).to_string(index=False)


def write(folder: str | os.PathLike[str], runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> list[Path]:
    """Write summary.csv, the figures and report.md into the folder and return their paths.

    Nothing in the folder changes unless everything could be drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(runs)
    pictures = drawings(runs, curves, provenance.get("loss_name", "evaluation loss"))
    captions = {name: caption for name, (_, caption) in pictures.items()}
    files: dict[str, Callable[[Path], object]] = {"summary.csv": partial(summary.to_csv, index=False)}
    for name, (draw, _) in pictures.items():
        files[name] = lambda path, draw=draw: draw().savefig(path, format="png")
    files["report.md"] = partial(_write_text, text=page(runs, summary, provenance, captions))
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in files}
    try:
        for name, save in files.items():
            save(temporary[name])
        for name in files:
            os.replace(temporary[name], folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return [folder / name for name in files]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def drawings(runs: pd.DataFrame, curves: pd.DataFrame, loss_name: str) -> dict[str, tuple[Callable, str]]:
    """File name -> (function that draws the figure, caption)."""
    varied = figures.varied_axes(runs)
    pictures = {"convergence.png": (partial(figures.convergence, runs, curves, loss_name), CONVERGENCE)}
    for axis in varied:
        caption = SENSITIVITY.format(NAMES[axis])
        pictures[f"sensitivity_{axis}.png"] = (partial(figures.sensitivity, runs, axis, loss_name), caption)
    for y in ("beta1", "beta2", "eps"):
        if "lr" in varied and y in varied:
            draw = partial(figures.heatmap, runs, "lr", y, loss_name)
            pictures[f"heatmap_lr_{y}.png"] = (draw, HEATMAP.format(NAMES["lr"], NAMES[y]))
    return pictures


def page(runs: pd.DataFrame, summary: pd.DataFrame, provenance: dict, captions: dict[str, str]) -> str:
    """The report in Markdown. captions: file name of a figure -> caption."""
    n_diverged, n_seeds = int(summary["n_diverged"].sum()), runs["seed"].nunique()
    first = runs.iloc[0]
    findings = edge_warnings(runs)
    if n_diverged == len(runs):
        findings.append("Every run diverged: there is no best configuration, and the order below means nothing.")
    elif len(summary) > 1:
        findings.append("The best of many runs looks better than it is: run it again with fresh seeds to report it.")
    if "lr" in figures.varied_axes(runs) and n_diverged < len(runs):
        findings.append(
            f"Learning-rate sensitivity: {figures.lr_sensitivity(runs):.3g} (mean over the lr grid of min(loss, loss "
            "before training) - best loss; Wortsman et al. 2023, arXiv:2309.14322)."
        )
    counts = f"{len(runs)} runs, {len(runs) - n_diverged} ok and {n_diverged} diverged"
    loss_name = provenance.get("loss_name", "evaluation loss")
    best = best_configurations(summary)
    blocks = [
        f"# {first['optimizer']} on {first['data']}: {first['model']}",
        data_line(provenance.get("data") or {}),
        f"```\n{provenance.get('command', 'unknown command')}\n```",
        markdown_table(["origin", ""], origin(provenance)),
        "## What came out",
        f"{counts}; configurations: {len(summary)}, seeds: {n_seeds}. The loss is the {loss_name} after the last step, "
        "median over seeds.",
        "\n".join(f"- {finding}" for finding in findings),
        markdown_table(list(best), best.to_numpy().tolist()),
        "All configurations are in [summary.csv](summary.csv).",
        "## Figures",
        *(f"![{name}]({name})\n\n{caption}" for name, caption in captions.items()),
    ]
    return "\n\n".join(blocks) + "\n"


def data_line(data: dict) -> str:
    sizes = f"{data.get('n_train', '?')} training and {data.get('n_eval', '?')} evaluation examples"
    warning = f" **{data['warning']}**" if data.get("warning") else ""
    return f"Data: {data.get('name', 'unknown')}, {sizes}, from {data.get('source', 'an unknown source')}.{warning}"


def origin(provenance: dict) -> list[list[str]]:
    """Rows of a table: when, where and by which code the runs were made."""
    git, sweep, seconds = (provenance.get(key) or {} for key in ("git", "sweep", "seconds"))
    device, versions = provenance.get("device") or {}, provenance.get("versions") or {}
    commit = f"{git.get('commit') or 'unknown'}{' (with uncommitted changes)' if git.get('dirty') else ''}"
    rows = [
        ["started", provenance.get("started", "unknown")],
        ["device", ", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in device.items())],
        ["commit", commit],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["grid", ", ".join(f"{axis} {{{' '.join(map(short, v))}}}" for axis, v in sweep.get("axes", {}).items())],
        ["run", ", ".join(f"{key} {sweep[key]}" for key in ("steps", "batch_size", "seeds") if key in sweep)],
        ["time", ", ".join(f"{value:.4g} s {name}" for name, value in seconds.items())],
    ]
    if alone := provenance.get("one_after_the_other"):
        rows.append(["one after the other", alone.get("text") or f"{alone.get('seconds')} s"])
    return rows


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """The runs, curves and provenance of a results folder. Raises: InputError."""
    runs = _read(folder / store.RUNS, pd.read_parquet, RUN_COLUMNS)
    curves = _read(folder / store.CURVES, pd.read_parquet, CURVE_COLUMNS)
    provenance = _read(folder / store.PROVENANCE, lambda path: json.loads(path.read_text(encoding="utf-8")), [])
    return runs, curves, provenance


def _read(path: Path, reader: Callable[[Path], Any], columns: list[str]) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        content = reader(path)
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason})") from error
    if missing := [column for column in columns if column not in content]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    if len(content) == 0 or not isinstance(content, (pd.DataFrame, dict)):
        raise InputError(f"{path} is empty or not the file of a sweep")
    return content


def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Draw a sweep's figures and report again from its tables, without training.",
    )
    cli.add_argument("folder", type=Path, metavar="FOLDER", help="results folder of a sweep, for example results/first")
    folder = cli.parse_args(argv).folder
    try:
        runs, curves, provenance = read(folder)
        paths = write(folder, runs, curves, provenance)
    except InputError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{cli.prog}: {folder} cannot be written to ({error.strerror})", file=sys.stderr)
        return 2
    print(console_table(summarise(runs)))
    print("\n" + "\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
