"""What `python -m experiments.sweep` can be told."""

import argparse

from experiments.common import values
from experiments.sweeps import space
from experiments.sweeps.arguments import ENGINES
from experiments.tasks import problems
from experiments.training import optimizers, targets
from experiments.training.axes import AXES
from experiments.training.schedules import SCHEDULES


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description="Train every combination of the hyperparameters of one or several optimizers and draw the result.",
        epilog="An axis takes values (1e-4 3e-4 1e-3) or a range START..STOP:COUNT in equal ratios (betas and "
        "momentum: of 1 - value); with --sample also START..STOP, all of it. Words from sgd=... on are for sgd alone. "
        "What an optimizer has no argument for does not multiply its configurations.",
    )
    add = cli.add_argument
    add("task", metavar=f"{{{','.join(problems.TASKS)}}}", help="what is trained")
    defaults = {name: optimizers.axes(choice) for name, choice in optimizers.OPTIMIZERS.items()}
    for axis in AXES:
        name = next(name for name in defaults if axis in defaults[name])
        own = f"default: the optimizer's own; {name} {defaults[name][axis]:g}"
        add(values.option(axis), nargs="*", metavar="V", help=f"{space.ACCEPTED[axis]} ({own})")
    text = f"one or several of {optimizers.ACCEPTED} (default adam)"
    add("--optimizer", nargs="*", metavar="O", default=["adam"], help=text)
    text = f"{space.SAMPLE_ACCEPTED}: configurations of each optimizer from the ranges, instead of every combination"
    add("--sample", metavar="S", help=text)
    models = "; ".join(f"{task}: {' or '.join(kinds)}" for task, kinds in problems.TASKS.items())
    add("--model", help=f"{models} (default: the first)")
    add(
        "--hidden",
        metavar="H",
        help="width of an mlp's hidden layers (mnist 32, regression 20 and 30) or a gru's (32)",
    )
    add("--condition-number", default=100.0, metavar="C", help="of regression's linear model (default 100)")
    add("--seeds", default=1, metavar="N", help="runs of each configuration, seeds 0 to N-1 (default 1)")
    text = "length of a run (default 1, or what suits the task; of fewer digits than MNIST's as many steps)"
    add("--epochs", metavar="E", help=text)
    add("--steps", metavar="S", help="length of a run, instead of --epochs")
    add("--batch-size", metavar="B", help="examples a batch (default 128, or what suits the task)")
    text = "batches of a step, whose gradient is the mean over them (default 1)"
    add("--accumulate", default=1, metavar="N", help=text)
    add("--schedule", default="constant", metavar="S", help=f"of lr: {', '.join(SCHEDULES)} (default constant)")
    add(
        "--warmup",
        default=0,
        metavar="STEPS",
        help="in which lr rises to where the schedule starts (default 0)",
    )
    add("--dropout", default=0.0, metavar="P", help="of an mlp's hidden activations (default 0)")
    add("--evaluations", default=8, metavar="N", help="evaluations of a run after its start (default 8)")
    add(
        "--data-dir",
        metavar="DIR",
        help="folder with the four IDX files of MNIST (default: MNIST_DIR, cache, download)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add(
        "--out",
        metavar="DIR",
        help="folder for the results, for example results/first (needed unless --dry-run)",
    )
    add("--fresh", action="store_true", help="remove the results that the folder holds, and start over")
    add("--engine", default="local", metavar="E", help=f"{' or '.join(ENGINES)}: where to train (default local)")
    text = "of a Ray cluster (default: RAY_ADDRESS, else a cluster of this machine)"
    add("--ray-address", metavar="HOST:PORT", help=text)
    text = "between two checkpoints of what is being trained (default 20)"
    add("--checkpoint-every", default=20.0, metavar="SECONDS", help=text)
    text = f"{targets.ACCEPTED} to which the report counts steps (default: a loss it chooses)"
    add("--target", metavar="T", help=text.replace("%", "%%"))
    text = "run the best configuration of each optimizer again on N fresh seeds"
    add("--confirm", metavar="N", help=text)
    add("--compare-alone", action="store_true", help="also say how long the runs would take one by one, from a sample")
    add("--dry-run", action="store_true", help="print what would be done and how long it would take, and stop")
    return cli
