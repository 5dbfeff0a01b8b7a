"""Does the explorer show axes of words, options of a run, and tied axes?"""

import numpy as np
import pytest

from experiments import explorer
from experiments.common.errors import OptionError
from experiments.sweeps import reading
from tests.explored import find, leaf, written


@pytest.fixture(scope="module")
def with_words(tmp_path_factory):
    """Make runs with an axis of words, an option of a run, and two axes that are tied."""
    axes = {"amsgrad": ["true", "false"], "batch_size": [32, 64], "beta2": [0.9, 0.99]}
    out = tmp_path_factory.mktemp("results") / "words"
    return written(out, lr=[1e-3, 1e-2], axes=axes, tie="beta1=beta2", epochs=0.1)


@pytest.mark.parametrize("amsgrad", ["true", True, np.True_])
def test_words_and_options_of_a_run_are_held(with_words, amsgrad):
    view = explorer.view(reading.load(with_words), x="lr", y="beta1", held={"amsgrad": amsgrad, "batch_size": 64})
    assert "held: amsgrad true, batch size 64. 4 of 16 runs" in view.sentence
    assert view.over.axes[0].get_ylabel() == "β1 = β2"
    assert list(view.best)[:3] == ["#", "lr", "β1 = β2"]


def test_a_word_that_was_not_run_is_named(with_words):
    with pytest.raises(OptionError, match="adam was not run with amsgrad maybe"):
        explorer.view(reading.load(with_words), held={"amsgrad": "maybe"})


def test_words_are_held_in_a_list_and_tied_axes_by_one_slider(with_words):
    widgets = pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    box = explorer.controls(with_words, with_words.parent)
    assert dict(find(box, "x").options) == {
        "lr": "lr",
        "β1 = β2": "beta1",
        "amsgrad": "amsgrad",
        "batch size": "batch_size",
    }
    words, numbers = find(box, "amsgrad"), find(box, "batch size")
    assert isinstance(words, widgets.Dropdown)
    assert isinstance(numbers, widgets.SelectionSlider)
    numbers.value, words.value = 64, "true"
    assert "held: amsgrad true, batch size 64. 4 of 16 runs" in leaf(box).value
    find(box, "x").value = "amsgrad"
    find(box, "y").value = "batch_size"
    assert isinstance(find(box, "β1 = β2"), widgets.SelectionSlider)
    assert "4 of 16 runs" in leaf(box).value
