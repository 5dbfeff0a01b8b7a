"""Runs in a database of MLflow, one file, as an experiment."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from experiments.trackers.records import Study

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
MOST_METRICS = 1000
"""As many values as MLflow takes in one call."""


def write(out: Path, study: Study, final: Path) -> None:
    """Write mlflow.db, with a run of MLflow for each run of a study. A run that has diverged is FAILED there.

    final: the folder that `out` will become; MLflow keeps in its database where later files of a run belong.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]
    from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The path in a URI ends at a "?", which the user's folder may have in its name.
    with tempfile.TemporaryDirectory() as safe:
        database = Path(safe) / DATABASE
        client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        experiment = client.create_experiment(study.name, (final / ARTIFACTS).absolute().as_uri(), tags=study.about)

        def milliseconds(seconds: float) -> int:
            return round(1000 * (study.started + seconds))

        for record in study.records:
            run = client.create_run(experiment, start_time=milliseconds(0), run_name=record.name).info.run_id
            metrics = [
                Metric(name, value, milliseconds(point.seconds), point.step)
                for point in record.points
                for name, value in point.values.items()
            ]
            params = [Param(name, str(value)) for name, value in record.config.items()]
            tags = [RunTag(name, str(value)) for name, value in record.results.items()]
            client.log_batch(run, metrics[:MOST_METRICS], params, tags)
            for i in range(MOST_METRICS, len(metrics), MOST_METRICS):
                client.log_batch(run, metrics[i : i + MOST_METRICS])
            ended = milliseconds(record.points[-1].seconds)
            client.set_terminated(run, "FAILED" if record.results.get("status") == "diverged" else "FINISHED", ended)
        shutil.move(database, out / DATABASE)
