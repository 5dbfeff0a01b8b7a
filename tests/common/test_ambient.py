"""What a process has set for all that runs in it neither gets into a sweep nor is changed by one."""

import contextlib
import random
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from experiments import explorer, report
from experiments.common import errors
from experiments.common.ambient import PANDAS, restored
from experiments.common.run_info import readable
from experiments.reports import pictures
from experiments.sweep import sweep
from experiments.sweeps import reading, run_keys
from experiments.tasks import functions
from tests.tables import without_seconds

OPTIONS = {"lr": [1e-3, 1e2], "steps": 6, "seeds": 2, "progress": False, "dropout": 0.1}


@pytest.fixture(scope="module")
def plain():
    """A sweep in a process in which nobody has set anything."""
    return sweep("regression", **OPTIONS)


def setting(get, set_, value):
    return lambda: restored(get, set_, value)


SETTINGS = {
    "float64": setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "default device": setting(torch.get_default_device, torch.set_default_device, torch.device("meta")),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    "deterministic": setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "precision": setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "denormals": setting(lambda: False, torch.set_flush_denormal, True),
    "numpy": lambda: np.errstate(all="raise"),
    "pandas": lambda: pd.option_context("display.precision", 1, "display.float_format", "{:.0f}".format),
    "random": contextlib.nullcontext,
}


def state() -> tuple:
    """What could leak out."""
    generators = torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    modes += torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()
    modes += torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), torch.get_num_threads()
    return *generators, *modes, np.geterr(), [pd.get_option(name) for name in PANDAS], dict(mpl.rcParams)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_sweep_has_the_same_bits_and_leaves_everything_as_it_was(name, plain):
    torch.manual_seed(hash(name))
    with SETTINGS[name]():
        before = state()
        found = sweep("regression", **OPTIONS)
        assert state() == before
    columns = ["status", "train_loss", "eval_loss", "initial_eval_loss"]
    pd.testing.assert_frame_equal(found.runs.loc[:, columns], plain.runs.loc[:, columns], check_exact=True)


@pytest.mark.parametrize("task", ["function", "heavy-tailed", "regression"])
def test_data_and_initial_weights_do_not_depend_on_the_default_dtype(task):
    models = functions.FUNCTIONS if task == "function" else ["linear"]
    for model in models:
        options = {"model": model, "optimizer": "sgd", "lr": 1e-3, "steps": 2, "progress": False}
        first = sweep(task, **options)
        with SETTINGS["float64"]():
            second = sweep(task, **options)
        pd.testing.assert_frame_equal(without_seconds(first.curves), without_seconds(second.curves))


def test_figures_and_tables_look_alike_whatever_the_users_style_says(plain, tmp_path):
    def drawn() -> tuple:
        shown = explorer.view(plain)
        return pictures.encoded(shown.over), explorer.html_of(shown)

    first = drawn()
    odd: dict = {"text.usetex": True, "savefig.bbox": "tight", "font.family": "no-such-font", "figure.dpi": 30}
    odd |= {"axes.grid": False, "lines.marker": "o", "savefig.transparent": True, "axes.facecolor": "red"}
    with mpl.rc_context(odd), SETTINGS["pandas"](), SETTINGS["numpy"]():
        before = dict(mpl.rcParams)
        assert drawn() == first
        assert dict(mpl.rcParams) == before


def test_an_explorer_refuses_axes_and_values_that_are_none(plain):
    views: list[dict] = [{"x": "speed"}, {"y": 3}, {"held": {"speed": 1}}, {"held": {"lr": "fast"}}, {"held": [1]}]
    for options in views:
        with pytest.raises(errors.OptionError, match=r" accepts "):
            explorer.view(plain, **options)
    folders: list = [3, "a\0b", "x" * 300, "~nobody-has-this-name"]
    for folder in folders:
        with pytest.raises(errors.OptionError):
            reading.load(folder)


def test_what_computes_is_a_part_of_a_runs_identity(monkeypatch):
    assert run_keys.compiler("cpu").startswith("numba")
    monkeypatch.setattr(run_keys.backends, "has_numba", lambda: False)
    assert run_keys.compiler("cpu") == "none"
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = run_keys.compiler("cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert interpreted == f"{run_keys.compiler('cuda')}, interpreted"


def test_text_that_is_not_utf_8_can_be_written():
    assert readable("plain über") == "plain über"
    assert readable(b"\xc3\xbcber \xff".decode("ascii", "surrogateescape")).startswith("über ")


@pytest.mark.slow
def test_a_poor_console_and_warnings_as_errors(tmp_path):
    out = tmp_path / "über ✕"
    poor = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PATH": ""}
    command = [
        "-W",
        "error",
        "-m",
        "experiments.sweep",
        "regression",
        "--lr",
        "1e-3",
        "--steps",
        "5",
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, *command], env=poor, cwd=run_keys.ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "über ✕" in (out / "report.md").read_text(encoding="utf-8")
    assert report.main([str(out)]) == 0
