"""What the pages of the repository show, as a Markdown parser reads them: commands, Python, links and tables."""

import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
GUIDES = sorted({*ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md"), *ROOT.glob("[!.]*/README.md")})
"""Pages whose commands are for readers. The lab log, results/README.md, keeps what was once run."""
GUIDES = [path for path in GUIDES if path.parent.name != "results"]
SEPARATORS = {"&&", "||", "|", ";", ">"}
OURS = re.compile(r"(experiments|kernels|optim|tests)(\.\w+)+")


class Command(NamedTuple):
    """What a page tells its readers to run.

    Attributes:
        page: its path in the repository.
        words: "make" and its arguments, or the name of a module and its arguments.
        whole: whether it is a line of code, and not a name in a sentence.
    """

    page: str
    words: tuple[str, ...]
    whole: bool


def tokens(path: Path) -> Iterator[Token]:
    """Every token of a page, those within paragraphs and cells too."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def runnable(text: str) -> Iterator[tuple[str, ...]]:
    """The words of the commands of ours in a piece of code: of make, of `python -m`, or of a module of ours."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:
            continue  # no shell's
        for apart, one in groupby(words, SEPARATORS.__contains__):
            # Environment variables come first.
            program, *rest = [word for i, word in enumerate([] if apart else one) if i or "=" not in word] or [""]
            if re.fullmatch(r"(.*/)?python[\d.]*", program) and rest[:1] == ["-m"] and len(rest) > 1:
                yield tuple(rest[1:])
            elif program == "make" or (OURS.fullmatch(program) and rest):
                yield (program, *rest)


def commands() -> list[Command]:
    """What the guides show, each once."""
    found = []
    for path in GUIDES:
        for token in tokens(path):
            if token.type == "code_inline" or (
                token.type in ("code_block", "fence") and token.info.strip() in ("", "sh", "bash", "shell", "console")
            ):
                found += [Command(name(path), words, token.type != "code_inline") for words in runnable(token.content)]
    return list({one.words: one for one in sorted(found, key=lambda one: one.whole)}.values())


def python(path: Path) -> list[str]:
    """The blocks of a page that are fenced as python."""
    return [token.content for token in tokens(path) if token.type == "fence" and token.info.strip() == "python"]


def links(path: Path) -> list[str]:
    """What a page links to and shows within the repository."""
    found = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens(path)]
    return [link for link in found if link and not re.match(r"[a-z]+:", link)]


def files(path: Path) -> list[str]:
    """The files of the repository that a page names in code, as `folder/file.py`; NAME stands for any name."""
    inline = [token.content for token in tokens(path) if token.type == "code_inline"]
    return [text for text in inline if re.fullmatch(r"(\w+/)+\w+\.py", text) and "NAME" not in text]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found, heading = set(), False
    for token in tokens(path):
        if token.type == "inline" and heading:
            text = "".join(child.content for child in token.children or ())
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
    return found


def measured_rows(path: Path) -> list[str]:
    """The rows of the tables of a page that have an interval, such as 5.26 [5.02, 5.42], in a cell."""
    lines, rows = path.read_text(encoding="utf-8").splitlines(), []
    for is_table, table in groupby(lines, lambda line: line.startswith("|")):
        table = list(table)
        if is_table and any(re.search(r"\d \[-?[\d.]+, -?[\d.]+\]", row) for row in table):
            rows += table
    return rows
