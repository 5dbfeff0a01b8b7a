"""Which lr, betas and eps does Adam want? Train every combination at once and draw what it did.

python -m experiments.sweep mnist --lr 1e-4..1e-1:7 --beta1 0.9 --beta2 0.99 0.999 --out results/first
python -m experiments.sweep regression --model linear --condition-number 1e4 --lr 1e-3..1:7 --out results/second
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from experiments import grid, population, problems, report, solo, store
from experiments.data import DataError
from experiments.grid import AXES, OptionError
from experiments.plan import Plan, estimate_seconds, make_plan


class Sweep(NamedTuple):
    """Results of a sweep.

    Attributes:
        runs: one row a run, as in runs.parquet.
        curves: one row a run and evaluation, as in curves.parquet.
        provenance: where they come from, as in provenance.json.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict


def sweep(
    task: str = "mnist",
    *,
    model: str | None = None,
    optimizer: str = "adam",
    lr: float | Iterable[float] = AXES["lr"],
    beta1: float | Iterable[float] = AXES["beta1"],
    beta2: float | Iterable[float] = AXES["beta2"],
    eps: float | Iterable[float] = AXES["eps"],
    weight_decay: float | Iterable[float] = AXES["weight_decay"],
    seeds: int = 1,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    hidden: int | None = None,
    condition_number: float = 100.0,
    evaluations: int = 8,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    compare_alone: bool = False,
    progress: bool = True,
) -> Sweep:
    """Train every combination of the hyperparameters, with every seed, as lanes of one population.

    Args:
        task: "mnist" or "regression".
        model: "mlp" (default) or "logistic" on mnist; "mlp" (default) or "linear" on regression.
        optimizer: "adam" or "adamw".
        lr, beta1, beta2, eps, weight_decay: one value or several.
        seeds: number of seeds, from 0; a seed fixes initial weights and batches of all configurations.
        epochs, steps: length of a run; one of them, by default one epoch.
        hidden: width of both hidden layers of an mlp.
        condition_number: of the linear model's least squares problem.
        evaluations: how often each run is evaluated after its start.
        data_dir: folder of the MNIST files; see `data.mnist`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder for parquet files, figures and report; None writes nothing.
        compare_alone: also time a sample of an ordinary run, to say what all would have taken one by one.
    Raises: OptionError or DataError, before anything is trained or written.
    """
    plan = make_plan(
        task,
        model=model,
        optimizer=optimizer,
        axes={"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay},
        seeds=seeds,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        hidden=hidden,
        condition_number=condition_number,
        evaluations=evaluations,
        data_dir=data_dir,
        device=device,
    )
    if out is not None:
        store.check_out(Path(out), plan.identity)
    if plan.problem.data.warning:
        print(f"WARNING: {plan.problem.data.warning}", file=sys.stderr)
    result = run(plan, progress)
    if compare_alone:
        result.provenance["one_after_the_other"] = time_alone(plan)
    if out is not None:
        store.save(Path(out), *result)
        try:
            report.write(Path(out), *result)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the runs are complete, python -m experiments.report {out} draws them") from None
    return result


def run(plan: Plan, progress: bool = True) -> Sweep:
    """Train a plan's chunks one after the other."""
    origin, clock = store.provenance(plan.device), time.perf_counter()
    n_runs = len(plan.configs) * len(plan.seeds)
    runs, curves = [], []
    bar = tqdm(total=len(plan.chunks) * plan.steps, unit="step", disable=not progress, dynamic_ncols=True)
    bar.set_description(
        f"{plan.problem.data.name}: {n_runs} runs" + (f", {len(plan.chunks)} chunks" * (len(plan.chunks) > 1))
    )
    with bar:
        for chunk in plan.chunks:
            chunk_runs, chunk_curves = population.train(
                plan.problem,
                chunk,
                plan.seeds,
                optimizer=plan.identity["optimizer"],
                steps=plan.steps,
                batch_size=plan.identity["batch_size"],
                evaluations=plan.identity["evaluations"],
                device=plan.device,
                on_step=lambda step: bar.update(),
            )
            first_id = sum(map(len, runs))
            for tables, table in ((runs, chunk_runs), (curves, chunk_curves)):
                table["lane"] += first_id
                tables.append(table.rename(columns={"lane": "run_id"}))
    seconds = time.perf_counter() - clock
    dataset = plan.problem.data
    table = pd.concat(runs, ignore_index=True)
    for i, column in enumerate(("data", "task", "model", "optimizer")):
        table.insert(i + 1, column, plan.identity[column])
    provenance = {
        **origin,
        "data": {
            "name": dataset.name,
            "source": dataset.source.replace(str(Path.home()), "~"),
            "n_train": len(dataset.x_train),
            "n_eval": len(dataset.x_eval),
            "warning": dataset.warning,
        },
        "sweep": plan.identity,
        "loss_name": plan.problem.loss_name,
        "chunks": len(plan.chunks),
        "seconds": {"total": round(seconds, 3)},
    }
    return Sweep(table, pd.concat(curves, ignore_index=True), provenance)


def time_alone(plan: Plan, sample: int = 100) -> dict:
    """What a plan's runs would take one after the other, from a sample of an ordinary run's steps."""
    n_runs = len(plan.configs) * len(plan.seeds)
    identity = plan.identity
    one = solo.seconds_of_one_run(
        plan.problem, AXES, plan.steps, identity["evaluations"], identity["batch_size"], sample, plan.device
    )
    text = (
        f"about {n_runs * one:.0f} s: {n_runs} runs x {one:.2f} s, from {sample} measured steps and one evaluation "
        "of an ordinary run (nn.Sequential, torch's fused optimizer)"
    )
    return {"seconds": round(n_runs * one, 1), "measured_on": plan.device, "text": text}


def show(result: Sweep, out: Path) -> None:
    """Print the ten best configurations, the time taken and the paths of what was written."""
    provenance = result.provenance
    print(f"\n{provenance['data']['name']}, {provenance['sweep']['model']}: the ten best configurations\n")
    print(report.console_table(report.summarise(result.runs)))
    diverged = (result.runs["status"] == "diverged").sum()
    seconds, device = provenance["seconds"]["total"], provenance["device"]["name"]
    print(f"\n{len(result.runs)} runs, {diverged} diverged, {seconds:.1f} s on {device}")
    if alone := provenance.get("one_after_the_other"):
        print(f"one after the other: {alone['text']}")
    print("written:")
    for path in sorted(out.iterdir()):
        print(f"  {path}")


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description="Train every combination of Adam's hyperparameters at once and draw the result.",
        epilog="An axis takes values (1e-4 3e-4 1e-3) or a range START..STOP:COUNT in equal ratios; betas in 1 - beta.",
    )
    add = cli.add_argument
    add("task", metavar="{mnist,regression}", help="what is trained")
    for axis, default in AXES.items():
        add(
            grid.option(axis),
            nargs="*",
            metavar="V",
            default=[str(default)],
            help=f"{grid.ACCEPTED[axis]} (default {default:g})",
        )
    add("--optimizer", default="adam", help=f"{' or '.join(population.OPTIMIZERS)} (default adam)")
    models = "; ".join(f"{task}: {' or '.join(kinds)}" for task, kinds in problems.TASKS.items())
    add("--model", help=f"{models} (default: the first)")
    add(
        "--hidden", type=int, metavar="H", help="width of both hidden layers of an mlp (mnist 32, regression 20 and 30)"
    )
    add("--condition-number", type=float, default=100.0, metavar="C", help="of regression's linear model (default 100)")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each configuration, seeds 0 to N-1 (default 1)")
    add("--epochs", type=float, metavar="E", help="length of a run (default 1)")
    add("--steps", type=int, metavar="S", help="length of a run, instead of --epochs")
    add("--batch-size", type=int, default=128, metavar="B", help="examples a step (default 128)")
    add("--evaluations", type=int, default=8, metavar="N", help="evaluations of a run after its start (default 8)")
    add(
        "--data-dir",
        metavar="DIR",
        help="folder with the four IDX files of MNIST (default: MNIST_DIR, cache, download)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the results, for example results/first (needed unless --dry-run)",
    )
    add("--compare-alone", action="store_true", help="also say how long the runs would take one by one, from a sample")
    add("--dry-run", action="store_true", help="print what would be done and how long it would take, and stop")
    return cli


