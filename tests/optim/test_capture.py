"""What a step does while a CUDA graph is being captured, as far as that shows without a GPU."""

import pytest
import torch

import optim
from experiments.training import cuda_graph
from kernels import table as tables
from tests.conftest import device_of


@pytest.fixture(params=["triton", "cpu"])
def ready(request, monkeypatch):
    """An optimizer that has taken a step with its gradients, and is being captured from here on."""
    if request.param == "cpu":
        pytest.importorskip("numba", reason="the cpu backend needs Numba")
    device = device_of(request.param)
    params = [torch.ones(shape, device=device, requires_grad=True) for shape in ((3, 4), (5,))]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = optim.AdamW(params, lr=torch.tensor(0.1), backend=request.param)
    optimizer.step()
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    return optimizer, params


def snapshot(optimizer, params) -> list[torch.Tensor]:
    return [t.detach().clone() for p in params for t in (p, *optimizer.state.get(p, {}).values())]


def test_a_captured_step_uploads_nothing(ready):
    optimizer, params = ready
    (part,) = optimizer._parts
    before, versions = snapshot(optimizer, params), (part.table.rows._version, part.table.hyper._version)
    optimizer.zero_grad(set_to_none=False)
    for p in params:
        p.grad.add_(1.0)
    optimizer.step()
    assert optimizer._parts == [part]
    assert (part.table.rows._version, part.table.hyper._version) == versions
    assert all((a != b).all() for a, b in zip(before, snapshot(optimizer, params), strict=True) if a.ndim)
    assert {optimizer.state[p]["step"].item() for p in params} == {2.0}


def move(optimizer, params) -> None:
    params[1].grad = params[1].grad.clone()


def change_dtype(optimizer, params) -> None:
    params[1].grad_dtype = None
    params[1].grad = params[1].grad.bfloat16()


def leave_out(optimizer, params) -> None:
    params[1].grad = None


def add_group(optimizer, params) -> None:
    new = torch.ones_like(params[0], requires_grad=True)
    new.grad = torch.ones_like(new)
    optimizer.add_param_group({"params": [new]})
    params.append(new)


def load_states(optimizer, params) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def change_lr(optimizer, params) -> None:
    optimizer.param_groups[0]["lr"] = 0.2


def change_lr_in_place(optimizer, params) -> None:
    optimizer.param_groups[0]["lr"].fill_(0.2)


STEP_BEFORE = "take a step with them before the capture"
STEP_WITH_IT = "take a step with it before, or make it a tensor on the device"


@pytest.mark.parametrize(
    ("change", "what_to_do"),
    [
        (move, r"Take a step with these gradients before, and keep them: zero_grad\(set_to_none=False\)"),
        (change_dtype, STEP_BEFORE),
        (leave_out, STEP_BEFORE),
        (add_group, STEP_BEFORE),
        (load_states, STEP_BEFORE),
        (change_lr, STEP_WITH_IT),
        (change_lr_in_place, STEP_WITH_IT),
    ],
)
def test_what_a_graph_cannot_follow_is_refused_and_nothing_moves(ready, change, what_to_do, monkeypatch):
    optimizer, params = ready
    change(optimizer, params)
    before = snapshot(optimizer, params)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=what_to_do):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(optimizer, params), strict=True))
    monkeypatch.undo()
    optimizer.step()
    assert (params[0] != before[0]).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_where_nothing_can_be_captured_a_sentence_says_so_and_the_step_is_taken(capsys):
    done = []
    call = cuda_graph.captured(lambda: done.append(1))
    assert "without a CUDA graph, more slowly: the step cannot be captured (" in capsys.readouterr().err
    call()
    assert done == [1]
    assert cuda_graph.replayed(call, "cpu") is call


@pytest.fixture
def graph(ready, monkeypatch):
    """An optimizer of which a step was captured, and what replays that step."""
    optimizer, params = ready
    optimizer.step()
    (part,) = optimizer._parts
    monkeypatch.undo()
    return optimizer, params, part, lambda: part.launch(*part.table.captured)


def contents(part) -> list[torch.Tensor]:
    table = part.table
    return [t.clone() for t in (table.rows, table.hyper, table.chunk_row, table.chunk_index)]


LATER = [move, change_lr, change_lr_in_place, leave_out, change_dtype, add_group, load_states]


@pytest.mark.parametrize("change", LATER)
def test_what_a_graph_has_captured_stays_as_it_was_whatever_steps_come_later(graph, change):
    optimizer, params, part, replay = graph
    before, captured = contents(part), [grad.clone() for grad in part.table.captured[0]]
    for _ in range(3):
        change(optimizer, params)
        optimizer.step()
        assert optimizer._parts[0] is not part
    assert any(part is kept for kept in optimizer._captured)
    assert all(torch.equal(a, b) for a, b in zip(before, contents(part), strict=True))
    # The memory that it reads is still that of the gradients that were captured.
    assert all(torch.equal(a, b) for a, b in zip(captured, part.table.captured[0], strict=True))
    assert part.table.grad_addresses == [grad.data_ptr() for grad in part.table.captured[0]]
    moved = params[0].detach().clone()
    replay()
    assert (params[0] != moved).all()


def test_replays_and_steps_alternate_as_steps_alone_would(graph):
    optimizer, params, part, replay = graph
    twins = [p.detach().clone().requires_grad_() for p in params]
    other = optim.AdamW(twins, lr=0.1, backend=optimizer.backend)
    other.load_state_dict(optimizer.state_dict())
    captured = [grad.clone() for grad in part.table.captured[0]]
    for step in range(4):
        if step % 2:
            replay()
            grads = captured
        else:
            grads = [torch.full_like(p, 1.0 + step) for p in params]
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            optimizer.step()
        for q, grad in zip(twins, grads, strict=True):
            q.grad = grad.clone()
        other.step()
        assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


@pytest.mark.parametrize("which", ["parameter", "state", "gradient"])
def test_memory_that_a_graph_reads_is_kept_when_a_tensor_moves_out_of_it(graph, which):
    optimizer, params, part, replay = graph
    p = params[0]
    tensor = {"parameter": p, "state": optimizer.state[p]["exp_avg"], "gradient": p.grad}[which]
    old = tensor.data_ptr()
    tensor.data = tensor.data.clone()
    optimizer.step()
    assert optimizer._parts[0] is not part
    assert old in [storage.data_ptr() for storage in part.table.pinned]
    replay()


def test_gradients_that_move_after_a_capture_keep_one_table_and_not_one_a_step(graph):
    optimizer, params, *_ = graph
    for _ in range(20):
        move(optimizer, params)
        optimizer.step()
    assert len(optimizer._captured) == 1


def test_a_step_as_it_was_captured_uses_the_same_table(graph):
    optimizer, _, part, _ = graph
    optimizer.step()
    assert optimizer._parts == [part]
    assert optimizer._captured == []
