"""Format tables of measurements as Markdown."""

import math
from itertools import chain

from experiments.common import intervals

ENDS = (", low", ", high", ", level")
"""Suffixes of the columns that `timing.with_interval` adds to a median."""


def markdown_table(rows: list[dict]) -> str:
    """Return a Markdown table with a line for each row; an interval is shown in its median's cell.

    Cells are empty where a row lacks a column or the value is NaN.
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
    """Return a median's interval in brackets, with its level if that is below 95 %; "" if there is none."""
    low, high, level = (row.get(name + end, math.nan) for end in ENDS)
    said = f" ({100 * level:g} %)" if level < intervals.LEVEL else ""
    return "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]{said}"
