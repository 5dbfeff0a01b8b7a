"""Tables of measurements as Markdown."""

import math
from itertools import chain

from experiments.common import intervals

ENDS = (", low", ", high", ", level")
"""What the columns of `with_interval` end in."""


def markdown_table(rows: list[dict]) -> str:
    """A row a line; a median takes its interval, if it has one, into its cell.

    Columns that a row lacks, or that are NaN, are empty.
    """
    names = [name for name in dict.fromkeys(chain(*rows)) if not name.endswith(ENDS)]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(cell(row, name) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def cell(row: dict, name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    if f"{name}, low" not in row:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits = 0 if abs(value) >= 100 else 2 if abs(value) >= 0.2 else 4
    return f"{value:.{digits}f}{brackets(row, name, digits)}"


def brackets(row: dict, name: str, digits: int) -> str:
    """The interval of a median as it stands behind it, with its level if that is below 95 %; "" if there is none."""
    low, high, level = (row.get(name + end, math.nan) for end in ENDS)
    said = f" ({100 * level:g} %)" if level < intervals.LEVEL else ""
    return "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]{said}"
