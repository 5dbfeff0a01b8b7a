"""Is the importance of axes that of the function behind the losses, and is it doubted where little speaks for it?"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from experiments.reports import aggregation, importance, writer
from tests.reports.artificial import sweep


def runs_of(loss, **grid) -> pd.DataFrame:
    """Make runs of a grid, none diverged, whose log loss is a function of a row."""
    runs, _ = sweep(1, diverged=lambda row: False, **grid)
    return runs.assign(eval_loss=np.exp([loss(row) for _, row in runs.iterrows()]))


def found_in(runs: pd.DataFrame) -> list[importance.Importance]:
    return importance.of_each(runs, aggregation.ranked(runs))


def standardised(values) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return (values - values.mean()) / values.std()


GRID = {"lr": 10.0 ** np.arange(-6, 0), "beta2": 1 - 10.0 ** -np.arange(0.5, 5), "eps": [1e-12, 1e-8, 1e-4, 1e-2]}


@pytest.fixture(scope="module")
def additive():
    """Make runs whose log loss is 2 lr + beta2, standardised on their scales: total effects of 0.8 and 0.2."""
    runs, _ = sweep(1, diverged=lambda row: False, **GRID)
    log_loss = 2 * standardised(np.log10(runs["lr"])) + standardised(np.log10(1 - runs["beta2"]))
    return runs.assign(eval_loss=0.1 * np.exp(log_loss / 4))


def test_shares_are_the_total_effects_of_the_function(additive):
    (one,) = found_in(additive)
    assert list(one.shares.index) == ["lr", "beta2", "eps"]
    np.testing.assert_allclose(one.shares["mean"], [0.8, 0.2, 0.0], atol=0.1)
    assert (one.shares["q25"] <= one.shares["q75"]).all()
    assert one.r2 > 0.9
    assert (one.n, one.doubts, importance.cautions([one])) == (120, [], [])
    assert "caution" not in importance.table([one])


def test_the_same_configurations_give_the_same_text(additive):
    text = importance.blocks(found_in(additive), "")
    assert importance.blocks(found_in(additive.sample(frac=1.0, random_state=1)), "") == text
    (heading, *_, table, _) = text
    assert heading == "## Which axes matter"
    assert table.splitlines()[0] == "| optimizer | configurations | R² | lr | β2 | eps |"


def test_words_are_categories():
    runs = runs_of(lambda row: 0.0, lr=10.0 ** np.arange(-8, 0))
    words = np.array(["b", "c", "a", "d"])
    runs = pd.concat([runs.assign(eval_loss=loss, kind=word) for loss, word in zip((1, 9, 9, 2), words, strict=True)])
    runs.insert(list(runs).index("seed"), "kind", runs.pop("kind"))
    (one,) = found_in(runs)
    assert dict(one.shares["mean"].round(1)) == {"kind": 1.0, "lr": 0.0}


@pytest.mark.parametrize(
    ("n", "noise", "doubts"), [(3, 0.0, ["few configurations"]), (8, 1.0, ["low R²"]), (3, 1.0, ["few", "low"])]
)
def test_little_evidence_is_doubted(n, noise, doubts):
    rng = np.random.default_rng(0)
    loss = lambda row: (1 - noise) * np.log10(row["lr"]) + noise * rng.normal()  # noqa: E731
    runs = runs_of(loss, lr=10.0 ** np.arange(-4, 0), beta1=np.linspace(0, 0.9, n))
    (one,) = found = found_in(runs)
    assert [why.split()[0] for why in one.doubts] == [why.split()[0] for why in doubts]
    (sentence,) = importance.cautions(found)
    assert sentence.startswith("**These shares say little: ")
    assert ("fewer than 10 configurations" in sentence, "R² below 0.3" in sentence) == (n == 3, noise == 1)
    assert sentence in importance.blocks(found, "")
    figure = importance.figure(runs, aggregation.ranked(runs), lambda: found)
    assert all(to_rgba(bar.get_facecolor())[3] < 1 for bar in figure.axes[0].patches)


@pytest.mark.parametrize(
    ("grid", "diverged"),
    [
        ({"lr": 10.0 ** np.arange(-20, 0)}, False),  # one axis
        ({"lr": [1e-3, 1e-2, 1e-1], "beta1": [0.0, 0.9, 0.99]}, False),  # nine configurations
        (GRID, True),
    ],
)
def test_nothing_to_compare_is_no_section(grid, diverged):
    runs, _ = sweep(1, diverged=lambda row: diverged, **grid)
    assert found_in(runs) == []
    assert importance.blocks([], "") == []


def test_what_diverged_counts_as_the_worst_of_the_others_or_as_no_training():
    medians = pd.Series([0.5, 3.0, np.inf, 1e9])
    np.testing.assert_allclose(np.exp(importance.log_losses(medians, 2.0)), [0.5, 3, 3, 3])
    np.testing.assert_allclose(np.exp(importance.log_losses(medians.iloc[[0, 2]], 2.0)), [0.5, 2])
    assert np.isfinite(importance.log_losses(pd.Series([0.0, 1.0]), 1.0)).all()


def test_bars_are_the_shares_of_each_optimizer(additive):
    other = additive.assign(optimizer="adamw", eval_loss=additive["eval_loss"].to_numpy()[::-1] * 2)
    runs = pd.concat([other, additive], ignore_index=True)
    found = found_in(runs)
    assert [one.optimizer for one in found] == ["adam", "adamw"]
    figure = importance.figure(runs, aggregation.ranked(runs), lambda: found, figsize=(3.4, None))
    for ax, one in zip(figure.axes, found, strict=True):
        bars: list[Any] = list(ax.patches)
        np.testing.assert_allclose([bar.get_width() for bar in bars], one.shares["mean"])
        assert [label.get_text() for label in ax.get_yticklabels()] == one.names
        assert ax.get_title(loc="left") == f"{one.optimizer}, R² {one.r2:.2f}"


def test_of_many_axes_the_pairs_of_those_that_matter_are_drawn():
    def loss(row) -> float:
        return np.log10(row["lr"]) + np.log10(1 - row["beta2"]) + 3 * row["weight_decay"] + np.log10(row["eps"])

    two: dict[str, Any] = {"beta1": [0.5, 0.9], "weight_decay": [0.0, 1.0]}
    runs, curves = sweep(1, diverged=lambda row: False, lr=[1e-3, 1e-2], beta2=[0.9, 0.99], eps=[1e-8, 1e-7], **two)
    runs = runs.assign(eval_loss=np.exp([loss(row) for _, row in runs.iterrows()]))
    drawings = writer.drawings(runs, curves, {}, None, None)
    pairs = {name: drawing for name, drawing in drawings.items() if name.startswith("heatmap")}
    most = ["lr", "beta2", "eps", "weight_decay"]
    assert {*pairs} == {f"heatmap_{x}_{y}" for x, y in itertools.combinations(most, 2)}
    assert all("the axes that matter most alone" in drawing.before for drawing in pairs.values())
    assert {f"sensitivity_{axis}" for axis in (*most, "beta1")} <= {*drawings}
