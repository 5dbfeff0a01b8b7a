"""Whatever changes between two steps is noticed: the same script with torch.optim, in float64, says what is right."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim

FLOAT64 = torch.float64


def values(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, int(np.prod(shape)), dtype=FLOAT64).reshape(shape)


def resize_p(p, o):
    p.data = torch.cat([p.data.flatten(), values(2)])[:6].reshape(2, 3)
    p.data.mul_(0.5)


def transpose_p_in_place(p, o):
    p.data = p.data.reshape(3, 2).t()


def p_as_columns_of_the_same_memory(p, o):
    p.data = p.data.as_strided((2, 3), (1, 2))


def p_as_negative(p, o):
    p.data = torch.ops.aten._neg_view(p.data.clone())


def negative_grad(p, o):
    p.grad = torch.ops.aten._neg_view(p.grad)


def grad_of_other_layout(p, o):
    p.grad.data = 2 * p.grad.data.t().contiguous().t()


def grad_as_columns_of_the_same_memory(p, o):
    p.grad.data = p.grad.data.as_strided((2, 3), (1, 2))


def grad_with_gaps(p, o):
    p.grad.data = torch.stack([2 * p.grad.data, p.grad.data], dim=-1)[..., 0]


def state_moved(p, o):
    o.state[p]["exp_avg"].data = 2 * o.state[p]["exp_avg"].data


def state_transposed_in_place(p, o):
    o.state[p]["exp_avg"].data = o.state[p]["exp_avg"].data.as_strided((2, 3), (1, 2))


def state_negative(p, o):
    o.state[p]["exp_avg"] = torch.ops.aten._neg_view(o.state[p]["exp_avg"].clone())


def states_swapped(p, o):
    state = o.state[p]
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"].square()


def states_under_each_others_names(p, o):
    """The dictionary lists the same tensors in the same order as before."""
    old = o.state[p]
    o.state[p] = {"step": old["step"], "exp_avg_sq": old["exp_avg"].abs_(), "exp_avg": old["exp_avg_sq"]}


def states_of_two_parameters_swapped(p, o):
    q = o.param_groups[1]["params"][0]
    a, b = o.state[p], o.state[q]
    o.state.clear()
    o.state[q], o.state[p] = a, b


def state_replaced(p, o):
    o.state = torch.optim.Adam([p]).state
    q = o.param_groups[1]["params"][0]
    for t in (p, q):
        o.state[t] = {"step": torch.tensor(3.0), "exp_avg": 0.1 * t.detach(), "exp_avg_sq": t.detach() ** 2}


def step_set(p, o):
    o.state[p]["step"].fill_(50.0)


def lr_without_a_version(p, o):
    o.param_groups[0]["lr"].data.mul_(3.0)


def lr_of_numpy(p, o):
    shared = np.array([0.25])
    o.param_groups[0]["lr"] = torch.from_numpy(shared)
    p.grad, kept = torch.zeros_like(p), p.grad
    o.step()
    p.grad = kept
    shared[0] = 0.5


def other_group(p, o):
    p, q = o.param_groups[0]["params"][0], o.param_groups[1]["params"][0]
    o.param_groups[0]["params"], o.param_groups[1]["params"] = [], [p, q]


def groups_exchanged(p, o):
    o.param_groups.reverse()


def groups_lose_an_option(p, o):
    o.param_groups[0]["maximize"] = True


def another_rule(p, o):
    o.param_groups[0]["decoupled_weight_decay"], o.param_groups[0]["weight_decay"] = True, 0.1


def parameter_replaced_over_the_same_memory(p, o):
    new = torch.nn.Parameter(p.data)
    new.grad = p.grad
    o.param_groups[0]["params"][0] = new


def frozen_and_thawed(p, o):
    p.requires_grad_(False)
    o.step()
    p.requires_grad_(True)


def copied(p, o):
    o.__setstate__(copy.deepcopy(o.__getstate__()))
    # The copy has parameters of its own: ours get the states, as when a checkpoint is loaded.
    for group, own in zip(o.param_groups, ([p], [p._other]), strict=True):
        o.state[own[0]] = o.state.pop(group["params"][0])
        group["params"] = own


CHANGES = [
    f
    for f in list(globals().values())
    if callable(f) and getattr(f, "__code__", None) and f.__code__.co_varnames[:2] == ("p", "o")
]


def after(module, change) -> torch.Tensor:
    p, q = (torch.nn.Parameter(v) for v in (values(2, 3), values(2, 3) + 2))
    vars(p)["_other"] = q
    o = module.Adam([{"params": [p], "lr": torch.tensor(0.1, dtype=FLOAT64)}, {"params": [q], "lr": 0.02}])

    def give(i):
        p.grad, q.grad = values(2, 3) ** 2 + 0.1 * i, values(2, 3) - 2

    for i in range(2):
        give(i)
        o.step()
    change(p, o)
    o.step()
    if p.grad is not None and p.grad.shape == p.shape:
        p.grad = p.grad + 0.1
    o.step()
    return torch.cat([t.detach().flatten().double() for t in (p, q, *o.param_groups[0]["params"])])


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_between_steps_takes_effect_as_in_torch(change):
    expected = after(torch.optim, change)
    assert not torch.equal(expected, after(torch.optim, lambda p, o: None)) or change in (frozen_and_thawed, copied)
    torch.testing.assert_close(after(optim, change), expected, rtol=1e-6, atol=1e-9)


def test_amsgrad_and_momentum_can_be_switched_on_later():
    p = torch.nn.Parameter(values(3))
    o = optim.Adam([p], lr=0.1)
    p.grad = values(3)
    o.step()
    o.param_groups[0]["amsgrad"] = True
    o.step()
    assert o.state[p]["max_exp_avg_sq"].abs().sum() > 0
    results = []
    for module in (optim, torch.optim):
        p = torch.nn.Parameter(values(3))
        o = module.SGD([p], lr=0.1)
        for momentum in (0.0, 0.9, 0.9):
            o.param_groups[0]["momentum"] = momentum
            p.grad = values(3)
            o.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_lanes_can_begin_and_end_between_steps():
    p = torch.nn.Parameter(torch.zeros(2, 3))
    o = optim.SGD([p], lr=1.0)
    for lr in (1.0, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]), 0.5):
        o.param_groups[0]["lr"] = lr
        p.grad = torch.ones(2, 3)
        o.step()
    assert p.tolist() == [[-4.5] * 3, [-7.5] * 3]


@pytest.mark.parametrize("option", ["rounding", "seed", "backend"])
def test_own_options_can_be_changed_between_steps(option):
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    o = optim.SGD([p], lr=2**-12, rounding="nearest" if option == "rounding" else "stochastic")
    p.grad = torch.ones_like(p)
    o.step()
    before = p.detach().clone()
    setattr(o, option, {"rounding": "stochastic", "seed": 5, "backend": "eager"}[option])
    o.step()
    fresh = torch.nn.Parameter(before.clone())
    fresh.grad = p.grad
    other = optim.SGD([fresh], lr=2**-12, rounding="stochastic", seed=o.seed, backend=o.backend)
    other.load_state_dict({"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": o.state_dict()["param_groups"]})
    other.step()
    assert torch.equal(p, fresh)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_a_gradient_of_another_dtype_is_read_as_such(dtype):
    results = []
    for module in (optim, torch.optim):
        p = torch.nn.Parameter(torch.zeros(3, dtype=FLOAT64))
        o = module.SGD([p], lr=1.0)
        p.grad = torch.ones(3, dtype=FLOAT64)
        o.step()
        p.grad.data = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        o.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


@given(
    old=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    new=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.sampled_from(["rows", "columns", "gaps"]),
    of=st.sampled_from(["parameter", "gradient", "both"]),
)
@settings(max_examples=60, deadline=None)
def test_memory_that_is_cut_anew_is_followed_or_refused(old, new, strides, of):
    """Views of one buffer, longer, shorter or otherwise strided: what torch does to it, and nothing beside."""
    results = []
    for module in (torch.optim, optim):
        buffer, grads = torch.zeros(100, dtype=FLOAT64), values(100)

        def cut(memory, shape, kind):
            stride = {"rows": (shape[1], 1), "columns": (1, shape[0]), "gaps": (2 * shape[1], 2)}[kind]
            return memory.as_strided(shape, stride)

        p = torch.nn.Parameter(cut(buffer, old, "rows"))
        o = module.SGD([p], lr=1.0)
        p.grad = cut(grads, old, "rows").clone()
        o.step()
        shape = old if of == "gradient" else new
        if of != "gradient":
            p.grad = None
            p.data = cut(buffer, shape, strides)
            p.grad = torch.empty(shape, dtype=FLOAT64)
        p.grad.data = cut(grads, shape, strides if of != "parameter" else "rows")
        o.step()
        results.append(buffer)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_memory_that_was_freed_is_refused_before_anything_changes(what, size):
    p, q = (torch.nn.Parameter(torch.ones(8)) for _ in range(2))
    o = optim.SGD([("a", p), ("b", q)], lr=1.0)
    for t in (p, q):
        t.grad = torch.ones(8)
    o.step()
    freed = q if what == "parameter" else q.grad
    assert freed is not None
    freed.untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match=rf"[Tt]he memory of (the|a) {what} has been freed"):
        o.step()
    assert p.tolist() == [0.0] * 8


def test_a_gradient_of_another_shape_is_refused_before_anything_changes():
    p, q = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    o = optim.SGD([p, q], lr=1.0)
    p.grad, q.grad = torch.ones(4), torch.ones(4)
    o.step()
    q.grad.data = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"parameter 1 of shape \[4\] on cpu has a gradient of shape \[3\]"):
        o.step()
    assert p.tolist() == [0.0] * 4
