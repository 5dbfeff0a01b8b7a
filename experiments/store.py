"""The files of a results folder: written whole or not at all."""

import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from experiments.grid import OptionError

PACKAGES = ("torch", "triton", "numba", "numpy", "pandas")
RUNS, CURVES, PROVENANCE = "runs.parquet", "curves.parquet", "provenance.json"
PARTS, DRAWN, LOCK, CONFIRMED = "parts", "drawn.json", ".lock", "confirmed"
ROW_BYTES = 300
"""Of a run's evaluation: in a part, in the tables made of the parts, and in what they are written to meanwhile."""


class Sweep(NamedTuple):
    """Results of a sweep.

    Attributes:
        runs: one row a run, as in runs.parquet: run_id, data, task, model, optimizer, the hyperparameters (NaN where
            the optimizer has none such), seed, status ("ok" or "diverged"), diverged_step, and losses and accuracies
            at the start (initial_), at the end, and at their best (best_). Accuracies are shares, NaN of regressions.
        curves: one row a run and evaluation, as in curves.parquet: run_id, step, epoch, train_loss (mean since the
            last evaluation), eval_loss, eval_accuracy, and seconds that the run's population has trained.
        provenance: where they come from, as in provenance.json: data, loss_name, seconds, versions, device, the grid.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict


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
    replace(out / RUNS, lambda path: runs.to_parquet(path, index=False))
    replace(out / CURVES, lambda path: curves.to_parquet(path, index=False))
    provenance["sha256"] = {name: sha256(out / name) for name in (RUNS, CURVES)}
    write_provenance(out, provenance)


def write_provenance(out: Path, provenance: dict) -> None:
    replace(out / PROVENANCE, lambda path: path.write_text(json.dumps(provenance, indent=2) + "\n"))


def write_drawn(out: Path, paths: Iterable[Path]) -> None:
    """Keep which files are figures and reports of the sweep."""
    names = [path.name for path in paths]
    replace(out / PARTS / DRAWN, lambda path: path.write_text(json.dumps(names)))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(folder: str | os.PathLike[str]) -> Sweep:
    """The results of a sweep. Raises: OptionError that names the file if one is missing or damaged."""
    folder = Path(folder)
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        check_sums(folder, provenance)
        tables = (pd.read_parquet(folder / name) for name in (RUNS, CURVES))
        return Sweep(*tables, provenance)
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{folder} does not hold the results of a finished sweep ({error})") from error


def check_sums(folder: Path, provenance: dict) -> None:
    """Raise OptionError if a table is not the one that provenance.json tells of."""
    # Older folders have no checksums.
    for name, expected in provenance.get("sha256", {}).items():
        if sha256(folder / name) != expected:
            raise OptionError(f"{folder / name} is damaged: the command of its sweep makes it again from the parts")


def clear(out: Path) -> None:
    """Remove a sweep's results, and nothing else, from a folder whose lock this process holds."""
    try:
        drawn = json.loads((out / PARTS / DRAWN).read_text())
    except (OSError, ValueError):
        drawn = []
    for name in (RUNS, CURVES, *drawn):
        (out / name).unlink(missing_ok=True)
    for pattern in ("*-*.parquet", "*-*.pt", "*.json"):
        for path in (out / PARTS).glob(pattern):
            path.unlink()
    if (out / CONFIRMED).is_dir():
        clear(out / CONFIRMED)
    # Last, so that a folder that was left half-cleared is still known as a sweep's.
    (out / PROVENANCE).unlink(missing_ok=True)


