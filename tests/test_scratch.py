"""The buffers on which a GPU is tuned, as far as they can be had without one."""

from dataclasses import replace

import pytest
import torch

import optim
from experiments.tune import gpu_machine
from experiments.tune.race import LaunchCase
from kernels import rules

CPU = torch.device("cpu")


@pytest.mark.parametrize("trial", [(), (0.25,) * 6])
def test_a_rule_whose_hyperparameters_have_new_names_is_tried_with_values_of_its_own(monkeypatch, trial):
    names = ("rate", "first", "second", "floor", "shrink", "pull")
    assert len(names) == len(rules.adam.hyper)
    monkeypatch.setitem(rules.RULES, "mine", replace(rules.adam, name="mine", hyper=names, trial=trial))
    before = [
        t for entry in gpu_machine.allocate(LaunchCase("mine", "float32", "short", 8), CPU).entries for t in (entry.p,)
    ]
    after = gpu_machine.outcome(LaunchCase("mine", "float32", "short", 8), CPU, None)
    assert all(t.isfinite().all() for t in after)
    assert (after[0] != before[0]).all()


def test_a_rule_of_ones_own_is_tried_with_its_defaults_and_a_step_that_16_bits_show():
    def prepare(hyper, step):
        lr, beta1, beta2, reach = hyper
        return lr, beta1 * beta2 * reach

    def update(p, grad, state, coefficients):
        lr, reach = coefficients
        return p - lr * reach * grad, ()

    classes = [
        optim.from_rule(update, prepare, defaults={"lr": lr, "betas": betas, "reach": 2.0}, name="Mine")
        for lr, betas in ((1e-4, (0.8, 0.7)), (1e-2, (0.9, 0.6)))
    ]
    ours, other = (cls([torch.zeros(3, requires_grad=True)]).rule({}) for cls in classes)
    assert (ours.trial_values, other.trial_values) == ((1.0, 0.8, 0.7, 2.0), (1.0, 0.9, 0.6, 2.0))
    # They are no part of what functions are compiled for.
    assert replace(ours, trial=()) == ours
    assert hash(replace(ours, trial=())) == hash(ours)


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_moves_every_element_when_it_is_tried(name):
    case = LaunchCase(name, "float32", "short", 8)
    before = gpu_machine.allocate(case, CPU).entries
    after = iter(gpu_machine.outcome(case, CPU, None))
    for entry in before:
        for old in (entry.p, *entry.states):
            new = next(after)
            assert new.isfinite().all()
            assert old is not entry.p or (new != old).all()
