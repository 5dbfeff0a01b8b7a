"""Configurations from a table, a row each, instead of every combination of some values."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import OptionError, first_line
from experiments.common.values import Kind, shown
from experiments.sweeps import axis_values, space
from experiments.sweeps.space import Grid
from experiments.training import optimizers
from experiments.training.axes import NAMED, RUN, Axis

if TYPE_CHECKING:
    import pandas as pd


def source(given: Any) -> Any:
    """Return the path of a table, or a DataFrame itself. Raises: TypeError or ValueError if it is neither."""
    if "pandas" in sys.modules and isinstance(given, sys.modules["pandas"].DataFrame):
        return given
    path = os.fsdecode(given)
    if not path or "\0" in path:
        raise ValueError
    return Path(path).expanduser()


SOURCE = Kind("a CSV file, or a DataFrame, with a row for each configuration", source)


def read(given: Path | pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Return the rows of a table by their numbers, with None for empty cells. Raises: OptionError.

    Lines of a file are numbered from 1, with the header, and rows of a DataFrame from 0.
    """
    what = name_of(given)
    if isinstance(given, Path):
        header, rows = lines_of(given)
    else:
        header, rows = list(given), dict(enumerate(given.itertuples(index=False, name=None)))
    if not rows:
        raise OptionError(f"--configs needs at least one row, and {what} has none")
    names = [str(name).strip().replace("-", "_") for name in header]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"--configs needs every column once, and {what} repeats {', '.join(map(shown, repeated))}")
    if unequal := [number for number, row in rows.items() if len(row) != len(names)]:
        raise OptionError(
            f"--configs needs as many cells in each row as in the header, and row {unequal[0]} of {what} has "
            f"{len(rows[unequal[0]])}, not {len(names)}"
        )
    return {
        number: {name: None if is_empty(cell) else cell for name, cell in zip(names, row, strict=True)}
        for number, row in rows.items()
    }


def lines_of(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """Return the header of a CSV file, and its other lines, but for empty ones, by number. Raises: OptionError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, skipinitialspace=True)
            numbered = [(lines.line_num, line) for line in lines if line]
    except (OSError, ValueError, csv.Error) as error:
        raise OptionError(f"--configs {path} cannot be read ({first_line(error)})") from error
    (_, header), *rows = numbered or [(0, [])]
    # A line of spaces is empty, too, but in a file with one column it may be an empty cell.
    return header, {number: line for number, line in rows if line != [""] or len(header) == 1}


def is_empty(cell: Any) -> bool:
    import pandas as pd

    # As other cells than those of numbers and words, lists are never empty.
    return not cell.strip() if isinstance(cell, str) else pd.isna(cell) is True


def name_of(given: Path | pd.DataFrame) -> str:
    return given.name if isinstance(given, Path) else "the table"


def configurations(
    given: Path | pd.DataFrame, chosen: Iterable[str]
) -> tuple[dict[str, Grid], dict[str, pd.DataFrame]]:
    """Return the values of each axis of each optimizer, sorted, and the configurations of each, one row each.

    Args:
        given: as of `SOURCE`. Its columns are named as axes; a column `optimizer` says which optimizer a row is for,
            otherwise it is for all. A column that is left out takes the defaults, and a cell is empty only where the
            row's optimizer lacks the axis.
        chosen: the names of optimizers, if there is no such column.
    Raises: OptionError for unknown columns, empty cells, values that an axis does not accept, and repeated rows.
    """
    rows, what = read(given), name_of(given)
    columns = [name for name in next(iter(rows.values())) if name != "optimizer"]
    if len(columns) < len(next(iter(rows.values()))) and list(chosen) != ["adam"]:
        raise OptionError(f"--optimizer and the column of optimizers in {what} exclude each other: give one of them")
    owners = {number: owners_of(row, chosen, f"row {number} of {what}") for number, row in rows.items()}
    names = dict.fromkeys(owner for of_row in owners.values() for owner in of_row)
    known = space.known_axes(names, columns)
    if unknown := [name for name in columns if not any(name in has for has in known.values())]:
        raise OptionError(
            f"--configs accepts columns named as axes, and {what} has {', '.join(map(shown, unknown))}: "
            f"{space.accepted(known)}; options of a run are {', '.join(RUN)}"
        )
    tables: dict[str, list[dict]] = {name: [] for name in names}
    seen: dict[tuple, int] = {}
    for number, row in rows.items():
        for owner in owners[number]:
            values = values_of(row, known[owner], f"--configs: row {number} of {what}", owner)
            if (first := seen.setdefault((owner, *values.items()), number)) != number:
                raise OptionError(
                    f"--configs accepts every configuration once, and row {number} of {what} repeats {first}"
                )
            tables[owner].append(values)
    grids: dict[str, Grid] = {}
    for name, of_name in tables.items():
        used = [known[name][axis] for axis in of_name[0]]
        grids[name] = {axis: sorted({row[axis.name] for row in of_name}) for axis in used}
    return grids, {
        name: space.table_of(grids[name], {axis: [row[axis.name] for row in tables[name]] for axis in grids[name]})
        for name in tables
    }


def owners_of(row: Mapping[str, Any], chosen: Iterable[str], where: str) -> list[str]:
    """Return the optimizers that a row is for."""
    if "optimizer" not in row:
        return list(dict.fromkeys(chosen))
    if (owner := row["optimizer"]) is None:
        raise OptionError(f"--configs needs an optimizer in every row, or no column of them, and {where} has none")
    return optimizers.names_of(owner.strip() if isinstance(owner, str) else owner)


def values_of(row: Mapping[str, Any], has: Mapping[str, Axis], where: str, optimizer: str) -> dict[str, Any]:
    """Return the value of each axis of an optimizer in a row, with the defaults of those that it does not name."""
    found = {}
    for name, cell in row.items():
        if name == "optimizer":
            continue
        if name in has and cell is None:
            raise OptionError(f"{where} has an empty cell under {name}")
        if name not in has and cell is not None:
            raise OptionError(f"{where} has a value of {name}, which {optimizer} lacks")
    for axis in has.values():
        if axis.name not in row and axis.default is None:
            raise OptionError(f"{where} needs a value of {axis.name}, for which {optimizer} has no default")
        if axis.name not in row and axis.name not in NAMED:
            continue
        cell = row.get(axis.name, axis.default)
        try:
            found[axis.name] = axis_values.value(axis, cell.strip() if isinstance(cell, str) else cell)
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from None
    return found
