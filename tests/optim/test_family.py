"""Every class with a counterpart in torch.optim, through PyTorch's own optimizer inputs, errors included."""

import copy
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import optim
from tests.conftest import COMPILED_QUICKLY, device_of
from tests.oracle import assert_same_updates, make_params, train
from tests.support import PAGE


def class_name(info) -> str:
    return info.optim_cls.__name__


INFO = {class_name(info): info for info in optim_db if hasattr(optim, class_name(info))}
OURS = sorted(INFO)
SHAPES = ((3,), (), (0,), (7, 5))
MATRICES = {"Muon": ((5, 7), (1, 4), (0, 3), (7, 5))}
"""Shapes for classes that take matrices alone."""
OURS_ALONE = {
    **dict.fromkeys(("Adam", "AdamW"), ("bias_correction", "cautious_weight_decay")),
    "Muon": ("maximize", "ns_dtype"),
}
"""Arguments, by name alone, that torch's class lacks."""
RTOL = {torch.float32: 3e-6, torch.float64: 1e-8}
"""Of the largest update. NAdam's mu_product is float32 in torch, even for float64 parameters."""
RTOL_OF = {("Muon", torch.float32): 2.0**-8}
"""Muon rounds what it multiplies to bfloat16, after roundings to float32 that torch's float64 does not have."""


def inputs(name: str) -> dict:
    """torch's test inputs of a class, with capturable, by description."""
    found = {i.desc or "default": i.kwargs for i in INFO[name].optim_inputs_func(device="cpu")}
    if INFO[name].has_capturable_arg:
        found["capturable"] = {"capturable": True}
    return found


CASES = [(name, desc) for name in OURS for desc in inputs(name)]


def test_all_classes_that_torch_has_are_tried_with_all_of_its_inputs():
    assert OURS == ["Adadelta", "Adagrad", "Adam", "AdamW", "Muon", "NAdam", "RAdam", "RMSprop", "SGD"]
    assert len(CASES) >= 66


def test_the_support_page_lists_every_one_of_them_and_no_failure():
    page = PAGE.read_text()
    rows = [tuple(line.split(" | ")[:2]) for line in page.splitlines()]
    assert [
        row for row in rows if row[0].startswith("| ") and row[0][2:] in OURS and (row[0][2:], row[1]) in CASES
    ] == [(f"| {name}", desc) for name, desc in sorted(CASES)]
    assert "fail" not in page.lower()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *(pytest.param(one, torch.float32, id=f"{one}-float32") for one in ("triton", "cpu", "eager")),
        # The Triton kernel computes in float32: float64 tensors take another backend.
        *(pytest.param(one, torch.float64, id=f"{one}-float64", marks=pytest.mark.slow) for one in ("cpu", "eager")),
    ],
    indirect=["backend"],
)
@pytest.mark.parametrize(("name", "desc"), CASES)
def test_option(backend, name, desc, dtype):
    """Five steps move every element as torch's own class does in float64."""
    options = copy.deepcopy(inputs(name)[desc])
    ours = make_params(MATRICES.get(name, SHAPES), dtype, device_of(backend))
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]
    plain = {key: value for key, value in options.items() if key not in ("capturable", "fused", "foreach")}
    train(getattr(optim, name)(ours, **copy.deepcopy(options), backend=backend), ours, 5)
    train(getattr(torch.optim, name)(reference, **plain), reference, 5)
    assert_same_updates(ours, reference, before, 5, RTOL_OF.get((name, dtype), RTOL[dtype]))


@pytest.mark.parametrize("name", OURS)
def test_constructor_errors_are_torchs(name):
    seen = 0
    error_inputs = INFO[name].optim_error_inputs_func
    assert error_inputs is not None
    for error in error_inputs(device="cpu", dtype=torch.float32):
        if error.error_on is not OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        params, kwargs = error.optimizer_error_input.params, error.optimizer_error_input.kwargs
        if params is None:
            # torch refuses two learning rates before it looks at parameters; here they may be lanes of them.
            params = [torch.zeros(1, 1, requires_grad=True)]
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                getattr(optim, name)(params, **kwargs)
        else:
            with pytest.raises(error.error_type, match=error.error_regex):
                getattr(optim, name)(params, **kwargs)
        seen += 1
    assert seen >= 6


