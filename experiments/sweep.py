"""Which lr, betas and eps suit an optimizer, and which optimizer wins? Train every combination and draw the results.

python -m experiments.sweep mnist --lr 1e-4..1e-1:7 --beta1 0.9 --beta2 0.99 0.999 --out results/first
python -m experiments.sweep mnist --optimizer adam nadam sgd nesterov --lr 1e-4..1:9 --seeds 3 --out results/compare
python -m experiments.sweep regression --model linear --condition-number 1e4 --lr 1e-3..1:7 --out results/second
"""

from __future__ import annotations

import errno
import gc
import inspect
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import options
from experiments.common import ambient
from experiments.common.errors import DataError, OptionError
from experiments.common.interrupts import Terminated
from experiments.sweeps import results
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.results import Sweep
from experiments.training import targets
from experiments.training.axes import axes_in
from kernels.commands import command

if TYPE_CHECKING:
    from experiments.sweeps.plan import Plan

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PHASES = "compile", "train", "evaluate", "write", "draw"
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def sweep(task: str | Callable[[], Any] = "mnist", **options) -> Sweep:
    """Train every combination of the hyperparameters, with every seed, as lanes of populations.

    With a folder, runs that it has are not trained again. However the process ends, the same call continues from the
    last checkpoint, to the same bits as without the interruption (columns of seconds excepted).

    Args, those of `SweepConfig`:
        task, model: keys of `problems.TASKS`; the first model of a task is its default. Or a function that returns an
            `experiments.Problem`, itself or as "MODULE:FUNCTION".
        optimizer: one or several names in `optimizers.OPTIMIZERS`, or "module:Class" of an optimizer of your
            own, or the class itself.
        lr, beta1, beta2, eps, weight_decay, momentum: one value or several, for every optimizer that has the argument;
            or a `space.Range`, to be sampled; or words as on the command line, "1e-4..1e-1:7"; or a dictionary
            of these by optimizer, with "" for all others. None takes each optimizer's default.
        axes: such values by name: of any other argument of an optimizer's constructor that is a number, a bool or a
            word, as in {"rho": [0.9, 0.95]}; or of an option of a run (one of `axes.RUN`), as in
            {"batch_size": [32, 128]}.
        tie: "beta1=beta2", one or several, for axes that take the same values, which one of them is given.
        configs: a CSV file or a DataFrame instead of all these: a row for each configuration, with axes as columns,
            and an optimizer in each row if there are several.
        sample: "sobol:N" or "halton:N" configurations of each optimizer instead of every combination.
        seeds: number of seeds, from 0; a seed fixes initial weights and batches of all configurations.
        epochs, steps: length of a run, by one of them; by default one epoch, or what suits the task. If the data has
            fewer digits than MNIST, as MNIST-5k has, the default is the number of steps of an epoch of MNIST.
        n_train: number of training examples, always the same, of each class as many as its share. None takes all.
        batch_size, accumulate: a step's gradient is the mean over `accumulate` batches of this size (by default
            128, or what suits the task).
        schedule, warmup: "constant", "rsqrt" or "cosine" factors of lr, after this number of steps of linear warm-up.
        dropout: probability that a hidden activation of an mlp is dropped in training.
        hidden: width of both hidden layers of an mlp, or of a gru's state.
        init_scale: factor of the initial weights that have two or more dimensions; biases and gains stay.
        condition_number: condition number of the linear model's least squares problem.
        evaluations: number of evaluations of each run after its start.
        eval_examples: examples of all evaluations but the last, which takes all: always the same, of each class as many
            as its share. None takes all each time.
        diagnostics: whether curves also have, at every evaluation, the norm of the gradient, the RMS of the update over
            that of the parameters, the share of unusually large updates, and for classes the loss of up to five groups
            of them by frequency; see `Diagnostics.values`. Runs train to the same bits; the ten steps up to an
            evaluation take about a third longer, and evaluations of classes twice as long.
        halving: ETA of successive halving: the configurations of each optimizer are ranked by evaluation loss (median
            over seeds) at the first evaluations at or after T / ETA^k of a run's T steps, and the best 1 / ETA of them
            go on, to the results of a plain sweep but for last bits. The others get the status "stopped".
        keep_diverged: whether runs that have diverged are trained to the end. Otherwise they leave their population at
            the next evaluation, where their curves end, and what they would cost is saved; the others go on as before,
            to last bits.
        data_dir: files of MNIST or images like it; see `data.mnist`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder for parquet files, figures and report; None writes nothing. It may hold results of the same sweep
            with another grid: tables and figures are replaced by those of this grid, and other runs that were trained
            stay in its parts.
        fresh: remove the results in `out` first, also those of another sweep.
        engine: "local", one chunk of runs after the other, or "ray", on a Ray cluster, side by side.
        ray_address: HOST:PORT of the cluster; by default RAY_ADDRESS, else a cluster of this machine's cores.
        checkpoint_every: seconds between checkpoints of a chunk, with "local"; more if writing one takes long.
        log: "tensorboard" also writes event files to OUT/tensorboard, a folder for each run: at every evaluation, or
            with "ray" as chunks finish.
        time_budget: seconds, or words such as "10m" or "1h30m", after which training ends at the next evaluation. The
            results are those of the runs that are finished, and `provenance["unfinished"]` says how many these are.
            With a folder the same call goes on from there, for as long again.
        compare_alone: also time a sample of an ordinary run, to estimate the time of all runs one by one.
        target: loss (0.2) or accuracy ("95%") to which the report counts steps; None chooses a loss.
        confirm: number of fresh seeds on which the best configuration of each optimizer is run again.
        progress: whether to show a bar, and in a notebook a view of the sweep; see `widget.view`.
    Returns: runs, diverged ones included, and curves as DataFrames, and provenance; see `results.Sweep`.
    Raises: OptionError or DataError, before anything is trained or written; OSError if a file cannot be written.
    """
    return run(SweepConfig(task=task, **options))


