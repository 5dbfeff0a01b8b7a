"""Is a .npz file of images read whatever its types are, and refused in one sentence if it is none?"""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.common import errors
from experiments.tasks import data, image_files, problems
from tests.tasks.idx_files import arrays, write

pytestmark = pytest.mark.usefixtures("isolated")


def contents(**others) -> dict[str, Any]:
    """Return the arrays of a .npz file of three images, and two; `others` replace them, None leaves one out."""
    values = zip(image_files.ARRAYS, arrays().values(), strict=True)
    made = {name: array.astype(np.uint8) for name, array in values} | others
    return {name: array for name, array in made.items() if array is not None}


def saved(path: Path, **others) -> Path:
    np.savez_compressed(path, **contents(**others))
    return path


def same(a: data.Dataset, b: data.Dataset) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("x_train", "y_train", "x_eval", "y_eval"))


def test_the_file_or_a_folder_with_it_is_what_idx_files_would_be(tmp_path):
    path = saved(tmp_path / "digits.npz")
    dataset = data.mnist(path)
    assert dataset.name == dataset.origin == "MNIST-format data from digits.npz"
    assert dataset.source == data.mnist(tmp_path).source == str(path)
    assert same(dataset, data.mnist(write(tmp_path / "idx", arrays())))


def test_idx_files_come_before_a_npz_file(tmp_path):
    saved(write(tmp_path, arrays(5)) / "digits.npz")
    assert len(data.mnist(tmp_path).x_train) == 5


def test_several_files_are_named(tmp_path):
    saved(tmp_path / "b.npz")
    saved(tmp_path / "a.npz")
    with pytest.raises(errors.DataError, match=r"holds 2 \.npz files, so one has to be named, as .*a\.npz"):
        data.mnist(tmp_path)


AS = {
    "flat": lambda name, a: a.reshape(len(a), -1) if "x" in name else a[:, None],
    "int64": lambda name, a: a.astype(np.int64),
    "big-endian": lambda name, a: a.astype(">u2"),
    "float32": lambda name, a: a / np.float32(255) if "x" in name else a.astype(np.float32),
    "float64": lambda name, a: a / 255 if "x" in name else a.astype(np.float64),
}


@pytest.mark.parametrize("form", AS)
def test_the_form_of_arrays_changes_no_value(tmp_path, form):
    other = saved(tmp_path / "other.npz", **{name: AS[form](name, array) for name, array in contents().items()})
    assert same(data.mnist(other), data.mnist(saved(tmp_path / "digits.npz")))


def test_floats_between_the_bytes_are_kept(tmp_path):
    x_train, x_test = (np.random.default_rng(0).random((n, 28, 28)) for n in (3, 2))
    dataset = data.mnist(saved(tmp_path / "digits.npz", x_train=x_train, x_test=x_test))
    expected = (x_train - x_train.mean()) / x_train.std()
    np.testing.assert_allclose(dataset.x_train.view(-1, 28, 28).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [np.uint8(0), np.uint8(7), np.float32(0.1)])
def test_constant_images_become_zero(tmp_path, value):
    x = np.full((3, 28, 28), value)
    dataset = data.mnist(saved(tmp_path / "digits.npz", x_train=x, x_test=x[:2]))
    assert dataset.x_train.abs().max() < 1e-7


def test_data_sets_are_known_in_a_npz_file(tmp_path, monkeypatch):
    monkeypatch.setitem(image_files.KNOWN, "KMNIST", tuple(map(image_files.git_id, contents().values())))
    assert data.mnist(saved(tmp_path / "mnist.npz")).name == "KMNIST"
    # The labels differ from the known ones by a multiple of 256, and MNIST is not the name of a file.
    other = saved(tmp_path / "mnist.npz", y_train=contents()["y_train"].astype(np.int64) + 256)
    assert data.mnist(other).name == "MNIST-format data from mnist.npz"


def test_a_thousand_classes_are_enough(tmp_path):
    path = saved(tmp_path / "digits.npz", y_train=np.array([0, 999, 1]))
    assert problems.make("mnist", "logistic", data_dir=path).model.name == "logistic 784-1000"


