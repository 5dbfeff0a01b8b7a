"""Launch configurations: what one may be, and that none changes what a step does."""

import subprocess
import sys

import pytest
import torch

import optim
from kernels import launch, lookup, table
from kernels.config import Choice, Config, Work, candidates, canonical, default
from kernels.lookup import default_of
from tests import pretended
from tests.conftest import device_of
from tests.kernels.compiler import CLEAN
from tests.kernels.devices import LOOPS
from tests.oracle import make_params, train

SENTINEL = 12345.0
CONFIGS = [
    Config(1024, 8),
    Config(256, 2),  # more programs than the default
    Config(4096, 16, eviction="evict_first"),
    Config(256, 4, blocks_per_chunk=4),
    Config(256, 2, blocks_per_chunk=4, num_stages=3, eviction="evict_last"),
    Config(512, 4, blocks_per_chunk=2, num_stages=2),
]
WALK = Config(256, 4, blocks_per_chunk=4)
needs_loops = pytest.mark.skipif(not LOOPS, reason="Triton 3.6's interpreter has no loops with NumPy 2.4")
if not LOOPS:
    CONFIGS = [config for config in CONFIGS if config.blocks_per_chunk == 1]


@pytest.fixture
def chosen(monkeypatch):
    """Let every table be laid out for the configuration that the function is called with."""
    return lambda config: monkeypatch.setattr(lookup, "choose", lambda *_: Choice(config, "test", "asked for"))


@pytest.mark.gpu_too
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_every_element_of_a_row_is_updated_once_and_no_other(chosen, config, offset):
    """Sizes around the ends of blocks and chunks, at aligned addresses and others."""
    device, block, chunk = device_of("triton"), config.block_size, config.chunk_size
    chosen(config)
    ends = [0, block, chunk - block, chunk, 2 * chunk + block]
    sizes = sorted({n for end in ends for n in (end - 1, end, end + 1) if n >= 0})
    buffers, params = [], []
    for n in sizes:
        buffer = torch.full((offset + n + 64,), SENTINEL, device=device)
        p = buffer[offset : offset + n]
        p.copy_(torch.linspace(-1, 1, n))
        params.append(p.requires_grad_())
        p.grad = torch.ones(offset + n, device=device)[offset:]
        buffers.append(buffer)
    optim.Adam(params, lr=0.1, backend="triton").step()
    for n, p, buffer in zip(sizes, params, buffers, strict=True):
        # Adam's first step with a constant gradient moves every element by lr: twice would move it by twice as much.
        torch.testing.assert_close(p.detach().cpu(), torch.linspace(-1, 1, n) - 0.1)
        assert (buffer[:offset] == SENTINEL).all()
        assert (buffer[offset + n :] == SENTINEL).all()


@pytest.mark.gpu_too
@pytest.mark.parametrize("rounding", ["nearest", pytest.param("stochastic", marks=pytest.mark.slow)])
def test_no_configuration_changes_a_bit(chosen, rounding):
    stored = {}
    for config in CONFIGS:
        chosen(config)
        params = make_params(((3,), (WALK.chunk_size + 5,), (2, 700)), torch.bfloat16, device_of("triton"))
        options = {"state_dtype": torch.bfloat16, "rounding": rounding, "seed": 7}
        optimizer = optim.Adam(params, lr=1e-3, **options, backend="triton")
        train(optimizer, params, 2)
        tensors = [t for p in params for t in (p.detach(), *(optimizer.state[p][s] for s in ("exp_avg", "exp_avg_sq")))]
        stored[config] = torch.cat([t.flatten().cpu().view(torch.int16) for t in tensors])
    first = stored[CONFIGS[0]]
    assert all(torch.equal(first, other) for other in stored.values())


@pytest.mark.gpu_too
@needs_loops
def test_a_left_out_step_leaves_every_block_of_a_walk_alone(chosen):
    chosen(WALK)
    p = torch.ones(WALK.chunk_size + 3, device=device_of("triton"), requires_grad=True)
    p.grad = torch.full_like(p, float("inf"))
    optimizer = optim.Adam([p], backend="triton")
    optimizer.found_inf = torch.ones(1, device=p.device)
    optimizer.step()
    assert (p == 1).all()


