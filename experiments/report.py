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

from experiments import comparison, figures, store, tables
from experiments.grid import AXES
from experiments.tables import NAMES, best_configurations, short, summarise

RUN_COLUMNS = [
    *["run_id", "data", "task", "model", "optimizer", "lr", "seed", "status", "diverged_step"],
    *["train_loss", "eval_loss", "eval_accuracy", "initial_eval_loss"],
]
RUN_KEYS = ("steps", "batch_size", "seeds", "accumulate", "schedule", "warmup")
CURVE_COLUMNS = ["run_id", "step", "train_loss", "eval_loss", "eval_accuracy"]

OPTIMIZERS = (
    "Left: final loss against lr, at each lr the best that an optimizer does with everything else; a star is its best "
    "lr, and a ✕ says that at least half of the seeds (small: fewer) diverged. Right: the best configuration of each "
    "while it trains. Lines are medians over seeds, bands inter-quartile ranges."
)
CONVERGENCE = (
    "Losses (and accuracy) while training: coloured lines are the best configurations, with their inter-quartile range "
    "over seeds; dashed black is the default, grey is every other run, and a ✕ is where a run diverged."
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


def edge_warnings(runs: pd.DataFrame) -> list[str]:
    """A sentence for every varied hyperparameter whose best value ends its optimizer's grid; none if all diverged."""
    sentences, several = [], runs["optimizer"].nunique() > 1
    for name, group in runs.groupby("optimizer", sort=False):
        best = tables.ranked(group).iloc[0]
        sentences += [
            f"The best {NAMES[axis]}{f' of {name}' * several}, {short(best[axis])}, is on the edge of the grid (its "
            f"{'largest' if best[axis] == group[axis].max() else 'smallest'} value): a better one may lie beyond."
            for axis in tables.varied_axes(group)
            if tables.best_on_edge(group, axis)
        ]
    return sentences


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
    """File name -> (function that draws the figure, caption). Of several optimizers the best has figures of its own."""
    pictures, of_best = {}, ""
    if runs["optimizer"].nunique() > 1:
        pictures["optimizers.png"] = (partial(comparison.figure, runs, curves, loss_name), OPTIMIZERS)
        best = tables.ranked(runs).loc[0, "optimizer"]
        runs, of_best = runs.loc[runs["optimizer"] == best], f"Of {best} alone, the best optimizer. "
    varied = tables.varied_axes(runs)
    pictures["convergence.png"] = (partial(figures.convergence, runs, curves, loss_name), of_best + CONVERGENCE)
    for axis in varied:
        caption = of_best + SENSITIVITY.format(NAMES[axis])
        pictures[f"sensitivity_{axis}.png"] = (partial(figures.sensitivity, runs, axis, loss_name), caption)
    for y in ("beta1", "beta2", "eps", "momentum"):
        if "lr" in varied and y in varied:
            draw = partial(figures.heatmap, runs, "lr", y, loss_name)
            pictures[f"heatmap_lr_{y}.png"] = (draw, of_best + HEATMAP.format(NAMES["lr"], NAMES[y]))
    return pictures


def page(runs: pd.DataFrame, summary: pd.DataFrame, provenance: dict, captions: dict[str, str]) -> str:
    """The report in Markdown. captions: file name of a figure -> caption."""
    n_diverged, n_seeds = int(summary["n_diverged"].sum()), runs["seed"].nunique()
    first, names = runs.iloc[0], list(runs["optimizer"].unique())
    findings = edge_warnings(runs)
    if n_diverged == len(runs):
        findings.append("Every run diverged: there is no best configuration, and the order below means nothing.")
    elif len(summary) > 1:
        findings.append("The best of many runs looks better than it is: run it again with fresh seeds to report it.")
    if "lr" in tables.varied_axes(runs) and n_diverged < len(runs):
        number = f": {tables.lr_sensitivity(runs):.3g}" if len(names) == 1 else " is in the table"
        findings.append(
            f"Learning-rate sensitivity{number} (mean over the lr grid of min(loss, loss before training) - best loss, "
            "the rest as in the best configuration; Wortsman et al. 2023, arXiv:2309.14322)."
        )
    counts = f"{len(runs)} runs, {len(runs) - n_diverged} ok and {n_diverged} diverged"
    loss_name = provenance.get("loss_name", "evaluation loss")
    best = best_configurations(summary)
    of_each = [markdown_frame(comparison.table(runs, summary)), "The best configurations of all:"]
    blocks = [
        f"# {', '.join(names)} on {first['data']}: {first['model']}",
        data_line(provenance.get("data") or {}),
        f"```\n{provenance.get('command', 'unknown command')}\n```",
        markdown_table(["origin", ""], origin(provenance)),
        "## What came out",
        f"{counts}; configurations: {len(summary)}, seeds: {n_seeds}. The loss is the {loss_name} after the last step, "
        "median over seeds.",
        "\n".join(f"- {finding}" for finding in findings),
        *(of_each if len(names) > 1 else []),
        markdown_frame(best),
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
    # Sweeps of one optimizer once kept their grid under "axes".
    grids = sweep.get("optimizers") or {"": sweep.get("axes", {})}
    commit = f"{git.get('commit') or 'unknown'}{' (with uncommitted changes)' if git.get('dirty') else ''}"
    rows = [
        ["started", provenance.get("started", "unknown")],
        ["device", ", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in device.items())],
        ["commit", commit],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        *(["grid" + f" of {name}" * (len(grids) > 1), grid_line(axes)] for name, axes in grids.items()),
        ["run", ", ".join(f"{key} {sweep[key]}" for key in RUN_KEYS if key in sweep)],
        ["time", ", ".join(f"{value:.4g} s {name}" for name, value in seconds.items())],
    ]
    if alone := provenance.get("one_after_the_other"):
        rows.append(["one after the other", alone.get("text") or f"{alone.get('seconds')} s"])
    return rows


def grid_line(axes: dict[str, list[float]]) -> str:
    return ", ".join(f"{axis} {{{' '.join(map(short, values))}}}" for axis, values in axes.items())


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def markdown_frame(table: pd.DataFrame) -> str:
    return markdown_table(list(table), table.to_numpy().tolist())


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """The runs, curves and provenance of a results folder. Raises: InputError."""
    runs = _read(folder / store.RUNS, pd.read_parquet, RUN_COLUMNS)
    # A folder may be older than an axis.
    runs = runs.assign(**{axis: np.nan for axis in AXES if axis not in runs})
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
