"""Tables of runs, curves and configurations as CSV files, which need no library but pandas to be read."""

import json
from pathlib import Path

from experiments.trackers.records import Study


def write(out: Path, study: Study, final: Path) -> None:
    """Write runs.csv, curves.csv, summary.csv and provenance.json: every digit, nothing where a value is missing."""
    for name, table in study.tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    (out / "provenance.json").write_text(json.dumps(study.provenance, indent=2) + "\n", encoding="utf-8")
