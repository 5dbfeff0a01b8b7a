"""Does the index of a folder list every study with what is in it, and are names that a user chose only text?"""

import base64
import io
import shutil
from urllib.parse import unquote

import html5lib
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from experiments import compare, report
from experiments.reports import escape, results_index
from experiments.reports.escape import escaped, without_math
from tests.browser import CHROME
from tests.explored import written

GRID = {"lr": [1e-3, 1e-2], "seeds": 2, "steps": 12, "evaluations": 2}
NASTY = ["<img src=x onerror=alert(1)>", "![a](x.png) **b** `c` | _d_ &lt; $\\frac$ #e", "javascript:alert(1)"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make real sweeps in folders with names that are markup, one of them drawn, and a comparison."""
    root = tmp_path_factory.mktemp("all")
    for name, optimizer in zip(NASTY, ("adam", "sgd", "nadam"), strict=True):
        written(root / name, optimizer=optimizer, **GRID)
    assert report.main([str(root / NASTY[0])]) == 0
    compare.compare([root / name for name in NASTY], root / "both")
    shutil.copytree(root / NASTY[1], root / "damaged")
    (root / "damaged/curves.parquet").unlink()
    return root


def parsed(path):
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(path.read_text(encoding="utf-8"))


def text_of(element) -> str:
    return "".join(element.itertext())


def test_the_index_lists_every_study_with_its_best_run(root, capsys):
    assert report.main([str(root)]) == 0
    assert capsys.readouterr().out == f"studies: 5\n\n{root / 'index.html'}\n"
    articles = {text_of(one.find("div/h2")): one for one in parsed(root / "index.html").iter("article")}
    assert set(articles) == {*NASTY, "both", "damaged"}
    for name in NASTY:
        runs = report.read(root / name).runs
        best = runs.groupby("lr")["eval_loss"].median().min()
        said = text_of(articles[name])
        assert f"Best: evaluation loss (MSE) {best:.4g} by {runs['optimizer'].iloc[0]}, lr " in said
        assert "4 runs, 0 diverged; started 20" in said
    assert f"{root / 'damaged/curves.parquet'} does not exist." in text_of(articles["damaged"])
    assert "A comparison of studies." in text_of(articles["both"])


def test_links_of_the_index_lead_to_files_beside_it(root):
    report.main([str(root)])
    tree = parsed(root / "index.html")
    links = [one.get("href") for one in tree.iter("a")]
    assert len(links) == 8  # all three of the drawn sweep, a provenance of three others, two of the comparison
    assert all(link.startswith("./") and (root / unquote(link)).is_file() for link in links)
    images = [one.get("src").partition("base64,")[2] for one in tree.iter("img")]
    assert len(images) == 2
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image))) as shown:
            assert shown.width == results_index.SIZE[0]


def test_the_index_is_of_folders_and_a_target_of_one_sweep(root, capsys):
    before = (root / "index.html").read_bytes() if (root / "index.html").exists() else None
    assert report.main([str(root), "--target", "0.2"]) == 2
    error = capsys.readouterr().err
    assert error == f"python -m experiments.report: --target goes with the folder of one sweep, and {root} holds 4\n"
    assert ((root / "index.html").read_bytes() if (root / "index.html").exists() else None) == before


def test_a_folder_without_studies_gets_no_index(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [*NASTY, "__a__ [b](c) ~~d~~ <e>", "https://example.org www.example.org", "1. a", "- b"]
)
def test_names_stay_text_in_markdown(name):
    text = f"- {escaped(name)}\n\na {escaped(name)} b\n\n{escape.table(['x', 'y'], [[escaped(name), '']])}\n"
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    assert [text_of(next(tree.iter(tag))).strip() for tag in ("li", "p", "td")] == [name, f"a {name} b", name]
    assert not {one.tag for one in tree.iter()} & {"img", "a", "e", "em", "strong", "code", "s", "ol"}


def test_ordinary_names_are_not_changed():
    assert escaped("snake_case-1.0 (first)") == without_math("snake_case-1.0 (first)") == "snake_case-1.0 (first)"
    assert without_math("$x$") == r"\$x\$"


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", ["index.html", "both/report.html"])
def test_a_browser_shows_names_as_text_and_asks_for_nothing(root, page, width):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    report.main([str(root)])
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        try:
            shown = browser.new_page(viewport={"width": width, "height": 900})
            heard, asked = [], []
            shown.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
            shown.on("console", lambda message: heard.append(message.text))
            shown.on("pageerror", lambda error: heard.append(str(error)))
            shown.on("request", lambda request: asked.append(request.url))
            shown.goto((root / page).as_uri())
            shown.wait_for_load_state("networkidle")
            assert heard == []
            assert [url for url in asked if not url.startswith("data:")] == [(root / page).as_uri()]
            said = shown.inner_text("body")
            assert all(name in said for name in NASTY)
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
        finally:
            browser.close()
