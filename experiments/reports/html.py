"""The report as one HTML file, with text, images, style and scripts, which refers to no other file."""

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.reports.interactive import ONLY_TEXT, Part

CSS = Path(__file__).with_name("report.css")
PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$css</style>
</head>
<body>
<main>
$body</main>
$scripts</body>
</html>
"""
)


def render(text: str, images: Mapping[str, bytes], part: Part = ONLY_TEXT) -> str:
    """Render a report in Markdown as a page of HTML.

    Args:
        images: content of PNG files by their names in the text; they become part of the page. A link to another file
            becomes its name, because a page that is sent to somebody has no files beside it.
        part: what `interactive.part` returns; it appears before the figures.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # A wide table scrolls in a box of its own, so that a phone shows the text at its width.
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.children:
            token.children = embedded(token.children, images)
    heading = next((after for token, after in itertools.pairwise(tokens) if token.tag == "h1"), None)
    title = "".join(child.content for child in heading.children or ()) if heading else "Report"
    pairs = enumerate(itertools.pairwise(tokens))
    figures = next((i for i, (token, after) in pairs if token.tag == "h2" and after.content == "Figures"), len(tokens))
    before, rest = (parser.renderer.render(some, parser.options, {}) for some in (tokens[:figures], tokens[figures:]))
    return PAGE.substitute(
        title=html.escape(title),
        css=CSS.read_text(encoding="utf-8"),
        body=before + part.section + rest,
        scripts=part.scripts,
        policy=html.escape(part.policy, quote=True),
    )


FRAME = Template(
    """<div style="position: relative; min-height: 50rem">$still
<iframe title="all runs, to explore" sandbox="allow-scripts" srcdoc="$page"
  style="position: absolute; inset: 0; width: 100%; height: 100%; border: 0; color-scheme: light dark"></iframe>
</div>"""
)


def framed(part: Part, still: str) -> str:
    """Return the interactive part of a page as HTML for a notebook: in a frame that lies over a still picture.

    The frame is transparent until its panels are drawn. The picture is what shows where scripts do not run, or where
    frames are removed, as on GitHub. The sandboxed scripts see nothing of the page around them, and load nothing.

    still: HTML.
    """
    return FRAME.substitute(still=still, page=html.escape(render("", {}, part), quote=True))


def embedded(tokens: Sequence[Token], images: Mapping[str, bytes]) -> list[Token]:
    """Return inline tokens without references to files: images become data, links become their text."""
    for token in tokens:
        if token.type == "image":
            token.attrs["src"] = "data:image/png;base64," + base64.b64encode(images[str(token.attrs["src"])]).decode()
    return [token for token in tokens if token.type not in ("link_open", "link_close")]
