"""Do diagnostics say what a plain loop of one run says, and leave the training as it is?"""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.reports import writer
from experiments.sweep import main, sweep
from experiments.sweeps import memory
from experiments.tasks import data, mlp, problems
from experiments.training import diagnostics, evaluation, population, reference
from tests.sweeps.small import write_report
from tests.tables import without_seconds
from tests.tasks.own_problems import own as own_problem
from tests.training.small_problems import CONFIGS, digits, linear, small_gru

STEPS: dict[str, Any] = {"steps": 24, "batch_size": 16, "evaluations": 3}


def imbalanced() -> problems.Problem:
    """Make five classes of 60, 20, 10, 6 and 4 examples; the labels are not in the order of their frequency."""
    y = torch.tensor([2] * 60 + [0] * 20 + [4] * 10 + [1] * 6 + [3] * 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 8, generator=generator)
    y = y[torch.randperm(100, generator=generator)]
    dataset = data.Dataset("imbalanced", "a test", x, y, x[:50], y[:50])
    return problems.Problem("imbalanced", dataset, mlp.mlp(8, 5))


def by_hand(problem: problems.Problem, config: dict, seed: int, evaluate_at: list[int], **options) -> list[dict]:
    """Return the diagnostics of one run at these steps, from an ordinary loop with torch.optim in float64."""
    module, optimizer = reference.make(problem, config, seed, dtype=torch.float64, optimizer="adam")
    params, (x, y, *_) = list(module.parameters()), population.tensors(problem, dtype=torch.float64)
    batches, moved, found = population.batch_indices(len(x), options["batch_size"], seed), [], []
    for step in range(1, options["steps"] + 1):
        index = next(batches)
        optimizer.zero_grad()
        problem.model.loss_alone(module, x[index], y[index]).backward()
        before = nn.utils.parameters_to_vector(params).detach().clone()
        optimizer.step()
        moved.append((nn.utils.parameters_to_vector(params).detach() - before).abs())
        if step in evaluate_at:
            grad = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
            ratio = (moved[-1].square().mean() / before.square().mean()).sqrt()
            row = {"grad_norm": grad.norm(), "update_ratio": ratio, "unusual_updates": torch.tensor(np.nan)}
            if moved[-10:-1]:
                usual = torch.stack(moved[-10:-1]).mean(0)
                row["unusual_updates"] = (moved[-1] > 2 * usual).double().mean()
            found.append({name: value.item() for name, value in row.items()})
    return found


# Evaluations whose windows of ten steps are apart, end to end, overlap, and one in each step.
@pytest.mark.parametrize("evaluations", [1, 2, 5, 24])
@pytest.mark.parametrize("make", [digits, linear])
def test_values_are_those_of_a_plain_loop_of_one_run(make, evaluations):
    problem, options = make(), STEPS | {"evaluations": evaluations}
    configs, seeds = CONFIGS.iloc[:2].assign(weight_decay=0.0), [0, 5]
    runs, curves = population.train_lanes(problem, configs, seeds, dtype=torch.float64, diagnostics=True, **options)
    at = evaluation.evaluation_steps(24, evaluations)
    for _, run in runs.iterrows():
        config = run.loc[list(CONFIGS)].astype(float).to_dict()
        expected = pd.DataFrame(by_hand(problem, config, int(run.seed), at, **options))
        lane = curves[curves.lane == run.lane].reset_index(drop=True)
        assert lane.loc[0, list(diagnostics.OF_STEP)].isna().all()
        for name in diagnostics.OF_STEP:
            np.testing.assert_allclose(lane[name][1:], expected[name], rtol=1e-8)
    assert curves.grad_norm[curves.step == 24].nunique() == 4
    if evaluations < 24:
        assert curves.unusual_updates[4:].max() > 0


@pytest.mark.parametrize(("make", "options"), [(digits, {}), (small_gru, {"accumulate": 2}), (linear, {"warmup": 3})])
def test_training_has_the_same_bits_with_and_without(make, options):
    problem, options = make(), {**STEPS, "optimizer": "nadam", **options}
    runs, curves = population.train(problem, CONFIGS, [0, 5], **options)
    same, more = population.train(problem, CONFIGS, [0, 5], diagnostics=True, **options)
    pd.testing.assert_frame_equal(runs, same, check_exact=True)
    same = more.drop(columns=diagnostics.columns_of(more))
    pd.testing.assert_frame_equal(without_seconds(curves), without_seconds(same), check_exact=True)
    assert set(more) - set(curves) >= set(diagnostics.OF_STEP)


