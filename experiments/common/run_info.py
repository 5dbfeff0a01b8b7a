"""The provenance of results: the command, the code, the packages and the machine."""

import builtins
import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from kernels.config import cpu_name

PACKAGES = ("torch", "triton", "numba", "numpy", "pandas")


def provenance(device: str) -> dict:
    """Return a run's provenance: command, start time (UTC), git state, package versions and device."""
    return {
        "command": command_line(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "device": describe_device(device),
    }


def machine_line(provenance: dict) -> str:
    """Return machine, versions, commit and date in one line."""
    device, git = provenance["device"], provenance["git"]
    parts = [device["name"], *(f"{value} {name}" for name, value in device.items() if name != "name")]
    parts += [f"{name} {version}" for name, version in provenance["versions"].items()]
    parts.append(f"commit {(git['commit'] or 'unknown')[:10]}{' with changes' if git['dirty'] else ''}")
    return ", ".join([*parts, provenance["started"][:10]])


def git_state() -> dict:
    """Return the commit of the code and whether the work tree differs from it; None for both where git fails."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # Results that a sweep writes are not changes of the code.
    status = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    installed = {name: version(name) for name in PACKAGES if find_spec(name)}
    return {"python": platform.python_version()} | {name: installed.get(name, "not installed") for name in PACKAGES}


def describe_device(device: str) -> dict:
    """Return name and size of a device: a GPU and its memory, or the processor and torch's number of threads."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        return {"name": "GPUs of a cluster"}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    return {"name": cpu_name(), "threads": torch.get_num_threads()}


def here() -> str:
    """Return a sentence that names the default device: the GPU, or the processor."""
    if torch.cuda.is_available():
        found = describe_device("cuda")
        return f"On {found['name']}, {found['memory_gib']} GiB."
    found = describe_device("cpu")
    return f"There is no CUDA GPU here: on {found['threads']} threads of {found['name']}."


def command_line() -> str:
    """Return the command that started this process, as a user could type it again, or the notebook's name."""
    if hasattr(builtins, "__IPYTHON__"):
        return f"notebook {os.environ.get('JPY_SESSION_NAME', '')}".rstrip()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", spec.name] if spec and spec.name != "__main__" else ["python", Path(sys.argv[0]).name]
    return readable(" ".join([*start, *sys.argv[1:]]))


def attended() -> bool:
    """Return whether a user executes this cell of a notebook; programs such as nbconvert take no input."""
    from IPython import get_ipython  # pyright: ignore[reportPrivateImportUsage]

    shell = get_ipython()
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}  # pyright: ignore
    return request.get("content", {}).get("allow_stdin", True)


def readable(text: str) -> str:
    """Return text that can be written as UTF-8, also if words or paths have bytes that the console cannot encode."""
    return os.fsencode(text).decode("utf-8", "replace") if any(map(is_surrogate, text)) else text


def is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
