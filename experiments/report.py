"""Write the report of a sweep again: a table of configurations, the figures, and a page about them.

python -m experiments.report results/first

reads runs.parquet, curves.parquet and provenance.json, and trains nothing. report.html is the whole page in one file,
which can be sent to somebody.
"""

import argparse
import sys
from pathlib import Path

from experiments.common.errors import OptionError
from experiments.reports import aggregation, markdown, writer
from experiments.reports.aggregation import summarise
from experiments.sweeps import reading, results
from experiments.training import targets
from kernels.commands import command


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
    folder = args.folder
    try:
        runs, curves, provenance = reading.load(folder)
        summary = summarise(runs)
        paths = writer.write(folder, runs, curves, provenance, args.target, summary)
        if (folder / results.PARTS).is_dir():
            results.write_drawn(folder, paths)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{cli.prog}: {folder} cannot be written to ({error.strerror})", file=sys.stderr)
        return 2
    print(aggregation.console_table(summary))
    print(f"\n{markdown.DIVERGED}")
    if left := markdown.unfinished_sentence(provenance):
        print(left)
    print(f"\ntarget: {writer.target_of(runs, provenance, args.target, summary) or 'none, because no run has trained'}")
    print("\n" + "\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
