"""Is bad input refused in a sentence, before anything is written?"""

import pytest
import torch

from experiments import sweep
from experiments.common import errors
from experiments.common.errors import OptionError

BAD = [
    (["regression", "--lr"], "--lr needs at least one value"),
    (["regression", "--lr", "0"], "--lr accepts positive numbers"),
    (["regression", "--beta1", "1"], "--beta1 accepts numbers in [0, 1)"),
    (["regression", "--eps", "-1"], "--eps accepts numbers >= 0"),
    (["regression", "--lr", "1..0.1:3"], "--lr: a range needs 0 < START <= STOP"),
    (
        ["cifar"],
        "the task must be one of mnist, regression, heavy-tailed, function or MODULE:FUNCTION of your own, not 'cifar'",
    ),
    (["regression", "--model", "cnn"], "--model of regression accepts mlp or linear, not 'cnn'"),
    (["regression", "--hidden", "0"], "--hidden accepts a width of at least 1"),
    (["regression", "--momentum", "1"], "--momentum accepts numbers in [0, 1)"),
    (["regression", "--momentum", "0.9"], "--momentum goes with none of the optimizers chosen: adam accepts lr, "),
    (["regression", "--optimizer"], "--optimizer needs at least one of adam"),
    (["regression", "--optimizer", "adam", "lyon"], "prodigy or MODULE:CLASS, not 'lyon'"),
    (["regression", "--optimizer", "nowhere:Adam"], "nowhere cannot be (ModuleNotFoundError"),
    (
        ["regression", "--optimizer", "optim:Nobody"],
        "torch.optim.Optimizer, and optim:Nobody is none",
    ),
    (["regression", "--optimizer", "math:sqrt"], "torch.optim.Optimizer, and math:sqrt is none"),
    (["regression", "--optimizer", "torch.optim:Optimizer"], "whose constructor names lr"),
    (
        ["regression", "--optimizer", "torch.optim:Adagrad"],
        "--optimizer torch.optim:Adagrad does not accept",
    ),
    (["regression", "--optimizer", "nesterov", "--momentum", "0"], "--optimizer nesterov does not accept"),
    (
        ["regression", "--optimizer", "adam", "lion", "--compare-alone"],
        "--compare-alone accepts optimizers that",
    ),
    (["regression", "--seeds", "0"], "--seeds accepts whole numbers from 1, not 0"),
    (["regression", "--batch-size", "100000"], "--batch-size accepts at most the 8192 training examples"),
    (["regression", "--steps", "-3"], "--steps accepts whole numbers from 1, not -3"),
    (["regression", "--epochs", "0"], "--epochs accepts positive numbers, not 0"),
    (["regression", "--steps", "3", "--epochs", "1"], "--steps and --epochs exclude each other"),
    (["regression", "--model", "linear", "--condition-number", "0.5"], "--condition-number accepts numbers from 1"),
    (["regression", "--accumulate", "0"], "--accumulate accepts whole numbers from 1, not 0"),
    (["regression", "--accumulate", "100"], "--batch-size times --accumulate accepts at most the 8192 training"),
    (["regression", "--schedule", "step"], "--schedule accepts constant, rsqrt, cosine, not 'step'"),
    (["regression", "--steps", "9", "--warmup", "9"], "--warmup accepts whole numbers from 0 to below the 9 steps"),
    (["regression", "--dropout", "1"], "--dropout accepts numbers in [0, 1) and goes with --model mlp, not 1 with mlp"),
    (["mnist", "--model", "gru", "--dropout", "0.1"], "--dropout accepts numbers in [0, 1) and goes with --model mlp"),
    (
        ["mnist", "--model", "cnn", "--hidden", "9"],
        "--hidden accepts a width of at least 1 and goes with --model mlp or",
    ),
    (["regression", "--sample", "random:8"], "--sample accepts sobol:N with a power of two, or halton:N"),
    (
        ["regression", "--lr", "1e-3..1"],
        "--lr: a range is START..STOP:COUNT, for example 1e-4..1e-1:7, of at most 99999",
    ),
    (["regression", "--target", "95%"], "--target accepts a loss where nothing is classified, not the accuracy '95%'"),
    (["regression", "--target", "soon"], "--target accepts a loss (0.2) or an accuracy (95%), not 'soon'"),
    (["regression", "--confirm", "0"], "--confirm accepts whole numbers from 1, not 0"),
    (["regression", "--lr", "sgd=0.1"], "--lr accepts values for adam, not for 'sgd'"),
    (["regression", "--lr", "adam=fast"], "--lr accepts positive numbers, not 'fast'"),
    (["regression", "--optimizer", "adam", "sgd", "--momentum", "sgd=0.5"], "--momentum goes with none of the"),
    (["regression", "--device", "tpu"], "--device accepts auto, cpu, cuda or cuda:N, not 'tpu'"),
    (["mnist", "--data-dir", "/nowhere"], "--data-dir takes a folder with the IDX files"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert sweep.main([*arguments, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_cuda_device_that_is_not_there_is_refused(capsys, tmp_path):
    assert sweep.main(["regression", "--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    assert "--device cuda: this machine has 0 CUDA devices" in capsys.readouterr().err


def test_out_must_be_given_and_be_fit(tmp_path, capsys):
    assert sweep.main(["regression"]) == 2
    assert "--out needs a folder" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("mine")
    assert sweep.main(["regression", "--out", str(file)]) == 2
    assert sweep.main(["regression", "--out", str(file / "deeper")]) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert sweep.main(["regression", "--out", str(folder)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert file.read_text() == (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_python_callers_get_the_same_sentences():
    with pytest.raises(OptionError, match="--lr accepts positive numbers"):
        sweep.sweep("regression", lr=-1)
    with pytest.raises(errors.DataError, match="--data-dir"):
        sweep.sweep("mnist", data_dir="/nowhere")
