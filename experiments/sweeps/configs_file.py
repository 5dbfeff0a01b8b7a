"""Configurations from a table, a row each, instead of every combination of some values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import OptionError, first_line
from experiments.common.values import Kind, shown
from experiments.sweeps import axis_values, space
from experiments.sweeps.space import Grid

if TYPE_CHECKING:
    import pandas as pd


def source(given: Any) -> Any:
    """Return the path of a table, or the table itself. Raises: TypeError or ValueError if it is neither."""
    if hasattr(given, "columns") and hasattr(given, "to_dict"):
        return given
    path = os.fsdecode(given)
    if not path or "\0" in path:
        raise ValueError
    return Path(path).expanduser()


SOURCE = Kind("a CSV file, or a DataFrame, with a row for each configuration", source)


def read(given: Path | pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with None for empty cells. Raises: OptionError."""
    import pandas as pd

    if isinstance(given, Path):
        try:
            table = pd.read_csv(given, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise OptionError(f"--configs {given} cannot be read ({first_line(error)})") from error
        # A row that is longer than the header makes pandas take its first cells for an index.
        if not isinstance(table.index, pd.RangeIndex):
            raise OptionError(f"--configs {given} needs rows that are as long as its header")
    else:
        table = given
    if table.empty:
        raise OptionError(f"--configs needs at least one row, and {name_of(given)} has none")
    names = [str(name).strip().replace("-", "_") for name in table.columns]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"--configs needs every column once, and {name_of(given)} repeats {', '.join(repeated)}")
    return [
        {name: None if is_empty(cell) else cell for name, cell in zip(names, row, strict=True)}
        for row in table.itertuples(index=False, name=None)
    ]


def is_empty(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


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
    columns = [name for name in rows[0] if name != "optimizer"]
    owners = [[row["optimizer"]] if "optimizer" in row else list(chosen) for row in rows]
    if None in [owner for of_row in owners for owner in of_row]:
        raise OptionError(
            f"--configs needs an optimizer in every row, or no column of them, and {what} has empty cells"
        )
    names = dict.fromkeys(str(owner).strip() for of_row in owners for owner in of_row)
    known = space.known_axes(names, columns)
    if unknown := [name for name in columns if not any(name in has for has in known.values())]:
        raise OptionError(
            f"--configs accepts columns named as axes, and {what} has {', '.join(map(shown, unknown))}: "
            f"{space.accepted(known)}; options of a run are {', '.join(axis_values.RUN)}"
        )
    tables: dict[str, list[dict]] = {name: [] for name in names}
    seen: dict[tuple, int] = {}
    for number, (row, of_row) in enumerate(zip(rows, owners, strict=True), 2):
        for owner in of_row:
            values = values_of(row, known[str(owner).strip()], f"--configs: row {number} of {what}", str(owner).strip())
            if (first := seen.setdefault((owner, *values.items()), number)) != number:
                raise OptionError(
                    f"--configs accepts every configuration once, and row {number} of {what} repeats {first}"
                )
            tables[str(owner).strip()].append(values)
    grids: dict[str, Grid] = {}
    for name, of_name in tables.items():
        used = [known[name][axis] for axis in of_name[0]]
        grids[name] = {axis: sorted({row[axis.name] for row in of_name}) for axis in used}
    return grids, {
        name: space.table_of(grids[name], {axis: [row[axis.name] for row in tables[name]] for axis in grids[name]})
        for name in tables
    }


def values_of(row: Mapping[str, Any], has: Mapping[str, space.Axis], where: str, optimizer: str) -> dict[str, Any]:
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
        if axis.name not in row and axis.name not in space.NAMED:
            continue
        cell = row.get(axis.name, axis.default)
        try:
            found[axis.name] = axis_values.value(axis, cell.strip() if isinstance(cell, str) else cell)
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from None
    return found
