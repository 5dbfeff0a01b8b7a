"""What do states of one byte cost? Adam and Lion on MNIST with float32, bfloat16 and int8 states.

    python -m experiments.compressed --out results/compressed-states

Weights are float32. Runs of one seed start from the same weights and see the same batches, so that losses are compared
seed by seed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import torch

from experiments import rounding
from experiments.common import ambient, files, run_info
from experiments.common.errors import DataError, OptionError
from experiments.common.values import checked, whole
from experiments.tasks import problems
from kernels.commands import command

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LR = {"Adam": 1e-3, "Lion": 1e-4}
"""Learning rates, the defaults of the classes in `optim`."""
STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": "int8"}
"""`state_dtype` by its name in tables and figures."""
STYLES = {"float32": "-", "bfloat16": "--", "int8": ":"}


@ambient.pinned()
def compare(problem: problems.Problem, seeds: int, steps: int) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Train with states of every dtype, with a progress bar.

    Args:
        problem: a classification problem; see `problems.make`.
        seeds: number of runs of each optimizer and dtype, from seed 0, trained as lanes.
        steps: length of each run, with batches of 128.
    Returns: curves, with columns optimizer, states, seed, step, eval_loss and eval_accuracy; and by optimizer and
        states the bytes per parameter of the states.
    """
    import pandas as pd

    from experiments.common.progress import progress_bar

    parts, sizes = [], {}
    with progress_bar(total=len(LR) * len(STATES) * steps, unit="step") as bar:
        for optimizer, lr in LR.items():
            for states, state_dtype in STATES.items():
                bar.set_description(f"{optimizer}, {states} states")
                options = {"state_dtype": state_dtype}
                how = problem, torch.float32, options, lr, seeds, steps, bar.update
                rows, _, size = rounding.train(*how, optimizer_name=optimizer)
                parts.append(rows.assign(optimizer=optimizer, states=states))
                sizes[optimizer, states] = size - torch.float32.itemsize
    return pd.concat(parts, ignore_index=True), sizes


def table(curves: pd.DataFrame, sizes: dict[tuple[str, str], float]) -> str:
    """Return a Markdown table of bytes and final losses, in medians over seeds with 95 % intervals."""
    from experiments.common import intervals
    from experiments.common.tables import markdown_table

    last = curves[curves["step"] == curves["step"].max()].set_index(["optimizer", "states", "seed"]).sort_index()

    def with_interval(name: str, values: pd.Series) -> dict:
        low, high = intervals.interval_or_range(values.to_numpy())
        return {name: f"{values.median():.4f} [{float(low):.4f}, {float(high):.4f}]"}

    rows = []
    for (optimizer, states), size in sizes.items():
        loss, exact = last["eval_loss"][optimizer, states], last["eval_loss"][optimizer, "float32"]
        row = {"optimizer": optimizer, "states": states, "bytes of states a parameter": f"{size:.3f}"}
        row |= with_interval("final loss", loss)
        row |= {} if states == "float32" else with_interval("less that of float32 states, seed by seed", loss - exact)
        row["accuracy"] = f"{last['eval_accuracy'][optimizer, states].median():.2%}"
        rows.append(row)
    return markdown_table(rows)


def loss_figure(curves: pd.DataFrame, title: str) -> Figure:
    """Draw the evaluation loss against steps, a panel for each optimizer: median and quartiles over seeds.

    Args:
        curves: as `compare` returns them.
        title: of the figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.4))
        panels = drawn.subplots(1, len(LR), sharey=True, squeeze=False)[0]
        for ax, optimizer in zip(panels, LR, strict=True):
            of_optimizer = curves.loc[(curves["optimizer"] == optimizer) & (curves["step"] > 0)]
            for number, states in enumerate(STATES):
                loss = of_optimizer.loc[of_optimizer["states"] == states].groupby("step")["eval_loss"]
                q25, median, q75 = (loss.quantile(q) for q in (0.25, 0.5, 0.75))
                ax.plot(median.index, median, STYLES[states], color=f"C{number}", linewidth=2, label=states)
                ax.fill_between(median.index, q25, q75, color=f"C{number}", alpha=0.2, linewidth=0)
            ax.set(xlabel="step", yscale="log", title=f"{optimizer}, lr {LR[optimizer]:g}")
            ax.yaxis.set_major_formatter("{x:.3g}")
            ax.yaxis.set_minor_formatter("{x:.3g}")
        panels[0].set_ylabel("evaluation cross-entropy")
        handles, labels = panels[0].get_legend_handles_labels()
        legend = f"{title}. Band: quartiles of {curves['seed'].nunique()} seeds. States:"
        drawn.legend(handles, labels, loc="outside lower center", ncols=len(STATES), title=legend)
    return drawn


def parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    cli = argparse.ArgumentParser(prog="python -m experiments.compressed", description=about)
    cli.add_argument("--out", required=True, metavar="DIR", help="folder for compressed.{png,csv} and README.md")
    cli.add_argument("--steps", default=2340, metavar="S", help="length of a run (default 2340: 5 epochs)")
    cli.add_argument("--seeds", default=10, metavar="N", help="runs of each optimizer and dtype (default 10)")
    cli.add_argument("--data-dir", metavar="DIR", help="files of MNIST, as experiments.sweep takes them")
    return cli


def write(problem: problems.Problem, args: argparse.Namespace) -> str:
    """Compare as the options say, and write table, figure and page; return the page."""
    from experiments.common import figure_style

    provenance = run_info.provenance("cpu")
    curves, sizes = compare(problem, args.seeds, args.steps)
    what = f"{problem.data.name}, {problem.model.name}"
    text = f"""# States of one byte

    {provenance["command"]}

{run_info.machine_line(provenance)}. {what}, float32 weights, {args.seeds} seeds, {args.steps} steps of 128 examples.
{problem.data.warning or ""}
![evaluation loss](compressed.png)

{table(curves, sizes)}

Medians over seeds, with 95 % intervals (ranges where there are fewer than six seeds). Bytes count codes and scales: a
block is 256 elements of one tensor of one run, so that small tensors cost more than 1.016 bytes a state.
"""
    args.out.mkdir(parents=True, exist_ok=True)
    files.replace(args.out / "compressed.csv", lambda path: curves.to_csv(path, index=False))
    files.replace(args.out / "compressed.png", lambda path: figure_style.save(loss_figure(curves, what), path))
    files.replace(args.out / "README.md", lambda path: path.write_text(text, encoding="utf-8"))
    return text


@command
def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        vars(args).update(checked(vars(args), {"steps": whole(1), "seeds": whole(1, 10**4)}))
        args.out = files.check_folder(args.out)
        problem = problems.make("mnist", "mlp", data_dir=args.data_dir)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    print(write(problem, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