@pytest.mark.parametrize("name", OURS)
def test_constructors_have_torchs_arguments(name):
    ours = inspect.signature(getattr(optim, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    alone = OURS_ALONE.get(name, ())
    assert list(ours) == [*theirs, *alone, "own"]
    assert all(ours[key].kind is inspect.Parameter.KEYWORD_ONLY for key in alone)
    for key, parameter in theirs.items():
        assert (ours[key].kind, ours[key].default) == (parameter.kind, parameter.default)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"differentiable": True},
            (ValueError, TypeError),
            "autograd cannot see into the launch of|unexpected keyword",
        ),
        ({"state_dtype": torch.float16}, ValueError, "Invalid state_dtype: torch.float16 "),
        ({"rounding": "up"}, ValueError, "Invalid rounding: 'up' .one of nearest, stochastic"),
        ({"seed": -1}, ValueError, "Invalid seed: -1"),
        ({"backend": "gpu"}, ValueError, "Invalid backend: 'gpu' .one of triton, cpu, eager"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0|Learning rate should be >= 0 but is: -1.0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", OURS)
def test_options_of_our_own_are_refused_by_name(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(optim, name)([torch.zeros(2, 2, requires_grad=True)], **options)


def test_fused_excludes_foreach_and_differentiable_as_in_torch():
    p = [torch.zeros(2, requires_grad=True)]
    for name in ("Adam", "AdamW", "SGD", "Adagrad"):
        for options in ({"fused": True, "foreach": True}, {"fused": True, "differentiable": True}):
            with pytest.raises(RuntimeError) as ours:
                getattr(optim, name)(p, **options)
            with pytest.raises(RuntimeError) as theirs:
                getattr(torch.optim, name)(p, **options)
            assert str(ours.value) == str(theirs.value)


@pytest.mark.slow
@given(
    name=st.sampled_from([name for name in OURS if name not in MATRICES]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=4),
    lr=st.floats(1e-6, 10),
    weight_decay=st.floats(0, 0.5),
    maximize=st.booleans(),
    tensor_lr=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_class_dtype_shapes_and_values_update_as_in_torch(
    name, dtype, shapes, lr, weight_decay, maximize, tensor_lr
):
    options = {"weight_decay": weight_decay, "maximize": maximize}
    ours = make_params(shapes, dtype)
    reference = [p.detach().double().requires_grad_() for p in ours]
    mine = getattr(optim, name)(ours, lr=torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr, **options)
    oracle = getattr(torch.optim, name)(reference, lr=lr, **options)
    way = [p.detach().abs() for p in reference]
    for step in range(2):
        before = [q.detach().clone() for q in reference]
        train(mine, ours, 1, first_seed=step)
        train(oracle, reference, 1, first_seed=step)
        # What float32 loses on the way stays lost, also where steps to and fro cancel.
        way = [w + (q.detach() - q0).abs() for w, q, q0 in zip(way, reference, before, strict=True)]
    for p, q, w in zip(ours, reference, way, strict=True):
        bound = 4 * torch.finfo(dtype).eps * w + RTOL[dtype] * (w.max() if w.numel() else 0)
        assert ((p.detach().double() - q.detach()).abs() <= bound).all()


STATEFUL = [
    *[("Adam", {"amsgrad": amsgrad}) for amsgrad in (False, True)],
    *[("SGD", {"momentum": 0.9, "dampening": 0.3}), ("SGD", {}), ("RMSprop", {"centered": True, "momentum": 0.5})],
    *[(name, {}) for name in ("AdamW", "NAdam", "RAdam", "Adagrad", "Adadelta", "Muon")],
]


@pytest.mark.parametrize("through_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("way", ["torch to ours", "ours to torch", "ours to ours"])
@pytest.mark.parametrize(("name", "options"), STATEFUL, ids=str)
def test_state_dict_moves_mid_training_without_a_break(tmp_path, name, options, way, through_file):
    options = {"lr": 0.01, "weight_decay": 0.1, **options}
    # What is loaded does not depend on the backend, and most rules would be compiled for this alone.
    ours = {} if name in COMPILED_QUICKLY else {"backend": "eager"}
    (source, of_source), (target, of_target) = (
        (torch.optim, {}) if side == "torch" else (optim, ours) for side in way.split(" to ")
    )
    straight, moved = (make_params(MATRICES.get(name, ((40,), (3, 3)))[:2], torch.float64) for _ in range(2))
    before = [p.detach().clone() for p in straight]
    first = getattr(source, name)(moved, **options, **of_source)
    train(first, moved, 4)
    saved = first.state_dict()
    if through_file:
        torch.save(saved, tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
    params = [p.detach().clone().requires_grad_() for p in moved]
    # Another lr than the saved one, which has to come with the state.
    second = getattr(target, name)(params, lr=5.0, **of_target)
    second.load_state_dict(saved)
    train(second, params, 4, first_seed=4)
    train(getattr(torch.optim, name)(straight, **options), straight, 8)
    assert_same_updates(params, straight, before, 8, 1e-7)
    for p in params if target is optim else []:  # torch's own shares memory with what it has loaded
        for value in second.state[p].values():
            assert not any(
                value.data_ptr() == old.data_ptr() for state in first.state.values() for old in state.values()
            )


def test_the_state_of_another_optimizer_is_refused_by_name_and_changes_nothing():
    params = make_params(((4,),))
    adam, sgd = optim.Adam(params, lr=0.1), torch.optim.SGD(params, momentum=0.9)
    train(adam, params, 1)
    train(sgd, params, 1)
    kept = {name: value.clone() for name, value in adam.state[params[0]].items()}
    with pytest.raises(
        ValueError, match="loaded state of parameter 0 has momentum_buffer: it is not one of Adam, which"
    ):
        adam.load_state_dict(sgd.state_dict())
    assert adam.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(adam.state[params[0]][name], value) for name, value in kept.items())


def test_hooks_that_change_a_loaded_state_dict_are_heeded():
    params = make_params(((4,),))
    source, target = optim.Adam(params), optim.Adam(params)
    train(source, params, 3)

    def forget_half(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["exp_avg"] *= 0.5
        return state_dict

    target.register_load_state_dict_pre_hook(forget_half)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.state[params[0]]["exp_avg"], 0.5 * source.state[params[0]]["exp_avg"])


def test_lion_moves_as_its_paper_says(backend):
    ours = make_params(SHAPES, device=device_of(backend))
    reference = [p.detach().double().cpu() for p in ours]
    lr, (beta1, beta2), decay = 0.01, (0.9, 0.99), 0.1
    optimizer = optim.Lion(ours, lr=lr, betas=(beta1, beta2), weight_decay=decay, backend=backend)
    momenta = [torch.zeros_like(q) for q in reference]
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for p, q, m in zip(ours, reference, momenta, strict=True):
            grad = torch.randn(p.shape, generator=generator)
            p.grad = grad.to(p.device)
            # Algorithm 2 of arXiv:2302.06675.
            update = torch.sign(beta1 * m + (1 - beta1) * grad)
            q -= lr * (update + decay * q)
            m.mul_(beta2).add_((1 - beta2) * grad)
        optimizer.step()
    for p, q, m in zip(ours, reference, momenta, strict=True):
        torch.testing.assert_close(p.detach().double().cpu(), q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"].double().cpu(), m, rtol=1e-5, atol=1e-7)
