"""The report as one file for a browser: Markdown, images and style in a single page that refers to nothing else."""

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from markdown_it.token import Token

CSS = Path(__file__).with_name("report.css")
PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$css</style>
</head>
<body>
<main>
$body</main>
</body>
</html>
"""
)


def render(text: str, images: Mapping[str, bytes]) -> str:
    """A page of HTML from a report in Markdown.

    Args:
        images: PNG files by the names under which the text shows them; they become part of the page. A link to any
            other file becomes its name: beside a page that was sent to somebody there is none.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # A wide table scrolls in a box of its own, so that a phone shows the text at its width.
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.children:
            token.children = embedded(token.children, images)
    title = next((after.content for token, after in itertools.pairwise(tokens) if token.tag == "h1"), "Report")
    body = parser.renderer.render(tokens, parser.options, {})
    return PAGE.substitute(title=html.escape(title), css=CSS.read_text(encoding="utf-8"), body=body)


def embedded(tokens: Sequence[Token], images: Mapping[str, bytes]) -> list[Token]:
    """Inline tokens without what lies outside of the page: images become data, links the text that they show."""
    for token in tokens:
        if token.type == "image":
            token.attrs["src"] = "data:image/png;base64," + base64.b64encode(images[str(token.attrs["src"])]).decode()
    return [token for token in tokens if token.type not in ("link_open", "link_close")]
