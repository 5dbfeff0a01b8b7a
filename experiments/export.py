"""Take the results of a sweep to a tracker, or to CSV files: every run with its configuration, curves and results.

python -m experiments.export results/first --to tensorboard

reads what `python -m experiments.sweep` wrote, and writes to this machine alone, through the tracker's own library.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.common import files
from experiments.common.errors import OptionError
from experiments.common.values import FOLDER, one_of, taken
from experiments.trackers.installed import NAMES, TRACKERS, check
from kernels.commands import command


def export(folder: str | os.PathLike[str], to: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the finished runs of a results folder for a tracker; return the folder that was written.

    Args:
        to: a key of `TRACKERS`.
        out: a new or empty folder; None takes one in `folder` that has the tracker's name.
    Raises: OptionError, before anything is written.
    """
    to = taken("--to", to, one_of(NAMES, TRACKERS))
    check("--to", to)
    source = taken("the folder of a sweep", folder, FOLDER)
    from experiments.results import load, summary_of

    runs, curves, provenance, summary = load(source)
    if not (finished := runs["status"] != "unfinished").all():
        runs = runs.loc[finished].reset_index(drop=True)
        if runs.empty:
            raise OptionError(f"{source} holds no finished runs")
        curves = curves.loc[curves["run_id"].isin(runs["run_id"])].reset_index(drop=True)
        summary = summary_of(runs, curves, provenance)
    final = files.check_folder(source / to if out is None else out)
    if final.exists() and any(final.iterdir()):
        raise OptionError(f"--out accepts a new or empty folder, and {final} has files in it")
    from experiments.trackers import records

    tables = {"runs": runs, "curves": curves, "summary": summary}
    study = records.study_of(source, tables, provenance)
    with becoming(final) as temporary:
        importlib.import_module(f"experiments.trackers.{TRACKERS[to].module}").write(temporary, study, final)
    return final


@contextlib.contextmanager
def becoming(final: Path) -> Iterator[Path]:
    """Yield a new folder, which becomes `final` at the end; after an error nothing is left of it."""
    missing = [parent for parent in final.absolute().parents if not parent.exists()]
    temporary = final.absolute().with_name(f".{final.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description="Take the finished runs of a sweep to a tracker, on this machine, through the tracker's library.",
    )
    cli.add_argument("folder", metavar="FOLDER", help="results folder of a sweep, for example results/first")
    cli.add_argument("--to", metavar="TRACKER", help=NAMES)
    cli.add_argument("--out", metavar="DIR", help="new or empty folder (default: FOLDER/TRACKER)")
    args = cli.parse_args(argv)
    try:
        if args.to is None:
            raise OptionError(f"--to needs one of {NAMES}")
        written = export(args.folder, args.to, args.out)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    print(f"written: {written}\nlook at it with: {look(args.to, args.folder, written)}")
    return 0


def look(to: str, folder: str, written: Path) -> str:
    """Return the command that shows what was written."""
    from experiments.trackers.records import study_name

    return TRACKERS[to].look.format(out=shlex.quote(str(written)), name=study_name(folder))


if __name__ == "__main__":
    sys.exit(main())
