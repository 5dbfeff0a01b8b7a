"""Text, tables and code as Markdown that shows them as they are, whoever named them."""

import re
from collections.abc import Iterable

import pandas as pd

from experiments.reports.escape import table

MARKUP = re.compile(r"[&<*`~|\\]|(?<=\])[(\[]|(?<![^\W_])_|_(?![^\W_])|^#(?=#*\s)")
"""What Markdown would read as more than text, in a line. An underscore within a word is text."""
ESCAPED = {"&": "&amp;", "<": "&lt;", "|": "&#124;"}
"""Others get a backslash."""


def plain(text: object) -> str:
    """Return a name, or other text of a user, as Markdown that shows it as it is, in a line or a cell."""
    line = " ".join(str(text).splitlines())
    return MARKUP.sub(lambda found: ESCAPED.get(found[0], f"\\{found[0]}"), line)


def fenced(text: str) -> str:
    """Return text as a block of code, which no backticks in it can end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}"


def text_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table whose cells are text, and no markup."""
    return table(list(map(plain, header)), (list(map(plain, row)) for row in rows))


def markdown_frame(of: pd.DataFrame) -> str:
    """Return a table of strings as Markdown; see `text_table`."""
    return text_table(list(of), of.to_numpy().tolist())


def picture(name: str, caption: str) -> str:
    """Return a figure with its caption. name: of its file."""
    return f"![{name}]({name})\n\n{caption}"
