"""How fast do populations train, and how long do optimizer steps take?

    python -m experiments.throughput sweep --out results/throughput
    python -m experiments.throughput command --out results/throughput
    python -m experiments.throughput halving --out results/throughput
    python -m experiments.throughput step --out results/throughput
    python -m experiments.throughput models --out results/throughput
    python -m experiments.throughput host --out results/throughput

The contenders of a comparison are timed in turn, round after round, in one process. Reports give medians over the
rounds with 95 % intervals from order statistics; ratios are formed within rounds.
"""

import argparse
import functools
import os
import sys
import time

import torch

from experiments.bench import cases
from experiments.bench.implementations import DEFAULT, IMPLEMENTATIONS
from experiments.common import files
from experiments.common.devices import check_kernels, resolve_device
from experiments.common.errors import DataError, OptionError
from experiments.common.values import SECONDS, checked, optional, whole
from kernels.commands import command

CLASSES = list(dict.fromkeys(case.name for case in (*cases.CASES, *cases.MORE_CASES)))
MODEL_CLASSES = list(dict.fromkeys(case.name for case in cases.MODEL_CASES))
SWEEPS = "command", "halving"
"""What times the sweep command."""
SIZES, MODELS = list(cases.SIZES), list(cases.MODELS)


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.throughput", description="Time populations and steps.")
    commands = cli.add_subparsers(dest="what", required=True, metavar="{sweep,command,halving,host,step,models}")
    helps = {
        "sweep": "a population against one run after the other",
        "command": "the sweep command against the loop that sweep times",
        "halving": "sweeps with halving, and with lanes that diverge, against those of all runs to the end",
        "host": "host time of a step over the tensors of real networks, against torch.optim.AdamW",
        "step": "a step of every class and implementation over single tensors",
        "models": "a step of Adam and AdamW over the parameters of real networks",
    }
    for name, rounds in {"sweep": 40, "command": 8, "halving": 20, "host": 60, "step": 60, "models": 60}.items():
        command = commands.add_parser(name, help=helps[name], description=f"Time {helps[name]}.")
        command.add_argument("--rounds", default=rounds, metavar="N", help="rounds of timing (default %(default)s)")
        command.add_argument("--out", required=True, metavar="DIR", help=f"folder for throughput_{name}.{{csv,md}}")
        if name != "host":
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
        if name not in ("sweep", *SWEEPS):
            command.add_argument("--threads", metavar="N", help="threads of all implementations (default: torch's own)")
        else:
            command.add_argument("--data-dir", metavar="DIR", help="files of MNIST, as experiments.sweep takes them")
        if name == "sweep":
            without = f"time on {cases.NOISE} where MNIST is not on this machine"
            command.add_argument("--no-download", dest="download", action="store_false", help=without)
        if name in ("step", "models"):
            classes, sizes = (CLASSES, SIZES) if name == "step" else (MODEL_CLASSES, MODELS)
            default = "some" if name == "step" else "all"
            choices = {
                "--only": (classes, classes, "classes to time", "all"),
                "--sizes": (sizes, None, "one tensor of so many elements, or those of a network", default),
                "--implementations": (IMPLEMENTATIONS, DEFAULT, "whose steps to time", "all but ours eager"),
            }
            for option, (names, values, what, which) in choices.items():
                text = f"{what}: {', '.join(names)} (default {which})"
                command.add_argument(option, nargs="+", default=values, metavar="NAME", help=text)
            command.add_argument("--compiled", action="store_true", help="time those too that take minutes to compile")
            command.add_argument(
                "--budget", metavar="SECONDS", help="stop about then, the most telling sizes come first"
            )
    return cli


def check_options(args: argparse.Namespace) -> None:
    """Convert the options in place. Raises: OptionError, one sentence, if one cannot be used."""
    kinds = {"rounds": whole(3), "threads": optional(whole(1, os.cpu_count() or 1)), "budget": optional(SECONDS)}
    vars(args).update(checked(vars(args), kinds))
    known = {"only": CLASSES, "sizes": SIZES, "implementations": list(IMPLEMENTATIONS)}
    known |= {"only": MODEL_CLASSES, "sizes": MODELS} if args.what == "models" else {}
    for option, names in known.items():
        if unknown := [name for name in getattr(args, option, None) or () if name not in names]:
            raise OptionError(f"--{option} accepts {', '.join(names)}, not {unknown[0]!r}")
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if interpreted and resolve_device(getattr(args, "device", "cpu")).startswith("cuda"):
        raise OptionError(
            f"--device {args.device} accepts no TRITON_INTERPRET in the environment: the interpreter is never timed"
        )
    args.out = files.check_folder(args.out)
    if args.what != "host":  # it launches no kernel
        check_kernels(resolve_device(args.device))


def measure(args: argparse.Namespace, started: float) -> int:
    """Measure what the checked options ask for, and write it down; return the exit code.

    Args:
        started: `time.monotonic()` from which the budget counts.
    """
    from experiments.bench import measurements

    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    if args.what in measurements.TITLES:
        return measurements.timed(args, started)
    table = args.out / f"throughput_{args.what}.csv"
    compare = measurements.COMMANDS[args.what]
    if args.what in SWEEPS:
        from experiments.sweep import sweep

        # Only the commands may import each other.
        compare = functools.partial(compare, sweep=sweep)
    text, rest = compare(args, table)
    if text:
        text += measurements.interrupted(rest)
        files.replace(table.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
    print(text or measurements.interrupted(rest))
    return 130 if rest else 0


@command
def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    cli = parser()
    args = cli.parse_args(argv)
    try:
        check_options(args)
        return measure(args, started)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
