"""Muon against torch.optim.Muon and against its paper in float64: updates, lanes, groups with AdamW, errors."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from optim import muon
from tests.conftest import device_of
from tests.optim import papers
from tests.oracle import assert_same_updates, make_params, train

SHAPES = ((1, 1), (7, 5), (5, 7), (16, 16), (40, 130), (130, 40), (5, 7), (0, 4))
"""A number, wide, tall and square ones, two of one shape, and an empty one."""
OPTIONS = (
    {},
    {"nesterov": False, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "lr": 0.1, "weight_decay": 0.3},
    {"adjust_lr_fn": "original", "nesterov": False, "momentum": 0.7, "lr": torch.tensor(0.02, dtype=torch.float64)},
    {"ns_steps": 3, "ns_coefficients": (3.0, -3.2, 1.2), "eps": 20.0},
)
ROUNDED = 2.0**-9
"""Of the length of an update: momenta that float32 rounds in another way may be other numbers in bfloat16."""


def assert_close(ours, theirs, before, rtol: float) -> None:
    """Every matrix has moved as the other has, to rtol of the length of its move."""
    for p, q, p0 in zip(ours, theirs, before, strict=True):
        moved, expected = p.detach().double().cpu() - p0, q.detach().double() - p0
        assert expected.norm() > 0 or not p.numel()
        assert (moved - expected).norm() <= rtol * expected.norm() + 1e-6 * q.detach().double().norm()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_thirty_steps_in_float64_are_torchs(options):
    """The momentum is the same to 16 digits, and so are the products in bfloat16."""
    ours, theirs = make_params(SHAPES, torch.float64), make_params(SHAPES, torch.float64)
    before = [p.detach().clone() for p in ours]
    train(optim.Muon(ours, **options, backend="eager"), ours, 30)
    train(torch.optim.Muon(theirs, **options), theirs, 30)
    assert_same_updates(ours, theirs, before, 30, 1e-10)


@pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=pytest.mark.slow), "cpu", "eager"], indirect=True
)  # Triton's interpreter takes seconds
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_in_float32_are_torchs(backend, options):
    ours, theirs = make_params(SHAPES, device=device_of(backend)), make_params(SHAPES)
    before = [p.detach().double() for p in theirs]
    steps = 5 if backend == "triton" else 30
    train(optim.Muon(ours, **options, backend=backend), ours, steps)
    train(torch.optim.Muon(theirs, **options), theirs, steps)
    assert_close(ours, theirs, before, ROUNDED)


def followed(params, steps: int, **options) -> list[torch.Tensor]:
    """Return the parameters in float64 after steps of the paper's with the gradients of `train`."""
    sign = -1 if options.pop("maximize", False) else 1
    found, states = [p.detach().double().cpu() for p in params], [{} for _ in params]
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(found):
            grad = torch.randn(p.shape, generator=generator).to(params[i].dtype).double()
            found[i] = papers.muon(p, sign * grad, states[i], step + 1, **options)
    return found


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_products_in_other_dtypes_are_those_of_the_paper(backend, options, maximize):
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        if dtype == torch.float64 and backend == "triton":  # which computes in float32
            continue
        params = make_params(SHAPES, dtype, device_of(backend))
        before = [p.detach().double().cpu().clone() for p in params]
        expected = followed(params, 5, **options, maximize=maximize)
        train(optim.Muon(params, **options, maximize=maximize, ns_dtype=dtype, backend=backend), params, 5)
        assert_same_updates(params, expected, before, 5, rtol)


@given(
    shapes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=5),
    lr=st.floats(1e-4, 1),
    momentum=st.floats(0, 0.99),
    weight_decay=st.floats(0, 0.5),
    nesterov=st.booleans(),
    adjust_lr_fn=st.sampled_from([None, "original", "match_rms_adamw"]),
)
@settings(max_examples=30, deadline=None)
def test_any_matrices_and_options_update_as_in_torch(shapes, **options):
    ours, theirs = make_params(shapes), make_params(shapes)
    before = [p.detach().double() for p in ours]
    train(optim.Muon(ours, **options, backend="eager"), ours, 3)
    train(torch.optim.Muon(theirs, **options), theirs, 3)
    # Of a small matrix a few such numbers are much of the length.
    assert_close(ours, theirs, before, 4 * ROUNDED)


