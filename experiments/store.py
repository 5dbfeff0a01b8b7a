"""The files of a results folder: written whole or not at all."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from experiments import values
from experiments.grid import AXES, OptionError

RUNS, CURVES, PROVENANCE = "runs.parquet", "curves.parquet", "provenance.json"
PARTS, ASKED, DRAWN, LOCK, CONFIRMED = "parts", "asked.json", "drawn.json", ".lock", "confirmed"
ROW_BYTES = 300
"""Of a run's evaluation: in a part, in the tables made of the parts, and in what they are written to meanwhile."""

LOSSES = ("train_loss", "eval_loss", "eval_accuracy")
WORDS = ("data", "task", "model", "optimizer", "status")
RUN_COLUMNS = ("run_id", *WORDS, "lr", "seed", "diverged_step", *LOSSES, "initial_eval_loss")
CURVE_COLUMNS = ("run_id", "step", "seconds", *LOSSES)


class Sweep(NamedTuple):
    """Results of a sweep.

    Attributes:
        runs: one row a run, as in runs.parquet: run_id, data, task, model, steps, optimizer, the hyperparameters (NaN
            where the optimizer has none such), seed, status ("ok" or "diverged"), diverged_step, and losses and
            accuracies at the start (initial_), at the end, and at their best (best_). Accuracies are shares, NaN of
            regressions.
        curves: one row a run and evaluation, as in curves.parquet: run_id, step, epoch, train_loss (mean since the
            last evaluation), eval_loss, eval_accuracy, and seconds that the run's population has trained, of which
            those of its runs that are here have their share.
        provenance: where they come from, as in provenance.json: data, loss_name, seconds, versions, device, the grid.
            Of a sweep that has not ended, `unfinished` says how many runs are finished, and of how many.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict


class Taken(OptionError):
    """A folder that holds what is `held`: another sweep or other files."""

    def __init__(self, out: Path, held: str, way_out: str = ""):
        accepted = "--out accepts a new or empty folder, or one of the same sweep, whatever its grid"
        super().__init__(f"{accepted}, and {out} holds {held}{way_out}")
        self.held = held


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside path, and move it there once it is complete."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(out: Path, runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> None:
    """Write runs.parquet, curves.parquet and provenance.json, which gets the checksums of both, into the folder."""
    replace(out / RUNS, lambda path: path.write_bytes(runs.to_parquet(index=False)))
    replace(out / CURVES, lambda path: path.write_bytes(curves.to_parquet(index=False)))
    provenance["sha256"] = {name: sha256(out / name) for name in (RUNS, CURVES)}
    write_provenance(out, provenance)


def read_table(path: Path) -> pd.DataFrame:
    """A table from a file, by its bytes: pyarrow opens no path that is not UTF-8."""
    return pd.read_parquet(io.BytesIO(path.read_bytes()))


def write_provenance(out: Path, provenance: dict) -> None:
    replace(out / PROVENANCE, lambda path: path.write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8"))


def write_drawn(out: Path, paths: Iterable[Path]) -> None:
    """Keep which files are figures and reports of the sweep, and remove those that were and no longer are."""
    names = [path.name for path in paths]
    for name in set(drawn(out)) - set(names):
        (out / name).unlink(missing_ok=True)
    replace(out / PARTS / DRAWN, lambda path: path.write_text(json.dumps(names), encoding="utf-8"))


def drawn(out: Path) -> list[str]:
    """The names that `write_drawn` has kept; none if they are lost."""
    try:
        return [Path(name).name for name in json.loads((out / PARTS / DRAWN).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(folder: str | os.PathLike[str]) -> Sweep:
    """The results of a sweep, or, while it works or after it was interrupted, those of its runs that are finished.

    Raises: OptionError, a sentence that names the file that is missing or damaged.
    """
    from experiments import unfinished  # which is built on this module

    folder = values.taken("the folder of a sweep", folder, values.FOLDER)
    # Unlike Path.is_dir, this says no of whatever cannot be.
    if not os.path.isdir(folder):
        raise OptionError(f"{folder} is no folder")
    so_far = unfinished.read(folder)
    if so_far and len(so_far.runs):
        return so_far
    if not (folder / RUNS).exists():
        lack = f"a sweep with --out {folder} that has ended writes them"
        if so_far:
            lack = f"0 of the {so_far.provenance['unfinished']['of']} runs of its sweep are finished"
        raise OptionError(f"{folder} holds no results: {lack}")
    provenance = _read(folder / PROVENANCE, lambda path: json.loads(path.read_text(encoding="utf-8")))
    described = isinstance(provenance, dict)
    if not described or not all(isinstance(provenance.get(name, {}), dict) for name in ("sha256", "sweep", "data")):
        raise OptionError(f"{folder / PROVENANCE} does not describe a sweep")
    # Older folders have no checksums.
    checksums = provenance.get("sha256", {})
    runs = _table(folder / RUNS, RUN_COLUMNS, checksums.get(RUNS))
    curves = _table(folder / CURVES, CURVE_COLUMNS, checksums.get(CURVES))
    if not set(runs["run_id"]) <= set(curves["run_id"]):
        raise OptionError(f"{folder / CURVES} lacks runs that {RUNS} has")
    # A folder may be older than an axis.
    return Sweep(runs.assign(**{axis: np.nan for axis in AXES if axis not in runs}), curves, provenance)


def _table(path: Path, columns: tuple[str, ...], checksum: str | None) -> pd.DataFrame:
    """The table of a file that has these columns, of numbers but for `WORDS`. checksum: None if it is not known."""
    if checksum and _read(path, sha256) != checksum:
        raise OptionError(f"{path} is damaged: the command of its sweep makes it again from the parts")
    table = _read(path, read_table)
    if missing := [column for column in columns if column not in table]:
        raise OptionError(f"{path} lacks the columns {', '.join(missing)}")
    if len(table) == 0:
        raise OptionError(f"{path} is empty")
    for column in columns:
        if column not in WORDS and not is_numeric_dtype(table[column]):
            raise OptionError(f"{path} has a column {column} that holds no numbers")
    return table


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise OptionError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, NotImplementedError, ImportError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise OptionError(f"{path} cannot be read ({reason})") from error


def clear(out: Path) -> None:
    """Remove a sweep's results, and nothing else, from a folder whose lock this process holds."""
    for name in (RUNS, CURVES, *drawn(out)):
        (out / name).unlink(missing_ok=True)
    for pattern in ("*-*.parquet", "*-*.pt", "*.json"):
        for path in (out / PARTS).glob(pattern):
            path.unlink()
    if (out / CONFIRMED).is_dir():
        clear(out / CONFIRMED)
    # Last, so that a folder that was left half-cleared is still known as a sweep's.
    (out / PROVENANCE).unlink(missing_ok=True)