@pytest.mark.gpu
def test_a_captured_step_has_the_diagnostics_of_the_cpu():
    options: dict[str, Any] = {**STEPS, "dtype": torch.float64, "diagnostics": True}
    (_, here), (_, there) = (
        population.train_lanes(digits(), CONFIGS, [0, 5], device=device, **options) for device in ("cpu", "cuda")
    )
    for name in diagnostics.columns_of(here):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-6, atol=1e-3 * (name == "unusual_updates"))


def test_the_gradient_is_the_mean_of_accumulated_batches():
    options: dict[str, Any] = {"steps": 3, "evaluations": 3, "diagnostics": True, "dtype": torch.float64}
    (_, apart), (_, together) = (
        population.train_lanes(digits(), CONFIGS, [0], batch_size=size, accumulate=parts, **options)
        for size, parts in ((8, 4), (32, 1))
    )
    pd.testing.assert_frame_equal(without_seconds(apart), without_seconds(together), rtol=1e-9)


@pytest.mark.parametrize("stop", [8, 13, 16, 22])
def test_a_training_resumed_in_a_window_has_the_same_bits(stop, tmp_path):
    """Stop at an evaluation, and within the windows of one and of two others, with a lane that diverges."""
    sick = CONFIGS.copy()
    sick.loc[1, "lr"] = 1e30
    options: dict[str, Any] = {**STEPS, "evaluations": 6, "diagnostics": True, "schedule": "cosine"}
    _, whole = population.train_lanes(digits(), sick, [0, 5], **options)
    steps = iter(range(1, 24))
    due, path = lambda _: next(steps) == stop, tmp_path / "state"
    population.train_lanes(digits(), sick, [0, 5], due=due, keep=lambda state: torch.save(state, path), **options)
    state = torch.load(path, weights_only=True)
    assert state["step"] == stop
    assert state["lanes"]["diagnostics"]
    _, resumed = population.train_lanes(digits(), sick, [0, 5], resume=state, **options)
    pd.testing.assert_frame_equal(without_seconds(whole), without_seconds(resumed), check_exact=True)


def test_a_lane_does_not_depend_on_the_others_and_a_diverged_one_has_no_share():
    sick = CONFIGS.copy()
    sick.loc[1, "lr"] = np.inf
    options: dict[str, Any] = {**STEPS, "diagnostics": True}
    _, together = population.train_lanes(digits(), sick, [0], **options)
    for k in (0, 2):
        _, alone = population.train_lanes(digits(), sick.iloc[k : k + 1], [0], **options)
        for column in diagnostics.columns_of(alone):
            np.testing.assert_allclose(together.loc[together.lane == k, column], alone[column], rtol=1e-3)
    assert together.loc[together.lane == 1, "unusual_updates"].isna().all()


def test_elements_that_never_move_are_not_unusual():
    """Inputs that are always 0 give their weights no gradient."""
    problem = imbalanced()
    problem.data.x_train[:, 1:] = 0
    # With beta1 = 0 the second step is compared with the first one alone.
    _, curves = population.train_lanes(
        problem, CONFIGS.iloc[1:2].assign(weight_decay=0.0), [0], steps=3, evaluations=3, batch_size=4, diagnostics=True
    )
    assert curves.unusual_updates[2:].between(0, 10 / 45).all()


def sizes_of(counts: list[int]) -> list[list[int]]:
    y = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return [group.tolist() for group in diagnostics.class_groups(y)]


def test_groups_are_nearly_equal_and_cut_no_class():
    assert sizes_of([10] * 10) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert sizes_of([5, 9, 7]) == [[1], [2], [0]]
    assert sizes_of([4]) == [[0]]
    assert sizes_of([1, 1, 1, 50, 1, 1, 1]) == [[3], [0, 1], [2], [4, 5], [6]]
    assert diagnostics.class_groups(torch.zeros(3)) == diagnostics.class_groups(torch.zeros(3, 2).long()) == []
    heavy = problems.make("heavy-tailed").data.y_train
    assert [one["examples"] for one in diagnostics.group_sizes(heavy)] == [256, 213, 195, 185, 189]
    assert diagnostics.group_sizes(imbalanced().data.y_train)[0] == {"classes": 1, "examples": 60}


