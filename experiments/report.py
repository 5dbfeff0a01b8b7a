"""Write the report of a sweep again: a table of configurations, the figures, and a page about them.

python -m experiments.report results/first

reads runs.parquet, curves.parquet and provenance.json, and trains nothing. report.html is the whole page in one file,
which can be sent to somebody.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.common.errors import OptionError
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


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Draw a sweep's figures and report again from its tables, without training.",
    )
    cli.add_argument("folder", type=Path, metavar="FOLDER", help="results folder of a sweep, for example results/first")
    text = f"{targets.ACCEPTED} to count steps to (default: the sweep's)".replace("%", "%%")
    cli.add_argument("--target", metavar="T", help=text)
    args = cli.parse_args(argv)
    try:
        text = draw(args.folder, read(args.folder), args.target)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{cli.prog}: {args.folder} cannot be written to ({error.strerror})", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