def describe(plan: Plan, seconds: float) -> str:
    """The plan in a few lines."""
    n_configs, n_seeds, n_chunks = len(plan.configs), len(plan.seeds), len(plan.chunks)
    lanes = len(plan.chunks[0]) * n_seeds
    lines = {
        "trains": f"{plan.problem.data.name}, {plan.problem.model.name}, {plan.identity['optimizer']}",
        **{grid.option(axis): " ".join(f"{v:g}" for v in values) for axis, values in plan.identity["axes"].items()},
        "runs": f"{n_configs * n_seeds} ({n_configs} configurations x {n_seeds} seeds), {plan.steps} steps each",
        "lanes": f"{lanes} at once, in {n_chunks} chunk{'s' * (n_chunks > 1)}",
        "memory": f"{plan.chunk_bytes / 2**20:.0f} MiB a chunk on {plan.device}",
        "estimated time": f"{seconds:.0f} s",
    }
    return "\n".join(f"{name:16}{value}" for name, value in lines.items())


def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = vars(cli.parse_args(argv))
    out, dry_run = args.pop("out"), args.pop("dry_run")
    try:
        values = {axis: grid.parse_axis(axis, args.pop(axis)) for axis in AXES}
        if dry_run:
            args.pop("compare_alone")
            plan = make_plan(axes=values, **args)
            if out is not None:
                store.check_out(out, plan.identity)
            print(describe(plan, estimate_seconds(plan)))
            return 0
        if out is None:
            raise OptionError("--out needs a folder for the results, for example --out results/first")
        result = sweep(**values, **args, out=out)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted: {str(interrupt) or 'nothing of this sweep was written'}", file=sys.stderr)
        return 130
    show(result, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
