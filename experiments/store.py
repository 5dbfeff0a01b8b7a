"""The files of a results folder: written whole or not at all."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from experiments.grid import OptionError

PACKAGES = ("torch", "triton", "numba", "numpy", "pandas")
RUNS, CURVES, PROVENANCE = "runs.parquet", "curves.parquet", "provenance.json"


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside path, and move it there once it is complete."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(out: Path, runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> None:
    """Write provenance.json, runs.parquet and curves.parquet into the folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    # First, so that a folder that was left half-written is still known as this sweep's.
    replace(out / PROVENANCE, lambda path: path.write_text(json.dumps(provenance, indent=2) + "\n"))
    replace(out / RUNS, lambda path: runs.to_parquet(path, index=False))
    replace(out / CURVES, lambda path: curves.to_parquet(path, index=False))


def check_folder(out: Path, option: str = "--out") -> None:
    """Raise OptionError unless the folder can be made or written to."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"{option} accepts a folder, and {out} is a file")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OptionError(f"{option} accepts a folder that can be written to, and {parent} cannot")


def check_out(out: Path, sweep: dict) -> None:
    """Raise OptionError unless results of this sweep may be written to the folder."""
    check_folder(out)
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        other = json.loads((out / PROVENANCE).read_text())["sweep"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OptionError(
            f"--out accepts a new or empty folder, or one of the same sweep, and {out} holds other files"
        ) from None
    if differing := [key for key in sweep if json.loads(json.dumps(sweep[key])) != other.get(key)]:
        raise OptionError(
            f"--out accepts a new or empty folder, or one of the same sweep, and {out} holds another sweep "
            f"(it differs in {', '.join(differing)})"
        )


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
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    return {"name": cpu_name(), "threads": torch.get_num_threads()}


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
