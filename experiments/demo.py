"""What can be seen in a minute: Adam's hyperparameters on MNIST and on a regression, more than a hundred runs each.

python -m experiments.demo        (or: make demo)
"""

import argparse
import sys
from pathlib import Path

from experiments import grid, sweep
from experiments.data import DataError
from experiments.grid import OptionError
from kernels.commands import command

SWEEPS = {
    "mnist": {
        "lr": grid.parse_axis("lr", ["1e-4..1:5"]),
        "beta1": [0.0, 0.9, 0.99],
        "beta2": [0.9, 0.99, 0.999],
        "eps": [1e-8, 1e-4, 1.0],
        "epochs": 1,
    },
    "regression": {
        "lr": grid.parse_axis("lr", ["1e-4..1:9"]),
        "beta1": [0.0, 0.5, 0.9, 0.99],
        "beta2": [0.9, 0.99, 0.999],
        "seeds": 3,
        "epochs": 10,
    },
}


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, default=Path("results/demo"), metavar="DIR", help="default results/demo")
    cli.add_argument("--data-dir", metavar="DIR", help="folder with the four IDX files of MNIST")
    cli.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    args = cli.parse_args(argv)
    try:
        for task, axes in SWEEPS.items():
            out = args.out / task
            result = sweep.sweep(task, **axes, data_dir=args.data_dir, device=args.device, out=out, compare_alone=True)
            sweep.show(result, out)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"\nStart with {args.out / 'mnist' / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
