"""Is report.html one self-contained page, and does a browser show it?"""

import base64
import re

import html5lib
import pytest

from experiments.reports import html, writer
from tests.browser import CHROME
from tests.reports.artificial import GRID, PROVENANCE, sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs, curves = sweep(2, lr=GRID["lr"])
    writer.write(folder, runs, curves, {**PROVENANCE, "command": "python -m x --name '<b>&amp;'"})
    return folder


def test_the_page_is_html_without_references_to_the_outside(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    elements = list(tree.iter())
    assert len(text.splitlines()) > 50
    references = [value for e in elements for key, value in e.attrib.items() if key in ("src", "href", "srcset")]
    images = sorted(folder.glob("*.png"))
    assert len(references) == len(images) == len(re.findall(r"!\[", (folder / "report.md").read_text()))
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert {base64.b64decode(value.partition(",")[2]) for value in references} == {p.read_bytes() for p in images}
    assert not {"link", "iframe", "object"} & {e.tag for e in elements}
    assert not any(e.attrib for e in elements if e.tag == "script" and e.get("type") != "text/plain")
    assert "url(" not in text
    assert "@import" not in text
    assert all(e.get("alt") for e in elements if e.tag == "img")


def test_the_page_says_what_the_markdown_says(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    tree = html5lib.parse(text, namespaceHTMLElements=False)
    rows = [[(cell.text or "").strip() for cell in row] for row in tree.iter("tr")]
    markdown = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in (folder / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
    ]
    assert rows == markdown
    assert next(tree.iter("title")).text == next(tree.iter("h1")).text == "adam on MNIST, 3000 steps: mlp 784-32-32-10"
    assert next(tree.iter("pre")).findtext("code") == "python -m x --name '<b>&amp;'\n"


def test_markup_in_the_text_is_shown_and_not_obeyed():
    page = html.render("# A <script>\n\n<script>alert(1)</script> [name](javascript:alert)\n", {})
    assert "<script>" not in page
    assert "href" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(folder, tmp_path, width):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": 800})
            messages, requests = [], []
            page.on("console", lambda message: messages.append(message.text))
            page.on("pageerror", lambda error: messages.append(str(error)))
            page.on("request", lambda request: requests.append(request.url[:30]))
            page.goto((folder / "report.html").as_uri())
            page.wait_for_load_state("load")
            natural = page.eval_on_selector_all(
                "img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth])"
            )
            assert len(natural) == len(list(folder.glob("*.png")))
            assert all(complete and wide > 500 and 250 < shown <= width for complete, wide, shown in natural)
            # Wide tables scroll by themselves; the page does not.
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("table").count() >= 3
            assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 12
            assert messages == []
            assert all(url.startswith(("file://", "data:")) for url in requests)
            page.pdf(path=tmp_path / "page.pdf", format="A4")
            assert (tmp_path / "page.pdf").read_bytes()[:4] == b"%PDF"
        finally:
            browser.close()
