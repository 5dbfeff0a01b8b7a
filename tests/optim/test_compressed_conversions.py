"""Compressed states to and from other dtypes, lanes and layouts; and what is refused."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import optim
from tests.optim.compressed import decoded, in_blocks
from tests.oracle import make_params, train


def trained(state_dtype=None, shape=(700,), lr: float | torch.Tensor = 0.01, name="Adam", **options):
    p = make_params((shape,))[0]
    optimizer = getattr(optim, name)([p], lr=lr, state_dtype=state_dtype, **options)
    train(optimizer, [p], 3)
    return optimizer, p


def loaded(source: torch.optim.Optimizer, p: torch.Tensor, state_dtype, lr=0.01) -> tuple[torch.optim.Optimizer, dict]:
    """An optimizer that has loaded the source's state, after a step in which nothing but weights changes; its state."""
    other = p.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    optimizer = optim.Adam([other], lr=lr, state_dtype=state_dtype)
    optimizer.load_state_dict(source.state_dict())
    optimizer.param_groups[0]["betas"] = (1 - 1e-30, 1 - 1e-30)
    optimizer.param_groups[0]["lr"] = lr
    other.grad = torch.zeros_like(other)
    optimizer.step()
    return optimizer, dict(optimizer.state[other])


def test_float32_states_of_compressed_ones_are_what_their_codes_stand_for_and_back_again():
    source, p = trained("int8")
    before = copy.deepcopy(dict(source.state[p]))
    wide, state = loaded(source, p, torch.float32)
    assert {*state} == {"step", "exp_avg", "exp_avg_sq"}
    for name in ("exp_avg", "exp_avg_sq"):
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(in_blocks(state[name].double()), decoded(name, before), rtol=1e-6, atol=0)
    _, narrow = loaded(wide, p, "int8")
    assert {*narrow} == {*before}
    for name in {*before} - {"step"}:
        assert torch.equal(narrow[name], before[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_states_are_compressed_when_they_are_loaded(dtype):
    source, p = trained(dtype)
    _, state = loaded(source, p, "int8")
    for name in ("exp_avg", "exp_avg_sq"):
        exact = in_blocks(source.state[p][name].double())
        error = (decoded(name, state) - exact).abs()
        assert (error <= 0.02 * exact.abs().amax(-1, keepdim=True)).all()
        assert error.max() > 0


def test_states_keep_the_form_in_which_they_were_saved_unless_asked_otherwise():
    assert loaded(*trained("int8"), None)[1]["exp_avg"].dtype == torch.int8
    assert loaded(*trained(torch.bfloat16), None)[1]["exp_avg"].dtype == torch.bfloat16
    optimizer, p = trained("int8")
    optimizer.param_groups[0]["amsgrad"], optimizer.state_dtype = True, None
    train(optimizer, [p], 1)
    assert {name: value.dtype for name, value in optimizer.state[p].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), torch.float32
    )


def test_blocks_are_laid_anew_for_other_lanes():
    source, p = trained("int8", (3, 300), torch.tensor([0.01, 0.02, 0.03]))
    assert source.state[p]["exp_avg_scale"].shape == (3, 2)
    before = decoded("exp_avg", source.state[p], 3)[:, :2].reshape(3, -1)[:, :300]
    source.param_groups[0]["lr"] = 0.01
    source.state[p]["step"] = source.state[p]["step"][0]
    _, state = loaded(source, p, "int8")
    assert state["exp_avg_scale"].shape == (4,)
    after = decoded("exp_avg", state).reshape(-1)[:900].view(3, 300)
    assert (after - before).abs().max() <= 0.02 * before.abs().max()


def test_blocks_are_laid_anew_for_another_layout():
    source, p = trained("int8", (30, 40))
    exact = decoded("exp_avg", source.state[p]).reshape(-1)[:1200].view(30, 40)
    _, state = loaded(source, p.detach().t().contiguous().t(), "int8")
    assert state["exp_avg"].stride() == (1, 30)
    after = decoded("exp_avg", state).reshape(-1)[:1200].view(40, 30).t()
    assert (after - exact).abs().max() <= 0.02 * exact.abs().max()
    assert torch.corrcoef(torch.stack([after.flatten(), exact.flatten()]))[0, 1] > 0.999


def test_bytes_are_one_for_each_element_and_four_for_each_block():
    optimizer, p = trained("int8", (1000,))
    sizes = {name: value.nbytes for name, value in optimizer.state[p].items()}
    assert sizes == {"step": 4, "exp_avg": 1000, "exp_avg_scale": 16, "exp_avg_sq": 1000, "exp_avg_sq_scale": 16}


def test_states_that_are_replaced_take_effect():
    optimizer, p = trained("int8")
    expected = copy.deepcopy((optimizer, p))
    for name in ("exp_avg_scale", "exp_avg_sq_scale"):
        optimizer.state[p][name] = optimizer.state[p][name].clone() * 0
        expected[0].state[expected[1]][name].zero_()
    for one, own in ((optimizer, p), expected):
        train(one, [own], 1)
    assert torch.equal(p.detach(), expected[1].detach())
    assert optimizer.state[p]["exp_avg_scale"].max() > 0


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("RMSprop", {}, "rmsprop of RMSprop"),
        ("SGD", {"momentum": 0.9}, "momentum of SGD"),
        ("Adam", {"amsgrad": True}, "amsgrad of Adam"),
        ("NAdam", {}, "nadam of NAdam"),
    ],
)
def test_other_rules_are_refused_by_name(name, options, rule):
    message = f"state_dtype='int8' accepts Adam and AdamW without amsgrad, Lion and Signum, not {rule}"
    with pytest.raises(ValueError) as caught:
        getattr(optim, name)([torch.zeros(3, requires_grad=True)], **options, state_dtype="int8")
    assert str(caught.value) == message


