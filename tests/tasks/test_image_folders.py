"""Are data sets found in the folders that people have, read as they are stored, and named as what they are?"""

import os

import numpy as np
import pytest
import torch

from experiments.common import errors
from experiments.tasks import data, image_files, problems
from tests.tasks.idx_files import (
    EVAL_LABELS,
    REAL_MNIST,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    arrays,
    emnist,
    write,
)

pytestmark = pytest.mark.usefixtures("isolated")
needs_mnist = pytest.mark.skipif(not REAL_MNIST, reason="MNIST_DIR does not name a folder with the real MNIST")


@pytest.mark.parametrize("given", ["", "MNIST", "MNIST/raw", "KMNIST", "KMNIST/raw"])
def test_torchvisions_layout_is_found_and_mnist_comes_first(tmp_path, given):
    write(tmp_path / "MNIST" / "raw", arrays(3))
    write(tmp_path / "KMNIST" / "raw", arrays(4), "")
    write(tmp_path / "FashionMNIST" / "raw", arrays(5))
    name = given.partition("/")[0] or "MNIST"
    dataset = data.mnist(tmp_path / given)
    assert dataset.name == f"MNIST-format data from {name}"
    assert dataset.source == str(tmp_path / name / "raw")
    assert len(dataset.x_train) == {"MNIST": 3, "KMNIST": 4}[name]


def test_files_of_the_folder_itself_come_first(tmp_path):
    write(write(tmp_path, arrays(4)) / "MNIST" / "raw", arrays(3))
    assert len(data.mnist(tmp_path).x_train) == 4


@pytest.mark.parametrize("only", ["FashionMNIST", "KMNIST", "EMNIST"])
def test_the_only_data_set_of_a_folder_is_taken(tmp_path, only):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    write(tmp_path / only / "raw", emnist("letters") if only == "EMNIST" else arrays())
    name = "EMNIST letters" if only == "EMNIST" else f"MNIST-format data from {only}"
    assert data.mnist(tmp_path).name == name


def test_several_data_sets_are_named(tmp_path):
    write(tmp_path / "KMNIST" / "raw", arrays())
    write(tmp_path / "EMNIST" / "raw", emnist("digits", (1, 2)))
    with pytest.raises(errors.DataError, match=r"--data-dir: .* holds KMNIST and EMNIST, so one of these"):
        data.mnist(tmp_path)


def test_raw_and_gzipped_files_may_be_mixed(tmp_path):
    contents = arrays()
    for suffix, names in ("", (TRAIN_IMAGES, EVAL_LABELS)), (".gz", contents.keys() - {TRAIN_IMAGES, EVAL_LABELS}):
        write(tmp_path, {name: contents[name] for name in names}, suffix)
    assert data.mnist(tmp_path).y_eval.tolist() == contents[EVAL_LABELS].tolist()


@pytest.mark.parametrize(
    "given", ["EMNIST/raw/emnist-letters", "EMNIST/emnist-letters", "emnist-letters", "EMNIST/emnist-letters/"]
)
def test_a_split_of_emnist_is_given_by_the_start_of_its_names(tmp_path, given):
    raw = write(tmp_path / "EMNIST" / "raw", emnist("letters"))
    write(raw, emnist("digits", (3, 4)), "")
    dataset = data.mnist(f"{tmp_path}/{given}")
    assert dataset.name == dataset.origin == "EMNIST letters"
    assert dataset.source == str(raw / "emnist-letters")
    assert dataset.y_train.tolist() == [0, 25, 8]
    stored = emnist("letters")["emnist-letters-train-images-idx3-ubyte"]
    upright = torch.from_numpy((stored - stored.mean()) / stored.std()).mT
    torch.testing.assert_close(dataset.x_train.view(-1, 28, 28), upright, rtol=0, atol=1e-5, check_dtype=False)


def test_a_split_of_emnist_is_found_where_one_stands(tmp_path, monkeypatch):
    write(tmp_path, emnist("balanced", (0, 46)))
    monkeypatch.chdir(tmp_path)
    assert data.mnist("emnist-balanced").name == data.mnist(".").name == "EMNIST balanced"


