"""States of one byte: the same steps as in float64 with states that are rounded so, in every backend."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels import compressed
from kernels.codes import CODES
from tests.conftest import device_of
from tests.optim.compressed import BLOCK, LARGEST, check_codes, decoded, exact_step, in_blocks
from tests.oracle import make_params, train

STATES = {"Adam": ["exp_avg", "exp_avg_sq"], "AdamW": ["exp_avg", "exp_avg_sq"], "Lion": ["exp_avg"]}
OPTIONS = {
    "Adam": {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6},
    "AdamW": {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    "Lion": {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
}
# Empty, a single number, the borders of a block of codes and of one of the kernel, and sizes at which lanes or rows
# start at addresses that are no multiples of 16.
SHAPES = [(0,), (), (1,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (3, 700), (1024,), (1025,), (5, 512)]


def tensors_of(optimizer, params) -> list[torch.Tensor]:
    """Everything that a step updates."""
    return [t.detach().cpu() for p in params for t in (p, *(v for _, v in sorted(optimizer.state[p].items())))]


def assert_same_bits(ours, others) -> None:
    for a, b in zip(ours, others, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
def test_steps_are_those_of_float64_from_the_same_states(backend, name, dtype):
    device = device_of(backend)
    params = make_params(SHAPES, dtype, device)
    optimizer = getattr(optim, name)(params, **OPTIONS[name], state_dtype="int8", backend=backend)
    for step in range(1, 5):
        before = [p.detach().double().cpu() for p in params]
        states = [copy.deepcopy(dict(optimizer.state[p])) for p in params]
        train(optimizer, params, 1, first_seed=step)
        for p, p0, old in zip(params, before, states, strict=True):
            if not p.numel() or p.grad is None:
                continue
            grad = in_blocks(p.grad.double().cpu())
            values = [decoded(n, old) if old else torch.zeros_like(grad) for n in STATES[name]]
            change, exact = exact_step(name, in_blocks(p0), grad, values, step, OPTIONS[name])
            moved = in_blocks(p.detach().double().cpu()) - in_blocks(p0)
            held = torch.finfo(dtype).eps * (in_blocks(p0).abs() + change.abs()) + 3e-6 * change.abs().max()
            excess = ((moved - change).abs() - held)[in_blocks(torch.ones_like(p0)) > 0]
            assert (excess <= 0).all(), (excess.max(), change.abs().max(), p.shape)
            for state_name, value in zip(STATES[name], exact, strict=True):
                assert optimizer.state[p][state_name].dtype == CODES[state_name].dtype
                check_codes(state_name, optimizer.state[p], value)


@given(
    name=st.sampled_from([*CODES]),
    lanes=st.integers(1, 3),
    n=st.integers(0, 3 * BLOCK),
    exponent=st.integers(-60, 120),
    spread=st.floats(0, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_nearest_and_what_is_decoded_is_encoded_as_it_was(name, lanes, n, exponent, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(lanes, n, generator=generator) * spread
    x = torch.randn(lanes, n, generator=generator) * 2.0 ** (exponent / 2) * torch.exp2(-scales)
    x = x.square() if name == "exp_avg_sq" else x
    codes, scale = compressed.encode(name, x)
    state, exact = {name: codes.reshape(-1), f"{name}_scale": scale}, in_blocks(x.double().reshape(-1), lanes)
    check_codes(name, state, exact, lanes)
    again, same_scale = compressed.encode(name, compressed.decode(name, codes, scale))
    assert torch.equal(again, codes)
    assert torch.equal(same_scale, scale)


@pytest.mark.parametrize("name", CODES)
def test_every_code_survives_being_decoded_and_the_largest_is_exact(name):
    every = torch.arange(-127 if name == "exp_avg" else 0, LARGEST[name] + 1)
    for scale in (1e-27, 1.7e-3, 1.0, 3e38):
        codes = every.to(CODES[name].dtype).view(1, -1)
        values = compressed.decode(name, codes, torch.full((1, 1), scale))
        assert values.max().item() == torch.tensor(scale).item()
        assert torch.equal(compressed.encode(name, values)[0], codes)


def test_an_element_with_small_gradients_is_not_divided_by_eps(backend):
    """exp_avg_sq is 1e-8 and 1e-12 of a neighbour's: a linear code would make 0 of it, and steps of 1e4 times lr."""
    params = [torch.zeros(3, requires_grad=True, device=device_of(backend)) for _ in range(2)]
    for p, state_dtype in zip(params, ("int8", None), strict=True):
        optimizer = optim.Adam([p], lr=1e-3, backend=backend, state_dtype=state_dtype)
        for step in range(20):
            p.grad = torch.tensor([1.0, 1e-4, 1e-6] if step < 5 else [1.0, 0.0, 0.0], device=p.device)
            optimizer.step()
    ours, exact = (p.detach().cpu() for p in params)
    share = ours / exact
    assert ((share - 1).abs() <= 0.3)[:2].all(), share
    # Below what codes reach: steps are smaller, not larger.
    assert 0 < share[2] < 1


