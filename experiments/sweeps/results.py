"""The files of a results folder: written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.common import files
from experiments.common.errors import OptionError
from experiments.trackers import tensorboard_runs

if TYPE_CHECKING:
    import pandas as pd

RUNS, CURVES, PROVENANCE = "runs.parquet", "curves.parquet", "provenance.json"
PARTS, ASKED, DRAWN, LOCK, CONFIRMED = "parts", "asked.json", "drawn.json", ".lock", "confirmed"
LOG = "tensorboard"
STATE = ".state"
"""The suffix of a file with the state of a chunk at the end of its stage, from which its runs go on in the next."""
GRID = "optimizers", "axes", "seeds", "sample", "configs"
"""The options of a sweep, as provenance.json has them, that say which of its runs are asked for.

Sweeps of one optimizer once kept their grid under "axes".
"""


class Sweep(NamedTuple):
    """The results of a sweep.

    Attributes:
        runs: one row per run, as in runs.parquet: run_id, data, task, model, steps, optimizer, the axes (float64, or
            words; NaN where the optimizer lacks one), seed, status ("ok", "diverged", "stopped" by halving or, of a
            sweep that has not ended, "unfinished"), diverged_step, stopped_step (the last one so far of an unfinished
            run), and losses and accuracies at the start (initial_), at the end, and at their best (best_). Accuracies
            are fractions, NaN for regressions.
        curves: one row per run and evaluation, as in curves.parquet: run_id, step, epoch, train_loss (mean since the
            last evaluation), eval_loss, eval_accuracy, the seconds that the run's population has trained, and
            run_seconds, its share of them. If only some of the population's runs are in the table, the seconds are
            their share. Unless `keep_diverged`, curves of diverged runs end with the evaluation after diverged_step.
            With `diagnostics` also what `Diagnostics.values` returns.
        provenance: data, loss_name, seconds, versions, device and grid, as in provenance.json. Seconds are the
            `total` of training, and its phases; without a folder nothing is written and drawn. If the sweep has not
            ended, `unfinished` says how many runs are finished, of how many, and how many more have `begun`.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict


class Taken(OptionError):
    """The error that a results folder holds another sweep or other files, as `held` says."""

    def __init__(self, out: Path, held: str, way_out: str = ""):
        accepted = "--out accepts a new or empty folder, or one of the same sweep, whatever its grid"
        super().__init__(f"{accepted}, and {out} holds {held}{way_out}")
        self.held = held


def save(out: Path, runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> None:
    """Write runs.parquet, curves.parquet and provenance.json, which gets the checksums of both, into the folder."""
    files.replace(out / RUNS, lambda path: path.write_bytes(runs.to_parquet(index=False)))
    files.replace(out / CURVES, lambda path: path.write_bytes(curves.to_parquet(index=False)))
    provenance["sha256"] = {name: files.sha256(out / name) for name in (RUNS, CURVES)}
    write_provenance(out, provenance)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table from the bytes of a file, because pyarrow opens no path that is not UTF-8."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(path.read_bytes()))


def write_provenance(out: Path, provenance: dict) -> None:
    files.replace(
        out / PROVENANCE, lambda path: path.write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    )


def write_drawn(out: Path, paths: Iterable[Path]) -> None:
    """Record which files are figures and reports of the sweep, and remove recorded ones that are not among them now."""
    names = [path.name for path in paths]
    for name in set(drawn(out)) - set(names):
        (out / name).unlink(missing_ok=True)
    files.replace(out / PARTS / DRAWN, lambda path: path.write_text(json.dumps(names), encoding="utf-8"))


def drawn(out: Path) -> list[str]:
    """Return the names that `write_drawn` has recorded; none if the record is lost."""
    try:
        return [Path(name).name for name in json.loads((out / PARTS / DRAWN).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def clear(out: Path) -> None:
    """Remove a sweep's results, and nothing else, from a folder whose lock this process holds."""
    for name in (RUNS, CURVES, *drawn(out)):
        (out / name).unlink(missing_ok=True)
    for pattern in ("*-*.parquet", "*-*.pt", "*-*.state", "*.curves", "*.json"):
        for path in (out / PARTS).glob(pattern):
            path.unlink()
    tensorboard_runs.clear(out / LOG)
    if (out / CONFIRMED).is_dir():
        clear(out / CONFIRMED)
    # Last, so that a half-cleared folder is still recognised as a sweep's.
    (out / PROVENANCE).unlink(missing_ok=True)


def check_out(out: Path, sweep: dict, fresh: bool = False) -> None:
    """Raise OptionError unless results of this sweep may be written to the folder.

    fresh: whether results of another sweep may be removed.
    """
    files.check_folder(out)
    # A process that was killed may have left nothing but a lock and hidden files.
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
    """Return the options, other than the grid, in which a sweep differs from another."""
    return [key for key in {**sweep, **other} if key not in GRID and sweep.get(key) != other.get(key)]


def begin(out: Path, runs: pd.DataFrame, about: dict, going: Iterable[str] = (), stage: dict | None = None) -> None:
    """Record the runs that a sweep is to train, until `end`.

    Args:
        runs: as `chunks.asked_runs` returns them.
        about: the provenance that is known at the start.
        going: keys of those that halving has not stopped so far.
        stage: number of the stage at work, `of` how many, keys of its runs, and steps of the whole sweep.
    """
    text = json.dumps({"about": about, "runs": runs.to_dict("list"), "going": [*going], "stage": stage})
    files.replace(out / PARTS / ASKED, lambda path: path.write_text(text, encoding="utf-8"))


def end(out: Path) -> None:
    """Remove the record of `begin`."""
    (out / PARTS / ASKED).unlink(missing_ok=True)
