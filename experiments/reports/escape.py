"""Names from users as text: of folders, optimizers and commands, which may hold what Markdown or mathtext obeys."""

import re
from collections.abc import Iterable

import pandas as pd

MARKUP = re.compile(r"[\\`*\[\]<>|~#!&$\n\r]|(?<![^\W_])_|_(?![^\W_])|://|\bwww\.|^\s*[-+](?=\s)|(?<=\d)[.)](?=\s)")
"""What Markdown may take for markup, also for the start of a list; an underscore within a word is none."""


def escaped(text: str) -> str:
    """Return text that Markdown, HTML and tables show as it is: what they would obey becomes character references."""
    return MARKUP.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), text)


def without_math(text: str) -> str:
    """Return text that matplotlib shows as it is: it would take what stands between two dollar signs for mathtext."""
    return text.replace("$", r"\$")


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table of cells that are escaped already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def frame(of: pd.DataFrame) -> str:
    """Return a table of escaped strings as Markdown."""
    return table(list(of), of.to_numpy().tolist())