def test_a_rule_that_takes_none_is_refused_later_too():
    optimizer, p = trained("int8")
    before = p.detach().clone()
    with pytest.raises(ValueError, match="not amsgrad of Adam"):
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "amsgrad": True})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="not amsgrad of Adam"):
        optimizer.load_state_dict(trained(amsgrad=True)[0].state_dict())
    assert optimizer.param_groups[0]["amsgrad"] is False
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="not amsgrad of Adam"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize(("dtype", "called"), [(torch.float64, "float64"), (torch.complex64, "complex64")])
def test_other_parameters_are_refused_and_nothing_changes(dtype, called):
    good, bad = torch.ones(3, requires_grad=True), torch.ones(2, dtype=dtype, requires_grad=True)
    good.grad, bad.grad = torch.ones_like(good), torch.ones_like(bad)
    optimizer = optim.Adam([good, bad], state_dtype="int8")
    message = (
        f"parameter 1 .* is {called}, and state_dtype='int8' accepts plain parameters of float32, bfloat16, float16"
    )
    with pytest.raises(TypeError, match=message):
        optimizer.step()
    assert torch.equal(good.detach(), torch.ones(3))
    assert not optimizer.state


def test_unknown_names_are_refused():
    for name in ("int4", torch.int8, "float32"):
        with pytest.raises(ValueError, match=r"Invalid state_dtype: .*one of torch.float32, torch.bfloat16, int8, No"):
            optim.Adam([torch.zeros(3, requires_grad=True)], state_dtype=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("exp_avg_scale"), "exp_avg of its state is torch.int8 and lacks exp_avg_scale"),
        (
            lambda s: s.update(exp_avg_scale=torch.ones(2)),
            r"exp_avg of its state has shape \[700\], and exp_avg_scale \[2\]",
        ),
    ],
    ids=["lacking", "of another shape"],
)
def test_scales_that_do_not_fit_are_refused(change, message):
    optimizer, p = trained("int8")
    before = p.detach().clone()
    change(optimizer.state[p])
    with pytest.raises(ValueError, match=f"parameter 0 of shape .*{message}"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("state_dtype", ["int8", None])
def test_a_mode_is_refused(state_dtype):
    source, _ = trained("int8")
    with FakeTensorMode(allow_non_fake_inputs=True):
        p = torch.ones(700, requires_grad=True)
        optimizer = optim.Adam([p], state_dtype=state_dtype)
        optimizer.load_state_dict(source.state_dict())
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="Adam cannot keep int8 states in a mode"):
            optimizer.step()
