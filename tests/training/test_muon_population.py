"""Does a lane of Muon compute what torch's two optimizers do on their own: Muon for matrices, AdamW for the rest?"""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.training import optimizers, population, reference
from tests.training.small_problems import digits, small_cnn, small_gru

CONFIGS = pd.DataFrame({"lr": [0.01, 0.03], "weight_decay": [0.1, 0.0], "momentum": [0.95, 0.8]})


def both(module: torch.nn.Module, config: dict) -> list[torch.optim.Optimizer]:
    """Return torch's optimizers with the lr and weight decay of the configuration."""
    matrices, others = ([p for p in module.parameters() if (p.ndim == 2) is wanted] for wanted in (True, False))
    adamw = torch.optim.AdamW(others, lr=config["lr"], weight_decay=config["weight_decay"])
    return [torch.optim.Muon(matrices, **config), adamw]


@pytest.mark.parametrize("make", [digits, small_cnn, small_gru])
def test_lanes_of_muon_follow_torchs_two_optimizers(make):
    problem, steps, seeds = make(), 12, [0, 5]
    options = {"steps": steps, "batch_size": 32, "dtype": torch.float64}
    _, curves = population.train(problem, CONFIGS, seeds, optimizer="muon", evaluations=3, **options)
    x, y, _, _ = population.tensors(problem, dtype=torch.float64)
    for lane, (seed, (_, config)) in enumerate((s, c) for s in seeds for c in CONFIGS.iterrows()):
        module, _ = reference.make(problem, {"lr": 1.0}, seed, "adamw", torch.float64)
        pair, losses = both(module, config.to_dict()), []
        batches = population.batch_indices(len(x), 32, seed, problem.data.in_order)
        for index in (next(batches) for _ in range(steps)):
            module.zero_grad()
            loss = problem.model.loss_alone(module, x[index], y[index])
            loss.backward()
            losses.append(loss.item())
            for optimizer in pair:
                optimizer.step()
        expected = np.array(losses).reshape(3, 4).mean(1)
        # Gradients differ in their last digits, and some round to another number in bfloat16.
        np.testing.assert_allclose(curves[curves.lane == lane].train_loss[1:], expected, rtol=1e-4)


def test_one_lane_is_still_a_stack_of_matrices():
    options = {"steps": 6, "batch_size": 32, "optimizer": "muon"}
    together, _ = population.train(small_cnn(), CONFIGS, [0], **options)
    alone, _ = population.train(small_cnn(), CONFIGS.iloc[1:], [0], **options)
    assert alone.eval_loss[0] == pytest.approx(together.eval_loss[1], rel=1e-3)
    assert alone.eval_loss[0] < alone.initial_eval_loss[0]


def test_matrices_go_to_muon_and_all_else_to_adamw():
    shapes = [(3, 5, 4), (3, 5), (3, 2, 1, 5, 5), (3, 10, 50), (3,)]
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    muon, adamw = optimizers.make("muon", params, {"lr": torch.ones(3), "weight_decay": torch.ones(3)}).param_groups
    assert [list(p.shape) for p in muon["params"]] == [[3, 5, 4], [3, 10, 50]]
    assert len(adamw["params"]) == 3
    assert not adamw["use_muon"]
    assert torch.equal(muon["lr"], adamw["lr"])
    assert torch.equal(muon["weight_decay"], adamw["weight_decay"])
    assert (adamw["betas"], adamw["eps"]) == ((0.9, 0.999), 1e-8)
