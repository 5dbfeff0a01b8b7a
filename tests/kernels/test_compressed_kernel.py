"""The kernel of compressed states: the same bits in every configuration, and what it compiles to."""

import json

import pytest
import torch

import optim
from kernels import launch, lookup
from kernels.config import Choice, Config, Work
from tests.conftest import device_of
from tests.kernels.compiler import printed
from tests.kernels.devices import LOOPS
from tests.oracle import make_params, train

CONFIGS = [
    Config(1024, 8),
    Config(256, 2),  # one block of codes
    Config(4096, 16, eviction="evict_first"),
    *([Config(256, 4, blocks_per_chunk=4), Config(512, 4, blocks_per_chunk=2, num_stages=2)] if LOOPS else []),
]


@pytest.mark.gpu_too
@pytest.mark.parametrize("name", ["Adam", pytest.param("Lion", marks=pytest.mark.slow)])
def test_no_configuration_changes_a_bit(monkeypatch, name):
    stored = []
    for config in CONFIGS:
        monkeypatch.setattr(lookup, "choose", lambda *_, config=config: Choice(config, "test", "asked for"))
        params = make_params(((3,), (1029,), (2, 700), (4096,)), device=device_of("triton"))
        optimizer = getattr(optim, name)(params, state_dtype="int8", backend="triton")
        train(optimizer, params, 2)
        tensors = [t for p in params for t in (p.detach(), *(v for _, v in sorted(optimizer.state[p].items())))]
        stored.append(torch.cat([t.flatten().cpu().view(torch.uint8) for t in tensors]))
    assert all(torch.equal(stored[0], other) for other in stored[1:])


@pytest.mark.gpu_too
def test_a_configuration_with_blocks_smaller_than_those_of_codes_is_not_launched(monkeypatch):
    small, device = Config(128, 1), torch.device(device_of("triton"))
    assert launch.fits(small, Work("adam", 2**24), 2, device)
    assert not launch.fits(small, Work("adam", 2**24, ("float32", "float32", "int8")), 2, device)
    monkeypatch.setattr(lookup, "choose", lambda *_: Choice(small, "test", "asked for"))
    p = make_params(((700,),), device=device_of("triton"))[0]
    optimizer = optim.Adam([p], state_dtype="int8", backend="triton")
    train(optimizer, [p], 1)
    (part,) = optimizer._parts
    assert part.table.chunk_size == lookup.default_of(p.device).chunk_size
    assert part.table.choice
    assert "or has blocks of less than 256" in part.table.choice.why


COMPILED = """
import json, sys, torch
from kernels import codegen, codes, rules

for rule in ("adam", "adam_cautious", "lion"):
    kernel = codegen.traversal(rules.RULES[rule], sys.argv[1], (torch.float32, torch.float32, codes.DTYPE))
    facts = codegen.facts(kernel.asm)
    print(json.dumps({name: facts[name] for name in ("spills", "loads", "stores")}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_it_compiles_without_spills_and_with_wide_accesses(target):
    for line in printed(COMPILED, target).splitlines():
        facts = json.loads(line)
        assert facts["spills"] == 0
        # p and grad; p.
        assert facts["loads"]["128"] >= 2
        assert facts["stores"]["128"] >= 1


SIMULATED = """
import sys, torch, optim

def trained(name, backend):
    generator = torch.Generator().manual_seed(0)
    # Rows that fill blocks and rows that do not, and lanes at addresses that are no multiples of 16.
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((1024,), (1029,), (2, 333))]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": torch.tensor([0.01, 0.02])}]
    optimizer = getattr(optim, name)(groups, lr=0.01, state_dtype="int8", backend=backend)
    for step in range(2):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [t.detach() for p in params for t in (p, *(v for _, v in sorted(optimizer.state[p].items())))]

for name in ("Adam", "Lion"):
    pairs = zip(trained(name, "eager"), trained(name, "compiled:" + sys.argv[1]), strict=True)
    for ours, theirs in pairs:
        # A code may differ where a number is half-way between two, and then the next step of lr 0.01 or 0.02.
        off = (ours.double() - theirs.double()).abs()
        assert (off <= (1 if ours.dtype in (torch.int8, torch.uint8) else 1e-3)).all(), off.max()
        assert (off > 1e-5).double().mean() <= 0.01
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_what_is_compiled_for_a_gpu_agrees_with_the_eager_formulas(target):
    pytest.importorskip("llvmlite", reason="the simulator reads LLVM IR by llvmlite")
    printed(SIMULATED, target)


UNCOMPRESSED = """
import torch
from kernels import codegen, codes, rules

for dtype in (torch.float32, codes.DTYPE):
    print("i8" in codegen.traversal(rules.adam, "sm_90", (torch.float32, torch.float32, dtype)).asm["ttir"])
"""


@pytest.mark.slow
def test_rules_without_compressed_states_have_nothing_of_them_in_their_code():
    assert printed(UNCOMPRESSED).split() == ["False", "True"]
