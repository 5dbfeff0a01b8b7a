"""The user's cache folder, and files that are written whole or not at all."""

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
