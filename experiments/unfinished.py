"""A sweep that has begun and has not ended: what it is to train, kept in its folder, and what of that is finished."""

import json
from pathlib import Path

import pandas as pd

from experiments import chunks, parts, store


def begin(out: Path, runs: pd.DataFrame, about: dict) -> None:
    """Keep what a sweep is to train, until `end`.

    Args:
        runs: as of `chunks.joined`.
        about: what its provenance begins with.
    """
    text = json.dumps({"about": about, "runs": runs.to_dict("list")})
    store.replace(out / store.PARTS / store.ASKED, lambda path: path.write_text(text, encoding="utf-8"))


def end(out: Path) -> None:
    (out / store.PARTS / store.ASKED).unlink(missing_ok=True)


def read(out: Path) -> store.Sweep | None:
    """What is finished of a sweep that another process may be at; None if all that was asked for has ended.

    Tables may be without rows. The provenance says of `unfinished` how many runs are finished, and of how many.
    """
    try:
        asked = json.loads((out / store.PARTS / store.ASKED).read_text(encoding="utf-8"))
        runs, about = pd.DataFrame(asked["runs"]), asked["about"]
        # Between one look and the next a sweep may end, and another start over.
        tables = chunks.of_runs(runs, parts.read(out / store.PARTS, repair=False))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finished = {key for table in tables for key in table["key"]}
    about |= {"seconds": {"total": round(chunks.seconds(tables), 3)}}
    if len(finished) < len(runs):
        about["unfinished"] = {"finished": len(finished), "of": len(runs)}
    return store.Sweep(*(chunks.joined(runs, tables) if tables else (runs[:0], runs[:0])), about)


def sentence(provenance: dict) -> str:
    """How much of a sweep is finished, if that is not all; else nothing."""
    if not (counts := provenance.get("unfinished")):
        return ""
    return (
        f"Unfinished: {counts['finished']} of {counts['of']} runs are finished, and shown here; the command of the "
        "sweep goes on with the others."
    )
