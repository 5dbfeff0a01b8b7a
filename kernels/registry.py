"""Files of measured launch configurations, one a GPU or CPU: found, checked, merged, written.

They lie in the folder that the environment variable ADAM_SANDBOX_TUNED names, in the user's cache
($XDG_CACHE_HOME or ~/.cache)/adam-sandbox/tuned, and in kernels/tuned; where several have an entry, the first counts.

    {"schema": 1, "device": {...}, "versions": {...}, "entries": {
        "adam/float32/float32/float32/nearest/aligned/long/24": {
            "config": {...}, "ties": [{...}], "median_us": ..., "interval_us": [low, high], "samples": ...,
            "copy_share": ..., "default_over_this": [median, low, high], "machine_code": "...", "triton": "..."}}}

Times are of one step, prologue included; copy_share is bytes moved by the step over what a copy moves in that time.
An entry holds for other versions of Triton too, as long as they compile it to the same machine code.

A file that cannot be used is named once, in a warning of this module's logger, and is otherwise as if it were not
there: no step of an optimizer fails for it.
"""

import contextlib
import functools
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels import files
from kernels.config import Config, CpuConfig, Device

SCHEMA = 1
VARIABLE = "ADAM_SANDBOX_TUNED"
PACKAGED = Path(__file__).with_name("tuned")
KEY = re.compile(r".+/\w+/\w+/\w+/(nearest|stochastic)/(aligned|unaligned)/(short|medium|long)/\d{1,2}")
NUMBERS = {"median_us": 1, "copy_share": 1, "samples": 1, "interval_us": 2, "default_over_this": 3}
TEXTS = ("machine_code", "triton", "numba")
LOG = logging.getLogger(__name__)


@functools.cache
def warn_once(message: str) -> None:
    LOG.warning(message)


def overlay() -> Path:
    """The folder of what this user's machines have measured."""
    return files.cache_folder("tuned")


def folders() -> list[Path]:
    """Where files are looked for, the most important first."""
    named = os.environ.get(VARIABLE)
    return [*([Path(named).expanduser()] if named else []), overlay(), PACKAGED]


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def checked(content: Any) -> tuple[Device, dict, dict]:
    """Device, versions and entries of a file's content, configurations made `Config`s.

    Raises: ValueError, saying what is wrong, for anything but a file of this schema.
    """
    expect(isinstance(content, dict) and {"schema", "device", "entries"} <= content.keys(), "it is no such file")
    expect(content["schema"] == SCHEMA, f"its schema is {content['schema']!r}, and this version reads {SCHEMA}")
    facts, versions, entries = content["device"], content.get("versions", {}), content["entries"]
    expect(all(isinstance(part, dict) for part in (facts, versions, entries)), "its parts are no objects")
    kinds = {name: str if name in ("name", "arch") else int for name in Device.__dataclass_fields__}
    expect({"name", "arch"} <= facts.keys() <= kinds.keys(), "it describes no device")
    for name, value in facts.items():
        fits = type(value) is kinds[name] and (isinstance(value, str) or 0 <= value < 2**63)
        expect(fits, f"its {name} is {value!r}")
    kind = CpuConfig if facts["arch"] == "cpu" else Config
    return Device(**facts), versions, {key: checked_entry(key, entry, kind) for key, entry in entries.items()}


def checked_entry(key: str, entry: Any, kind: type[Config] | type[CpuConfig]) -> dict:
    expect(KEY.fullmatch(key) is not None, f"an entry is named {key!r}")
    expect(isinstance(entry, dict) and isinstance(entry.get("config"), dict), f"{key} has no configuration")
    ties = entry.get("ties", [])
    expect(isinstance(ties, list) and all(isinstance(tie, dict) for tie in ties), f"the ties of {key} are no list")
    for name, count in NUMBERS.items():
        values = entry.get(name, [1.0] * count)
        values = values if isinstance(values, list) else [values]
        expect(len(values) == count and all(type(v) in (int, float) for v in values), f"{name} of {key} is no number")
    expect(all(isinstance(entry.get(name, ""), str) for name in TEXTS), f"{' or '.join(TEXTS)} of {key} is no text")
    try:
        return {**entry, "config": kind(**entry["config"]), "ties": [kind(**tie) for tie in ties]}
    except TypeError:
        raise ValueError(f"{key} has a configuration with other fields than this version's") from None


@functools.lru_cache(maxsize=256)
def read(path: Path, modified: int, size: int) -> tuple[Device, dict, dict] | None:
    """What `checked` makes of a file, or None and a warning if it cannot be used; once for each state of the file."""
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")))
    # Deeply nested brackets exhaust the parser's stack.
    except (OSError, ValueError, RecursionError) as error:
        warn_once(f"{path} is ignored: {error}")
        return None


def read_now(path: Path) -> tuple[Device, dict, dict] | None:
    """As `read`, of the file as it is now; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(state.st_mode):
        return None
    return read(path, state.st_mtime_ns, state.st_size)


def load() -> dict[str, tuple[Device, dict]]:
    """For each slug the device and all its entries."""
    found = {}
    for folder in folders():
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
        except OSError:
            continue
        for path in paths:
            if content := read_now(path):
                device, _, entries = content
                first, others = found.get(device.slug, (device, {}))
                found[device.slug] = first, {**entries, **others}
    return found


def measured(entry: dict) -> str:
    """What a line says about an entry's measurement, as far as the entry has it."""
    parts = []
    if {"median_us", "interval_us"} <= entry.keys():
        low, high = entry["interval_us"]
        parts.append(f"{entry['median_us']:.4g} us [{low:.4g}, {high:.4g}]")
    if "copy_share" in entry:
        parts.append(f"{entry['copy_share']:.0%} of copy bandwidth")
    if "default_over_this" in entry:
        ratio, low, high = entry["default_over_this"]
        parts.append(f"the default takes {ratio:.3f} [{low:.3f}, {high:.3f}] times as long")
    if entry.get("ties"):
        parts.append(f"{len(entry['ties'])} others could not be told from it")
    parts += [f"{name.title()} {entry[name]}" for name in ("triton", "numba") if entry.get(name)]
    return "; ".join(parts)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing the file; a lock ends with its process, however that ends."""
    import fcntl

    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path: Path, device: Device, versions: dict, entries: dict) -> None:
    """Add entries to a file, replacing those of the same key. Raises: OSError if it cannot be written.

    Any number of processes may do so at once. A file that cannot be used is kept beside it, as NAME.json.ignored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        before = read_now(path)
        if before is None and path.exists():
            os.replace(path, path.with_name(f"{path.name}.ignored"))
        merged = {**(before[2] if before else {}), **entries}
        plain = {
            key: {**entry, "config": asdict(entry["config"]), "ties": [asdict(tie) for tie in entry.get("ties", [])]}
            for key, entry in merged.items()
        }
        content = {"schema": SCHEMA, "device": asdict(device), "versions": versions, "entries": plain}
        checked(content)
        files.write(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def record(device: Device, versions: dict, entries: dict, into: list[Path] | None = None) -> Path | None:
    """Write entries to the first folder that lets itself be written to; which file, or None if there is none.

    Args:
        into: by default the folder of the environment variable, if it is set, and the user's cache.
    """
    for folder in into or folders()[:-1]:
        path = folder / f"{device.slug}.json"
        try:
            write(path, device, versions, entries)
        except OSError as error:
            warn_once(f"{path} cannot be written: {error.strerror or error}")
        else:
            return path
    return None