def test_losses_of_groups_are_means_over_their_examples():
    problem = imbalanced()
    options: dict[str, Any] = {"steps": 12, "evaluations": 2, "batch_size": 20, "dtype": torch.float64}
    _, curves = population.train_lanes(problem, CONFIGS, [0], diagnostics=True, **options)
    x, y = problem.data.x_eval.double(), problem.data.y_eval
    for k, config in CONFIGS.iterrows():
        module, _ = reference.train(problem, config.to_dict(), 0, 12, batch_size=20, dtype=torch.float64)
        losses = F.cross_entropy(module(x), y, reduction="none").detach()
        last = curves[(curves.lane == k) & (curves.step == 12)].iloc[0]
        for number, label in enumerate((2, 0, 4, 1, 3), 1):
            assert last[f"loss_of_group_{number}"] == pytest.approx(losses[y == label].mean().item(), rel=1e-9)
        assert last.eval_loss == pytest.approx(losses.mean().item(), rel=1e-9)
    some = replace(problem.data, x_eval=x[y != 3].float(), y_eval=y[y != 3])
    _, curves = population.train_lanes(replace(problem, data=some), CONFIGS, [0], diagnostics=True, **options)
    assert curves.loss_of_group_5.isna().all()
    assert curves.loss_of_group_4.notna().all()


def test_copies_are_counted_as_memory():
    # What was before a step, and sums of windows: one at a time, two, and in each step the sums of ten.
    assert [diagnostics.copies(100, n) for n in (1, 10, 11, 100)] == [2, 2, 3, 11]
    assert diagnostics.copies(1, 8) == 2
    configs = {"adam": CONFIGS}
    without, with_three = (memory.measure(digits(), 16, 1, 1, configs, copies) for copies in (0, 3))
    n = 4 * digits().model.n_params
    assert with_three.per_lane - without.per_lane == with_three.at_rest - without.at_rest == 3 * n


@pytest.mark.parametrize("evaluations", [1, 24])
def test_no_more_copies_are_held_than_counted(evaluations):
    problem, params = linear(), [torch.zeros(8, 2**17)]
    at = evaluation.evaluation_steps(24, evaluations)
    with memory.Live() as live:
        observed = diagnostics.Diagnostics(problem, params, at)
        for step in range(1, 25):
            observed.before(step)
            observed.after(step)
            if step in at:
                observed.sums.pop(step, None)
    # A norm copies two of these lanes as float64.
    assert live.peak <= params[0].nbytes * diagnostics.copies(24, evaluations) + 2.1 * 2**20


@pytest.mark.parametrize("module", ["cnn", "branching", "autoencoder", "frozen"])
def test_problems_of_ones_own_have_diagnostics(module):
    given, options = own_problem(module), {"lr": [1e-3, 1e-2], "steps": 6, "evaluations": 2, "device": "cpu"}
    runs, curves, provenance = sweep(lambda: given, diagnostics=True, progress=False, **options)
    groups = [column for column in curves if column.startswith("loss_of_group_")]
    assert groups == [f"loss_of_group_{i + 1}" for i in range(0 if module == "autoencoder" else 3)]
    assert curves.loc[curves.step > 0, diagnostics.columns_of(curves)].ge(0).all(axis=None)
    assert len(provenance["class_groups"]) == len(groups)
    assert not set(diagnostics.columns_of(curves)) & set(runs)


def test_the_command_writes_the_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(writer, "write", write_report)
    options = {"--lr": "1e-2..1e-1:2", "--steps": "12", "--evaluations": "2", "--out": str(tmp_path)}
    command = ["heavy-tailed", *chain.from_iterable(options.items())]
    assert main([*command, "--diagnostics"]) == 0
    runs, curves = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("runs", "curves"))
    columns = [*diagnostics.OF_STEP, *(f"loss_of_group_{i}" for i in range(1, 6))]
    assert diagnostics.columns_of(curves) == columns
    assert curves.dtypes[columns].eq("float64").all()
    # Without the option it is another sweep, whose training has the same bits.
    assert main(command) == 2
    assert "it differs in diagnostics" in capsys.readouterr().err
    assert main([*command, "--fresh"]) == 0
    plain = pd.read_parquet(tmp_path / "curves.parquet")
    pd.testing.assert_frame_equal(without_seconds(curves.drop(columns=columns)), without_seconds(plain))
    pd.testing.assert_frame_equal(runs, pd.read_parquet(tmp_path / "runs.parquet"))
    assert main([*command, "--diagnostics"]) == 2
    assert "it differs in diagnostics" in capsys.readouterr().err
