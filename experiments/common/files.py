"""Files and folders that are written: whole or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from experiments.common import values
from experiments.common.errors import OptionError


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside path, and move it there once it is complete."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
