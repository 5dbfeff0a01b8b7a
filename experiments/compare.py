"""Compare sweeps: what tells them apart, and the tables and figures of a report over all of them.

python -m experiments.compare results/first results/second --out results/both

reads what the sweeps have written, and trains nothing. Runs of two studies are paired by seed where these share data,
batches and seeds; the report says what each difference rests on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common import files, run_info
from experiments.common.errors import OptionError
from experiments.sweeps import results
from experiments.sweeps.results import Sweep
from experiments.training import targets
from kernels.commands import command

if TYPE_CHECKING:
    from experiments.reports import studies

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A results folder, or several."""


def paths_of(folder: Folders) -> tuple[Path, ...]:
    return tuple(map(Path, [folder] if isinstance(folder, str | os.PathLike) else folder))


def load_all(folder: Folders) -> Sweep:
    """Return the results of a folder or, as those of one sweep, of several. Raises: OptionError."""
    from experiments.sweeps import reading

    paths = paths_of(folder)
    return reading.load(paths[0]) if len(paths) == 1 else joined(paths)


def load(folders: Sequence[str | os.PathLike[str]]) -> list[studies.Study]:
    """Read the results of several folders. Raises: OptionError if one holds none, or is given twice."""
    from experiments.reports import studies
    from experiments.sweeps import reading

    paths = [Path(folder) for folder in folders]
    found = [reading.load(path) for path in paths]
    return [studies.Study(*one) for one in zip(studies.names_of(paths), paths, *zip(*found, strict=True), strict=True)]


def joined(folders: Sequence[str | os.PathLike[str]]) -> Sweep:
    """Return several sweeps of one task as one, whose optimizers are called as in `studies.labelled`.

    Raises: OptionError.
    """
    from experiments.reports import studies
    from experiments.reports.escape import without_math

    found = load(folders)
    studies.check(found)
    runs, curves, provenance = studies.joined(found)
    return Sweep(runs.assign(optimizer=runs["optimizer"].map(without_math)), curves, provenance)


def compare(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], target: str | None = None) -> str:
    """Write the comparison of finished sweeps into the folder `out`; return what to print.

    Raises: OptionError, before anything is written.
    """
    from experiments.reports import aggregation, markdown, studies_page

    out = files.check_folder(out)
    before = recorded(out)
    if len(folders) < 2:
        raise OptionError("FOLDER accepts the results folders of at least two sweeps")
    found = load(folders)
    for study in found:
        if left := study.provenance.get("unfinished"):
            counts = f"{left['finished']} of {left['of']} runs of {study.folder} are"
            raise OptionError(f"FOLDER accepts sweeps that have ended, and {counts} finished")
    every = studies_page.tables(found, target)
    record = {
        "command": run_info.command_line(),
        "studies": {study.name: {"folder": str(study.folder), **study.provenance.get("sha256", {})} for study in found},
    }

    paths = studies_page.write(out, every, record)
    for name in before - {path.name for path in paths}:
        (out / name).unlink(missing_ok=True)
    return "\n".join([aggregation.console_table(every.summary), f"\n{markdown.DIVERGED}\n", *map(str, paths)])


def recorded(out: Path) -> set[str]:
    """Return the names of the files of an earlier comparison in a folder. Raises: OptionError if it holds others."""
    from experiments.reports import studies_page

    if not out.exists() or all(path.name.startswith(".") for path in out.iterdir()):
        return set()
    try:
        names = json.loads((out / studies_page.RECORD).read_text(encoding="utf-8"))["files"]
        # Only names, whatever someone may have written there.
        return {Path(name).name for name in names} - {
            results.RUNS,
            results.CURVES,
            results.PROVENANCE,
            results.PARTS,
            "",
        }
    except (OSError, ValueError, KeyError, TypeError):
        accepted = "--out accepts a new or empty folder, or one of an earlier comparison"
        raise OptionError(f"{accepted}, and {out} holds other files") from None


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.compare",
        description="Compare sweeps of one task, whatever their grids, optimizers, models or code.",
    )
    cli.add_argument("folders", nargs="+", metavar="FOLDER", help="results folders of sweeps, two or more")
    cli.add_argument("--out", required=True, metavar="FOLDER", help="folder for the tables, figures and report")
    text = f"{targets.ACCEPTED} to count steps to (default: that of all sweeps)".replace("%", "%%")
    cli.add_argument("--target", metavar="T", help=text)
    args = cli.parse_args(argv)
    try:
        print(compare(args.folders, args.out, args.target))
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
