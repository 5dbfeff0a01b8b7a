"""Can bfloat16 weights learn in small steps? Adam on MNIST at lr 1e-5, rounded to nearest and stochastically.

    python -m experiments.rounding --out results/rounding

Rounding to nearest loses a step that is smaller than half a unit in the last place of a weight; stochastic rounding
keeps it on average. Only the weights are bfloat16: losses and gradients are computed in float32 from their values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from experiments.common import ambient, files, run_info
from experiments.common.errors import DataError, OptionError
from experiments.common.values import POSITIVE, checked, whole
from experiments.tasks import problems
from kernels.commands import command

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KINDS = {
    "float32": (torch.float32, {}),
    "bfloat16, stochastic rounding": (torch.bfloat16, {"rounding": "stochastic"}),
    "bfloat16, stochastic rounding, bfloat16 states": (
        torch.bfloat16,
        {"rounding": "stochastic", "state_dtype": torch.bfloat16},
    ),
    "bfloat16, nearest rounding": (torch.bfloat16, {}),
}
"""Dtype of the weights and options of the optimizer, by the name in tables and figures."""
LINES = {"float32": "-", "bfloat16, stochastic rounding, bfloat16 states": ":"}


def train(
    problem: problems.Problem,
    dtype: torch.dtype,
    options: dict,
    lr: float,
    seeds: int,
    steps: int,
    on_step: Callable[[], object],
    device: str = "cpu",
    optimizer_name: str = "Adam",
):
    """Train one lane for each seed.

    Args:
        dtype: of the weights.
        options: of the optimizer.
        on_step: called after every step.
        optimizer_name: of a class in `optim`.
    Returns: curves with columns seed, step, eval_loss and eval_accuracy; the share of the weights that moved; bytes per
        parameter of the weight and the optimizer's states.
    """
    import pandas as pd

    import optim
    from experiments.tasks import model
    from experiments.training import evaluation, population

    start = model.stack(problem.model, range(seeds), 1)
    params = [p.detach().to(device, dtype).requires_grad_() for p in start]
    before = [p.detach().clone() for p in params]
    optimizer = getattr(optim, optimizer_name)(params, lr=torch.full((seeds,), lr, dtype=torch.float64), **options)
    x, y, x_eval, y_eval = population.tensors(problem, device)
    batches = zip(*(population.batch_indices(len(x), 128, seed) for seed in range(seeds)), strict=True)
    evaluate_at, rows = evaluation.evaluation_steps(steps, 20), []
    for step, index in zip(range(steps + 1), batches, strict=False):
        if step in evaluate_at:
            means = evaluation.evaluate(problem, [p.float() for p in params], x_eval, y_eval)
            columns = {f"eval_{name}": mean.cpu().numpy() for name, mean in means.items()}
            rows.append(pd.DataFrame({"seed": range(seeds), "step": step, **columns}))
        if step < steps:
            batch = torch.stack(index).to(device)
            optimizer.zero_grad()
            problem.model.losses([p.float() for p in params], (), x[batch], y[batch]).sum().backward()
            optimizer.step()
            on_step()
    moved = sum((p != q).sum().item() for p, q in zip(params, before, strict=True)) / sum(p.numel() for p in params)
    states = [t for p in params for name, t in optimizer.state[p].items() if name != "step"]
    size = sum(t.nbytes for t in (*params, *states)) / sum(p.numel() for p in params)
    return pd.concat(rows), moved, size


@ambient.pinned()
def compare(
    problem: problems.Problem, lr: float, seeds: int, steps: int, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train with weights of all `KINDS`, with a progress bar.

    Args:
        problem: a classification problem; see `problems.make`.
        lr: Adam's learning rate.
        seeds: number of runs of each kind, from seed 0, trained as lanes.
        steps: length of each run, with batches of 128.
    Returns: curves, a row for each kind, seed and evaluation, with columns kind, seed, step, eval_loss and
        eval_accuracy; and a row for each kind: bytes of the weight and Adam's states, share of the weights that moved,
        and median final loss and accuracy over seeds.
    """
    import pandas as pd

    from experiments.common.progress import progress_bar

    parts, table = [], {}
    with progress_bar(total=len(KINDS) * steps, unit="step") as bar:
        for kind, (dtype, options) in KINDS.items():
            bar.set_description(kind)
            rows, moved, size = train(problem, dtype, options, lr, seeds, steps, bar.update, device)
            parts.append(rows.assign(kind=kind))
            last = rows.loc[rows["step"] == steps]
            final = {"final loss": last["eval_loss"].median(), "accuracy": last["eval_accuracy"].median()}
            table[kind] = {"bytes a parameter": size, "weights that moved": moved, **final}
    return pd.concat(parts, ignore_index=True), pd.DataFrame.from_dict(table, orient="index")


