"""Lanes of a user's module compute what the ordinary module computes alone."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from experiments.tasks import problems
from experiments.tasks.any_module import AnyModule, attention, drawing, plain_attention
from experiments.training import population, reference
from tests.tables import without_seconds
from tests.tasks.own_problems import MODULES, SHARED, made

CONFIGS = pd.DataFrame(
    {"lr": [1e-3, 1e-2], "beta1": [0.9, 0.8], "beta2": [0.999, 0.99], "eps": [1e-8, 1e-6], "weight_decay": [0.0, 1e-3]}
)
OPTIONS = {"steps": 30, "batch_size": 16, "dtype": torch.float64}


def evaluated(problem: problems.Problem, module: torch.nn.Module) -> float:
    with torch.no_grad(), drawing(torch.zeros(1), torch.device("cpu")):
        return problem.model.loss_alone(module.eval(), problem.data.x_eval.double(), target(problem)).item()


def target(problem: problems.Problem) -> torch.Tensor:
    y = problem.data.y_eval
    return y.double() if y.is_floating_point() else y


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", MODULES)
def test_each_lane_is_the_ordinary_run(name, accumulate):
    problem = made(name)
    assert isinstance(problem.model, AnyModule)
    assert problem.model.by_vmap == (name != "branching")
    assert problem.model.is_random == (name in ("mlp", "transformer", "branching", "sampling", "shared"))
    options = {**OPTIONS, "accumulate": accumulate}
    runs, curves = population.train(problem, CONFIGS, [0, 3], evaluations=2, **options)
    for lane, run in runs.iterrows():
        config = run.loc[list(CONFIGS)].astype(float).to_dict()
        module, losses = reference.train(problem, config, int(run.at["seed"]), **options)
        of_lane = curves[curves["lane"] == lane]
        np.testing.assert_allclose(of_lane["train_loss"][1:], losses.view(2, 15).mean(1), rtol=1e-8)
        np.testing.assert_allclose(run["eval_loss"], evaluated(problem, module), rtol=1e-8)
        assert losses.std() > 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn", "branching"])
def test_lanes_do_not_depend_on_how_many_there_are(name):
    """Dropout and statistics of a lane are its own, whatever is trained beside it."""
    problem = made(name)
    together, curves = population.train(problem, CONFIGS, [3, 0, 1], evaluations=1, **OPTIONS)
    alone, curve = population.train(problem, CONFIGS.iloc[1:], [0], evaluations=1, **OPTIONS)
    mine = together[(together["seed"] == 0) & (together["lr"] == alone["lr"][0])]
    np.testing.assert_allclose(mine["eval_loss"], alone["eval_loss"], rtol=1e-10)
    np.testing.assert_allclose(curves[curves["lane"] == mine.index[0]]["train_loss"], curve["train_loss"], rtol=1e-10)


def test_buffers_are_part_of_a_checkpoint():
    problem = made("cnn")
    _, curves = population.train_lanes(problem, CONFIGS, [0], evaluations=1, **OPTIONS)
    kept = []

    def keep(state):
        if not kept:
            kept.append(tree_map_only(torch.Tensor, torch.Tensor.clone, state))

    steps = iter(range(30))
    population.train_lanes(problem, CONFIGS, [0], evaluations=1, due=lambda _: next(steps) == 11, keep=keep, **OPTIONS)
    assert kept[0]["step"] == 12
    _, again = population.train_lanes(problem, CONFIGS, [0], evaluations=1, resume=kept[0], **OPTIONS)
    pd.testing.assert_frame_equal(without_seconds(again), without_seconds(curves), check_exact=True)


def test_torchs_generators_stay_as_they_were():
    state = torch.get_rng_state()
    problem = made("transformer")
    population.train(problem, CONFIGS, [0], evaluations=1, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_vmap_cannot_do_is_told_in_a_sentence():
    assert getattr(made("mlp").model, "told", None) == ""
    told = getattr(made("branching").model, "told", "")
    assert told.startswith("lanes of branching are computed one after the other, because torch.vmap cannot take them (")
    assert ".item()" in told


def test_a_module_goes_to_other_processes_without_what_it_has_made():
    problem = made("mlp")
    assert isinstance(problem.model, AnyModule)
    assert problem.model.modules
    assert "modules" not in problem.model.__getstate__()


def test_the_users_own_module_stays_as_it_is():
    before = [p.clone() for p in SHARED.parameters()]
    problem = made("shared")
    population.train(problem, CONFIGS, [0], evaluations=1, **OPTIONS)
    assert SHARED.training
    assert not SHARED._forward_hooks
    assert all(torch.equal(p, q) for p, q in zip(SHARED.parameters(), before, strict=True))


MASK = torch.arange(24).reshape(4, 6) % 3 > 0
EMPTY = MASK & (torch.arange(4) > 0)[:, None]
"""A mask that leaves the first query nothing to look at."""


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"scale": 0.3}, {"is_causal": True}, {"dropout_p": 0.4}, {"dropout_p": 0.4, "is_causal": True}),
        *({"attn_mask": MASK}, {"attn_mask": EMPTY}, {"enable_gqa": True}),
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_attention_of_lanes_is_torchs(options):
    generator, heads = torch.Generator().manual_seed(0), 2 if "enable_gqa" in options else 4
    shapes = [(3, 4, 4, 5), (3, heads, 6, 5), (3, heads, 6, 7)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    torchs: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
    results, ours = [], partial(attention, torchs)
    computing: list[Callable[..., torch.Tensor]] = [torchs, ours]
    for compute in computing:
        with drawing(torch.zeros(1), torch.device("cpu")):
            output = compute(*given, **options)
        results.append([output, *torch.autograd.grad(output.square().sum(), given)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_attention_is_torchs_again_after_an_error():
    before = F.scaled_dot_product_attention
    with pytest.raises(KeyError), plain_attention():
        raise KeyError
    assert F.scaled_dot_product_attention is before


def test_the_largest_activation_may_be_one_that_no_layer_returns():
    """The packed queries, keys and values of attention: 4 tokens of 3 x 8 numbers, where layers return 4 of 16."""
    assert max(made("transformer").model.widths) == 4 * 3 * 8
