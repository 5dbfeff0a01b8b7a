"""Runs in a database of trackio, as a project."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from experiments.common.errors import OptionError
from experiments.trackers.records import Study

ELSEWHERE = "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"
"""Environment variables by which trackio sends runs away instead."""


def write(out: Path, study: Study, final: Path) -> None:
    """Write a project's database, with a run of trackio for each run of a study; nothing leaves this machine.

    Raises: OptionError if trackio is imported already: it has then chosen another folder.
    """
    if "trackio" in sys.modules:
        raise OptionError("--to trackio needs a process that has not imported trackio, as python -m experiments.export")
    os.environ["TRACKIO_DIR"] = str(out.absolute())
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    # It prints about every run.
    with contextlib.redirect_stdout(io.StringIO()):
        import trackio  # pyright: ignore[reportMissingImports]

        for record in study.records:
            config = {**record.config, **record.results, **study.about}
            trackio.init(
                project=study.name,
                name=record.name,
                config=config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for point in record.points:
                trackio.log(point.values, step=point.step)
            trackio.finish()