X, Y = contents()["x_train"], contents()["y_train"]
BAD_ARRAYS = {
    "missing": ({"y_test": None}, "has no y_test, and it has to hold x_train, y_train, x_test, y_test: it holds x_"),
    "empty": (dict.fromkeys(image_files.ARRAYS), "has no x_train, .*: it holds nothing"),
    "14x14": ({"x_test": X[:2, :14, :14]}, "x_test holds 2x14x14 pixels, and only images of 28x28"),
    "colours": ({"x_train": np.stack([X] * 3, axis=3)}, "x_train holds 3x28x28x3 pixels"),
    "no images": ({"x_train": X[:0], "y_train": Y[:0]}, "x_train holds 0x28x28 pixels"),
    "no rows": ({"x_train": np.zeros((0, 784)), "x_test": X[:2] / 255}, "x_train holds 0x28x28 pixels"),
    "a number": ({"x_train": np.uint8(3)}, "x_train holds  pixels"),
    "NaN": ({"x_train": np.full(X.shape, np.nan), "x_test": X[:2] / 255}, "x_train holds float64 .* to hold pixels"),
    "infinite": ({"x_train": X / 255, "x_test": np.full((2, 28, 28), np.inf)}, "x_test holds float64 .* pixels"),
    "above 1": ({"x_train": X / 254, "x_test": X[:2] / 255}, "x_train holds float64 .* floats from 0 to 1"),
    "above 255": ({"x_train": X.astype(int) + 1}, "x_train holds int64 .* integers from 0 to 255"),
    "below 0": ({"x_train": X.astype(int) - 1}, "x_train holds int64 .* integers from 0 to 255"),
    "text": ({"x_train": X.astype(str)}, "x_train holds <U3 .* pixels"),
    "two scales": ({"x_train": X / 255}, "x_train is float64 and x_test uint8, and both need one scale"),
    "count": ({"y_train": Y[:2]}, "y_train holds 2 labels, and each of 3 images needs one"),
    "one-hot": ({"y_train": np.eye(10)[Y]}, r"y_train has the shape \[3, 10\], and labels have"),
    "no shape": ({"y_train": np.uint8(3)}, r"y_train has the shape \[\], and labels have"),
    "negative": ({"y_train": Y.astype(int) - 1}, "y_train holds a label -1, and only 0 to 999 are accepted"),
    "not whole": ({"y_test": Y[:2] + 0.5}, "y_test holds float64 and has to hold labels: whole numbers"),
    "NaN labels": ({"y_test": np.array([0, np.nan])}, "y_test holds float64 and has to hold labels: whole numbers"),
    "label 1000": ({"y_test": np.array([0, 1000])}, "y_test holds a label 1000, and only 0 to 999 are accepted"),
    "huge": ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "y_test holds"),
    "names": ({"y_test": np.array(["a", "b"])}, "y_test holds <U1 and has to hold labels"),
    "objects": ({"y_train": np.array([0, None, 1])}, "cannot be read .*, and a whole .npz is needed"),
}


@pytest.mark.parametrize("option", ["--data-dir", "MNIST_DIR"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_wrong_array_is_one_sentence(monkeypatch, tmp_path, case, option):
    others, message = BAD_ARRAYS[case]
    path = saved(tmp_path / "digits.npz", **others)
    if option == "MNIST_DIR":
        monkeypatch.setenv("MNIST_DIR", str(path))
    with pytest.raises(errors.DataError, match=message) as error:
        data.mnist(path if option == "--data-dir" else None)
    assert str(error.value).startswith(f"{option}: ")
    assert repr(str(path)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"<!DOCTYPE html>", b"\x93NUMPY\x01\x00", b"\x80\x04."])
def test_a_file_that_is_no_archive_is_one_sentence(tmp_path, content):
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(errors.DataError, match=r"digits\.npz' cannot be read .*, and a whole \.npz is needed"):
        data.mnist(tmp_path / "digits.npz")


def test_one_array_in_place_of_an_archive_is_one_sentence(tmp_path):
    with open(tmp_path / "digits.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(errors.DataError, match="cannot be read"):
        data.mnist(tmp_path / "digits.npz")


def archive(compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **contents())
    return file.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    compressed=st.booleans(),
    at_end=st.booleans(),
    cut=st.integers(0, 60),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_file_raises_nothing_but_data_errors(compressed, at_end, cut, edits):
    content = bytearray(archive(compressed))
    # Headers of arrays are at the start, the directory of the archive is at the end.
    for position, value in edits:
        content[-1 - position if at_end else position] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits.npz")
        path.write_bytes(content[: len(content) - cut])
        try:
            dataset = data.mnist(path)
        except errors.DataError:
            return
    assert dataset.x_train.shape == (3, 784)
    assert dataset.y_eval.shape == (2,)
