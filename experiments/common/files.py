"""Files and folders: written whole or not at all."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from experiments.common import values
from experiments.common.errors import OptionError

TEMPORARY = re.compile(r"\.[\w-]+\.(?P<pid>\d+)(?:\.old)?\.(?:parquet|json|png|pdf|csv|md|html)")
"""The names of the temporary files of results folders; `pid` is the process that writes them."""


@contextlib.contextmanager
def temporaries(paths: Iterable[Path], mark: str = "") -> Iterator[dict[Path, Path]]:
    """Yield a path for a temporary file beside each of `paths`, by path; remove the files that are left at the end."""
    names = {path: path.with_name(f".{path.stem}.{os.getpid()}{mark}{path.suffix}") for path in paths}
    try:
        yield names
    finally:
        for temporary in names.values():
            temporary.unlink(missing_ok=True)


def replace(path: Path, write: Callable[[Path], object], name: Callable[[Path], str] | None = None) -> Path:
    """Let `write` fill a temporary file beside path, move it there once it is complete, and return its path.

    name: returns the file's name, given the complete temporary file; by default it is that of path.
    """
    with temporaries([path]) as names:
        write(names[path])
        final = path.with_name(name(names[path])) if name else path
        os.replace(names[path], final)
    return final


def replace_all(paths: Iterable[Path], write: Callable[[dict[Path, Path]], object]) -> None:
    """Let `write` fill a temporary file for each of `paths`, and move all of them there once they are complete.

    If that fails or is interrupted, each of `paths` is as it was. Only a process that is killed between the first and
    the last move leaves old files beside new ones.
    """
    with temporaries(paths) as new, temporaries(new, ".old") as old:
        write(new)
        for path in new:
            if path.exists():
                shutil.copy2(path, old[path])
        try:
            for path, temporary in new.items():
                os.replace(temporary, path)
        except BaseException:
            for path, copy in old.items():
                if copy.exists():
                    os.replace(copy, path)
                else:
                    path.unlink(missing_ok=True)
            raise


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_folder(given: str | os.PathLike[str], option: str = "--out") -> Path:
    """Return the folder as a path. Raises: OptionError if it can neither be made nor written to."""
    out = values.taken(option, given, values.FOLDER)
    missing, parent = [], out.absolute()
    try:
        # The names of our files, up to 100 characters, must fit into the path.
        (out / ("x" * 100)).exists()
        for parent in (out.absolute(), *out.absolute().parents):
            if parent.exists():
                break
            if parent.is_symlink():
                target = os.readlink(parent)
                raise OptionError(f"{option} accepts a folder, and {parent} is a link to {target}, which is not there")
            missing.append(parent.name)
        # Names below a missing folder could not be checked until now.
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
