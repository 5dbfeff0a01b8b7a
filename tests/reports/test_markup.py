"""Are names in report.md text, whatever they look like, and are other words written as before?"""

import pytest
from markdown_it import MarkdownIt

from experiments.reports import html, markdown, markup, writer
from tests.reports.artificial import PROVENANCE, sweep

NASTY = [
    "<img src=x onerror=alert(1)>",
    "![a](http://example.invalid/a.png)",
    "[a](javascript:alert(1))",
    "[a][b]",
    "**bold** _emphasis_ __init__ `code` a|b ~~gone~~",
    "&lt;&amp; \\* <http://example.invalid>",
    "# heading",
    "## heading",
]
ORDINARY = [
    "eval_loss_median",
    "[0.1, 0.3]",
    "lr 1e-3, β1 0.9",
    "+0.1",
    "2 of 3",
    "my_module:MyAdam",
    "a - b",
    "-",
    "#",
    "",
]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize("name", [*NASTY, *ORDINARY])
def test_a_name_is_text_in_a_line_and_in_a_cell(name):
    (*_, line, _) = PARSER.parse(f"It is {markup.plain(name)}") if name else PARSER.parse("It is ")
    assert {child.type for child in line.children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in line.children or ()) == f"It is {name}".strip()
    cells = [token for token in PARSER.parse(markup.text_table([name, "b"], [[name, "b"]])) if token.type == "inline"]
    assert ["".join(child.content for child in cell.children or ()) for cell in cells] == [name, "b", name, "b"]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_words_are_written_as_they_are(name):
    assert markup.plain(name) == name


@pytest.mark.parametrize("text", ["python -m x", "a\n```\n# no heading", "````"])
def test_code_is_not_ended_by_what_is_in_it(text):
    (token,) = PARSER.parse(markup.fenced(text))
    assert (token.type, token.content) == ("fence", text + "\n")


@pytest.mark.parametrize("name", NASTY)
def test_a_report_shows_names_and_obeys_none(name):
    runs, _ = sweep(2, lr=[1e-3, 1e-2])
    runs = runs.assign(data=name, model=name, optimizer=[name, name, "adam", "adam"])
    provenance = PROVENANCE | {"loss_name": name, "data": {"name": name, "source": name, "warning": name}}
    summary = writer.summarise(runs)
    page = html.render(markdown.page(runs, summary, provenance, {}, None), {})
    assert not [tag for tag in ("<img", "<a ", "<em", "<del") if tag in page]
    assert page.count("<h1>") == 1
    tokens = PARSER.parse(markdown.page(runs, summary, provenance, {}, None))
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {
        "text",
        "text_special",
        "softbreak",
        "code_inline",
        "strong_open",
        "strong_close",
        "link_open",
        "link_close",
    }
    links = [child.attrs["href"] for token in tokens for child in token.children or () if child.type == "link_open"]
    assert links == ["summary.csv"]
