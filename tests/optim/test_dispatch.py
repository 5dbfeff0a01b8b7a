"""Launches go by raw addresses, past torch's dispatcher: what would be lost by that is followed or refused by name."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import optim
from tests.conftest import device_of

CLASSES = ("Adam", "AdamW", "NAdam", "RAdam", "SGD", "Adagrad", "RMSprop", "Adadelta")


def make(module, name, params, **options):
    return getattr(module, name)(params, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}), **options)


def as_it_reads(tensor):
    return tensor.resolve_conj().resolve_neg().clone()


def lazy_gradients():
    """Gradients as autograd hands them out of complex arithmetic: negative or conjugated in memory."""
    p = torch.nn.Parameter(torch.full((2,), 0.5, dtype=torch.float64))
    (torch.complex(torch.ones_like(p), p).conj() * (1 + 2j)).real.sum().backward()
    z = torch.nn.Parameter(torch.full((2,), 1 + 2j, dtype=torch.complex128))
    z.grad = torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128).conj()
    y = torch.nn.Parameter(torch.full((2,), 1 + 2j, dtype=torch.complex128))
    y.grad = torch.ops.aten._neg_view(torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128))
    return [p, z, y]


def lazy_parameters():
    values = torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128)
    negative = torch.ops.aten._neg_view(values.clone())
    params = [torch.nn.Parameter(v) for v in (values.clone().conj(), values.conj().imag, negative)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


@pytest.mark.parametrize("tensors", [lazy_gradients, lazy_parameters], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_negative_and_conjugate_bits_are_values(name, tensors):
    params, plain = tensors(), [torch.nn.Parameter(as_it_reads(p.detach())) for p in tensors()]
    for p, q in zip(params, plain, strict=True):
        q.grad = as_it_reads(p.grad)
    for optimizer in (make(optim, name, params), make(torch.optim, name, plain)):
        for _ in range(3):
            optimizer.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(as_it_reads(p.detach()), q.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*CLASSES, "Lion"])
def test_steps_on_fake_and_meta_tensors_make_the_states_that_torch_would(name):
    def states(module, device, mode):
        with mode:
            layer = torch.nn.Linear(4, 3, device=device)
            optimizer = make(module, name, layer.parameters())
            for _ in range(2):
                layer(torch.ones(2, 4, device=device)).sum().backward()
                optimizer.step()
            state = optimizer.state[layer.weight]
            assert all(
                isinstance(v, FakeTensor) or v.is_meta for v in state.values() if isinstance(v, torch.Tensor) and v.ndim
            )
            return {k: (v.shape, v.dtype) for k, v in state.items() if isinstance(v, torch.Tensor) and v.ndim}

    for device, mode in (("cpu", FakeTensorMode()), ("meta", torch.enable_grad())):
        ours = states(optim, device, mode)
        assert ours
        if name != "Lion":
            assert ours == states(torch.optim, device, mode)


def test_real_parameters_do_not_change_in_a_mode_of_fakes():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_a_mode_that_watches_sees_the_step_and_changes_no_value(name):
    results = []
    for watched in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        optimizer = make(optim, name, [p])
        for step in range(4):
            p.grad = torch.full((2, 3), 0.5 + step)
            if watched and step % 2:
                with FlopCounterMode(display=False):
                    optimizer.step()
            else:
                optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_lanes_step_through_the_dispatcher_too():
    lr, results = torch.tensor([0.1, 0.2]), []
    for watched in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        optimizer = optim.Adam([p], lr=lr)
        p.grad = torch.ones(2, 3)
        with FlopCounterMode(display=False) if watched else torch.enable_grad():
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_a_subclass_that_keeps_its_values_elsewhere_is_updated_as_in_torch():
    results = []
    for module in (optim, torch.optim):
        parts = torch.ones(3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
        p = torch.nn.Parameter(TwoTensor(*parts))
        optimizer = module.SGD([p], lr=0.1)
        for _ in range(2):
            p.grad = TwoTensor(torch.ones(3, dtype=torch.float64), torch.full((3,), 3.0, dtype=torch.float64))
            optimizer.step()
        assert isinstance(p, TwoTensor)
        results.append((p.a.detach(), p.b.detach()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_a_step_inside_a_transform_is_refused_and_changes_nothing(transform):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    before = p.detach().clone()

    def loss(x):
        optimizer.step()
        return x.sum()

    with pytest.raises(RuntimeError, match=r"SGD.step\(\) does not work inside torch.func transforms"):
        getattr(torch.func, transform)(loss)(torch.ones(2, 3))
    assert torch.equal(p, before)
    # What a transform returns is an ordinary tensor again.
    p.grad = torch.func.grad(lambda x: (x**2).sum())(p.detach())
    optimizer.step()
    torch.testing.assert_close(p.detach(), 0.8 * before)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("Adam", "SGD") else pytest.mark.slow) for name in CLASSES],
)
@pytest.mark.parametrize("what", ["parameter", "state"])
def test_backward_after_a_step_is_the_error_that_torchs_is(name, what):
    for module in (torch.optim, optim):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = make(module, name, [p])
        p.grad = torch.ones(3)
        optimizer.step()
        x = torch.ones(3, requires_grad=True)
        state = next(v for k, v in optimizer.state[p].items() if k not in ("step", "mu_product"))
        loss = (x * (p if what == "parameter" else state)).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_inference_mode_leaves_nothing_behind_that_cannot_be_used_later():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, plain = optim.Adam([p], lr=torch.tensor(0.1)), optim.Adam([q], lr=0.1)
    for step in range(3):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        with torch.inference_mode(step < 2):
            optimizer.step()
        plain.step()
    assert torch.equal(p, q)
    assert not any(v.is_inference() for v in optimizer.state[p].values())


def test_a_parameter_made_in_inference_mode_is_updated_there_alone():
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
    optimizer = optim.SGD([p], lr=1.0)
    with pytest.raises(RuntimeError, match="was made in inference mode"):
        optimizer.step()
    with torch.inference_mode():
        optimizer.step()
    assert p.tolist() == [0.0] * 3


@pytest.mark.parametrize("how", ["default", "context"])
def test_a_default_device_does_not_take_what_a_step_makes(how):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    context = torch.device("meta") if how == "context" else torch.enable_grad()
    try:
        if how == "default":
            torch.set_default_device("meta")
        with context:
            for name in ("Adam", "SGD"):
                p.data.fill_(1.0)
                optimizer = make(optim, name, [p], weight_decay=0.1)
                optimizer.step()
                optimizer.load_state_dict(optimizer.state_dict())
                optimizer.step()
                assert {v.device.type for v in optimizer.state[p].values()} == {"cpu"}
                assert (p < 1).all()
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_default_dtype_changes_no_step(dtype, backend):
    results = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            p = torch.linspace(-1, 1, 5, dtype=torch.float32, device=device_of(backend)).requires_grad_()
            optimizer = optim.NAdam([p], lr=0.1, weight_decay=0.1, backend=backend)
            for _ in range(3):
                p.grad = torch.linspace(1, 2, 5, dtype=torch.float32, device=p.device)
                optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append((p.detach(), dict(optimizer.state[p])))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_layouts_that_are_not_strided_are_refused_before_anything_changes():
    good = torch.nn.Parameter(torch.ones(2, 2))
    sparse = torch.nn.Parameter(torch.eye(2).to_sparse())
    good.grad, sparse.grad = torch.ones(2, 2), torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optim.SGD([good, sparse]).step()
    sparse.grad = None
    assert torch.equal(good, torch.ones(2, 2))