def check_folder(given: str | os.PathLike[str], option: str = "--out") -> Path:
    """The folder, which can be made or written to. Raises: OptionError if it cannot."""
    out = values.taken(option, given, values.FOLDER)
    missing, parent = [], out.absolute()
    try:
        # Our files have to find room for their names.
        (out / ("x" * 100)).exists()
        for parent in (out.absolute(), *out.absolute().parents):
            if parent.exists():
                break
            if parent.is_symlink():
                target = os.readlink(parent)
                raise OptionError(f"{option} accepts a folder, and {parent} is a link to {target}, which is not there")
            missing.append(parent.name)
        # What is below a folder that is missing could not be looked at.
        for name in missing:
            (parent / name).exists()
    except OSError as error:
        name = values.shown(str(out))
        raise OptionError(f"{option} accepts a folder that can be made, and {name} cannot ({error.strerror})") from None
    if not missing and not parent.is_dir():
        raise OptionError(f"{option} accepts a folder, and {out} is none")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OptionError(f"{option} accepts a folder that can be written to, and {parent} cannot")
    return out


def check_out(out: Path, sweep: dict, fresh: bool = False) -> None:
    """Raise OptionError unless results of this sweep may be written to the folder.

    fresh: whether those of another sweep are to go.
    """
    check_folder(out)
    # A process that was killed may have left no more than a lock and hidden files.
    known = (PARTS,) if (out / PARTS / LOCK).exists() else ()
    if not out.exists() or all(path.name.startswith(".") or path.name in known for path in out.iterdir()):
        return
    try:
        other = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))["sweep"]
        differing = differences(json.loads(json.dumps(sweep)), other)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Taken(out, "other files") from None
    if differing and not fresh:
        raise Taken(out, f"another sweep (it differs in {', '.join(differing)})", ", which --fresh removes")


def differences(sweep: dict, other: dict) -> list[str]:
    """In what the runs of a sweep differ from those of one that was there before; nothing if only the grid does."""
    grid = ("optimizers", "seeds", "sample")
    return [key for key in sweep if key not in grid and sweep[key] != other.get(key)]


def check_room(out: Path | None, n_runs: int, n_points: int, option: str = "the grid") -> None:
    """Raise OptionError if results of that size fit neither into the memory nor, if there is a folder, on its disk."""
    needed = n_runs * n_points * ROW_BYTES
    rooms = {"of memory": memory()}
    if out is not None:
        folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        rooms[f"on the disk of {out}"] = shutil.disk_usage(folder).free
    for where, free in rooms.items():
        if needed > free:
            raise OptionError(
                f"{option} accepts as many runs as there is room for: {n_runs} runs with {n_points} evaluations take "
                f"about {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB {where} are free"
            )


def memory() -> int:
    """Bytes of memory that are free; 8 GiB where nothing says it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30
