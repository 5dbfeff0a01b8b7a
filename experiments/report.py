"""Write the report of a sweep again: a table of configurations, the figures, and a page about them.

python -m experiments.report results/first

reads runs.parquet, curves.parquet and provenance.json, and trains nothing. report.html is the whole page in one file,
which can be sent to somebody.

python -m experiments.report results

writes results/index.html, which lists all studies in the folders below it.

python -m experiments.report results/first --figure heatmap --x lr --y beta2 --width 3.4in

draws one figure for a paper, as wide as its column.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.common.errors import OptionError
from experiments.papers.claim import SWEEPS
from experiments.sweeps import results
from experiments.training import targets
from kernels.commands import command


def read(folder: Path) -> results.Sweep:
    from experiments.sweeps import reading

    return reading.load(folder)


def draw(folder: Path, found: results.Sweep, target: str | None) -> str:
    """Write the report and figures of a sweep into its folder; return what to print. Raises: OptionError, OSError."""
    from experiments.reports import aggregation, markdown, writer

    runs, curves, provenance = found
    summary = aggregation.summarise(runs)
    paths = writer.write(folder, runs, curves, provenance, target, summary)
    if (folder / results.PARTS).is_dir():
        results.write_drawn(folder, paths)
    reached = writer.target_of(runs, provenance, target, summary) or "none, because no run has trained"
    left = markdown.unfinished_sentence(provenance)
    return "\n".join(
        [
            aggregation.console_table(summary),
            f"\n{markdown.DIVERGED}",
            *([left] if left else []),
            f"\ntarget: {reached}\n",
            *map(str, paths),
        ]
    )


def draw_one(folder: Path, found: results.Sweep, args: argparse.Namespace) -> str:
    """Draw the figure that was asked for; return what to print. Raises: OptionError, OSError."""
    from experiments.reports import single_figure

    asked = single_figure.Asked(args.figure, args.x, args.y, args.optimizer, args.width, args.format, args.out)
    return str(single_figure.write(folder, *found, asked, args.target))


def studies_below(folder: Path) -> list[Path]:
    """Return the folders of sweeps below a folder that holds no sweep itself; none if it holds one."""
    from experiments.sweeps import reading

    # Unlike Path.rglob, isdir takes every name.
    found = reading.folders(folder) if os.path.isdir(folder) else []
    if folder in found:
        return []
    # The sweeps of a claim are parts of it, as runs on fresh seeds are of a sweep.
    return [path for path in found if path.name != results.CONFIRMED and path.parent.name != SWEEPS]


def index(root: Path, folders: list[Path]) -> str:
    """Write the page that lists the studies in these folders below root; return what to print. Raises: OSError."""
    from experiments.reports import results_index, studies_page

    def entry(folder: Path) -> results_index.Entry:
        try:
            runs, _, provenance = read(folder)
        except OptionError as error:
            return results_index.entry(folder, root, [f"{error}."])
        return results_index.of_sweep(folder, root, runs, provenance)

    compared = [path.parent for path in root.rglob(studies_page.RECORD)]
    entries = [results_index.entry(folder, root, ["A comparison of studies."]) for folder in compared]
    entries += map(entry, folders)
    return f"studies: {len(entries)}\n\n{results_index.write(root, entries)}"


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Draw a sweep's figures and report again from its tables, without training.",
    )
    folder = "results folder of a sweep, for example results/first, or a folder of such folders, for an index of them"
    cli.add_argument("folder", type=Path, metavar="FOLDER", help=folder)
    text = f"{targets.ACCEPTED} to count steps to (default: the sweep's)".replace("%", "%%")
    cli.add_argument("--target", metavar="T", help=text)
    one = cli.add_argument_group("one figure, for a paper")
    one.add_argument(
        "--figure", metavar="NAME", help="a figure of the report, such as convergence, sensitivity or heatmap"
    )
    one.add_argument("--x", metavar="AXIS", help="the axis of a sensitivity, or the first of a heatmap")
    one.add_argument("--y", metavar="AXIS", help="the second axis of a heatmap")
    one.add_argument("--optimizer", metavar="NAME", help="whose axes these are (default: the best optimizer)")
    one.add_argument(
        "--width", metavar="W", help="with its unit: 3.4in, 8.6cm, 86mm or 245pt (default: as in the report)"
    )
    one.add_argument("--format", metavar="F", help="pdf, png or svg (default: pdf)")
    one.add_argument("--out", type=Path, metavar="FILE", help="the file (default: in FOLDER, named after the figure)")
    args = cli.parse_args(argv)
    try:
        alone = [name for name in ("x", "y", "optimizer", "width", "format", "out") if getattr(args, name) is not None]
        if alone and args.figure is None:
            raise OptionError(f"--{alone[0]} goes with --figure")
        if below := studies_below(args.folder):
            if given := next((name for name in ("target", "figure") if getattr(args, name) is not None), None):
                raise OptionError(f"--{given} goes with the folder of one sweep, and {args.folder} holds {len(below)}")
            text = index(args.folder, below)
        elif args.figure is not None:
            text = draw_one(args.folder, read(args.folder), args)
        else:
            text = draw(args.folder, read(args.folder), args.target)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{cli.prog}: {args.out or args.folder} cannot be written to ({error.strerror})", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
