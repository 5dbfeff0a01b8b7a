"""What trackers have of a study, read with their own libraries: a `Read` for each run, by its name."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Read(NamedTuple):
    """A run: its hyperparameters, its results, and its values by name and step."""

    config: dict[str, Any]
    results: dict[str, Any]
    values: dict[tuple[str, int], float]


def tensorboard(out: Path, project: str) -> dict[str, Read]:
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )
    from tensorboard.plugins.hparams import metadata  # pyright: ignore[reportMissingImports]

    found = {}
    for folder in out.iterdir():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        (content,) = events.PluginTagToContent("hparams").values()
        told = metadata.parse_session_start_info_plugin_data(content).hparams
        config = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in told.items()}
        values = {(tag, one.step): one.value for tag in events.Tags()["scalars"] for one in events.Scalars(tag)}
        found[folder.name] = Read(config, config, values)
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the messages in a .wandb file: pieces of them, in blocks of 32 KiB as in a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    content, at, pieces, block = path.read_bytes(), 7, b"", 32768
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        pieces += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(pieces)
            pieces = b""


def items(found: Iterable[Any]) -> dict[str, Any]:
    return {getattr(item, "key", "") or "".join(item.nested_key): json.loads(item.value_json) for item in found}


def wandb(out: Path, project: str) -> dict[str, Read]:
    found = {}
    for path in out.glob("wandb/offline-run-*/*.wandb"):
        read = Read({}, {}, {})
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.project == project
                found[record.run.display_name] = read
                read.config.update(items(record.run.config.update))
            elif kind == "summary":
                read.results.update(items(record.summary.update))
            elif kind == "history":
                row = items(record.history.item)
                step = row["_step"]
                read.values.update({(name, step): float(row[name]) for name in row if not name.startswith("_")})
    return found


def mlflow(out: Path, project: str) -> dict[str, Read]:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    # Where no "?" is in the path.
    with tempfile.TemporaryDirectory() as safe:
        return mlflow_runs(MlflowClient(tracking_uri=f"sqlite:///{shutil.copy(out / 'mlflow.db', safe)}"), out, project)


def mlflow_runs(client: Any, out: Path, project: str) -> dict[str, Read]:
    experiment = client.get_experiment_by_name(project)
    assert experiment
    assert experiment.artifact_location == (out / "artifacts").as_uri()
    found = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        assert run.info.status == ("FAILED" if run.data.tags["status"] == "diverged" else "FINISHED")
        histories = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
        values = {(one.key, one.step): one.value for history in histories for one in history}
        found[run.info.run_name] = Read(run.data.params, run.data.tags, values)
    return found


TRACKIO = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
project = sys.argv[1]
found = [(run.name, run.config, SQLiteStorage.get_logs(project, run.name)) for run in trackio.Api().runs(project)]
print(json.dumps(found))
"""


def trackio(out: Path, project: str) -> dict[str, Read]:
    """Read in another process, because trackio looks for its folder when it is imported."""
    environment = {**os.environ, "TRACKIO_DIR": str(out)}
    command = [sys.executable, "-c", TRACKIO, project]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = {}
    for name, config, logs in json.loads(done.stdout):
        values = {
            (key, log["step"]): float(log[key]) for log in logs for key in log if key not in ("step", "timestamp")
        }
        found[name] = Read(config, config, values)
    return found


READERS = {"tensorboard": tensorboard, "wandb-offline": wandb, "mlflow": mlflow, "trackio": trackio}
