"""The options of `python -m experiments.sweep`, made from the fields of a `SweepConfig`."""

import argparse
from dataclasses import fields
from typing import Any

from experiments.common.values import FLAG, option
from experiments.sweeps.config import SweepConfig
from experiments.tasks import own, problems
from experiments.training.axes import AXES

EXAMPLES = {**dict.fromkeys(AXES, "adam"), "momentum": "momentum"}
"""An optimizer for each axis with the default of `AXES`, so that --help need not import the optimizers."""


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description="Train every combination of the hyperparameters of one or several optimizers and draw the result.",
        epilog="An axis takes values (1e-4 3e-4 1e-3) or a range START..STOP:COUNT in equal ratios (betas and "
        "momentum: of 1 - value); with --sample also START..STOP, all of it. Words from sgd=... on are for sgd alone. "
        "What an optimizer has no argument for does not multiply its configurations.",
    )
    cli.add_argument("task", metavar="TASK", help=f"what is trained: {', '.join(problems.TASKS)} or {own.ACCEPTED}")
    for field in fields(SweepConfig):
        help = field.metadata["help"]
        if field.name == "task" or help is None:
            continue
        if field.metadata["kind"] is FLAG:
            cli.add_argument(option(field.name), action="store_true", help=help)
            continue
        if field.name == "axes":
            cli.add_argument(
                "--axis", dest="axes", action="append", nargs="+", default=[], metavar=("NAME", "V"), help=help
            )
            continue
        if field.name in AXES:
            help += f" (default: the optimizer's own; {EXAMPLES[field.name]} {AXES[field.name]:g})"
        several: dict[str, Any] = {"nargs": "*"} if field.name in ("optimizer", "tie", *AXES) else {}
        text, metavar = help.replace("%", "%%"), field.metadata["metavar"]
        cli.add_argument(option(field.name), default=field.default, metavar=metavar, help=text, **several)
    cli.add_argument(
        "--dry-run", action="store_true", help="print what would be done and how long it would take, and stop"
    )
    return cli
