"""What a user may type for an axis, and what is said to what they may not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import grid
from experiments.grid import OptionError


@pytest.mark.parametrize(
    ("axis", "tokens", "values"),
    [
        ("lr", ["1e-4", "3e-4", "1e-3"], [1e-4, 3e-4, 1e-3]),
        ("lr", ["1e-4..1e-1:4"], [1e-4, 1e-3, 1e-2, 1e-1]),
        ("lr", ["1e-4..1e-2:3", "0.5"], [1e-4, 1e-3, 1e-2, 0.5]),
        ("lr", [".1..10:3"], [0.1, 1.0, 10.0]),
        ("beta2", ["0.9..0.999:3"], [0.9, 0.99, 0.999]),
        ("beta1", ["0..0.99:3"], [0.0, 0.9, 0.99]),
        ("beta1", ["0.9", "0", "0.9"], [0.0, 0.9]),
        ("eps", ["0", "1e-8"], [0.0, 1e-8]),
        ("lr", ["1e-3..1e-3:1"], [1e-3]),
    ],
)
def test_axis_values_and_ranges_are_understood(axis, tokens, values):
    assert grid.parse_axis(axis, tokens) == values


@pytest.mark.parametrize(
    ("axis", "tokens", "message"),
    [
        ("lr", [], "--lr needs at least one value"),
        ("lr", ["0"], "--lr accepts positive numbers, not 0"),
        ("lr", ["-1e-3"], "--lr accepts positive numbers, not -0.001"),
        ("lr", ["nan"], "--lr accepts positive numbers, not nan"),
        ("lr", ["inf"], "--lr accepts positive numbers, not inf"),
        ("lr", ["fast"], "--lr accepts positive numbers, not 'fast'"),
        ("beta1", ["1"], r"--beta1 accepts numbers in \[0, 1\), not 1"),
        ("beta2", ["-0.1"], r"--beta2 accepts numbers in \[0, 1\)"),
        ("eps", ["-1e-8"], "--eps accepts numbers >= 0, not -1e-08"),
        ("weight_decay", ["-1"], "--weight-decay accepts numbers >= 0"),
        ("lr", ["1e-1..1e-4:4"], "--lr: a range needs 0 < START <= STOP"),
        ("lr", ["0..1:3"], "--lr: a range needs 0 < START"),
        ("lr", ["1e-4..1e-1"], "--lr: a range is START..STOP:COUNT"),
        ("lr", ["1e-4..1e-1:0"], "COUNT of at least 2"),
        ("lr", ["1e-4..1e-1:1"], "COUNT of at least 2"),
        ("beta2", ["0.9..1:3"], "--beta2: a range needs 0 <= START <= STOP < 1"),
    ],
)
def test_bad_axes_are_refused_in_one_sentence_that_names_the_option(axis, tokens, message):
    with pytest.raises(OptionError, match=message) as error:
        grid.parse_axis(axis, tokens)
    assert "\n" not in str(error.value)


@given(axis=st.sampled_from(list(grid.AXES)), tokens=st.lists(st.text(max_size=12), max_size=3))
def test_any_text_is_understood_or_refused(axis, tokens):
    try:
        values = grid.parse_axis(axis, tokens)
    except OptionError:
        return
    assert values == sorted(set(values))


@given(start=st.floats(1e-12, 1e3), ratio=st.floats(1.001, 1e6), count=st.integers(2, 50))
def test_ranges_have_equal_ratios_and_both_ends(start, ratio, count):
    values = grid.parse_axis("lr", [f"{start!r}..{start * ratio!r}:{count}"])
    assert len(values) == count
    assert values[0] == pytest.approx(start, rel=1e-11)
    assert values[-1] == pytest.approx(start * ratio, rel=1e-11)
    for a, b in itertools.pairwise(values):
        assert b / a == pytest.approx(ratio ** (1 / (count - 1)), rel=1e-9)


def test_configurations_are_all_combinations():
    axes = {"lr": [1.0, 2.0], "beta1": [0.0], "beta2": [0.5, 0.9, 0.99], "eps": [0.0], "weight_decay": [0.1]}
    table = grid.configurations(axes)
    assert list(table.columns) == list(grid.AXES)
    assert len(table) == 6
    assert not table.duplicated().any()
