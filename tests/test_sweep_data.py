"""Does a sweep take the files of MNIST and its relatives in the forms that people have, and say what it trained on?"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import sweep
from experiments.tasks import image_files
from tests.tasks.idx_files import REAL_MNIST, emnist, write

SHORT = ["mnist", "--lr", "1e-3", "1e-2", "--steps", "2", "--batch-size", "2", "--evaluations", "1", "--device", "cpu"]
FORMS = ("torchvision", "npz")


def swept(folder: Path, out: Path) -> tuple[pd.DataFrame, str]:
    """Return the runs of a short sweep, and its page."""
    assert sweep.main([*SHORT, "--data-dir", str(folder), "--out", str(out)]) == 0
    return pd.read_parquet(out / "runs.parquet"), (out / "report.md").read_text()


def another_form(folder: Path, form: str, path: Path) -> Path:
    """Write the images of a folder with four IDX files in another form, and return what `--data-dir` may name."""
    if form == "torchvision":
        (path / "MNIST").mkdir(parents=True)
        (path / "MNIST" / "raw").symlink_to(folder.resolve())
        return path
    arrays = image_files.read(folder, "--data-dir")[2:]
    np.savez(file := path.with_suffix(".npz"), **dict(zip(image_files.ARRAYS, arrays, strict=True)))
    return file


@pytest.mark.slow
def test_the_command_trains_on_the_letters_of_emnist(tmp_path):
    write(tmp_path / "EMNIST" / "raw", emnist("letters"))
    runs, page = swept(tmp_path / "EMNIST" / "emnist-letters", tmp_path / "out")
    assert set(runs.data) == {"EMNIST letters"}
    assert set(runs.model) == {"mlp 784-32-32-26"}
    assert "EMNIST letters" in page
    described = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert described["data"]["source"].endswith("emnist-letters")


@pytest.mark.parametrize("model", ["mlp", "logistic", "cnn", "gru"])
def test_every_model_trains_on_26_classes(tmp_path, model):
    folder = write(tmp_path, emnist("letters"))
    runs = sweep.sweep("mnist", model=model, lr=0.01, steps=20, batch_size=3, data_dir=folder, progress=False).runs
    # A network that knows nothing has a loss of about log(26), and one with ten outputs of log(10).
    np.testing.assert_allclose(runs.initial_eval_loss, np.log(26), atol=0.6)
    assert (runs.eval_loss < 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_in_another_form_are_not_trained_again(mnist_folder, tmp_path, monkeypatch, form, trained):
    arrays = image_files.read(mnist_folder, "--data-dir")[2:]
    monkeypatch.setitem(image_files.KNOWN, "MNIST", tuple(map(image_files.git_id, arrays)))
    first, _ = swept(mnist_folder, tmp_path / "out")
    before = list(trained)
    again, _ = swept(another_form(mnist_folder, form, tmp_path / "other"), tmp_path / "out")
    assert trained == before != []
    assert set(again.data) == {"MNIST"}
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_MNIST, reason="MNIST_DIR does not name a folder with the real MNIST")
@pytest.mark.parametrize("form", FORMS)
def test_the_real_mnist_in_another_form_is_not_trained_again(tmp_path, form, trained):
    swept(Path(str(REAL_MNIST)), tmp_path / "out")
    before = list(trained)
    runs, _ = swept(another_form(Path(str(REAL_MNIST)), form, tmp_path / "other"), tmp_path / "out")
    assert trained == before != []
    assert set(runs.data) == {"MNIST"}


@pytest.mark.slow
def test_the_command_trains_on_a_npz_file(mnist_folder, tmp_path):
    path = another_form(mnist_folder, "npz", tmp_path / "mnist")
    runs, page = swept(path, tmp_path / "out")
    assert set(runs.data) == {"MNIST-format data from mnist.npz"}
    assert set(runs.model) == {"mlp 784-32-32-10"}
    assert "MNIST-format data from mnist.npz" in page


def test_a_npz_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    (tmp_path / "mnist.npz").write_bytes(b"PK")
    assert sweep.main([*SHORT, "--data-dir", str(tmp_path / "mnist.npz"), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m experiments.sweep: --data-dir: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
