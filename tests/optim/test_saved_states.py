"""What older versions of torch, wrappers and other optimizers have saved, and states that somebody else knows."""

import copy

import pytest
import torch

import optim
from kernels import rules
from optim import saved

CLASSES = {"Adam": {}, "AdamW": {}, "NAdam": {}, "RAdam": {}, "SGD": {"momentum": 0.9}, "Adagrad": {}, "RMSprop": {}}
CLASSES |= {"Adadelta": {}}
LATER = (
    "foreach",
    "maximize",
    "capturable",
    "differentiable",
    "fused",
    "amsgrad",
    "decoupled_weight_decay",
    "centered",
)
LATER += ("initial_accumulator_value", "nesterov")
"""Options that groups of some older version lack."""


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))


def train(optimizer, steps: int) -> torch.Tensor:
    (p,) = optimizer.param_groups[0]["params"]
    for step in range(steps):
        p.grad = torch.linspace(1, 2, 4, dtype=torch.float64) + step
        optimizer.step()
    return p.detach()


def older(state_dict: dict) -> dict:
    """As torch before 1.12 wrote it: steps are ints, products floats, new options are not there."""
    old = copy.deepcopy(state_dict)
    for state in old["state"].values():
        for name in {"step", "mu_product"} & state.keys():
            state[name] = state[name].item() if name == "mu_product" else int(state[name])
    for group in old["param_groups"]:
        for name in LATER:
            group.pop(name, None)
    return old


@pytest.mark.parametrize("name", CLASSES)
def test_checkpoints_of_older_versions_continue(name):
    first = getattr(torch.optim, name)([parameter()], lr=0.1, **CLASSES[name])
    train(first, 3)
    ours = getattr(optim, name)([parameter()], **CLASSES[name], backend="eager")
    ours.load_state_dict(older(first.state_dict()))
    ours.param_groups[0]["params"][0].data.copy_(first.param_groups[0]["params"][0].data)
    torch.testing.assert_close(train(ours, 3), train(first, 3), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
def test_states_of_dtypes_that_no_launch_takes_are_cast(dtype):
    results = []
    for module in (optim, torch.optim):
        optimizer = module.Adam([parameter()], lr=0.1)
        state = {"step": torch.tensor(3.0)}
        state |= {name: torch.ones(4).to(dtype) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
        results.append(train(optimizer, 2))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_a_state_that_lacks_a_part_is_refused_and_changes_nothing():
    for state in ({"step": torch.tensor(1.0)}, {"step": 1, "exp_avg": torch.zeros(4)}):
        optimizer = optim.Adam([parameter()], lr=0.1)
        optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
        with pytest.raises(ValueError, match=r"parameter 0 of shape \[4\]: its state has .* and lacks .*exp_avg_sq"):
            train(optimizer, 1)
        assert torch.equal(optimizer.param_groups[0]["params"][0], parameter())


def test_what_a_wrapper_adds_is_carried_along():
    optimizer, other = optim.Adam([parameter()]), optim.Adam([parameter()])
    train(optimizer, 1)
    extra = {"anchor": torch.ones(4), "count": 3, "ready": True, "kind": "slow", "nothing": None, "pair": [7]}
    optimizer.state[optimizer.param_groups[0]["params"][0]].update(extra)
    other.load_state_dict(optimizer.state_dict())
    found = other.state[other.param_groups[0]["params"][0]]
    assert found["anchor"].tolist() == [1.0] * 4
    assert {k: found[k] for k in extra if k != "anchor"} == {k: extra[k] for k in extra if k != "anchor"}
    train(other, 1)
    assert found["count"] == 3


@pytest.mark.parametrize("share", [copy.copy, lambda o: o.__class__.__new__(o.__class__)], ids=["copy", "setstate"])
def test_states_that_two_optimizers_share_are_followed(share):
    results = []
    for module in (optim, torch.optim):
        first = module.Adam([parameter()], lr=0.1)
        train(first, 1)
        second = share(first)
        second.__setstate__(first.__getstate__())
        train(second, 1)
        (p,) = first.param_groups[0]["params"]
        first.state[p]["exp_avg"] = first.state[p]["exp_avg"] * 3
        train(second, 1)
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


def test_adagrad_has_its_states_from_the_start_as_torch_has():
    states = []
    for module in (optim, torch.optim):
        optimizer = module.Adagrad([parameter()], initial_accumulator_value=0.5)
        optimizer.share_memory()
        states.append({k: v.double() for k, v in optimizer.state_dict()["state"][0].items()})
        assert optimizer.state_dict()["state"][0]["sum"].is_shared()
        train(optimizer, 2)
    torch.testing.assert_close(*states)


def test_parameters_without_gradient_may_be_of_any_kind():
    odd = [torch.eye(2).to_sparse(), torch.empty(2, device="meta"), torch.nn.parameter.UninitializedParameter()]
    results = []
    for module in (optim, torch.optim):
        p = parameter()
        optimizer = module.SGD([p, *odd], lr=0.1)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_parameters_that_overlap_themselves_are_refused():
    p = torch.zeros(5).as_strided((3, 3), (1, 1)).requires_grad_()
    p.grad = torch.ones(3, 3)
    with pytest.raises(RuntimeError, match="several elements share one place in memory"):
        optim.SGD([p]).step()
    interlocked = torch.zeros(8).as_strided((2, 3), (3, 2)).requires_grad_()
    interlocked.grad = torch.ones(2, 3)
    optim.SGD([interlocked], lr=1.0).step()
    assert (interlocked == -1).all()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_grad_scaler_is_answered_as_by_torch(name):
    takes_fused = "fused" in getattr(torch.optim, name).__init__.__annotations__
    for options in ({}, {"fused": True}) if takes_fused else ({},):
        ours, theirs = (getattr(m, name)([parameter()], lr=0.1, **options) for m in (optim, torch.optim))
        asked = [getattr(o, "_step_supports_amp_scaling", False) for o in (ours, theirs)]
        assert asked[0] == asked[1] == bool(options)


def test_names_of_states_are_those_of_the_rules():
    for rule in rules.RULES.values():
        assert set(rule.states) | set(rule.scalars) <= saved.FAMILY_STATES
