"""Does the interactive part of report.html do in a browser what it offers, with few and with many runs?"""

import re

import numpy as np
import pandas as pd
import pytest

from experiments.reports import aggregation, html, interactive
from tests.browser import CHROME, shown
from tests.reports.artificial import GRID, sweep

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")]
MANY = {
    "lr": np.geomspace(1e-4, 1, 25).tolist(),
    "beta1": (1 - np.geomspace(0.5, 0.01, 20)).tolist(),
    "beta2": (1 - np.geomspace(0.1, 1e-4, 10)).tolist(),
}
AXES = ["lr", "beta1", "beta2"]
NASTY = "<img src=x onerror=alert(1)>"


def write(path, runs, curves):
    part = interactive.part(runs, curves, aggregation.summarise(runs), "evaluation loss")
    path.write_text(html.render("# A sweep\n\nText.\n\n## Figures\n\nMore text.\n", {}, part), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[135, 10_000])
def explored(request, tmp_path_factory):
    """Return the runs, curves and page of a sweep of 45 configurations and 3 seeds, or of 5000 and 2."""
    runs, curves = sweep(3, **GRID) if request.param == 135 else sweep(2, **MANY)
    assert len(runs) == request.param
    return runs, curves, write(tmp_path_factory.mktemp("page") / "report.html", runs, curves)


def drawn(page, act=lambda: None):
    """Wait until an act has changed the page."""
    before = page.get_attribute("#explore", "data-drawn")
    act()
    for _ in range(1000):
        if page.get_attribute("#explore", "data-drawn") != before:
            return
        page.wait_for_timeout(20)
    raise AssertionError("nothing was drawn")


def ready(page):
    page.wait_for_selector("#explore[data-drawn]")
    # Hovering works once the panels are laid out.
    page.wait_for_timeout(500)


def pixel(page, panel, x, y):
    """Return where in the window a panel shows a point."""
    page.locator(f"#{panel}").scroll_into_view_if_needed()
    return page.evaluate(
        """([id, x, y]) => {
            const panel = document.getElementById(id), { xaxis, yaxis } = panel._fullLayout;
            const { left, top } = panel.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.d2p(x), top + yaxis._offset + yaxis.d2p(y)];
        }""",
        [panel, x, y],
    )


def hover(page, panel, x, y):
    """Point at a place of a panel; return what the page says about it, and the place in the window."""
    at = pixel(page, panel, x, y)
    page.mouse.move(at[0] - 4, at[1] - 1)
    page.mouse.move(*at)
    page.wait_for_selector("#tip:not([hidden])")
    page.wait_for_timeout(200)
    return page.inner_text("#tip"), at


def rows(page):
    """Return the table as it is shown, all text, and the classes of its rows."""
    found = page.locator("#configurations tbody tr")
    cells = found.evaluate_all("all => all.map(row => [...row.children].map(cell => cell.textContent))")
    names = page.locator("#configurations thead th").all_inner_texts()
    names = [name.split(" ▲")[0].split(" ▼")[0] for name in names]
    return pd.DataFrame(cells, columns=names), found.evaluate_all("all => all.map(row => row.className)")


def count(page):
    return int(page.inner_text("#count").split(" of ")[0])


def drag_over_lr(page, low, high):
    """Drag a box over the first axis, from one lr to another."""
    # The axis goes from 2 % of its length below 1e-4 to as much above 1.
    bottom, top = (pixel(page, "parallel", 0, (np.log10(value) + 4.08) / 4.16) for value in (low, high))
    page.mouse.move(top[0] - 12, top[1])
    page.mouse.down()
    page.mouse.move(top[0], (top[1] + bottom[1]) / 2, steps=3)
    page.mouse.move(top[0] + 12, bottom[1], steps=3)
    page.mouse.up()


def drawn_runs(page):
    """Return the places of the runs whose curves are drawn, highlighted ones apart."""
    both = page.evaluate(
        "['lines', 'lines+markers'].map(mode => document.getElementById('curves').data.filter(it => it.mode === mode)"
        ".flatMap(({ customdata }) => [...customdata].filter(run => run !== undefined)))"
    )
    return [set(runs) for runs in both]