def loss_figure(curves: pd.DataFrame, title: str) -> Figure:
    """Draw the evaluation loss of every kind against steps: median and inter-quartile range over seeds.

    Args:
        curves: as `compare` returns them.
        title: of the figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(7.2, 4.6))
        ax = drawn.subplots()
        for number, kind in enumerate(KINDS):
            rows = curves[curves["kind"] == kind].groupby("step")["eval_loss"]
            q25, median, q75 = (rows.quantile(q) for q in (0.25, 0.5, 0.75))
            label = f"{kind}: {median.iloc[-1]:.3g}"
            ax.plot(median.index, median, LINES.get(kind, "--"), color=f"C{number}", linewidth=2, label=label)
            ax.fill_between(median.index, q25, q75, color=f"C{number}", alpha=0.2, linewidth=0)
        ax.set(xlabel="step", ylabel="evaluation cross-entropy", yscale="log", title=title)
        ax.yaxis.set_major_formatter("{x:.3g}")
        ax.yaxis.set_minor_formatter("{x:.3g}")
        n = curves["seed"].nunique()
        band = f" (band: quartiles of {n} seeds)" if n > 1 else ""
        drawn.legend(loc="outside lower center", ncols=1, title=f"weights: final median loss{band}")
    return drawn


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.rounding", description=(__doc__ or "").partition("\n")[0])
    cli.add_argument("--out", required=True, metavar="DIR", help="folder for rounding.{png,csv,md}")
    cli.add_argument("--lr", default=1e-5, help="a positive number (default 1e-5)")
    cli.add_argument("--steps", default=2340, metavar="S", help="length of a run (default 2340: 5 epochs)")
    cli.add_argument("--seeds", default=5, metavar="N", help="runs of each kind (default 5)")
    cli.add_argument("--data-dir", metavar="DIR", help="files of MNIST, as experiments.sweep takes them")
    return cli


def write(problem: problems.Problem, args: argparse.Namespace) -> str:
    """Compare as the options say, and write table, figure and page; return the page."""
    from experiments.common import figure_style

    provenance = run_info.provenance("cpu")
    curves, kinds = compare(problem, args.lr, args.seeds, args.steps)
    table = [
        f"| {kind} | {size:g} | {moved:.1%} | {loss:.4g} | {accuracy:.2%} |"
        for kind, size, moved, loss, accuracy in kinds.itertuples()
    ]
    what = f"{problem.data.name}, {problem.model.name}, Adam at lr {args.lr:g}, {args.seeds} seeds"
    text = f"""# Rounding of bfloat16 weights

    {provenance["command"]}

{run_info.machine_line(provenance)}. {what}, {args.steps} steps.
{problem.data.warning or ""}
![evaluation loss](rounding.png)

| weights | bytes a parameter | weights that moved | final loss | accuracy |
| --- | --- | --- | --- | --- |
""" + "\n".join([*table, "", "Medians over seeds. Bytes: the weight and Adam's two states, without the gradient.", ""])
    args.out.mkdir(parents=True, exist_ok=True)
    files.replace(args.out / "rounding.csv", lambda path: curves.to_csv(path, index=False))
    files.replace(args.out / "rounding.png", lambda path: figure_style.save(loss_figure(curves, what), path))
    files.replace(args.out / "rounding.md", lambda path: path.write_text(text, encoding="utf-8"))
    return text


@command
def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        vars(args).update(checked(vars(args), {"lr": POSITIVE, "steps": whole(1), "seeds": whole(1, 10**4)}))
        args.out = files.check_folder(args.out)
        problem = problems.make("mnist", "mlp", data_dir=args.data_dir)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    print(write(problem, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
