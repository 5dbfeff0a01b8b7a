"""Runs as Weights & Biases keeps them offline: `wandb sync` sends them to its server."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.trackers.records import Study


def write(out: Path, study: Study, final: Path) -> None:
    """Write an offline run below out/wandb for each run of a study; nothing leaves this machine."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # pyright: ignore[reportMissingImports]

    settings = wandb.Settings(
        mode="offline", silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True
    )
    try:
        for record in study.records:
            run = wandb.init(
                project=study.name,
                name=record.name,
                config={**record.config, **study.about},
                dir=out,
                reinit="finish_previous",
                settings=settings,
            )
            for point in record.points:
                run.log(point.values, step=point.step)
            run.summary.update(record.results)
            run.finish()
    finally:
        # Its process has files open.
        wandb.teardown()
    (out / "wandb" / "latest-run").unlink(missing_ok=True)