LANES: dict[str, Any] = {
    "lr": torch.tensor([0.01, 0.02, 0.05], dtype=torch.float64),
    "momentum": torch.tensor([0.9, 0.5, 0.95], dtype=torch.float64),
    "weight_decay": torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64),
}


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_each_lane_is_torchs_run_of_its_own(backend, adjust_lr_fn):
    ours = make_params([(3, 7, 5), (3, 5, 7), (3, 12, 40), (3, 7, 5)], device=device_of(backend))
    before = [p.detach().double().cpu() for p in ours]
    alone = [[p.detach()[k].cpu().clone().requires_grad_() for p in ours] for k in range(3)]
    train(optim.Muon(ours, **LANES, adjust_lr_fn=adjust_lr_fn, backend=backend), ours, 8)
    for k, params in enumerate(alone):
        options: dict[str, Any] = {name: values[k].item() for name, values in LANES.items()}
        optimizer = torch.optim.Muon(params, **options, adjust_lr_fn=adjust_lr_fn)
        for step in range(8):
            generator = torch.Generator().manual_seed(step)
            for p, q in zip(ours, params, strict=True):
                q.grad = torch.randn(p.shape, generator=generator)[k]
            optimizer.step()
        assert_close([p[k] for p in ours], params, [p[k] for p in before], ROUNDED)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, ROUNDED), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(6, 9), (32, 100), (128, 128)])
def test_64_lanes_are_one_to_the_last_digits(shape, dtype, rtol):
    """The library that multiplies may take another way for other numbers of matrices."""
    many = make_params([(64, *shape)])
    one = [p.detach()[:1].clone().requires_grad_() for p in many]
    before = [p.detach().double() for p in one]
    wide = optim.Muon(many, lr=torch.full((64,), 0.02, dtype=torch.float64), ns_dtype=dtype, backend="eager")
    narrow = optim.Muon(one, lr=torch.full((1,), 0.02, dtype=torch.float64), ns_dtype=dtype, backend="eager")
    for step in range(5):
        grad = torch.randn(64, *shape, generator=torch.Generator().manual_seed(step))
        many[0].grad, one[0].grad = grad, grad[:1].clone()
        wide.step()
        narrow.step()
    assert_close([many[0][:1]], one, before, rtol)


def test_batches_that_are_cut_give_the_same(monkeypatch):
    results = []
    for largest in (muon.CPU_BATCH, 250):
        monkeypatch.setattr(muon, "CPU_BATCH", largest)
        params = make_params([(5, 9, 6), (5, 4, 3)])
        train(optim.Muon(params, lr=torch.full((5,), 0.1), backend="eager"), params, 3)
        results.append([p.detach() for p in params])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_lane_of_nan_leaves_its_neighbours_alone(backend):
    results = []
    for poison in (0.5, float("nan")):
        (p,) = make_params([(3, 9, 4)], device=device_of(backend))
        optimizer = optim.Muon([p], lr=LANES["lr"], backend=backend)
        for step in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p.device)
            p.grad[1] = poison
            optimizer.step()
        results.append(p.detach())
    assert results[1][1].isnan().all()
    assert torch.equal(results[0][[0, 2]], results[1][[0, 2]])


def test_a_group_without_muon_is_adamws(backend):
    matrices, others = (make_params(of, device=device_of(backend)) for of in ([(9, 4), (4, 9)], [(9,), (), (2, 3, 4)]))
    twins = [[p.detach().cpu().clone().requires_grad_() for p in params] for params in (matrices, others)]
    adamw = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    groups = [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False, **adamw}]
    ours = optim.Muon(groups, lr=0.02, backend=backend)
    theirs = torch.optim.Muon(twins[0], lr=0.02), torch.optim.AdamW(twins[1], **adamw)
    before = [p.detach().double() for params in twins for p in params]
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip([*matrices, *others], [*twins[0], *twins[1]], strict=True):
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad = q.grad.to(p.device)
        for optimizer in (ours, *theirs):
            optimizer.step()
    assert_close(matrices, twins[0], before[:2], ROUNDED)
    assert_same_updates(others, [q.double() for q in twins[1]], before[2:], 6, 3e-6)