def test_nan_and_infinity_make_nan_of_their_block_alone(backend):
    for bad in (float("nan"), float("inf")):
        p = make_params(((3 * BLOCK,),), device=device_of(backend))[0]
        optimizer = optim.Lion([p], lr=0.1, state_dtype="int8", backend=backend)
        train(optimizer, [p], 1)
        p.grad = torch.ones_like(p)
        p.grad[BLOCK + 3] = bad
        optimizer.step()
        values = decoded("exp_avg", optimizer.state[p])
        assert values.isnan().all(-1).tolist() == [[False, True, False]]
        train(optimizer, [p], 1)
        is_lost = in_blocks(p.detach().cpu()).isnan()[0]
        assert is_lost[1].all()
        assert not is_lost[[0, 2]].any()


@pytest.mark.parametrize("name", ["Adam", "Lion"])
def test_a_lane_is_what_it_is_alone(backend, name):
    lrs = torch.tensor([0.003, 0.01, 0.02])
    shapes = [(3, 700), (3, 5, 77), (3, 1)]
    params = make_params(shapes, device=device_of(backend))
    optimizer = getattr(optim, name)(params, lr=lrs, state_dtype="int8", backend=backend)
    alone = [[p.detach()[k].clone().requires_grad_() for p in params] for k in range(3)]
    optimizers = [
        getattr(optim, name)(own, lr=lr, state_dtype="int8", backend=backend)
        for own, lr in zip(alone, lrs.tolist(), strict=True)
    ]
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=generator).to(p.device)
            for k in range(3):
                alone[k][i].grad = p.grad[k].clone()
        for one in (optimizer, *optimizers):
            one.step()
    for k in range(3):
        ours = [t[k] for t in tensors_of(optimizer, params)]
        assert_same_bits(ours, tensors_of(optimizers[k], alone[k]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_numbers_of_lanes_change_no_bit(threads):
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads, lanes in ((1, 1), (threads, 1), (threads, 64)):
            torch.set_num_threads(n_threads)
            p = make_params(((50_001,),))[0].detach().expand(lanes, -1).clone().requires_grad_()
            lr = torch.full((lanes,), 0.01) if lanes > 1 else 0.01
            optimizer = optim.AdamW([p], lr=lr, state_dtype="int8", backend="cpu")
            for step in range(2):
                generator = torch.Generator().manual_seed(step)
                p.grad = torch.randn(50_001, generator=generator).expand(lanes, -1).contiguous()
                optimizer.step()
            found.append([t.reshape(lanes, -1) if t.ndim else t.view(1, 1) for t in tensors_of(optimizer, [p])])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert torch.equal(other, first.expand_as(other))


@given(n=st.integers(0, 1200), lanes=st.integers(1, 3), name=st.sampled_from(["Adam", "Lion"]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_machine_code_agrees_with_eager_formulas_for_any_shape(n, lanes, name, seed):
    pytest.importorskip("numba", reason="the cpu backend needs Numba")
    found = []
    for backend in ("cpu", "eager"):
        p = torch.ones(lanes, n, requires_grad=True)
        lr = torch.full((lanes,), 0.01) if lanes > 1 else 0.01
        optimizer = getattr(optim, name)([p], lr=lr, state_dtype="int8", backend=backend)
        train(optimizer, [p], 2, first_seed=seed)
        found.append(tensors_of(optimizer, [p]))
    for ours, eager in zip(*found, strict=True):
        off = (ours.double() - eager.double()).abs()
        # A code may differ where a number is half-way between two; in the next step by several, where codes are dense.
        assert (off <= (8 if ours.dtype in (torch.int8, torch.uint8) else 1e-3)).all()
        assert (off > 1e-5).sum() <= 3


@pytest.mark.parametrize("view", ["transposed", "channels_last", "with gaps"])
def test_any_layout_moves_as_a_contiguous_parameter_does(backend, view):
    make = {
        "transposed": lambda x: x.view(24, 40).t(),
        "channels_last": lambda x: x.view(2, 4, 10, 12).permute(0, 3, 1, 2),
        "with gaps": lambda x: torch.cat([x.view(24, 40), x.view(24, 40)], 1)[:, :40],
    }[view]
    flat = make_params(((960,),), device=device_of(backend))[0]
    p = make(flat.detach().clone()).requires_grad_()
    one, other = (optim.Adam([t], lr=0.01, state_dtype="int8", backend=backend) for t in (flat, p))
    for step in range(3):
        train(one, [flat], 1, first_seed=step)
        p.grad = make(torch.clone(flat.grad)).contiguous()  # pyright: ignore[reportArgumentType]
        other.step()
    assert torch.equal(p.detach(), make(flat.detach()))


@pytest.mark.gpu_too
@pytest.mark.parametrize("kwargs", [{}, {"max_grad_norm": 0.5}, {"rounding": "stochastic", "seed": 3}], ids=str)
def test_backends_agree_with_every_option(kwargs):
    found = {}
    for backend in ("eager", "cpu", "triton"):
        params = make_params(((1025,), (3, 300)), torch.bfloat16, device_of(backend))
        groups = [{"params": params[:1], "lr": 0.01}, {"params": params[1:], "lr": 0.02, "maximize": True}]
        optimizer = optim.AdamW(groups, state_dtype="int8", backend=backend, **kwargs)
        train(optimizer, params, 3)
        found[backend] = [p.detach().float().cpu() for p in params]
    for backend in ("cpu", "triton"):
        for ours, eager in zip(found[backend], found["eager"], strict=True):
            # A code may differ where a number is half-way between two.
            assert ((ours - eager).abs() <= 2.0**-7 * eager.abs() + 1e-3).all()
            assert (ours != eager).float().mean() < 0.02


def test_a_scaled_step_and_one_that_is_left_out(backend):
    device = device_of(backend)
    ours, plain = (make_params(((700,),), device=device)[0] for _ in range(2))
    scaled, unscaled = (optim.Adam([p], lr=0.01, state_dtype="int8", backend=backend) for p in (ours, plain))
    train(unscaled, [plain], 1)
    ours.grad = torch.mul(plain.grad, 1024)  # pyright: ignore[reportArgumentType]
    scaled.grad_scale, scaled.found_inf = torch.full((1,), 1024.0, device=device), torch.zeros(1, device=device)
    scaled.step()
    assert_same_bits(tensors_of(scaled, [ours]), tensors_of(unscaled, [plain]))
    before = copy.deepcopy(tensors_of(scaled, [ours]))
    ours.grad, scaled.found_inf = torch.full_like(ours, float("inf")), torch.ones(1, device=device)
    scaled.step()
    assert_same_bits(tensors_of(scaled, [ours]), before)


def test_copies_and_files_go_on_as_the_original(backend):
    params = make_params(((700,), (2, 30)), device=device_of(backend))
    optimizer = optim.AdamW(params, lr=0.01, state_dtype="int8", backend=backend)
    train(optimizer, params, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [p.detach().clone().requires_grad_() for p in params]
    loaded = optim.AdamW(others, lr=0.01, backend=backend)
    loaded.load_state_dict(torch.load(file))
    copied, copies = copy.deepcopy((optimizer, params))
    for one, own in ((optimizer, params), (loaded, others), (copied, copies)):
        train(one, own, 2, first_seed=7)
    assert_same_bits(tensors_of(loaded, others), tensors_of(optimizer, params))
    assert_same_bits(tensors_of(copied, copies), tensors_of(optimizer, params))
