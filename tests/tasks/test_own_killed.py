"""Does a sweep of a user's own problem that is killed end as if it had not been?"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

STEPS = 600
MODULE = """
from torch import nn
from tests.tasks.own_problems import own

def network():
    return nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.2), nn.Linear(6, 3))

def digits():
    return own("mlp", model=network)
"""


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    words = ["mine:digits", "--lr", "1e-3..1e-1:3", "--seeds", "2", "--steps", str(STEPS), *more]
    line = [sys.executable, "-m", "experiments.sweep", *words, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        line, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen) -> str:
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


@pytest.mark.slow
def test_killed_with_batchnorm_and_dropout_a_sweep_goes_on_to_the_same_bits(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    killed = start(tmp_path, "killed", "--checkpoint-every", "0")
    deadline = time.monotonic() + 90
    while not (kept := list(tmp_path.glob("killed/parts/[!.]*.pt"))):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed" / "runs.parquet").exists()
    assert 0 < torch.load(kept[0], weights_only=True)["training"]["step"] < STEPS
    finish(start(tmp_path, "killed"))
    finish(start(tmp_path, "whole"))
    for name in ("runs", "curves"):
        found, expected = (pd.read_parquet(tmp_path / out / f"{name}.parquet") for out in ("killed", "whole"))
        seconds = [column for column in found if "seconds" in column]
        pd.testing.assert_frame_equal(found.drop(columns=seconds), expected.drop(columns=seconds), check_exact=True)
