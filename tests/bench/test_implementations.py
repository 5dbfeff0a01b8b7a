"""Steps of every implementation: what they do, what they move, and what cannot be had."""

import sys

import pytest
import torch

import optim
from experiments.bench import implementations
from experiments.bench.cases import CASES, MORE_CASES
from experiments.bench.implementations import IMPLEMENTATIONS, OptimizerCase
from tests.bench.steps import CPU, SHAPES, with_grads

ON_CPU = [name for name, known in IMPLEMENTATIONS.items() if "cpu" in known.devices and not known.compiles]
QUICK = [case for case in CASES if case.name == "Adam"]
QUICK += MORE_CASES[:1]  # with clipping
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK]


STATES_OF_FEW_DIGITS = {"ours, bfloat16 states": (2e-2, 1e-4), "ours, int8 states": (5e-2, 3e-4)}
"""Relative and absolute tolerance of the first three steps, each of 1e-3."""


@pytest.mark.parametrize("case", [*QUICK, *SLOW], ids=lambda case: f"{case.label} {case.dtype}")
def test_all_implementations_of_a_case_do_the_same_work(case):
    moved = {}
    for name in ON_CPU:
        if implementations.missing(name, case, CPU, compile=False):
            continue
        params = with_grads(SHAPES, case.dtype)
        before = [p.detach().clone() for p in params]
        try:
            optimizer = implementations.make(name, case, params)
        except (RuntimeError, ValueError):
            assert name in ("torch fused", "ours, int8 states")
            continue
        for _ in range(3):
            optimizer.step()
        moved[name] = [(p.detach() - q).float() for p, q in zip(params, before, strict=True)]
    assert {"ours", "ours eager", "torch foreach", "torch for-loop"} <= set(moved)
    # 16-bit parameters of order 1 round in between: a few units in the last of 8 or 11 places.
    rtol, atol = (0, 3e-2) if case.dtype.itemsize == 2 else (1e-3, 2e-6)
    for name, updates in moved.items():
        wide = STATES_OF_FEW_DIGITS.get(name, (rtol, atol))
        for ours, theirs in zip(updates, moved["torch for-loop"], strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=wide[0], atol=max(atol, wide[1]))


@pytest.mark.parametrize(
    ("name", "case", "bytes_of_element"),
    [
        ("ours", OptimizerCase("SGD", {}), 12),
        ("ours", OptimizerCase("SGD", {"momentum": 0.9}), 20),
        ("torch fused", OptimizerCase("Adam", {}), 28),
        ("ours", OptimizerCase("Adam", {}), 28),
        ("ours, bfloat16 states", OptimizerCase("Adam", {}), 20),
        ("ours", OptimizerCase("AdamW", {}, torch.bfloat16), 14),
        ("ours, stochastic", OptimizerCase("AdamW", {}, torch.bfloat16), 14),
        ("ours, float32 states", OptimizerCase("AdamW", {}, torch.bfloat16), 22),
        ("ours", OptimizerCase("Adam", {}, torch.float16), 22),
        ("torch fused", OptimizerCase("Adam", {}, torch.float16), 14),
        ("ours", OptimizerCase("Adadelta", {}), 28),
        ("ours", OptimizerCase("Adam", {}, torch.float64), 56),
    ],
)
def test_bytes_of_a_step_are_those_of_its_tensors(name, case, bytes_of_element):
    assert implementations.step_bytes(name, case, [120, 17]) == bytes_of_element * 137
    params = with_grads(SHAPES, case.dtype)
    optimizer = implementations.make(name, case, params)
    states = [v for p in params for v in optimizer.state[p].values() if torch.is_tensor(v) and v.shape == p.shape]
    moved = sum(t.nbytes for p in params for t in (p, p, p.grad) if t is not None) + sum(
        2 * state.nbytes for state in states
    )
    assert moved == bytes_of_element * 137


def test_sums_and_clipping_read_more():
    clipped = OptimizerCase("AdamW", {"max_grad_norm": 1.0})
    assert implementations.step_bytes("ours", clipped, [100]) == (28 + 4) * 100
    # Parameter, gradient and two states once more.
    assert implementations.step_bytes("ours", OptimizerCase("LAMB", {}), [100]) == (28 + 16) * 100


def test_states_of_8_bits_are_a_byte_and_a_scale_except_in_small_tensors():
    case, small, large = OptimizerCase("Adam", {}), [4095], [4096]
    assert implementations.step_bytes("bitsandbytes 8-bit", case, small) == 28 * 4095
    # Two states, each read and written: 16 scales of 4 bytes.
    assert implementations.step_bytes("bitsandbytes 8-bit", case, large) == (12 + 4) * 4096 + 4 * 16 * 4
    # torchao takes only whole blocks of 256.
    assert implementations.step_bytes("torchao 8-bit", case, [4097]) == 28 * 4097


def test_every_class_of_torch_is_timed():
    assert {case.name for case in (*CASES, *MORE_CASES)} - {"LAMB"} == {
        name for name in optim.__all__ if hasattr(torch.optim, name)
    }


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS))
def test_what_cannot_be_had_says_why_in_a_line(name, monkeypatch):
    for module in ("apex", "transformer_engine", "bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, module, None)
    if name.split()[0] in ("apex", "Transformer", "bitsandbytes", "torchao"):
        assert implementations.missing(name, OptimizerCase("Adam", {}), CPU, compile=True) == "only on cuda"
        with pytest.raises(RuntimeError, match=r"^[^\n]*(apex|transformer_engine|bitsandbytes|torchao)[^\n]*$"):
            implementations.make(name, OptimizerCase("Adam", {}), with_grads(SHAPES, torch.float32))


def test_a_fused_step_is_capturable_only_while_it_is_captured(monkeypatch):
    optimizer, seen = torch.optim.Adam(with_grads(SHAPES, torch.float32), fused=True), []
    monkeypatch.setattr(optimizer, "step", lambda: seen.append(optimizer.param_groups[0]["capturable"]))
    for capturing in (False, True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        implementations.capturable(optimizer)()
    assert seen == [False, True, False]
    assert not optimizer.param_groups[0]["capturable"]