@pytest.mark.parametrize("given", ["", "EMNIST", "EMNIST/raw"])
def test_several_splits_are_named(tmp_path, given):
    write(write(tmp_path / "EMNIST" / "raw", emnist("letters")), emnist("byclass", (0, 61)))
    with pytest.raises(errors.DataError) as error:
        data.mnist(tmp_path / given)
    assert "holds emnist-byclass, emnist-letters, so one has to be named, such as" in str(error.value)
    assert str(tmp_path / "EMNIST" / "raw" / "emnist-byclass") in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("emnist-digits", "has emnist-letters, and emnist-digits was asked for"),
        ("emnist-upper", "has emnist-letters, and emnist-upper was asked for"),
        ("raw/raw/emnist-letters", "takes a folder with the IDX files"),
        ("../emnist-letters", "has no split of EMNIST"),
    ],
)
def test_a_split_that_is_not_there_is_one_sentence(tmp_path, given, message):
    write(tmp_path / "there" / "raw", emnist("letters"))
    with pytest.raises(errors.DataError, match=message):
        data.mnist(tmp_path / "there" / given)


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("letters", (1, 0), "holds a label 0, and only 1 to 26"),
        ("letters", (1, 27), "holds a label 27, and only 1 to 26"),
        ("digits", (0, 10), "holds a label 10, and only 0 to 9"),
        ("mnist", (10, 1), "holds a label 10, and only 0 to 9"),
        ("bymerge", (0, 47), "holds a label 47, and only 0 to 46"),
        ("balanced", (0, 47), "holds a label 47, and only 0 to 46"),
        ("byclass", (0, 62), "holds a label 62, and only 0 to 61"),
    ],
)
def test_labels_that_a_split_does_not_have_are_refused(tmp_path, split, labels, message):
    with pytest.raises(errors.DataError, match=f"emnist-{split}-train-labels-idx1-ubyte {message}"):
        data.mnist(write(tmp_path, emnist(split, labels)))


def test_a_missing_file_of_a_split_is_named(tmp_path):
    folder = write(tmp_path, emnist("letters"))
    (folder / "emnist-letters-test-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(errors.DataError, match="has no emnist-letters-test-labels-idx1-ubyte, and it has to hold emni"):
        data.mnist(folder)


def test_an_empty_folder_says_what_it_may_hold(tmp_path):
    with pytest.raises(errors.DataError, match=r"has no train-images.*t10k-labels.*MNIST/raw.*or one \.npz file"):
        data.mnist(tmp_path)


def test_a_folder_that_cannot_be_listed_is_one_sentence(tmp_path, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(errors.DataError, match=r"cannot be read .*Permission denied"):
        data.mnist(tmp_path)


@pytest.mark.parametrize(("highest", "n_classes"), [(3, 10), (9, 10), (10, 11), (255, 256)])
@pytest.mark.parametrize("model", problems.TASKS["mnist"])
def test_models_have_an_output_for_every_class(tmp_path, model, highest, n_classes):
    labels = {TRAIN_LABELS: np.array([0, 1, 2]), EVAL_LABELS: np.array([0, highest])}
    made = problems.make("mnist", model, data_dir=write(tmp_path, arrays() | labels)).model
    module = made.build()
    assert module(torch.zeros(2, 784)).shape == (2, n_classes)
    assert made.widths[-1] == n_classes
    assert (made.name in ("cnn 8-16", "gru 28-32-10", "logistic 784-10", "mlp 784-32-32-10")) == (n_classes == 10)


def test_data_sets_are_known_by_their_values_not_their_folder(tmp_path, monkeypatch):
    contents = arrays()
    folder = write(tmp_path / "FashionMNIST" / "raw", contents)
    monkeypatch.setitem(image_files.KNOWN, "KMNIST", tuple(map(image_files.git_id, contents.values())))
    assert data.mnist(folder).name == "KMNIST"
    contents[TRAIN_IMAGES][0, 0, 0] ^= 1
    assert data.mnist(write(folder, contents)).name == "MNIST-format data from FashionMNIST"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6,), "5a4c386c4c08c2a70588d07996689d8d38b0e513"), ((1, 2, 3), "147a1ef0985b097d7549b70d3f77279efff29831")],
)
def test_ids_are_those_of_git(shape, expected):
    assert image_files.git_id(np.arange(6).reshape(shape)) == expected


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["torchvision", "npz", "floats"])
def test_the_real_mnist_is_the_same_in_every_form(tmp_path, layout):
    plain = data.mnist(REAL_MNIST)
    if layout == "torchvision":
        (tmp_path / "MNIST").mkdir()
        (tmp_path / "MNIST" / "raw").symlink_to(os.path.abspath(str(REAL_MNIST)))
    else:
        _, _, *arrays = image_files.read(str(REAL_MNIST), "MNIST_DIR")
        if layout == "floats":
            arrays[::2] = (images / np.float32(255) for images in arrays[::2])
        np.savez(tmp_path / "mnist.npz", **dict(zip(image_files.ARRAYS, arrays, strict=True)))
    dataset = data.mnist(tmp_path)
    assert dataset.name == dataset.origin == "MNIST"
    for name in ("x_train", "y_train", "x_eval", "y_eval"):
        assert torch.equal(getattr(dataset, name), getattr(plain, name))
