"""Rules of the user's own that look at whole tensors: from_rule(sums=...)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels.rule import tl
from tests.conftest import device_of

# Normalised descent with momentum: steps of one length, in a tensor or in a lane of all tensors. The rule carries the
# mean of its gradients' squares and the number of elements from step to step, and keeps the largest mean.


def coefficients(hyper, step, scalars):
    lr, weight = hyper
    largest, size = scalars
    return (lr, weight, largest), (largest, size)


def averaged(p, grad, state, coefficients):
    (average,) = state
    _, weight, _ = coefficients
    average = average + weight * (grad - average)
    return (average * average, grad * grad, 1.0)


def finish(totals, coefficients, scalars):
    squares, gradients, n = totals
    largest, _ = scalars
    mean = gradients / tl.maximum(n, 1.0)
    scale = tl.where(squares > 0.0, 1.0 / tl.sqrt(tl.where(squares > 0.0, squares, 1.0)), 0.0)
    return (scale, mean), (tl.maximum(largest, mean), n)


def update(p, grad, state, coefficients, totals):
    (average,) = state
    lr, weight, largest = coefficients
    scale, _ = totals
    average = average + weight * (grad - average)
    return p - lr * scale * average - lr * largest, (average,)


PARTS = {"sums": averaged, "finish": finish, "states": ("average",), "scalars": {"largest": 0.25, "size": 0.0}}
DEFAULTS = {"lr": 0.1, "weight": 0.3}
SHAPES = ((5, 3), (2047,), (2048,), (2049,), (100, 70), (0,), ())


def descent(over: str):
    return optim.from_rule(update, coefficients, over=over, **PARTS, defaults=DEFAULTS, name=f"Descent_{over}")


def expected(params, gradients, over: str, lr: float, weight: float) -> list[torch.Tensor]:
    """In float64, for tensors of one lane."""
    params, averages = [p.double() for p in params], [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    largest = [0.25] * len(params)
    for of_step in gradients:
        grads = [grad.double() for grad in of_step]
        averages = [a + weight * (g - a) for a, g in zip(averages, grads, strict=True)]
        squares = [a.square().sum() for a in averages]
        of_gradients = [g.square().sum() for g in grads]
        counts = [float(g.numel()) for g in grads]
        if over == "lane":
            squares, of_gradients, counts = ([sum(x)] * len(x) for x in (squares, of_gradients, counts))
        for i, average in enumerate(averages):
            scale = 1 / math.sqrt(squares[i]) if squares[i] > 0 else 0.0
            params[i] = params[i] - lr * scale * average - lr * largest[i]
            largest[i] = max(largest[i], float(of_gradients[i]) / max(counts[i], 1))
    return params


def drawn(shapes, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def train(made, starts, gradients, backend, **options) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    params = [torch.nn.Parameter(p.clone().to(device_of(backend))) for p in starts]
    optimizer = made(params, backend=backend, **options)
    for of_step in gradients:
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad.to(p.device)
        optimizer.step()
    return [p.detach().cpu() for p in params], optimizer


def assert_updates(found, wanted, starts, **tolerance) -> None:
    for p, q, p0 in zip(found, wanted, starts, strict=True):
        torch.testing.assert_close(p.double() - p0.double(), q - p0.double(), **tolerance)


@pytest.mark.parametrize("over", ["tensor", "lane"])
def test_totals_and_scalars_are_those_of_the_formulas(backend, over):
    starts, gradients = drawn(SHAPES, 0), [drawn(SHAPES, step) for step in range(1, 5)]
    found, optimizer = train(descent(over), starts, gradients, backend)
    assert_updates(found, expected(starts, gradients, over, 0.1, 0.3), starts, rtol=2e-5, atol=2e-6)
    sizes = [float(p.numel()) for p in starts]
    counted = [optimizer.state[p]["size"].item() for p in optimizer.param_groups[0]["params"]]
    assert counted == (sizes if over == "tensor" else [sum(sizes)] * len(sizes))


@pytest.mark.parametrize("over", ["tensor", "lane"])
def test_lanes_have_the_bits_of_a_run_alone(backend, over):
    # Triton's interpreter runs one program after the other.
    n, shapes = 8 if backend == "triton" else 64, ((17, 131), (9,), ())
    starts, gradients = drawn([(n, *s) for s in shapes], 0), [drawn([(n, *s) for s in shapes], i) for i in (1, 2, 3)]
    lr = torch.linspace(0.01, 0.1, n, dtype=torch.float64)
    stacked, _ = train(descent(over), starts, gradients, backend, lr=lr)
    for k in (0, 1, n // 2 - 1, n - 1):
        of_lane = [[grad[k] for grad in of_step] for of_step in gradients]
        alone, _ = train(descent(over), [p[k] for p in starts], of_lane, backend, lr=lr[k].item())
        assert all(torch.equal(p[k], q) for p, q in zip(stacked, alone, strict=True)), k


def test_groups_of_a_lane_are_added_up_together_and_those_of_a_tensor_not(backend):
    starts, gradients = drawn(((5,), (7,)), 0), [drawn(((5,), (7,)), 1)]
    for over in ("tensor", "lane"):
        params = [torch.nn.Parameter(p.clone().to(device_of(backend))) for p in starts]
        groups = [{"params": params[:1]}, {"params": params[1:], "weight": 0.9}]
        optimizer = descent(over)(groups, backend=backend, lr=1.0)
        for p, grad in zip(params, gradients[0], strict=True):
            p.grad = grad.to(p.device)
        optimizer.step()
        averages = [w * g for w, g in zip((0.3, 0.9), gradients[0], strict=True)]
        norms = [a.norm() for a in averages]
        norms = norms if over == "tensor" else [torch.cat(averages).norm()] * 2
        for p, p0, a, norm in zip(params, starts, averages, norms, strict=True):
            torch.testing.assert_close(p.detach().cpu(), p0 - a / norm - 0.25, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float32, torch.bfloat16)])
def test_tensors_of_several_dtypes_share_the_totals_of_a_lane(backend, dtypes):
    starts = [p.to(dtypes[i % len(dtypes)]) for i, p in enumerate(drawn(((50,), (2049,), (3, 3)), 0))]
    gradients = [[g.to(p.dtype) for g, p in zip(drawn(((50,), (2049,), (3, 3)), 1), starts, strict=True)]]
    found, _ = train(descent("lane"), starts, gradients, backend, lr=4.0)
    assert_updates(found, expected(starts, gradients, "lane", 4.0, 0.3), starts, rtol=2**-7, atol=0.05)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=4), st.sampled_from(["tensor", "lane"]))
def test_any_shapes(shapes, over):
    starts, gradients = drawn(shapes, 0), [drawn(shapes, step) for step in (1, 2)]
    for backend in ("cpu", "eager"):
        found, _ = train(descent(over), starts, gradients, backend)
        assert_updates(found, expected(starts, gradients, over, 0.1, 0.3), starts, rtol=1e-4, atol=1e-5)


def test_a_state_dict_carries_the_scalars():
    starts, gradients = drawn(((5,), (9,)), 0), [drawn(((5,), (9,)), step) for step in range(6)]
    straight, _ = train(descent("lane"), starts, gradients, "cpu")
    half, optimizer = train(descent("lane"), starts, gradients[:3], "cpu")
    params = [torch.nn.Parameter(p) for p in half]
    other = descent("lane")(params, backend="cpu")
    other.load_state_dict(optimizer.state_dict())
    for of_step in gradients[3:]:
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(straight, params, strict=True))


def plain(p, grad, state, coefficients):
    return p - coefficients[0] * grad, state


def with_totals(p, grad, state, coefficients, totals):
    return p - coefficients[0] * totals[0] * grad, state


def rate(hyper, step):
    return hyper


def squares(p, grad, state, coefficients):
    return (grad * grad,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sums": lambda p, grad, state, c: grad * grad}, "sums of with_totals must return a tuple, not float64"),
        ({"sums": lambda p, grad, state, c: ()}, "sums of with_totals must return a tuple of one or more values"),
        ({"sums": lambda p, grad, state, c: (grad > 0.0,)}, "sums of with_totals must return a tuple of one or more"),
        ({"sums": lambda p, grad, state, c: (tl.sum(grad),)}, "uses tl.sum, which is not elementwise"),
        ({"sums": lambda p, grad: (grad,)}, "sums of with_totals must take 4 arguments, not 2"),
        ({"sums": squares, "over": "row"}, "over of with_totals must be one of 'tensor', 'lane', not 'row'"),
        ({"sums": squares, "over": ["lane"]}, r"over of with_totals must be one of 'tensor', 'lane', not \['lane'\]"),
        ({"sums": squares, "update": plain}, "update of plain must take 5 arguments, not 4"),
        ({"sums": None}, "update of with_totals must take 4 arguments, not 5"),
        ({"sums": None, "over": "lane", "update": plain}, "plain has over, which is for rules that have sums"),
        ({"sums": None, "finish": rate, "update": plain}, "plain has finish, which is for rules that have sums"),
        ({"sums": squares, "finish": lambda t, c, s: t[0]}, r"finish of with_totals must return \(tuple, scalars\)"),
        ({"sums": squares, "finish": lambda t, c, s: ((), s)}, "finish of with_totals must return a tuple of one or"),
        ({"sums": squares, "scalars": ("a",)}, "coefficients of with_totals must take 3 arguments, not 2"),
        ({"sums": squares, "scalars": ("a",), "states": ("a",)}, "has a state and a scalar of one name: a"),
        ({"sums": squares, "scalars": ("step",)}, "may not be called 'step'"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_class_is_made(options, message):
    update = options.pop("update", with_totals)
    with pytest.raises(ValueError, match=message):
        optim.from_rule(update, rate, **options, defaults={"lr": 0.1})


def only_on_gpus(p, grad, state, coefficients):
    return (tl.erf(grad),)


def test_an_operation_that_the_cpu_lacks_is_named_and_nothing_moves():
    made = optim.from_rule(with_totals, rate, sums=only_on_gpus, defaults={"lr": 0.1}, name="erfs")
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    for backend in ("cpu", "eager"):
        with pytest.raises(NotImplementedError, match=r"Rule 'erfs' calls tl\.erf, which the CPU backends lack"):
            made([p], backend=backend).step()
    assert not p.any()
