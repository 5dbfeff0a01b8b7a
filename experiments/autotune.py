"""Which launch configuration suits a GPU?

    python -m experiments.autotune --dry-run --target sm_90 --out results/autotune

compiles every candidate without running it, and says which are worth measuring (`atlas`).
"""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd
import torch

from experiments import atlas, store
from experiments.grid import OptionError
from kernels import rules
from kernels.codegen import VARIANTS, parse_target
from kernels.config import candidates, device_facts
from kernels.occupancy import LIMITS


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.autotune", description="Launch configurations of a GPU.")
    cli.add_argument("--dry-run", action="store_true", help="compile every candidate and measure none")
    cli.add_argument("--target", metavar="ARCH", help=f"{', '.join(LIMITS)} (default: the GPU that is present)")
    cli.add_argument("--rule", default="adam", metavar="NAME", help=f"{', '.join(rules.RULES)} (default %(default)s)")
    cli.add_argument("--dtype", default="float32", metavar="NAME", help=f"{', '.join(VARIANTS)} (default %(default)s)")
    cli.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for atlas_ARCH.csv, .md and .png")
    return cli


def present() -> str:
    """The architecture of the GPU that is present. Raises: OptionError if there is none."""
    if not torch.cuda.is_available():
        raise OptionError(f"--target accepts {', '.join(LIMITS)}, and without a GPU to look at one has to be named")
    return device_facts(torch.device("cuda", torch.cuda.current_device())).arch


def check(args: argparse.Namespace) -> None:
    """Raise OptionError, one sentence, if an option cannot be used."""
    if not args.dry_run:
        raise OptionError("--dry-run has to be given: the search that measures the candidates is not there yet")
    args.target = args.target or present()
    for option, names in (("target", LIMITS), ("rule", rules.RULES), ("dtype", VARIANTS)):
        if getattr(args, option) not in names:
            raise OptionError(f"--{option} accepts {', '.join(names)}, not {getattr(args, option)!r}")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise OptionError("--dry-run accepts no TRITON_INTERPRET in the environment, which replaces the compiler")
    store.check_folder(args.out)


def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        check(args)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    provenance = store.provenance("cpu")
    configs = candidates(parse_target(args.target).warp_size)
    what = args.rule, args.target, args.dtype
    rows = atlas.judge(atlas.compile_all(*what, configs), LIMITS[args.target])
    text = atlas.markdown(rows, *what, provenance)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"atlas_{args.target}.csv"
    store.replace(table, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    store.replace(table.with_suffix(".png"), atlas.figure(rows, *what).savefig)
    store.replace(table.with_suffix(".md"), lambda path: path.write_text(text))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