@pytest.mark.gpu_too
@needs_loops
def test_a_walk_makes_fewer_programs(chosen):
    p = torch.ones(5000, device=device_of("triton"), requires_grad=True)
    p.grad = torch.ones_like(p)
    for config in (WALK, Config(256, 4)):
        chosen(config)
        optimizer = optim.SGD([p], lr=0.1, backend="triton")
        optimizer.step()
        (part,) = optimizer._parts
        assert part.table.chunk_size == config.chunk_size
        assert len(part.table.chunk_row) == -(-5000 // config.chunk_size)


def test_the_default_is_what_was_launched_before_there_was_a_choice():
    assert default(32) == Config(1024, 8, blocks_per_chunk=1, num_stages=1, eviction="")
    assert default(64) == Config(1024, 4)
    assert default(32).elements_per_thread(32) == default(64).elements_per_thread(64) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_size": 1000}, "block_size accepts powers of two, not 1000"),
        ({"block_size": 16}, "block_size accepts whole numbers from 32 to 16384, not 16"),
        ({"block_size": 1024.0}, "block_size accepts whole numbers from 32 to 16384, not 1024.0"),
        ({"num_warps": 32}, "num_warps accepts whole numbers from 1 to 16, not 32"),
        ({"num_warps": True}, "num_warps accepts whole numbers from 1 to 16, not True"),
        ({"block_size": 4096, "num_warps": 1}, "block_size accepts at most 1024 for each warp, not 4096"),
        ({"eviction": "never"}, "eviction accepts '', 'evict_first', 'evict_last', not 'never'"),
        ({"num_stages": 2}, "num_stages accepts only 1 where blocks_per_chunk is 1"),
    ],
)
def test_a_configuration_that_cannot_be_launched_is_refused(values, message):
    with pytest.raises(ValueError) as caught:
        Config(**{"block_size": 1024, "num_warps": 8, **values})
    assert str(caught.value) == message


def test_of_equals_the_first_has_fewest_elements_a_thread_then_the_smallest_block():
    ties = [Config(2048, 8), Config(2048, 16), Config(1024, 8, blocks_per_chunk=4), Config(1024, 8), Config(512, 2)]
    assert canonical(ties) == Config(1024, 8)
    assert canonical(ties[::-1]) == Config(1024, 8)
    assert canonical(ties[:2]) == Config(2048, 16)


@pytest.mark.parametrize("warp_size", [32, 64])
def test_candidates_are_in_order_and_hold_the_default(warp_size):
    found = candidates(warp_size)
    assert 60 <= len(found) <= 110
    assert len(set(found)) == len(found)
    assert [c.order for c in found] == sorted(c.order for c in found)
    assert default(warp_size) in found
    assert {c.elements_per_thread(warp_size) for c in found} == {1, 2, 4, 8, 16}


@pytest.mark.gpu_too
def test_a_table_of_other_chunks_than_the_launch_is_refused():
    p = torch.zeros(8, device=device_of("triton"))
    entry = table.Entry(p, (), torch.zeros(1, device=p.device))
    made = table.build(optim.SGD([p]).rule({"momentum": 0}), [entry], p.dtype, 2048)
    with pytest.raises(ValueError, match="chunks are of 2048 elements, and the launch's 1024"):
        launch.launcher(made)


@pytest.mark.parametrize(("arch", "num_warps"), [("gfx942", 4), ("gfx1100", 8), ("gfx1201", 8)])
def test_the_default_of_an_amd_gpu_has_as_many_warps_as_four_elements_a_thread_make(monkeypatch, arch, num_warps):
    pretended.put_in(monkeypatch, pretended.MI300X._replace(gcnArchName=arch))
    assert default_of(torch.device("cuda", 0)) == Config(1024, num_warps)


@pytest.mark.gpu_too
def test_a_walk_whose_blocks_do_not_fit_into_shared_memory_is_not_launched(chosen, monkeypatch):
    device, work = torch.device("cuda", 0), Work("adam", 2**24)
    monkeypatch.setattr(launch, "shared_bytes", lambda index: 100 * 1024)
    # Three blocks of 2048 elements, of 16 bytes each.
    assert launch.fits(Config(2048, 8, 4, 3), work, 2, device)
    assert not launch.fits(Config(4096, 16, 4, 3), work, 2, device)
    assert launch.fits(Config(4096, 16, 4, 1), work, 2, device)
    chosen(Config(4096, 16, 4, 3))
    p = torch.zeros(5000, device=device_of("triton"), requires_grad=True)
    p.grad = torch.ones_like(p)
    monkeypatch.setattr(launch, "fits", lambda *_: False)
    optimizer = optim.Adam([p], lr=0.5, backend="triton")
    optimizer.step()
    (part,) = optimizer._parts
    assert part.table.choice
    assert part.table.choice.config == default_of(p.device)
    assert "needs more shared memory than there is" in part.table.choice.why
    torch.testing.assert_close(p.detach().cpu(), torch.full((5000,), -0.5))


OTHER_TRITON = """
import logging
from types import SimpleNamespace
import triton
from kernels import codegen, launch, multi_tensor, rules
from kernels.config import Choice, Config
logging.basicConfig(format="%(name)s: %(message)s")
kept, real = [], triton.compile
triton.compile = lambda *args, **more: kept.append(real(*args, **more)) or kept[-1]
config = Config(512, 4)
code = codegen.compile_update(rules.adam, "sm_90", "float32", config)
for machine_code in (code.digest, "another", "a third"):
    entry = {"config": config, "triton": "3.5.0", "machine_code": machine_code}
    launch.check_code(SimpleNamespace(asm=kept[0].asm), Choice(config, "exact", "measured", entry))
"""


@pytest.mark.slow
def test_another_triton_is_warned_of_once_unless_the_machine_code_is_the_same():
    done = subprocess.run([sys.executable, "-c", OTHER_TRITON], capture_output=True, text=True, env=CLEAN)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("kernels.registry: A launch configuration was measured with Triton 3.5.0, and Triton 3.")
    assert line.endswith("`python -m experiments.autotune tune` measures anew")
