"""The watch's parts alone: states know whether they were handed out, and metadata whether tensors are alike."""

import copy

import pytest
import torch

import optim
from optim import watch

FLOAT64 = torch.float64


READS = {
    "item": lambda s, p: s[p],
    "get": lambda s, p: s.get(p),
    "values": lambda s, p: [*s.values()],
    "items": lambda s, p: [*s.items()],
    "copy": lambda s, p: s.copy(),
    "dict": lambda s, p: dict(s),
    "unpacked": lambda s, p: {**s},
    "update": lambda s, p: {}.update(s),
    "deepcopy": lambda s, p: copy.deepcopy(s),
    "copy module": lambda s, p: copy.copy(s),
    "or": lambda s, p: s | {},
    "ror": lambda s, p: {} | s,
    "setdefault": lambda s, p: s.setdefault(p, {}),
    "pop": lambda s, p: s.update({p: s.pop(p)}),
    "popitem": lambda s, p: s.update([s.popitem()]),
}


@pytest.mark.parametrize("read", READS)
def test_states_know_whether_they_were_handed_out(read):
    p = torch.nn.Parameter(torch.ones(3))
    o = optim.Adam([p])
    assert [*o.state.items()] == [] == [*o.state.values()]
    p.grad = torch.ones(3)
    o.step()
    o.step()
    assert not o.state.handed_out
    assert p in o.state
    assert len(o.state) == 1
    assert [*o.state] == [p] == [*o.state.keys()]
    assert not o.state.handed_out
    READS[read](o.state, p)
    assert o.state.handed_out


def test_a_view_of_states_that_were_empty_shows_none_later():
    p = torch.nn.Parameter(torch.ones(3))
    o = optim.Adam([p])
    early = o.state.values()
    p.grad = torch.ones(3)
    o.step()
    assert [*early] == []


def test_metadata_says_the_same_with_and_without_torchs_guards(monkeypatch):
    x = torch.zeros(2, 2)
    alike = [x, torch.ones(2, 2)]
    others = [
        torch.zeros(2, 2, dtype=FLOAT64),
        torch.zeros(4),
        x.t().clone().t()[:, :1],
        torch.ops.aten._neg_view(torch.zeros(2, 2)),
    ]
    for guards in (watch.TensorGuards, None):
        monkeypatch.setattr(watch, "TensorGuards", guards)
        seen = watch.Metadata([x])
        assert all(seen.same([t]) for t in alike)
        assert not any(seen.same([t]) for t in others)
        assert not seen.same([x, x])