def test_a_brush_a_hover_a_click_and_a_sort(explored):
    runs, curves, path = explored
    assert path.stat().st_size < 15e6
    summary = aggregation.summarise(runs)
    many = len(summary) > 1000
    with shown(path) as (page, said, asked, _):
        ready(page)
        paints = page.evaluate("performance.getEntriesByType('paint').map(entry => entry.startTime)")
        assert paints
        assert max(paints) < 3000
        assert count(page) == len(summary)
        table, _ = rows(page)
        assert list(table) == [
            "#", "lr", "β1", "β2", "eval loss", "low", "high", "train loss", "accuracy", "diverged", "seeds",
        ]  # fmt: skip
        best = summary.head(len(table))
        assert table["lr"].tolist() == [aggregation.short(value) for value in best["lr"]]
        assert table["eval loss"].tolist() == [
            f"{value:.4g}" if value < 1e9 else "diverged" for value in best["eval_loss_median"]
        ]

        # A brush on lr changes rows and curves.
        drawn(page, lambda: drag_over_lr(page, 4e-3, 0.25))
        kept = summary.loc[summary["lr"].between(4e-3, 0.25)]
        assert 0 < len(kept) < len(summary)
        assert count(page) == len(kept)
        table, _ = rows(page)
        assert set(table["lr"]) <= set(map(aggregation.short, kept["lr"]))
        normal, _ = drawn_runs(page)
        inside = set(np.flatnonzero(runs["lr"].between(4e-3, 0.25)))
        assert len(normal) == 400 * runs["seed"].nunique() if many else normal == inside
        assert normal <= inside

        # Hover shows a run's numbers.
        best = kept.iloc[0]
        own = aggregation.runs_of(runs, best)
        curve = curves.loc[curves["run_id"] == own["run_id"].iloc[0]].iloc[9]
        text, at = hover(page, "curves", float(curve["step"]), float(curve["eval_loss"]))
        said_axes = re.fullmatch(r"lr (\S+), β1 (\S+), β2 (\S+); seed (\d+), step (\d+): evaluation loss (\S+)", text)
        assert said_axes, text
        *values, seed, step, loss = said_axes.groups()
        texts = runs[AXES].map(aggregation.short)
        match = runs.loc[(texts == values).all(axis=1) & (runs["seed"] == int(seed))]
        shown_point = curves.loc[(curves["run_id"] == match["run_id"].item()) & (curves["step"] == int(step))]
        assert loss == f"{shown_point['eval_loss'].item():.4g}"
        assert step == str(curve["step"].astype(int))
        np.testing.assert_allclose(shown_point["eval_loss"].item(), curve["eval_loss"], rtol=0.03)

        # A click highlights its configuration everywhere; the row lets it go.
        drawn(page, lambda: page.mouse.click(*at))
        table, classes = rows(page)
        assert table.loc[0, ["lr", "β1", "β2"]].tolist() == values
        assert classes == ["pinned", *[""] * (len(classes) - 1)]
        place = summary.index[(summary[AXES].map(aggregation.short) == values).all(axis=1)].item()
        assert table.loc[0, "#"] == str(place + 1)
        _, pinned = drawn_runs(page)
        assert pinned == set(np.flatnonzero((texts == values).all(axis=1)))
        marked = page.evaluate("['parallel', 'over'].map(id => document.getElementById(id).data.at(-1).customdata[0])")
        assert marked == [place, place]
        drawn(page, lambda: page.locator("#configurations tbody tr").first.click())
        assert rows(page)[1][0] == ""

        # Sorting, both ways, and back to everything.
        drawn(page, lambda: page.get_by_role("button", name="Show all").click())
        assert count(page) == len(summary)
        head = page.locator("#configurations th", has_text="β2")
        for order, value in (("ascending", summary["beta2"].min()), ("descending", summary["beta2"].max())):
            drawn(page, lambda: head.locator("button").click())
            assert head.get_attribute("aria-sort") == order
            table, _ = rows(page)
            # Of equal values the best configuration comes first.
            first = summary.loc[summary["beta2"] == value].head(len(table))
            assert table["#"].tolist()[: len(first)] == [str(i + 1) for i in first.index]
        assert said == []
        assert asked == [path.as_uri()]


def test_cells_hold_the_best_or_what_is_held(explored):
    runs, _, path = explored
    summary = aggregation.summarise(runs)
    with shown(path) as (page, said, _, _):
        ready(page)
        for choice, of in (("0", summary), ("1", summary.loc[summary["beta2"] == summary["beta2"].iloc[0]])):
            if choice == "1":
                drawn(page, lambda: page.select_option("#rest", "1"))
            cells, colors, text = page.evaluate(
                "(({ customdata, z, text }) => [customdata, z, text])(document.getElementById('over').data[0])"
            )
            best = of.reset_index().groupby(["beta1", "lr"])[["index", "eval_loss_median"]].first()
            wanted = best.loc[:, "index"].unstack("lr")
            assert cells == wanted.to_numpy().tolist()
            losses = best.loc[:, "eval_loss_median"].unstack("lr").to_numpy()
            assert text == np.where(np.isinf(losses), "✕", "").tolist()
            finite = np.log10(summary["eval_loss_median"].replace(np.inf, np.nan).dropna().to_numpy())
            low, high = finite[0], min(finite[int(0.75 * len(finite))], np.log10(2.31))
            np.testing.assert_allclose(colors, np.clip((np.log10(losses) - low) / (high - low), 0, 1), atol=1e-9)
        column = int(np.argmin(losses[0]))
        text, _ = hover(page, "over", column, 0)
        row = summary.loc[cells[0][column]]
        axes = aggregation.label(row, AXES)
        assert text == f"{axes}: evaluation loss {row['eval_loss_median']:.4g}"
        assert said == []


