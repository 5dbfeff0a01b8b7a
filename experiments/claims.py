"""What is said about Adam, each as one command that ends in a verdict: confirmed, refuted or undecided.

python -m experiments.claims                      lists the claims
python -m experiments.claims stability-edge       tries one, with a figure, effects and their intervals
python -m experiments.claims all                  tries all of them, 25 minutes on two cores
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from experiments.common import ambient, devices, files, run_info
from experiments.common.errors import DataError, OptionError
from experiments.common.values import checked, shown, whole
from experiments.papers import page
from experiments.papers.claim import Claim, Runs
from kernels.commands import command

ALL = "all"


def parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    cli = argparse.ArgumentParser(prog="python -m experiments.claims", description=about)
    cli.add_argument("claims", nargs="*", metavar="CLAIM", help=f"which to try, or {ALL}; none lists them")
    cli.add_argument("--full", action="store_true", help="the size of the source, where the quick one is smaller")
    cli.add_argument("--seeds", metavar="N", help="seeds that the verdict rests on (default: as the claim says)")
    cli.add_argument(
        "--out", default="results/claims", metavar="DIR", help="folder for CLAIM/ (default results/claims)"
    )
    cli.add_argument("--fresh", action="store_true", help="remove the runs that a claim's folder holds, and start over")
    cli.add_argument("--data-dir", metavar="DIR", help="files of MNIST, as experiments.sweep takes them")
    return cli


def chosen(names: list[str]) -> list[Claim]:
    """Return the claims of these names, each once. Raises: OptionError, which lists the known ones."""
    from experiments.papers.every import CLAIMS

    if unknown := [name for name in names if name not in (*CLAIMS, ALL)]:
        raise OptionError(f"CLAIM accepts {ALL} or {', '.join(CLAIMS)}, not {shown(unknown[0])}")
    return [CLAIMS[name] for name in (CLAIMS if ALL in names else dict.fromkeys(names))]


def listing() -> str:
    from experiments.papers.every import CLAIMS

    return "\n".join(f"{name}\n    {claim.says} {claim.source}." for name, claim in CLAIMS.items())


def try_claim(claim: Claim, out: Path, seeds: int | None, full: bool, **options) -> dict:
    """Measure what a claim says, and write verdict, figure and page; return the verdict's `page.record`.

    An interrupted claim goes on from its last checkpoint when it is called again.

    Args:
        out: folder of all claims; this one writes to its subfolder of the claim's name, or NAME-full.
        seeds: None takes the claim's own number.
        full: takes the source's size where the quick one is smaller.
        options: of every sweep.
    Raises: OptionError, DataError, OSError.
    """
    from experiments.common import figure_style
    from experiments.papers.every import CLAIMS

    is_full = full and bool(claim.full)
    folder = out / f"{claim.name}{'-full' * is_full}"
    provenance, started = run_info.provenance(devices.resolve_device("auto")), time.perf_counter()
    runs = Runs(folder, seeds or claim.seeds, options)
    with ambient.pinned():
        measured = claim.measure(runs, **{**claim.quick, **(claim.full if is_full else {})})
    # What earlier calls have trained counts, too.
    seconds = time.perf_counter() - started - runs.waited + sum(runs.seconds.values())
    about = {"folder": folder.name, "seeds": runs.seeds, "seconds": round(seconds, 1)}
    found = page.record(claim, measured, {**about, "data": runs.data, "provenance": provenance})
    figure = claim.draw(measured)
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / page.FIGURE, lambda path: figure_style.save(figure, path))
    page.write_verdict(folder, found)
    page.write_page(out, CLAIMS)
    return found


@command
def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        vars(args).update(checked(vars(args), {"seeds": whole(1, 10**4)} if args.seeds is not None else {}))
        claims = chosen(args.claims)
        if not claims:
            print(listing())
            return 0
        out = files.check_folder(args.out)
        page.check(out)
        for claim in claims:
            found = try_claim(claim, out, args.seeds, args.full, data_dir=args.data_dir, fresh=args.fresh)
            print(f"\n{page.console_text(found)}\nwritten: {out / found['folder'] / page.FIGURE}, {out / page.PAGE}\n")
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
