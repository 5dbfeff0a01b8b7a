"""Does MNIST turn every bad file into a DataError that says what to do?"""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.common import errors
from experiments.tasks import data
from tests.tasks.idx_files import (
    EVAL_IMAGES,
    EVAL_LABELS,
    REAL_MNIST,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    arrays,
    idx,
    write,
)

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_idx_files(tmp_path, suffix, dotted):
    contents = arrays()
    spelled = {name.replace("-idx", ".idx") if dotted else name: array for name, array in contents.items()}
    dataset = data.mnist(write(tmp_path / "digits", spelled, suffix))
    assert dataset.name == "MNIST-format data from digits"
    assert dataset.source == str(tmp_path / "digits")
    assert dataset.warning == ""
    for x, name in (dataset.x_train, TRAIN_IMAGES), (dataset.x_eval, EVAL_IMAGES):
        expected = (contents[name].reshape(-1, 784) - contents[TRAIN_IMAGES].mean()) / contents[TRAIN_IMAGES].std()
        assert x.dtype == torch.float32
        np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=1e-6)
    for y, name in (dataset.y_train, TRAIN_LABELS), (dataset.y_eval, EVAL_LABELS):
        assert y.dtype == torch.int64
        assert y.tolist() == contents[name].tolist()


@pytest.mark.parametrize("name", data.FILES)
def test_mnist_accepts_a_raw_file_called_gz(tmp_path, name):
    """Accept an unpacked file that is still called .gz, as browsers leave it."""
    folder = write(tmp_path, arrays())
    (folder / f"{name}.gz").write_bytes(idx(arrays()[name]))
    assert len(data.mnist(folder).x_train) == 3


@pytest.mark.skipif(not REAL_MNIST, reason="MNIST_DIR does not name a folder with the real MNIST")
def test_mnist_reads_the_real_one(monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST_DIR", str(REAL_MNIST))
    dataset = data.mnist()
    assert dataset.name == "MNIST"
    assert dataset.x_train.shape == (60000, 784)
    assert dataset.x_eval.shape == (10000, 784)
    assert dataset.y_train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(dataset.x_train.mean().item()) < 1e-3
    assert abs(dataset.x_train.std().item() - 1) < 1e-3


BAD_FILES = {
    "missing": (TRAIN_LABELS, lambda content: None, ["has no", "raw or .gz"]),
    "empty": (TRAIN_IMAGES, lambda content: b"", ["starts with nothing", "00000803"]),
    "truncated gzip": (EVAL_IMAGES, lambda content: gzip.compress(content)[:-9], ["cannot be read"]),
    "corrupt gzip": (EVAL_LABELS, lambda content: gzip.compress(content)[:-8] + b"\0" * 8, ["cannot be read"]),
    "truncated": (TRAIN_IMAGES, lambda content: content[:-1], ["2367 bytes", "exactly 2368"]),
    "trailing": (TRAIN_LABELS, lambda content: content + b"\0", ["12 bytes", "exactly 11"]),
    "header only": (EVAL_LABELS, lambda content: content[:6], ["starts with 00000801", "1 extents"]),
    "labels for images": (TRAIN_IMAGES, lambda content: idx(np.zeros(3)), ["00000801", "00000803"]),
    "float values": (TRAIN_LABELS, lambda content: b"\0\0\x0d\x01" + content[4:], ["00000d01", "00000801"]),
    "html": (TRAIN_LABELS, lambda content: b"<!DOCTYPE html>", ["3c21444f", "00000801"]),
    "14x14": (EVAL_IMAGES, lambda content: idx(np.zeros((2, 14, 14))), ["2x14x14", "28x28"]),
    "no images": (EVAL_IMAGES, lambda content: idx(np.zeros((0, 28, 28))), ["must not be empty"]),
    "count": (EVAL_LABELS, lambda content: idx(np.zeros(5)), ["5 labels", "2 images"]),
}


@pytest.mark.parametrize("option", ["--data-dir", "MNIST_DIR"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_mnist_names_what_is_wrong_with_a_given_folder(monkeypatch, tmp_path, case, option):
    name, damage, expected = BAD_FILES[case]
    folder = write(tmp_path / "digits", arrays(), suffix="")
    content = damage((folder / name).read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    if option == "MNIST_DIR":
        monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.raises(errors.DataError) as error:
        data.mnist(folder if option == "--data-dir" else None)
    message = str(error.value)
    for part in (option, str(folder), name, *expected):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("folder", ["absent", "", "file"])
def test_mnist_names_a_folder_that_is_none(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(errors.DataError, match=r"--data-dir takes a folder .* is not a folder"):
        data.mnist(tmp_path / folder if folder else "")


def test_mnist_names_a_file_without_permission(monkeypatch, tmp_path):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(errors.DataError, match=r"cannot be read .*Permission denied"):
        data.mnist(write(tmp_path, arrays()))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(data.FILES)),
    zipped=st.booleans(),
    cut=st.integers(0, 60),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=8),
)
def test_mnist_raises_nothing_but_data_errors(name, zipped, cut, edits, tail):
    content = idx(arrays()[name])
    mangled = bytearray(gzip.compress(content, mtime=0) if zipped else content)
    # Most faults are possible in the headers, the first bytes.
    for position, value in edits:
        mangled[position % len(mangled)] = value
    mangled = bytes(mangled[: len(mangled) - cut]) + tail
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arrays())
        Path(folder, f"{name}.gz").write_bytes(mangled)
        try:
            dataset = data.mnist(folder)
        except errors.DataError:
            return
    assert dataset.x_train.shape == (3, 784)
    assert dataset.y_eval.shape == (2,)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(list(data.FILES)), content=st.binary(max_size=64), prefix=st.sampled_from([b"", b"\x1f\x8b"])
)
def test_mnist_raises_nothing_but_data_errors_on_foreign_bytes(name, content, prefix):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arrays())
        Path(folder, f"{name}.gz").write_bytes(prefix + content)
        with pytest.raises(errors.DataError, match=name):
            data.mnist(folder)


@pytest.mark.parametrize("shape", [(0, 2**32 - 1, 2**32 - 1), (2**32 - 1,) * 3])
def test_mnist_rejects_shapes_beyond_any_array(tmp_path, shape):
    folder = write(tmp_path, arrays(), suffix="")
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in shape)
    (folder / TRAIN_IMAGES).write_bytes(header)
    with pytest.raises(errors.DataError, match="declares the shape"):
        data.mnist(folder)