def test_a_group_without_muon_takes_lr_and_weight_decay_from_the_optimizer_and_the_rest_from_adamw():
    matrix, bias = make_params([(3, 2), (3,)])
    optimizer = optim.Muon([{"params": [matrix]}, {"params": [bias], "use_muon": False}], lr=0.02, weight_decay=0.3)
    group = optimizer.param_groups[1]
    assert [group[name] for name in ("lr", "weight_decay", "betas", "eps")] == [0.02, 0.3, (0.9, 0.999), 1e-8]
    theirs = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.3).param_groups[0]
    assert {**optimizer.param_groups[0], "params": []} == {**theirs, "params": []}


MATRIX = torch.zeros(3, 4, requires_grad=True)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ([MATRIX, torch.zeros(3)], {}, r"Muon only supports 2D parameters.*and not parameter 1 of shape \[3\]: put it"),
        ([("w", MATRIX), ("b", torch.zeros(()))], {}, r"and not parameter 1 \(b\) of shape \[\]"),
        (
            [torch.zeros(2, 3, 4)],
            {},
            r"or \[K, out, in\] with K values of lr, and not parameter 0 of shape \[2, 3, 4\]",
        ),
        ([MATRIX], {"lr": torch.ones(3)}, r"stacked \[3, out, in\], and not parameter 0 of shape \[3, 4\]"),
        ([torch.zeros(2, 3, 4)], {"momentum": torch.ones(3)}, r"must be stacked \[3, ...\]; its shape is \[2, 3, 4\]"),
        (
            [torch.zeros(3, 4, dtype=torch.complex64)],
            {},
            r"Muon does not support complex parameters: parameter 0 of shape \[3, 4\]",
        ),
        ([MATRIX], {"momentum": -0.1}, "momentum should be >= 0 but is: -0.1"),
        ([MATRIX], {"weight_decay": -0.1}, "weight decay should be >= 0 but is: -0.1"),
        ([MATRIX], {"ns_steps": 100}, r"Invalid ns_steps: 100 \(an int in \[0, 100\)"),
        ([MATRIX], {"ns_steps": 2.5}, "Invalid ns_steps: 2.5"),
        ([MATRIX], {"ns_coefficients": (1.0, 2.0)}, r"Invalid ns_coefficients: \(1.0, 2.0\) \(3 numbers"),
        ([MATRIX], {"eps": torch.ones(2)}, "Invalid epsilon value: .* the same for all lanes"),
        ([MATRIX], {"ns_dtype": torch.float16}, "Invalid ns_dtype: torch.float16 .one of torch.bfloat16"),
        ([{"params": [MATRIX], "use_muon": False, "betas": (0.9, 1.0)}], {}, "Invalid beta parameter at index 1: 1.0"),
        ([{"params": [MATRIX], "use_muon": False, "eps": -1.0}], {}, "Invalid epsilon value: -1.0"),
    ],
    ids=str,
)
def test_what_muon_cannot_take_is_refused_by_name_at_construction(params, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        optim.Muon(params, **options)


def test_a_group_that_is_refused_or_lanes_that_come_later_change_nothing():
    (matrix,) = make_params([(3, 4)])
    optimizer, before = optim.Muon([matrix], backend="eager"), matrix.detach().clone()
    with pytest.raises(ValueError, match=r"and not parameter 2 of shape \[5\]"):
        optimizer.add_param_group({"params": [torch.zeros(2, 2), torch.zeros(5)]})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["lr"] = torch.ones(3)
    matrix.grad = torch.ones_like(matrix)
    with pytest.raises(ValueError, match=r"stacked \[3, out, in\], and not parameter 0 of shape \[3, 4\]"):
        optimizer.step()
    assert torch.equal(matrix, before)
    assert not optimizer.state
