"""Tables of addresses follow whatever they point to: each way to move, free or replace a tensor, against torch.optim.

The oracle makes the same change to float64 tensors. `test_watch` changes what tensors are: sizes, layouts, groups.
"""

import pytest
import torch

import optim
from tests.conftest import device_of


def refill(tensor: torch.Tensor) -> None:
    """Free a tensor's memory and allocate it anew, with twice its values, as FSDP does around its collectives."""
    kept, storage = tensor.detach().clone(), tensor.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    tensor.detach().copy_(2 * kept)


def swap(tensor: torch.Tensor) -> None:
    other = 2 * tensor.detach()
    if isinstance(tensor, torch.nn.Parameter):
        other = torch.nn.Parameter(other)
        other.grad = tensor.grad
    torch.utils.swap_tensors(tensor, other)


def point_into_a_larger_one(tensor: torch.Tensor) -> None:
    larger = torch.stack([tensor.detach(), 2 * tensor.detach()])
    with torch.no_grad():
        tensor.set_(larger.untyped_storage(), tensor.numel(), tensor.shape, tensor.stride())


def set_data(tensor: torch.Tensor) -> None:
    tensor.data = 2 * tensor.data


def grow(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(10_000)
    tensor.detach().mul_(2)


def resize(tensor: torch.Tensor) -> None:
    """A view of the same storage grows it."""
    tensor.detach().resize_(10_000)
    tensor.detach().mul_(2)


def share(tensor: torch.Tensor) -> None:
    tensor.detach().mul_(2)
    tensor.share_memory_()


MOVES = (refill, swap, point_into_a_larger_one, set_data, grow, resize, share)


def module_shared(net, o):
    net.share_memory()


def module_loaded_by_assignment(net, o):
    """The optimizer keeps the old parameters, here as in torch."""
    net.load_state_dict({name: 2 * p.detach() for name, p in net.named_parameters()}, assign=True)


def module_loaded_by_assignment_and_the_group_told(net, o):
    module_loaded_by_assignment(net, o)
    net.weight.grad = o.param_groups[0]["params"][0].grad
    o.param_groups[0]["params"] = [net.weight]


def module_loaded_by_swapping(net, o):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.load_state_dict({name: 2 * p.detach() for name, p in net.named_parameters()})
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def module_to_another_dtype(net, o):
    net.to(torch.float64)
    net.to(net.dtype)


def module_to_another_dtype_by_swapping(net, o):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module_to_another_dtype(net, o)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def module_emptied_and_filled(net, o):
    kept, grad = 2 * net.weight.detach(), net.weight.grad.clone()
    net.to_empty(device=net.weight.device)
    net.weight.detach().copy_(kept)
    net.weight.grad.copy_(grad)


def parameter_in_a_buffer_that_is_freed_between_steps(net, o):
    flat = torch.cat([net.weight.detach().flatten()] * 2)
    net.weight.data = flat[net.weight.numel() :].view(net.weight.shape)
    o.step()
    refill(flat)


def parameters_in_a_copy_that_is_made_when_written(net, o):
    net.clone = torch.ops.aten._lazy_clone(net.weight.data)
    net.weight.data = torch.ops.aten._lazy_clone(net.clone)


def gradients_freed_and_made_again(net, o):
    net.weight.grad, kept = None, net.weight.grad
    o.step()
    net.weight.grad = 2 * kept


def states_loaded(net, o):
    saved = o.state_dict()
    for state in saved["state"].values():
        state["exp_avg"] = 2 * state["exp_avg"]
    o.load_state_dict(saved)


def group_added(net, o):
    net.more = torch.nn.Parameter(torch.ones_like(net.weight))
    net.more.grad = torch.ones_like(net.weight)
    o.add_param_group({"params": [net.more], "lr": 0.01})


def of_parameter(move):
    return lambda net, o: move(net.weight)


def of_gradient(move):
    return lambda net, o: move(net.weight.grad)


def of_state(move, name):
    return lambda net, o: move(o.state[net.weight][name])


CHANGES = {
    **{
        name: f
        for name, f in list(globals().items())
        if callable(f) and getattr(f, "__code__", None) and f.__code__.co_varnames[:2] == ("net", "o")
    },
    **{f"{move.__name__} parameter": of_parameter(move) for move in MOVES},
    # torch does not swap a tensor that is some parameter's gradient.
    **{f"{move.__name__} gradient": of_gradient(move) for move in MOVES if move is not swap},
    **{f"{move.__name__} {name}": of_state(move, name) for move in MOVES for name in ("exp_avg", "step")},
}


class Net(torch.nn.Linear):
    def __init__(self, dtype: torch.dtype, device: str):
        super().__init__(3, 2, bias=False, dtype=dtype, device=device)
        self.dtype = dtype
        self.weight.detach().copy_(torch.linspace(-1, 1, 6).view(2, 3))


def after(module, dtype: torch.dtype, device: str, change, **options) -> list[torch.Tensor]:
    """Parameters, those that have been replaced, and states after four steps, with a change after the second."""
    net = Net(dtype, device)
    old = [*net.parameters()]
    o = module.Adam(old, lr=0.1, weight_decay=0.1, **options)
    for step in range(4):
        if step < 2:
            net.weight.grad = torch.linspace(1 + step, -1, 6).view(2, 3).to(device, dtype)
        elif step == 2:
            change(net, o)
        o.step()
    found = [*net.parameters(), *old, *(t for p in old for _, t in sorted(o.state[p].items()))]
    return [t.detach().double().cpu() for t in found]


# The interpreter takes a tenth of a second for a step.
INTERPRETED = ("module_shared", "refill parameter", "set_data gradient", "swap exp_avg", "resize step")
CASES = [
    pytest.param(name, change, marks=[pytest.mark.slow] if name == "triton" and change not in INTERPRETED else [])
    for name in ("triton", "cpu", "eager")
    for change in CHANGES
]


@pytest.mark.parametrize(("backend", "change"), CASES, indirect=["backend"])
def test_what_is_moved_freed_or_replaced_between_steps_is_followed_as_in_torch(backend, change):
    expected = after(torch.optim, torch.float64, "cpu", CHANGES[change])
    found = after(optim, torch.float32, device_of(backend), CHANGES[change], backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


FREED = {
    "parameter": lambda p, o: p,
    "gradient": lambda p, o: p.grad,
    "exp_avg": lambda p, o: o.state[p]["exp_avg"],
    "step": lambda p, o: o.state[p]["step"],
}


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("what", FREED)
def test_a_step_over_freed_memory_is_refused_by_name_before_anything_changes(backend, what, size):
    params = [torch.nn.Parameter(torch.ones(6, device=device_of(backend))) for _ in range(2)]
    o = optim.Adam(params, lr=0.1, backend=backend)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        o.step()
    before = params[0].detach().clone()
    FREED[what](params[1], o).untyped_storage().resize_(size)
    with pytest.raises(RuntimeError, match=rf"[Tt]he memory of .*{what}.* has been freed or made smaller"):
        o.step()
    assert torch.equal(params[0], before)


def in_a_bucket(p):
    p.grad = torch.ones(3, 6, device=p.device)[2]


def with_gaps(p):
    p.grad = torch.ones(6, 3, device=p.device)[:, 2]


def negative(p):
    p.grad = torch.ops.aten._neg_view(torch.ones_like(p))


@pytest.mark.parametrize("lay", [in_a_bucket, with_gaps, negative])
def test_freed_gradients_of_any_layout_are_refused_before_the_first_of_several_launches(backend, lay):
    p = torch.nn.Parameter(torch.ones(6, device=device_of(backend)))
    tied = torch.nn.Parameter(p.detach())  # which a launch of its own updates, after that of p
    o = optim.Adam([p, tied], lr=0.1, backend=backend)
    for size in (None, 40, 0):
        p.grad = torch.ones_like(p)
        lay(tied)
        before = p.detach().clone()
        if size is None:
            o.step()
            assert len(o._parts) == 2
        else:
            assert tied.grad is not None
            tied.grad.untyped_storage().resize_(size if lay is not negative else size // 2)
            with pytest.raises(RuntimeError, match="The memory of a gradient has been freed or made smaller"):
                o.step()
            assert torch.equal(p, before)


def test_a_gradient_without_elements_needs_no_memory(backend):
    p = torch.nn.Parameter(torch.ones(0, device=device_of(backend)))
    p.grad = torch.ones(6, device=p.device)[6:]
    p.grad.untyped_storage().resize_(0)
    optim.Adam([p], lr=0.1, backend=backend).step()


def test_complex_tensors_of_an_optimizer_can_be_swapped(backend):
    """What tables keep of them holds no tensor that torch.utils.swap_tensors counts."""
    results = []
    for module, dtype, extra in ((torch.optim, torch.complex128, {}), (optim, torch.complex64, {"backend": backend})):
        device = device_of(backend) if module is optim else "cpu"
        p = torch.nn.Parameter(torch.tensor([1 + 1j, 2 - 1j], dtype=dtype, device=device))
        o = module.Adam([p], lr=0.1, **extra)
        for _ in range(3):
            p.grad = p.detach() - 1j
            o.step()
            swap(p)
            swap(o.state[p]["exp_avg"])
        results.append(p.detach().to("cpu", torch.complex128))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
