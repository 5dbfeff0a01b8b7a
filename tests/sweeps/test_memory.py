"""The memory that is predicted for a population is what the process takes."""

import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from experiments.common.errors import OptionError
from experiments.sweeps import cost, memory
from experiments.tasks import cnn, gru, mlp, problems
from experiments.training.axes import AXES
from tests.pages import ROOT
from tests.training.small_problems import digits

MODELS = {"small mlp": mlp.mlp(784, 32, 32, 10), "large mlp": mlp.mlp(784, 512, 512, 10)}
MODELS |= {"cnn": cnn.cnn(), "gru": gru.gru()}
DEFAULTS = {"adam": pd.DataFrame([AXES])}
CHILD = """
import ctypes, gc, re, sys
import pandas as pd
from experiments.training import population
from experiments.training.axes import AXES
from tests.sweeps.test_memory import problem_of

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def train(problem, lanes, batch_size):
    configs = pd.DataFrame({axis: [value] * lanes for axis, value in AXES.items()})
    population.train(problem, configs, [0], steps=3, evaluations=1, batch_size=batch_size)

problem = problem_of(sys.argv[1], 2000)
train(problem_of(sys.argv[1], 64), 1, 16)  # what libraries need once
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
train(problem, int(sys.argv[2]), 128)
print(status("VmHWM") - before)
"""


def problem_of(name: str, examples: int) -> problems.Problem:
    """The model of this name on so many digits of noise."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, 784, generator=generator), torch.randint(10, (examples,), generator=generator)
    problem = digits()
    data = replace(problem.data, x_train=x, y_train=y, x_eval=x, y_eval=y)
    return replace(problem, data=data, model=MODELS[name])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs of Linux")
@pytest.mark.parametrize(
    ("name", "lanes"),
    [
        ("small mlp", 320),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("large mlp", 16), ("cnn", 64), ("gru", 64))),
    ],
)
def test_the_prediction_is_what_a_process_takes(name, lanes):
    """Check it within a fifth, with a malloc that returns what is freed: the gaps that it keeps otherwise vary."""
    predicted = memory.measure(problem_of(name, 2000), 128, 1, 1, DEFAULTS).of(lanes) / memory.SLACK
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", CHILD, name, str(lanes)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert int(done.stdout) > 100e6
    assert predicted == pytest.approx(int(done.stdout), rel=0.2)


def test_counting_leaves_torchs_generators_alone():
    state = torch.get_rng_state()
    memory.measure(digits(), 16, 2, 3, {**DEFAULTS, "lion": DEFAULTS["adam"]})
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "states"), [("adam", 2), ("amsgrad", 3), ("sgd", 0), ("momentum", 1), ("lion", 1), ("adadelta", 2)]
)
def test_states_are_those_of_the_optimizer(name, states):
    assert memory.states_of(name, DEFAULTS["adam"]) == states


def test_lanes_fit_into_a_budget_and_one_more_does_not():
    needed = memory.measure(digits(), 64, 1, 1, DEFAULTS)
    for budget in (2e8, 1e9, 1e11):
        lanes = needed.lanes(budget)
        assert needed.of(lanes) <= budget < needed.of(lanes + 1)


def test_a_network_beyond_the_memory_is_refused_before_it_is_made():
    huge = replace(MODELS["small mlp"], build=lambda: nn.Linear(10**6, 10**6))
    with pytest.raises(OptionError, match="--hidden and --batch-size accept what fits into the memory"):
        cost.check_fits(huge, 128, "cpu")