# Editors and notebooks then show every argument.
_task, *_options = inspect.signature(SweepConfig).parameters.values()
sweep.__signature__ = inspect.Signature(
    [_task.replace(kind=_task.POSITIONAL_OR_KEYWORD), *_options], return_annotation=Sweep
)


@ambient.pinned()
def run(config: SweepConfig) -> Sweep:
    """Train and draw the sweep of a config; see `sweep`."""
    from experiments.sweeps import live, runner
    from experiments.sweeps.plan import make_plan

    live.check(config)
    plan = make_plan(config)
    check_plan(plan)
    warn(plan)
    with runner.opened(plan, config.out, config.fresh):
        return train_and_draw(plan)


def train_and_draw(plan: Plan) -> Sweep:
    """Train and draw a plan, whose folder is opened."""
    # All before the training, so that what cannot be imported shows at once.
    from experiments import confirmation, widget
    from experiments.reports import writer
    from experiments.sweeps import runner

    config, folder, started = plan.config, plan.config.out, time.monotonic()
    budget: Any = math.inf if config.time_budget is None else config.time_budget
    with widget.view(str(folder or plan.problem.data.name), config.progress) as show:
        result = runner.run(plan, folder, budget, show)
    about, again = result.provenance, None
    about["target"] = config.target
    if config.confirm is not None and "unfinished" not in about:
        again = confirmation.fresh_plan(plan, result.runs, config.confirm)
    if again:
        confirmed = folder and folder / results.CONFIRMED
        shown = widget.view("the winners on fresh seeds", config.progress)
        with runner.opened(again, confirmed, config.fresh), shown as show:
            fresh = runner.run(again, confirmed, max(0.0, budget - (time.monotonic() - started)), show)
        if left := fresh.provenance.get("unfinished"):
            about["unfinished"] = {name: len(result.runs) + n for name, n in left.items()}
        else:
            about["confirmed"] = confirmation.record(fresh.runs)
    try:
        if config.compare_alone and "unfinished" not in about:
            result.provenance["one_after_the_other"] = time_alone(plan)
        if folder is not None and len(result.runs):
            results.write_provenance(folder, result.provenance)
            started = time.perf_counter()
            results.write_drawn(folder, writer.write(folder, *result, None, None, config.progress))
            result.provenance["seconds"]["draw"] = round(time.perf_counter() - started, 3)
            results.write_provenance(folder, result.provenance)
    except KeyboardInterrupt:
        if folder is None:
            raise
        raise KeyboardInterrupt(f"the runs are complete, python -m experiments.report {folder} draws them") from None
    return result


def check_plan(plan: Plan) -> None:
    """Raise OptionError if what a plan asks for, beside its runs, cannot be had."""
    from experiments.sweeps import cost, rungs
    from experiments.training import reference

    if len(rungs.exponents(plan)) > 1:
        cost.check_states(plan.config.out, rungs.bytes_kept(plan))
    for name in plan.n_runs if plan.config.compare_alone else ():
        reference.class_of(name)
    if plan.config.target is not None:
        targets.parse(plan.config.target, plan.problem.classifies)
    if plan.config.confirm is not None:
        points = min(int(plan.runs["steps"].max()), plan.identity["evaluations"]) + 1
        cost.check_room(None, len(plan.n_runs) * plan.config.confirm, points, "--confirm")


