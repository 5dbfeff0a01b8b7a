"""A demonstration of one minute: Adam's hyperparameters on MNIST and on a regression, over a hundred runs each.

python -m experiments.demo        (or: make demo)
"""

import argparse
import sys
from pathlib import Path

from experiments import sweep
from experiments.common.errors import DataError, OptionError
from experiments.sweeps.results import Sweep, Taken
from kernels.commands import command

# If MNIST is not available, a run on 5,000 digits has as many steps as an epoch of MNIST.
SWEEPS = {
    "mnist": {
        "lr": "1e-4..1:5",
        "beta1": [0.0, 0.9, 0.99],
        "beta2": [0.9, 0.99, 0.999],
        "eps": [1e-8, 1e-4, 1.0],
    },
    "regression": {
        "lr": "1e-4..1:9",
        "beta1": [0.0, 0.5, 0.9, 0.99],
        "beta2": [0.9, 0.99, 0.999],
        "seeds": 3,
        "epochs": 10,
    },
}


def run(task: str, within: Path, **options) -> tuple[Sweep, Path]:
    """Run a sweep of the demo in the first of within/TASK, within/TASK-2, ... that is free or holds its results.

    A folder with results of other data or of another version of the demo, or with other files, is skipped.
    """
    out, n = within / task, 1
    while True:
        try:
            return sweep.sweep(task, **SWEEPS[task], **options, out=out, compare_alone=True), out
        except Taken as taken:  # noqa: PERF203
            print(f"{out} is left as it is, for it holds {taken.held}", file=sys.stderr)
            n += 1
            out = within / f"{task}-{n}"
        except OSError as error:
            if (told := sweep.trouble(error, out)) is None:
                raise
            raise OptionError(told) from error


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(prog="python -m experiments.demo", description=str(__doc__).splitlines()[0])
    cli.add_argument("--out", type=Path, default=Path("results/demo"), metavar="DIR", help="default results/demo")
    cli.add_argument("--data-dir", metavar="DIR", help="files of MNIST, as experiments.sweep takes them")
    cli.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    args = cli.parse_args(argv)
    folders = []
    try:
        for task in SWEEPS:
            result, out = run(task, args.out, data_dir=args.data_dir, device=args.device)
            sweep.show(result, out)
            folders.append(out)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return sweep.interrupted(interrupt)
    print(f"\nStart with {folders[0] / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
