"""Any list of tensors: layouts, complex numbers, tied parameters, dtypes, and gradients that come and go."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels import multi_tensor
from optim import memory
from tests.conftest import device_of
from tests.oracle import assert_same_updates, make_params, train

BLOCK = multi_tensor.CHUNK_SIZE


def conv(device):
    return torch.nn.Conv2d(3, 4, 3, device=device).weight.detach().to(memory_format=torch.channels_last)


LAYOUTS = {
    "transposed": lambda device: torch.linspace(-1, 1, 24, device=device).view(4, 6).T,
    "channels last": conv,
    "columns of a matrix": lambda device: torch.linspace(-1, 1, 24, device=device).view(4, 6)[:, 1:4],
    "every other element": lambda device: torch.linspace(-1, 1, 2 * BLOCK + 10, device=device)[::2],
    "permuted with gaps": lambda device: (
        torch.linspace(-1, 1, 60, device=device).view(3, 4, 5)[:, ::2].permute(2, 0, 1)
    ),
    "empty": lambda device: torch.zeros(3, 0, 2, device=device).permute(2, 1, 0),
    "a row of one": lambda device: torch.linspace(-1, 1, 40, device=device).view(5, 8)[2:3],
}


@pytest.mark.parametrize("same_layout", [True, False], ids=["gradient alike", "gradient contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_of_any_layout_are_updated_in_place(backend, layout, same_layout):
    p = LAYOUTS[layout](device_of(backend))
    base = p._base if p._base is not None else p
    outside = base.detach().clone()
    p.requires_grad_()
    q = p.detach().double().cpu().contiguous().requires_grad_()
    before = q.detach().clone()
    strides, address = p.stride(), p.data_ptr()
    ours, reference = (
        optim.Adam([p], lr=0.1, amsgrad=True, backend=backend),
        torch.optim.Adam([q], lr=0.1, amsgrad=True),
    )
    for step in range(3):
        grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(step))
        p.grad = torch.empty_like(p) if same_layout else torch.empty(p.shape, device=p.device)
        p.grad.copy_(grad)
        q.grad = grad.double()
        ours.step()
        reference.step()
    assert (p.stride(), p.data_ptr()) == (strides, address)
    assert_same_updates([p], [q], [before], 3, 1e-6)
    if p.numel() and base is not p:
        # What lies between the parameter's elements has kept its values.
        untouched = torch.ones_like(outside, dtype=torch.bool)
        untouched.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(False)
        assert torch.equal(base.detach()[untouched], outside[untouched])


def test_a_state_that_is_loaded_in_another_layout_is_laid_out_like_its_parameter():
    p = conv("cpu").requires_grad_()
    optimizer = optim.Adam([p], lr=0.1)
    train(optimizer, [p], 2)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][name] = saved["state"][0][name].contiguous()
    q = p.detach().clone().requires_grad_()
    other = optim.Adam([q], lr=0.1)
    other.load_state_dict(saved)
    train(optimizer, [p], 2, first_seed=2)
    train(other, [q], 2, first_seed=2)
    assert torch.equal(p, q)
    assert other.state[q]["exp_avg"].stride() == q.stride()


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_strided_view_follows_torch(shape, data):
    """Views cut, strided and permuted at random, with gradients of another layout."""
    whole = torch.randn([2 * n + 1 for n in shape], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cuts = tuple(slice(data.draw(st.integers(0, 1)), None, data.draw(st.integers(1, 2))) for _ in shape)
    p = whole[cuts].permute(*data.draw(st.permutations(range(len(shape))))).requires_grad_()
    q = p.detach().clone().requires_grad_()
    before = [q.detach().clone()]
    for owner, own in ((optim, p), (torch.optim, q)):
        train(owner.SGD([own], lr=0.1, momentum=0.9, weight_decay=0.1), [own], 2)
    assert_same_updates([p], [q], before, 2, 1e-12)


@pytest.mark.parametrize(
    "name",
    [
        *["Adam", "SGD"],
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("AdamW", "NAdam", "RAdam", "Adagrad", "RMSprop", "Adadelta")
        ),
    ],
)
def test_complex_parameters_step_through_their_real_view_as_in_torch(backend, name):
    generator = torch.Generator().manual_seed(0)
    double = torch.randn(3, 5, dtype=torch.complex128, generator=generator)
    p = double.to(device_of(backend), torch.complex64).requires_grad_()
    q = p.detach().cpu().to(torch.complex128).requires_grad_()
    before = torch.view_as_real(q.detach().clone())
    options = {"momentum": 0.9} if name == "SGD" else {}
    ours = getattr(optim, name)([p], lr=0.05, **options, backend=backend)
    theirs = getattr(torch.optim, name)([q], lr=0.05, **options)
    for step in range(4):
        grad = torch.randn(q.shape, dtype=torch.complex128, generator=generator)
        # Every other gradient is a lazy conjugate, which is not what lies in memory.
        p.grad = grad.to(p.device, p.dtype).conj() if step % 2 else grad.to(p.device, p.dtype)
        q.grad = grad.conj().resolve_conj() if step % 2 else grad
        ours.step()
        theirs.step()
    assert_same_updates([torch.view_as_real(p.detach())], [torch.view_as_real(q.detach())], [before], 4, 1e-6)
    for key, value in theirs.state[q].items():
        if key != "step":
            assert ours.state[p][key].dtype == (torch.complex64 if value.is_complex() else torch.float32)


def test_tied_parameters_and_views_of_one_another_are_updated_in_turn(backend):
    """In one launch two programs would write the same memory."""
    results = []
    for module, dtype, extra in ((optim, torch.float32, {"backend": backend}), (torch.optim, torch.float64, {})):
        whole = torch.linspace(-1, 1, 2 * BLOCK).to(device_of(backend) if module is optim else "cpu", dtype)
        views = [whole[: BLOCK + 5], whole[BLOCK - 5 :], whole.view(2, BLOCK)[1]]
        params = [v.detach().requires_grad_() for v in views]
        optimizer = module.Adam(params, lr=0.01, **extra)
        train(optimizer, params, 3)
        results.append(whole.double().cpu())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert memory.waves([v.detach() for v in views]) == [0, 1, 2]


def test_a_parameter_listed_twice_steps_twice_as_in_torch():
    results = []
    for module in (optim, torch.optim):
        p = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = module.Adam([p, p], lr=0.1)
        p.grad = torch.ones_like(p)
        optimizer.step()
        results.append((p.detach(), optimizer.state[p]["step"].item()))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1] == 2


def test_parameters_freeze_thaw_join_and_lose_their_gradients(backend):
    results = []
    for module, dtype, extra in ((optim, torch.float32, {"backend": backend}), (torch.optim, torch.float64, {})):
        device = device_of(backend) if module is optim else "cpu"
        a, b, c = make_params(((5,), (6,), (7,)), dtype, device)
        start = [p.detach().double().cpu().clone() for p in (a, b, c)]
        optimizer = module.NAdam([a, b], lr=0.1, **extra)
        train(optimizer, [a, b], 2)
        b.requires_grad_(False)
        b.grad = None
        train(optimizer, [a], 2, first_seed=2)
        b.requires_grad_(True)
        optimizer.add_param_group({"params": [c], "lr": 0.01})
        train(optimizer, [a, b, c], 2, first_seed=4)
        a.grad = b.grad = c.grad = None
        optimizer.step()  # nothing to do
        assert [int(optimizer.state[p]["step"]) for p in (a, b, c)] == [6, 4, 2]
        results.append([a, b, c])
    ours, theirs = results
    assert_same_updates(ours, theirs, start, 6, 3e-6)


def test_parameters_that_are_moved_to_other_memory_are_followed():
    p = torch.zeros(5, requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    for _ in range(2):
        p.grad = torch.ones(5)
        optimizer.step()
        p.data = p.data.clone()
    p.grad = torch.ones(5)
    optimizer.step()
    assert p.tolist() == [-3.0] * 5


@pytest.mark.slow
# Not triton: its kernel computes in float32, and float64 tensors take another backend.
@pytest.mark.parametrize("backend", ["cpu", "eager"], indirect=True)
def test_several_dtypes_share_an_optimizer(backend):
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
    params = [torch.ones(4, dtype=dtype).requires_grad_() for dtype in dtypes]
    optimizer = optim.Adam(params, lr=0.25, backend=backend)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.75))


def test_bytes_per_parameter_are_as_documented():
    expected = {
        (torch.float32, None): 12,
        (torch.float32, torch.bfloat16): 8,
        (torch.bfloat16, None): 10,
        (torch.bfloat16, torch.bfloat16): 6,
        (torch.float16, None): 10,
        (torch.float64, None): 24,
    }
    for (dtype, state_dtype), size in expected.items():
        p = torch.zeros(1000, dtype=dtype, requires_grad=True)
        optimizer = optim.Adam([p], state_dtype=state_dtype)
        train(optimizer, [p], 1)
        states = [v for name, v in optimizer.state[p].items() if name != "step"]
        assert sum(t.nbytes for t in (p, *states)) == 1000 * size


def test_refused_tensors_leave_everything_as_it_was():
    good = torch.ones(3, requires_grad=True)
    good.grad = torch.ones(3)
    half = torch.ones(2, dtype=torch.float16, requires_grad=True)
    half.grad = torch.ones_like(half)
    lanes = torch.ones(2, 3, requires_grad=True)
    cases = [
        (lambda: optim.Adam([good, half], rounding="stochastic"), TypeError, "parameter 1 .*float16, and rounding"),
        (lambda: optim.Adam([good, half.detach().to(torch.complex64).requires_grad_()], state_dtype=torch.bfloat16),
         TypeError, "no complex counterpart"),
        (lambda: optim.Adam([("w", good), ("v", torch.ones(1).expand(2).requires_grad_())]), RuntimeError, r"1 \(v\)"),
    ]  # fmt: skip
    for make, error, message in cases:
        optimizer = make()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        with pytest.raises(error, match=message):
            optimizer.step()
        assert torch.equal(good.detach(), torch.ones(3))
    optimizer = optim.Adam([lanes], lr=torch.tensor([0.1, 0.2]))
    assert optimizer.param_groups[0]["lr"].tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ValueError, match="Invalid lr_decay value: -1"):
        optim.Adagrad([good], lr_decay=-1.0)


def test_state_tensors_that_are_replaced_take_effect():
    """As those do that move states to other memory and back between steps."""
    results = []
    for module in (optim, torch.optim):
        p = make_params(((6,),), torch.float64)[0]
        optimizer = module.Adam([p], lr=0.1)
        for step in range(4):
            train(optimizer, [p], 1, first_seed=step)
            for name, value in optimizer.state[p].items():
                optimizer.state[p][name] = value.clone() if step < 2 or name == "step" else 0.5 * value
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