def time_alone(plan: Plan, sample: int = 100) -> dict:
    """Estimate the seconds of a plan's runs one after the other from a sample of an ordinary run's steps."""
    from experiments.training import reference

    total, parts = 0.0, []
    for _, runs in plan.runs.groupby(["optimizer", "setting"], sort=False):
        name, setting = str(runs["optimizer"].iloc[0]), plan.settings[runs["setting"].iloc[0]]
        steps, batch_size, accumulate = (setting.training[option] for option in ("steps", "batch_size", "accumulate"))
        sizes = steps, plan.identity["evaluations"], batch_size, sample, accumulate
        options = {"optimizer": name, "device": plan.device}
        one = reference.seconds_of_one_run(setting.problem, runs.iloc[0][axes_in(runs)].to_dict(), *sizes, **options)
        total += len(runs) * one
        parts.append(f"{len(runs)} {name} runs x {one:.2f} s")
    text = (
        f"about {total:.0f} s: {' + '.join(parts)}, from {sample} measured steps and one evaluation of an ordinary run "
        "(an nn.Module and torch's optimizer, fused if it can be)"
    )
    return {"seconds": round(total, 1), "measured_on": plan.device, "text": text}


def show(result: Sweep, out: Path) -> None:
    """Print the best of every optimizer, the ten best configurations, the time taken and the files written."""
    from experiments.reports import aggregation, comparison, markdown, writer

    if unfinished := markdown.unfinished_sentence(result.provenance):
        print(f"\nThe time budget is over. {unfinished}")
        if result.runs.empty:
            return
    provenance, summary = result.provenance, aggregation.summarise(result.runs)
    data, model = provenance["data"]["name"], aggregation.listed(result.runs["model"])
    what = ", ".join([data, *aggregation.run_length(result.runs), model])
    if result.runs["optimizer"].nunique() > 1:
        print(f"\n{what}: every optimizer at its best\n")
        print(comparison.table(result.runs, summary).to_string(index=False))
    print(f"\n{what}: the ten best configurations\n")
    print(aggregation.console_table(summary))
    print(f"\n{markdown.defined(summary)}")
    if confirmed := provenance.get("confirmed"):
        print(f"\nagain on {len(confirmed['seeds'])} fresh seeds\n")
        again = aggregation.summarise(aggregation.recorded(confirmed))
        print(markdown.confirmed_table(again, summary).to_string(index=False))
    print(f"\ntarget: {writer.target_of(result.runs, provenance, order=summary) or 'none, because no run has trained'}")
    seconds, device = provenance["seconds"]["total"], provenance["device"]["name"]
    print(f"{len(result.runs)} runs, {aggregation.ends(result.runs)}, {seconds:.1f} s on {device}")
    took = provenance["seconds"]
    if phases := [f"{phase} {took[phase]:.1f} s" for phase in PHASES if phase in took]:
        print(", ".join(phases))
    if alone := provenance.get("one_after_the_other"):
        print(f"one after the other: {alone['text']}")
    print("written:")
    for path in sorted(out.iterdir()):
        print(f"  {path}")


def trouble(error: OSError, out: Path) -> str | None:
    """Return the message for an error in writing to the folder of a sweep; None for any other error."""
    if error.errno in FULL:
        return f"{out} has no more room ({error.strerror}); what it has is kept"
    # The writer of tables raises an error without errno if the folder does not exist.
    if error.errno in (errno.ENOENT, errno.ENOTDIR, None) and not (out / results.PARTS).is_dir():
        return f"--out accepts a folder that stays, and {out} was removed while the sweep was writing to it"
    if error.errno in FORBIDDEN:
        return f"{out} cannot be written to any more ({error.strerror}); what it has is kept"
    return None


def interrupted(interrupt: KeyboardInterrupt) -> int:
    """Print what is kept after an interrupt; return the exit code of a process that an interrupt ends."""
    print(f"\ninterrupted: {str(interrupt) or 'nothing more was written'}", file=sys.stderr)
    return 143 if isinstance(interrupt, Terminated) else 130


def warn(plan: Plan) -> None:
    """Print what a user has to know about the data and the model."""
    for told in (plan.problem.data.warning.partition("\n")[0], getattr(plan.problem.model, "told", "")):
        if told:
            print(f"WARNING: {told}", file=sys.stderr)


def described(config: SweepConfig) -> str:
    """Return what a sweep would do and how long it would take, as text. Raises: OptionError or DataError."""
    from experiments.sweeps import dry_run
    from experiments.sweeps.plan import make_plan

    plan = make_plan(config)
    check_plan(plan)
    warn(plan)
    if config.out is not None:
        results.check_out(config.out, plan.identity, config.fresh)
    return dry_run.describe(plan, dry_run.estimate_seconds(plan))


@command
def main(argv: list[str] | None = None) -> int:
    cli = options.parser()
    args = vars(cli.parse_args(argv))
    dry_run, out = args.pop("dry_run"), None
    try:
        config = SweepConfig(**args)
        if dry_run:
            print(described(config))
            return 0
        if (out := config.out) is None:
            raise OptionError("--out needs a folder for the results, for example --out results/first")
        result = run(config)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if out is None or (told := trouble(error, out)) is None:
            raise
        print(f"{cli.prog}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt)
    show(result, out)
    return 0


if __name__ == "__main__":
    # The objects of imported modules stay: no collection has to look at them again.
    gc.freeze()
    sys.exit(main())
