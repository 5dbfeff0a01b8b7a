"""The user's cache folder, and files that are written whole or not at all."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder of that name in the user's cache, $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "adam-sandbox", name)


def write(path: Path, content: bytes) -> None:
    """Replace a file, which others see as it was or complete. Raises: OSError if it cannot be written."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def keep(path: Path, content: bytes) -> None:
    """Keep content in a file of the cache, followed by its SHA-256, where this is possible."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content + hashlib.sha256(content).digest())


def kept(path: Path) -> bytes | None:
    """Return the content that `keep` has kept there; None if there is none, or not the whole of it."""
    try:
        # A pipe of that name would wait for ever.
        file = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    content, digest = file[:-32], file[-32:]
    return content if hashlib.sha256(content).digest() == digest else None
