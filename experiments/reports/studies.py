"""Several sweeps as one table of runs: whether they can be compared, and what tells them apart."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.common.errors import OptionError
from experiments.common.run_info import readable
from experiments.reports import aggregation, markdown, origin
from experiments.training.axes import OURS, RUN, axes_in

LONGEST = 40
"""More characters than that of a folder's name are left out."""
ALL_OF_RUN = {"accumulate": 1, "schedule": "constant", "warmup": 0, "init_scale": 1.0}
"""Options of runs whose values an older sweep does not keep."""


class Study(NamedTuple):
    """A sweep among others.

    Attributes:
        name: what tells its folder from the others'; see `names_of`.
        runs, curves, provenance: as a `results.Sweep` has them.
    """

    name: str
    folder: Path
    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict

    @property
    def options(self) -> dict:
        return self.provenance.get("sweep") or {}

    @property
    def task(self) -> str:
        """What was trained on what, and its loss: studies that differ in that have nothing to compare."""
        pairs = self.runs[["task", "data"]].drop_duplicates().itertuples(index=False)
        what = " and ".join(f"{task} on {data}" for task, data in pairs)
        return f"{what} ({self.provenance.get('loss_name', 'evaluation loss')})"

    def value(self, name: str, row: pd.Series) -> Any:
        """Return the value of an option of a run, which may be an axis; None if it is not known. row: of a run."""
        known = row.dropna().get(name, self.options.get(name))
        return ALL_OF_RUN.get(name) if known is None else known


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart, in one line of at most `LONGEST` characters.

    Raises: OptionError if a folder is given twice.
    """
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    if twice := next((folder for i, folder in enumerate(folders) if paths[i] in paths[:i]), None):
        raise OptionError(f"FOLDER accepts different folders, and {twice} is given twice")
    names: list[str] = []
    for n in range(1, max(len(path.parts) for path in paths) + 1):
        names = [shortened("/".join(path.parts[-n:])) for path in paths]
        if len({*names}) == len(names):
            return names
    return [f"{place + 1}: {name}" for place, name in enumerate(names)]


def shortened(name: str) -> str:
    """Return a name in one line, without its middle if it is long."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", readable(name)).strip()
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}…{line[1 - LONGEST // 2 :]}"


def check(studies: Sequence[Study]) -> None:
    """Raise OptionError unless the studies have the task, the data and the loss in common."""
    first = studies[0]
    for other in studies[1:]:
        if other.task != first.task:
            raise OptionError(
                "FOLDER accepts sweeps of one task and its data, "
                f"and {first.name} holds {first.task}, but {other.name} {other.task}"
            )


def labelled(study: Study) -> pd.Series:
    """Return what each run is called beside those of other studies: "adam (first)"."""
    return study.runs["optimizer"].astype(str) + f" ({study.name})"


def joined(studies: Sequence[Study]) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Return the runs, curves and provenance of studies that `check` accepts, as those of one sweep.

    Its optimizers are those of each study, as `labelled` names them, and its axes those of all. An axis that a study
    lacks, and that is an option of a run, has the value of that study; any other is NaN. The column `study`, the first,
    is the place of the run's study.
    """
    axes = list(dict.fromkeys(axis for study in studies for axis in axes_in(study.runs)))
    tables, curves, first = [], [], 0
    for place, study in enumerate(studies):
        table = study.runs.assign(study=place, optimizer=labelled(study), run_id=study.runs["run_id"] + first)
        for axis in axes:
            if axis not in table:
                known = study.value(axis, table.iloc[0]) if axis in RUN else None
                table[axis] = float("nan") if known is None else known
        if "steps" not in table:
            ends = study.curves.groupby("run_id")[["step"]].agg("max").loc[:, "step"]
            table["steps"] = study.options.get("steps") or study.runs["run_id"].map(ends)
        tables.append(table)
        curves.append(study.curves.assign(run_id=study.curves["run_id"] + first))
        first += int(study.runs["run_id"].max()) + 1
    runs = concatenated(tables)
    front = ["study", "run_id", "data", "task", "model", *["steps"] * ("steps" not in axes), "optimizer", *axes, "seed"]
    for axis in axes:
        if runs[axis].dtype.kind == "O":
            # Words in one study, numbers in another.
            runs[axis] = [value if pd.isna(value) else str(value) for value in runs[axis]]
    return runs.loc[:, [*front, *(name for name in runs if name not in front)]], concatenated(curves), of_all(studies)


def concatenated(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all tables. Columns that are empty in one of them do not decide on the type of the others'."""
    tables = list(tables)
    columns = list(dict.fromkeys(name for table in tables for name in table))
    filled = [table.loc[:, table.notna().any()] for table in tables]
    found = pd.concat(filled, ignore_index=True).reindex(columns=columns)
    empty = {name: "float64" for name in columns if found[name].isna().all()}
    return found.astype({**empty, **({"diverged_step": "Int64"} if "diverged_step" in columns else {})})


def of_all(studies: Sequence[Study]) -> dict:
    """Return the provenance that the studies share, as far as tables and figures need it."""
    first, targets = studies[0].provenance, {study.provenance.get("target") for study in studies}
    kinds = list(filter(None, (markdown.sampled(study.provenance) for study in studies)))
    counts = [study.provenance.get("unfinished") for study in studies]
    found = {
        "data": first.get("data") or {},
        "loss_name": first.get("loss_name", "evaluation loss"),
        "sweep": {"sample": kinds[0]} if kinds else {},
        "target": targets.pop() if len(targets) == 1 else None,
    }
    if any(counts):
        ends = [one or {"finished": len(of.runs), "of": len(of.runs)} for one, of in zip(counts, studies, strict=True)]
        found["unfinished"] = {name: sum(end[name] for end in ends) for name in ("finished", "of")}
    return found


def facts(study: Study) -> dict[str, str]:
    """Return all that is known about the origin of a study, by name, as text."""
    provenance, runs = study.provenance, study.runs
    data, device, git = (provenance.get(name) or {} for name in ("data", "device", "git"))
    rows = dict(origin.rows(provenance))
    of, names = origin.values_of(provenance), list(dict.fromkeys(runs["optimizer"].astype(str)))
    # One grid stands there without the name of its optimizer.
    grids = {f"{of} of {names[0]}" if name == of else name: grid for name, grid in rows.items() if name.startswith(of)}
    first = runs.iloc[0]
    found = {
        "data": f"{data.get('name', 'unknown')}, {data.get('n_train', '?')} training and {data.get('n_eval', '?')} "
        "evaluation examples",
        "data's source": study.options.get("data_source") or data.get("source", "unknown"),
        "about the data": data.get("warning") or "",
        "model": ", ".join(dict.fromkeys(runs["model"])),
        "optimizers": ", ".join(names),
        **grids,
        "sampled": markdown.sampled(provenance) or "no, a grid",
        "length": ", ".join(aggregation.run_length(runs) or markdown.asked_length(provenance)),
        "seeds": ", ".join(map(str, sorted(runs["seed"].unique()))),
        **{
            name: "an axis" if runs_differ(runs, name) else text(study.value(name, first))
            for name in (*RUN, *OURS)
            if name != "steps"
        },
        "evaluations": text(study.options.get("evaluations")),
        "evaluation": rows.get("evaluation", "all examples"),
        "halving": text(study.options.get("halving")) or "no",
        "keep_diverged": "yes" if study.options.get("keep_diverged") else "no",
        "diagnostics": "yes" if study.options.get("diagnostics") else "no",
        "code": f"{git.get('commit') or 'unknown'}{' with uncommitted changes' if git.get('dirty') else ''}",
        **{name: str(version) for name, version in (provenance.get("versions") or {}).items()},
        "device": ", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in device.items()),
        "engine": str(provenance.get("engine") or ""),
        "confirmed on": seeds_of(provenance.get("confirmed")),
        "folder": readable(str(study.folder)),
        "command": str(provenance.get("command", "unknown")),
        "started": str(provenance.get("started", "unknown")),
        "time": rows.get("time", ""),
    }
    return found


def seeds_of(confirmed: dict | None) -> str:
    return f"seeds {', '.join(map(str, confirmed['seeds']))}" if confirmed else "no fresh seeds"


def runs_differ(runs: pd.DataFrame, axis: str) -> bool:
    return axis in axes_in(runs) and runs[axis].nunique(dropna=False) > 1


def text(value: Any) -> str:
    """Return a value as text; "" for one that is not known."""
    return "" if value is None or value != value else f"{value:g}" if isinstance(value, float) else str(value)


def differences(studies: Sequence[Study]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the facts in which studies differ, one text for each study, and the names of the facts that they share."""
    tables = [facts(study) for study in studies]
    found = {name: [table.get(name, "") for table in tables] for name in dict.fromkeys(n for t in tables for n in t)}
    differing = {name: values for name, values in found.items() if len({*values}) > 1}
    return differing, [name for name, values in found.items() if name not in differing and values[0]]
