"""How the address table gets to a GPU: what waits for what, told by a model of streams; and on a GPU."""

import numpy as np
import pytest
import torch

import optim
from kernels import table
from kernels.table import GRAD, N_UPLOADS, Uploads

DEVICE = torch.device("cuda", 1)


class Event:
    def __init__(self, device):
        self.device, self.done, self.waits = device, False, 0

    def synchronize(self):
        self.waits += 1


class Stream:
    def __init__(self, device):
        self.device = device

    def record_event(self, event=None):
        if event is None:
            event = Event(self.device)
            events.append(event)
        return event


events: list[Event] = []


@pytest.fixture
def uploads(monkeypatch) -> Uploads:
    events.clear()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
    return Uploads(torch.zeros(3, 5, dtype=torch.int64), DEVICE)


def test_the_host_waits_for_no_upload_but_the_one_whose_memory_it_writes_again(uploads):
    target = torch.zeros(3, 5, dtype=torch.int64)
    for step in range(1, 3 * N_UPLOADS):
        before = [event.waits for event in events]
        uploads.send(target, GRAD, np.full(3, step))
        assert (target[:, GRAD] == step).all()
        waited = [now.waits - then for now, then in zip(events, before, strict=False)]
        assert sum(waited) == (step > N_UPLOADS)
        if step > N_UPLOADS:
            assert waited[(step - 1) % N_UPLOADS] == 1
    assert len(events) == N_UPLOADS


def test_what_an_earlier_upload_may_still_read_is_not_written(uploads, monkeypatch):
    """A device that reads as late as it may: when its event is waited for."""
    late, target = [], torch.zeros(3, 5, dtype=torch.int64)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, host, non_blocking=False: late.append(host))
    for step in range(1, N_UPLOADS + 1):
        uploads.send(target, GRAD, np.full(3, step))
    assert [host[0, GRAD].item() for host in late] == [*range(1, N_UPLOADS + 1)]


def test_an_upload_is_recorded_on_the_device_that_it_goes_to(uploads):
    uploads.send(torch.zeros(3, 5, dtype=torch.int64), GRAD, np.ones(3))
    assert [event.device for event in events] == [DEVICE]


def test_whether_a_device_is_captured_is_asked_of_that_device(monkeypatch):
    asked, current = [], []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: asked.append(current[-1]) or True)
    assert table.capturing(DEVICE)
    assert not table.capturing(torch.device("cpu"))
    assert asked == [DEVICE]


@pytest.mark.gpu
def test_steps_with_gradients_that_move_run_ahead_of_the_device():
    """While the device spins, the host takes as many steps as there are uploads."""
    p = torch.zeros(1000, device="cuda", requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    grads = [torch.full_like(p, float(2**i)) for i in range(N_UPLOADS + 1)]
    p.grad = grads.pop()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    spun = torch.cuda.Event()
    spun.record()
    for grad in grads[: N_UPLOADS - 1]:
        p.grad = grad
        optimizer.step()
    assert not spun.query()
    torch.cuda.synchronize()
    assert (p == -float(2**N_UPLOADS + 2 ** (N_UPLOADS - 1) - 1)).all()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_a_device_that_is_not_the_current_one():
    p = torch.zeros(1000, device="cuda:1", requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    for i in range(3 * N_UPLOADS):
        p.grad = torch.full_like(p, float(i))
        optimizer.step()
    assert (p == -float(sum(range(3 * N_UPLOADS)))).all()