def test_sliders_words_and_keys_filter(tmp_path):
    runs, curves = sweep(2, **GRID)
    summary = aggregation.summarise(runs)
    with shown(write(tmp_path / "report.html", runs, curves)) as (page, said, _, _):
        ready(page)
        drawn(page, lambda: page.get_by_label("lr to").press("ArrowLeft"))
        assert count(page) == (summary["lr"] < 1).sum()
        drawn(page, lambda: page.get_by_label("β1 from").press("End"))
        assert count(page) == ((summary["lr"] < 1) & (summary["beta1"] == 0.95)).sum()
        shapes = page.evaluate(
            "document.getElementById('parallel').layout.shapes.filter(s => s.type === 'rect').length"
        )
        assert shapes == 2
        drawn(page, lambda: page.get_by_role("button", name="Show all").click())
        assert page.get_by_label("β1 from").input_value() == "0"
        drawn(page, lambda: page.fill("#words", "LR 1e-3, β1 0.9,"))
        assert count(page) == ((summary["lr"] == 1e-3) & (summary["beta1"] == 0.9)).sum() == 3
        drawn(page, lambda: page.locator("#configurations tbody button").first.press("Enter"))
        assert rows(page)[1][0] == "pinned"
        drawn(page, lambda: page.select_option("#metric", label="accuracy"))
        assert page.evaluate("document.getElementById('curves').layout.yaxis.title.text") == "accuracy"
        drawn(page, lambda: page.fill("#words", "nothing like this"))
        assert count(page) == 0
        assert said == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_follows_the_theme(tmp_path, width):
    runs, curves = sweep(2, **GRID)
    path = write(tmp_path / "report.html", runs, curves)
    with shown(path, width, color_scheme="dark") as (page, said, _, _):
        ready(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink = "getComputedStyle(document.body).backgroundColor"
        drawn_on = "document.getElementById('curves')._fullLayout.plot_bgcolor"
        dark = page.evaluate(ink)
        assert page.evaluate(drawn_on) == dark == "rgb(22, 24, 28)"
        drawn(page, lambda: page.emulate_media(color_scheme="light"))
        assert page.evaluate(drawn_on) == page.evaluate(ink) == "rgb(255, 255, 255)"
        assert said == []


def test_without_javascript_the_page_is_the_document(tmp_path):
    path = write(tmp_path / "report.html", *sweep(lr=GRID["lr"]))
    with shown(path, scripts=False) as (page, said, _, _):
        assert page.locator("#explore").is_hidden()
        parts = [part for part in page.inner_text("body").split("\n") if part]
        assert parts == ["A sweep", "Text.", "Figures", "More text."]
        assert said == []


def test_names_stay_text_and_nothing_is_loaded(tmp_path):
    runs, curves = sweep(2, lr=GRID["lr"], beta1=GRID["beta1"])
    words = np.where(runs["beta1"] == 0.9, NASTY, "<a href='http://example.invalid/'>&amp;</a>")
    runs = runs.assign(optimizer=np.where(runs["lr"] > 1e-3, NASTY, "<b>adam"), data=NASTY, model=NASTY)
    runs.insert(list(runs).index("seed"), "kind", words)
    part = interactive.part(runs, curves, aggregation.summarise(runs), f"loss {NASTY}")
    path = tmp_path / "report.html"
    path.write_text(html.render(f"# {NASTY}\n\n## Figures\n", {}, part), encoding="utf-8")
    with shown(path) as (page, said, asked, dialogs):
        ready(page)
        assert page.locator("img, #explore a, b").count() == 0
        assert NASTY in page.inner_text("#configurations")
        assert NASTY in page.inner_text("#count")
        ticks = page.locator("#parallel text").all_text_contents()
        assert {NASTY, "<b>adam"} <= set(ticks)
        drawn(page, lambda: page.locator("#configurations tbody tr").first.click())
        curve = page.evaluate("(({ x, y }) => [x[5], y[5]])(document.getElementById('curves').data.at(-1))")
        assert NASTY in hover(page, "curves", *curve)[0]
        assert page.locator("#curves .ytitle").text_content() == f"loss {NASTY} (log)"
        assert (said, dialogs, asked) == ([], [], [path.as_uri()])
        # What a page that was tampered with would try.
        failures = []
        page.on("requestfailed", lambda request: failures.append(request.failure))
        page.evaluate(
            """() => {
                document.body.append(Object.assign(new Image(), { src: "http://example.invalid/a.png" }));
                document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=alert(2)>");
                document.body.append(Object.assign(document.createElement("script"), { textContent: "alert(3)" }));
            }"""
        )
        page.wait_for_timeout(300)
        assert dialogs == []
        assert failures == ["csp"] * (len(asked) - 1)
        assert (len(asked), len(said)) == (3, 4)
        assert all("Content Security Policy" in text for text in said)
