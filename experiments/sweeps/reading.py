"""Reading of results folders, also of a sweep that is not finished."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from experiments.common import files, values
from experiments.common.errors import OptionError
from experiments.sweeps import at_work, checkpoints, chunks, results
from experiments.sweeps.results import CURVES, PROVENANCE, RUNS, Sweep

LOSSES = ("train_loss", "eval_loss", "eval_accuracy")
WORDS = ("data", "task", "model", "optimizer", "status")
RUN_COLUMNS = ("run_id", *WORDS, "lr", "seed", "diverged_step", *LOSSES, "initial_eval_loss")
CURVE_COLUMNS = ("run_id", "step", "seconds", *LOSSES)


def load(folder: str | os.PathLike[str]) -> Sweep:
    """Read the results of a sweep or, while it runs or after an interruption, what there is of it so far.

    Raises: OptionError, a sentence that names the missing or damaged file.
    """
    folder = Path(values.taken("the folder of a sweep", folder, values.FOLDER))
    # Unlike Path.is_dir, this returns False for names that no file can have.
    if not os.path.isdir(folder):
        raise OptionError(f"{folder} is no folder")
    so_far = read_unfinished(folder)
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
    return Sweep(runs, curves, provenance)


def folders(root: str | os.PathLike[str]) -> list[Path]:
    """Return the folders, `root` and below, that hold the results of a sweep, also of one that is not finished."""
    ended = {path.parent for path in Path(root).rglob(RUNS)}
    return sorted(ended | {path.parents[1] for path in Path(root).rglob(f"{results.PARTS}/{results.ASKED}")})


def _table(path: Path, columns: tuple[str, ...], checksum: str | None) -> pd.DataFrame:
    """Read a table that has these columns, numeric except `WORDS`. checksum: SHA-256 of the file, None if unknown."""
    if checksum and _read(path, files.sha256) != checksum:
        raise OptionError(f"{path} is damaged: the command of its sweep makes it again from the parts")
    table = _read(path, results.read_table)
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


def read_unfinished(out: Path) -> results.Sweep | None:
    """Read a sweep that has not ended, even while it runs; return None if it has ended.

    Its runs are those that are finished and, with the status "unfinished", those of the chunk at work so far. The
    tables may be empty. In the provenance, `unfinished` says how many runs are finished, of how many, and how many more
    have `begun`, if any have.
    """
    try:
        asked = read_asked(out)
        # A sweep may end, and another one start, while these files are read. The chunk at work comes first: if it ends
        # meanwhile, its table is there.
        running = at_work.read(out / results.PARTS)
        tables = checkpoints.read(out / results.PARTS, repair=False)
        return so_far(asked, tables, unless_finished(running, tables))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_asked(out: Path) -> dict[str, Any]:
    """Read the record of `results.begin`. Raises: OSError, ValueError, KeyError or TypeError if there is none."""
    asked = json.loads((out / results.PARTS / results.ASKED).read_text(encoding="utf-8"))
    return asked | {"runs": pd.DataFrame(asked["runs"])}


def unless_finished(running: pd.DataFrame | None, tables: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    """Return the table of the chunk at work, of `at_work.read`; None if that chunk has finished or there is none."""
    finished = chunks.keys_of(tables)
    return None if running is None or finished.issuperset(running["key"]) else running


def so_far(asked: dict[str, Any], tables: list[pd.DataFrame], running: pd.DataFrame | None = None) -> results.Sweep:
    """Return what there is of a sweep.

    Args:
        asked: of `read_asked`.
        tables: of finished chunks, maybe none.
        running: of the chunk at work.
    """
    runs, about = asked["runs"], asked["about"]
    tables = chunks.of_runs(runs, chunks.by_run([*tables, *([] if running is None else [running])]))
    found = chunks.joined(runs, tables) if tables else (runs.iloc[:0], runs.iloc[:0])
    about = about | {"seconds": {"total": round(chunks.seconds(tables), 3)}}
    n_finished = len(found[0])
    if n_finished:
        keys = runs["key"].iloc[found[0]["run_id"]]
        # They are at work, or wait at a rung.
        go_on = (found[0]["status"] == "stopped") & keys.isin(asked.get("going", [])).array
        found[0].loc[go_on, "status"] = "unfinished"
        n_finished -= int((go_on | keys.isin([] if running is None else running["run_key"]).array).sum())
    if n_finished < len(runs):
        begun = len(found[0]) - n_finished
        about["unfinished"] = {"finished": n_finished, "of": len(runs)} | ({"begun": begun} if begun else {})
    return results.Sweep(*found, about)
