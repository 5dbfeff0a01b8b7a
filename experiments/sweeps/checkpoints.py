"""The folder OUT/parts: a sweep's finished chunks, the checkpoints of the others, and the lock of the folder.

The name of each file ends in the first digits of the SHA-256 of its content, so damage shows without a second file.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from experiments.common import files
from experiments.common.errors import OptionError
from experiments.sweeps import results

CHUNKS, OWNER = "chunks.json", ".owner"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock OUT, created if needed, for this process alone; the lock ends with the process.

    Raises: OptionError if another process holds the lock, or the folder cannot be written to.
    """
    parts = out / results.PARTS
    lock = FileLock(parts / results.LOCK, timeout=0)
    try:
        parts.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (parts / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        # Remove the temporary files of killed processes; figures are also drawn without the lock.
        for path in [*parts.glob(".*.*.*"), *(path for path in out.iterdir() if is_leftover(path))]:
            path.unlink(missing_ok=True)
    except Timeout:
        raise OptionError(
            "--out accepts a folder that no other sweep is writing to, "
            f"and {owner(parts) or 'another process'} is writing to {out}"
        ) from None
    except (OSError, NotImplementedError) as error:
        lock.release()
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--out accepts a folder that can be written to, and {parts} cannot ({reason})") from error
    try:
        yield
    finally:
        # Who reads the folder sees that nobody works at it, even if this process goes on.
        with contextlib.suppress(OSError):
            (parts / OWNER).write_text("", encoding="utf-8")
        lock.release()


def owner(parts: Path) -> str | None:
    """Return the name of the process that holds the lock; None if no living one has told it."""
    try:
        told = (parts / OWNER).read_text(encoding="utf-8")
    except OSError:
        told = ""
    match = re.fullmatch(r"process (\d+) on (.+)", told)
    if not match or (match[2] == socket.gethostname() and not is_alive(int(match[1]))):
        return None
    return told


def is_alive(pid: int) -> bool:
    """Return whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def is_leftover(path: Path) -> bool:
    """Return whether this is a temporary file that a killed process of this machine left in a results folder."""
    match = files.TEMPORARY.fullmatch(path.name)
    return bool(match) and not is_alive(int(match["pid"]))


def write(parts: Path, name: str, suffix: str, fill: Callable[[Path], object]) -> Path:
    """Let `fill` write a file whose name ends in its checksum; return its path."""
    return files.replace(parts / f"{name}{suffix}", fill, lambda path: f"{name}-{checksum(path)}{suffix}")


def checksum(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()[:16]


def is_intact(path: Path) -> bool:
    """Return whether a file holds what was written; an empty one never does."""
    return path.stat().st_size > 0 and path.stem.endswith(f"-{checksum(path)}")


def name_of(keys: Iterable[str]) -> str:
    """Return the name of the chunk of these runs."""
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def read_chunks(parts: Path) -> list[list[str]]:
    """Read the runs of each chunk of the sweep from the file of `write_chunks`; return none if it is damaged."""
    path = parts / CHUNKS
    if not path.exists():
        return []
    try:
        chunks = json.loads(path.read_bytes())
        if all(name_of(keys) == name for name, keys in chunks.items()):
            return list(chunks.values())
    except (ValueError, TypeError, AttributeError):
        pass
    warn(f"{path} is damaged: what is not finished is trained from its start")
    return []


def write_chunks(parts: Path, chunks: Iterable[list[str]]) -> None:
    """Write how the sweep is cut into chunks: the last bits of a run depend on how many are trained with it."""
    text = json.dumps({name_of(keys): keys for keys in chunks})
    files.replace(parts / CHUNKS, lambda path: path.write_text(text, encoding="utf-8"))


def read(parts: Path, repair: bool = True) -> list[pd.DataFrame]:
    """Read the tables of all finished chunks. Report and remove damaged ones.

    repair: False only leaves them out, because the folder may belong to another process.
    """
    tables, lengths = [], {}
    for path in sorted(parts.glob("[!.]*.parquet")):
        if is_intact(path):
            tables.append(results.read_table(path))
            continue
        if not repair:
            continue
        lengths = lengths or {name_of(keys): len(keys) for keys in read_chunks(parts)}
        n_runs = lengths.get(path.stem.partition("-")[0])
        warn(f"{path} is damaged: its {f'{n_runs} runs' if n_runs else 'runs'} are trained again")
        path.unlink()
    return tables


def save(parts: Path, name: str, table: pd.DataFrame) -> None:
    """Write the table of a finished chunk, and remove its checkpoints."""
    write(parts, name, ".parquet", lambda path: path.write_bytes(table.to_parquet(index=False)))
    for path in parts.glob(f"{name}-*.pt"):
        path.unlink()


def save_checkpoint(parts: Path, name: str, state: dict, suffix: str = ".pt") -> None:
    """Write the checkpoint of a chunk, or with another suffix the state at its end, and remove its earlier ones."""

    def fill(path: Path) -> None:
        try:
            with path.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            # If writing fails, torch raises that it could not finish the file; the cause is the OSError before.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    kept = write(parts, name, suffix, fill)
    for path in parts.glob(f"{name}-*{suffix}"):
        if path != kept:
            path.unlink()


def read_checkpoint(parts: Path, name: str, device: str, suffix: str = ".pt") -> dict | None:
    """Read what `save_checkpoint` wrote of a chunk; return None if there is none. Report and remove damaged ones.

    device: device for the tensors that were on a GPU; the others stay on the CPU.
    """

    def place(storage: Any, location: str) -> Any:
        return torch.serialization.default_restore_location(storage, "cpu" if location == "cpu" else device)

    # A process that was killed may have left an earlier one, too.
    for path in sorted(parts.glob(f"{name}-*{suffix}"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if is_intact(path):
            return torch.load(path, map_location=place, weights_only=True)
        warn(f"{path} is damaged: its runs start over")
        path.unlink()
    return None


def drop_checkpoints(parts: Path, but: set[str], suffix: str = ".pt") -> None:
    """Remove the checkpoints, or the states, of all chunks except those named in `but`."""
    for path in parts.glob(f"*-*{suffix}"):
        if path.stem.partition("-")[0] not in but:
            path.unlink()


def warn(sentence: str) -> None:
    print(f"WARNING: {sentence}", file=sys.stderr)