def check_folder(out: Path, option: str = "--out") -> None:
    """Raise OptionError unless the folder can be made or written to."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"{option} accepts a folder, and {out} is a file")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OptionError(f"{option} accepts a folder that can be written to, and {parent} cannot")


def check_out(out: Path, sweep: dict, fresh: bool = False) -> None:
    """Raise OptionError unless results of this sweep may be written to the folder.

    fresh: whether those of another sweep are to go.
    """
    check_folder(out)
    # A process that was killed may have left no more than a lock and hidden files.
    known = (PARTS,) if (out / PARTS / LOCK).exists() else ()
    if not out.exists() or all(path.name.startswith(".") or path.name in known for path in out.iterdir()):
        return
    accepted = "--out accepts a new or empty folder, or one of the same sweep or a part of it"
    try:
        other = json.loads((out / PROVENANCE).read_text())["sweep"]
        differing = differences(json.loads(json.dumps(sweep)), other)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(f"{accepted}, and {out} holds other files") from None
    if differing and not fresh:
        raise OptionError(
            f"{accepted}, and {out} holds another sweep (it differs in {', '.join(differing)}), which --fresh removes"
        )


def differences(sweep: dict, other: dict) -> list[str]:
    """In what a sweep is another than one that was there before; nothing if it is the same one or a larger grid."""
    differing = [key for key in sweep if sweep[key] != other.get(key) and key not in ("optimizers", "seeds")]
    grids, before = sweep["optimizers"], other["optimizers"]
    if not all(
        name in grids
        and axes.keys() == grids[name].keys()
        and all(set(axes[axis]) <= set(grids[name][axis]) for axis in axes)
        for name, axes in before.items()
    ):
        differing.insert(0, "optimizers")
    if sweep["seeds"] < other["seeds"]:
        differing.insert(0, "seeds")
    return differing


def check_room(out: Path | None, n_runs: int, n_points: int) -> None:
    """Raise OptionError if results of that size fit neither into the memory nor, if there is a folder, on its disk."""
    needed = n_runs * n_points * ROW_BYTES
    rooms = {"of memory": memory()}
    if out is not None:
        folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        rooms[f"on the disk of {out}"] = shutil.disk_usage(folder).free
    for where, free in rooms.items():
        if needed > free:
            raise OptionError(
                f"the grid accepts as many runs as there is room for: {n_runs} runs with {n_points} evaluations take "
                f"about {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB {where} are free"
            )


def memory() -> int:
    """Bytes of memory that are free; 8 GiB where nothing says it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30


def provenance(device: str) -> dict:
    """The command, when it was given, the code, the packages and the machine."""
    return {
        "command": command_line(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "device": describe_device(device),
    }


def machine_line(provenance: dict) -> str:
    """Machine, versions, commit and date in one line."""
    device, git = provenance["device"], provenance["git"]
    parts = [device["name"], *(f"{value} {name}" for name, value in device.items() if name != "name")]
    parts += [f"{name} {version}" for name, version in provenance["versions"].items()]
    parts.append(f"commit {(git['commit'] or 'unknown')[:10]}{' with changes' if git['dirty'] else ''}")
    return ", ".join([*parts, provenance["started"][:10]])


def git_state() -> dict:
    """Commit of the code and whether the work tree differs from it; None where there is no git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # What a sweep writes is no change of the code.
    status = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    installed = {name: version(name) for name in PACKAGES if find_spec(name)}
    return {"python": platform.python_version()} | {name: installed.get(name, "not installed") for name in PACKAGES}


def describe_device(device: str) -> dict:
    """Name and size of what the sweep runs on: a GPU, or the processor and its threads."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return {"name": "GPUs of a cluster"}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    return {"name": cpu_name(), "threads": torch.get_num_threads()}


def here() -> str:
    """What a sweep runs on where nothing else is asked for, in one sentence: the GPU, or the processor."""
    if torch.cuda.is_available():
        found = describe_device("cuda")
        return f"On {found['name']}, {found['memory_gib']} GiB."
    found = describe_device("cpu")
    return f"There is no CUDA GPU here: on {found['threads']} threads of {found['name']}."


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command that started this process, as one could type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name] if spec and spec.name != "__main__" else ["python", Path(sys.argv[0]).name]
    return " ".join([*start, *sys.argv[1:]])
