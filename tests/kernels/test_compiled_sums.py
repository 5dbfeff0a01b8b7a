"""Sums and clipping as Triton compiles them for GPUs that need not be there, simulated; see `test_compiled`."""

import json

import pytest

from kernels.codegen import VARIANTS
from tests.kernels.compiler import SOME, printed
from tests.kernels.simulated import ONE_QUICK, TARGETS, WARP_SIZE, parses
from tests.kernels.summing import RULES

__all__ = ["parses"]

COMPARED = """
import json, sys
from kernels.simulator import trial
from tests.kernels.summing import RULES

for rule, target, dtype in json.loads(sys.argv[1]):
    print(json.dumps(trial.compare(RULES[rule], target, dtype)._asdict()))
"""


def check_all(cases: list[tuple[str, str, str]]) -> None:
    """Assert of all cases, in one process, that what they update agrees with the eager formulas."""
    found = [json.loads(line) for line in printed(COMPARED, json.dumps(cases)).splitlines()]
    wrong = [
        (case, result)
        for case, result in zip(cases, found, strict=True)
        if not (result["deviation"] <= 1 and result["left_out"] and result["elements"])
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("target", TARGETS)
def test_every_rule_with_sums_updates_as_its_formulas_say(target):
    check_all([(rule, target, "float32") for rule in RULES])


@pytest.mark.parametrize("target", ONE_QUICK)
def test_it_does_so_in_every_dtype_and_rounding(target):
    check_all([("lamb, clipped", target, dtype) for dtype in VARIANTS if dtype != "float32"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "gfx90a"])
def test_it_does_so_on_other_targets(target):
    check_all([(rule, target, dtype) for rule in RULES for dtype in SOME])


def test_the_comparison_tells_a_wrong_sum():
    """The same IR with one sign changed, where doubles are added, fails."""
    script = """
from kernels.simulator import backend, trial, program
from tests.kernels.summing import RULES

read = program.llvm.parse_assembly
changed = staticmethod(lambda ir: read(ir.replace("fadd double", "fsub double", 1)))
program.llvm = type("Changed", (), {"parse_assembly": changed})
print(trial.compare(RULES["lamb"], "sm_90").deviation > 1)
"""
    assert printed(script) == "True\n"


SAME = """
import json, sys
import torch
from kernels import table as tables
from kernels.codegen import VARIANTS
from kernels.config import Config, default
from kernels.pieces import PIECE
from kernels.simulator import backend
from tests.kernels.summing import RULES

target, warp_size, dtypes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
rule, usual = RULES["lamb, clipped"], default(warp_size)
# Rows of whole pieces and with a rest; lanes of a multiple of 16 bytes start at one if the first does.
SIZES = 3 * PIECE, PIECE + 520

def tensors(dtype, low, high):
    # Of many magnitudes, so that sums of doubles depend on their order.
    made = [torch.empty(n).uniform_(1, 2) * 2.0 ** torch.randint(low, high, (n,)) for n in SIZES]
    return [x.to(dtype) for x in made]

def placed(x, lanes, off):
    flat = torch.empty(lanes * len(x) + 16, dtype=x.dtype)
    start = -flat.data_ptr() % 16 // x.itemsize + off
    return flat[start : start + lanes * len(x)].view(lanes, -1).copy_(x)

def step(lanes, off, config, combined=False):
    # What a step makes of each lane: partial sums, totals, what the update takes, parameters and states.
    p, grad, *states = ([placed(x, lanes, off) for x in xs] for xs in data)
    entries = [
        tables.Entry(p[i], tuple(s[i] for s in states), torch.full((lanes,), 2.0), (), lanes, i, i) for i in range(2)
    ]
    table = tables.build(rule, entries, grad[0].dtype, config.chunk_size, 7 if stochastic else None)
    table.set_hyper([(1.0, *rule.trial_values)] * 2)
    for totals in table.stages:
        totals.combined = combined
    backend.launcher(table, target, config)(grad, None, None)
    clip, own = table.stages
    of_rows = [x.view(2, lanes, -1)[i] for x in (clip.values, own.totals, own.values) for i in range(2)]
    # Partial sums of the clip are in the order of lanes, and those of the rule in the order of tensors.
    of_tensors = own.partials.split([lanes * 3, lanes * 2])
    of_pieces = [clip.partials.view(lanes, -1), *(x.view(lanes, -1) for x in of_tensors)]
    return [clip.totals, *of_rows, *of_pieces, *(t for entry in entries for t in (entry.p, *entry.states))]

def bits(x):
    return x.contiguous().view(torch.uint8)

for dtype in dtypes:
    p_dtype, state_dtype, stochastic = VARIANTS[dtype]
    torch.manual_seed(0)
    data = [tensors(kind, -20, 4) for kind in (p_dtype, p_dtype, state_dtype, state_dtype)]
    terms = data[1][0].float().square().double().numpy()
    assert terms.cumsum()[-1] != terms[::-1].cumsum()[-1]
    right = step(1, 0, usual)
    smaller, walk = Config(256, 2, 1), Config(512, 512 // (4 * warp_size), 4, 3)
    cases = [(1, 1, usual), (64, 0, usual), (64, 1, usual), (1, 0, smaller), (3, 0, walk), (3, 1, walk)]
    for case in [*cases, (3, 0, usual, True)]:
        found = step(*case)
        assert all(torch.equal(bits(x), bits(r.expand_as(x))) for x, r in zip(found, right, strict=True)), (dtype, case)
    assert all(x.isfinite().all() for x in right), dtype
    print(dtype)
"""


@pytest.mark.parametrize(
    ("target", "dtypes"),
    [
        ("sm_90", ["float32"]),
        pytest.param("sm_90", ["bfloat16-stochastic", "bfloat16-states"], marks=pytest.mark.slow),
        pytest.param("gfx942", ["float32", "bfloat16-states"], marks=pytest.mark.slow),
    ],
)
def test_a_step_has_the_same_bits_for_any_alignment_lanes_and_chunks(target, dtypes):
    assert printed(SAME, target, str(WARP_SIZE[target]), json.dumps(dtypes)).split() == dtypes


MANY = """
import sys
import torch
from kernels import rules, table as tables
from kernels.pieces import PIECE
from kernels.reductions import BLOCK_SIZE
from kernels.rule import clipping
from kernels.simulator import backend

target, n = sys.argv[1], BLOCK_SIZE + 70
torch.manual_seed(0)
rule, made = clipping(rules.RULES["sgd"]), backend.for_target(target)
# A tensor of several pieces among many of one element, in two lanes.
p, grad = ([torch.randn(2, 3 * PIECE + 5 if i == 7 else 1) for i in range(n)] for _ in range(2))
rights = [x.double() for x in p]
for lane in range(2):
    ps = [x[lane].clone().requires_grad_() for x in rights]
    for x, g in zip(ps, grad, strict=True):
        x.grad = g[lane].double()
    torch.nn.utils.clip_grad_norm_(ps, max_norm=2.0 + lane)
    torch.optim.SGD(ps, lr=0.5).step()
    for right, x in zip(rights, ps, strict=True):
        right[lane] = x.detach()
entries = [tables.Entry(x, (), torch.zeros(2), (), 2, parameter=i) for i, x in enumerate(p)]
before = [x.clone() for x in p]
table = made.build(rule, entries, torch.float32)
values = {"lr": 0.5, "max_grad_norm": torch.tensor([2.0, 3.0])}
table.set_hyper([(1.0, *(values.get(name, 0.0) for name in rule.hyper))])
made.launcher(table)(grad, None, None)
p, before, rights = (torch.cat([x.double().flatten() for x in xs]) for xs in (p, before, rights))
update = (rights - before).abs()
print(((p - rights).abs() / (rights.abs() + update.max())).max().item(), (p != before).float().mean().item())
"""


@pytest.mark.parametrize("target", ONE_QUICK)
def test_more_rows_and_pieces_than_a_block_are_clipped_as_torch_does(target):
    deviation, moved = map(float, printed(MANY, target).split())
    assert deviation < 1e-6
    assert moved > 0.99


LARGE = """
import mmap, sys
import torch
from kernels import table as tables
from kernels.pieces import PIECE
from kernels.simulator import backend
from tests.kernels.summing import RULES

target, n = sys.argv[1], 2**32
# Memory that exists where it is touched (0x4000 is MAP_NORESERVE).
maps = [mmap.mmap(-1, 4 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000) for _ in range(2)]
p, grad = (torch.frombuffer(m, dtype=torch.float32) for m in maps)
table = backend.for_target(target).build(RULES["mean"], [tables.Entry(p, (), torch.zeros(1))], torch.float32)
table.set_hyper([(1.0, 0.5)])
# Of two million pieces the last alone.
(totals,) = table.stages
totals.piece_row, totals.piece_index = totals.piece_row[-1:], totals.piece_index[-1:]
totals.partials, totals.first_piece[1] = totals.partials[-1:], 1
grad[-2 * PIECE:-PIECE], grad[-PIECE:] = 5.0, 3.0
launch = backend.launcher(table, target)
launch.begin([grad], None, None)
launch.measure(0)
launch.conclude(0)
print(totals.totals.tolist() == [[9.0 * PIECE, PIECE]], totals.values.tolist() == totals.totals.tolist())
"""


@pytest.mark.parametrize("target", TARGETS)
def test_pieces_beyond_2_31_elements_are_added_up(target):
    assert printed(LARGE, target).split() == ["True", "True"]


OPTIMIZER = """
import sys
import torch, optim

results = []
for module in (optim, torch.optim):
    ours, dtype = module is optim, torch.float32 if module is optim else torch.float64
    params = [torch.linspace(-1, 1, n, dtype=dtype).requires_grad_() for n in (3000, 1, 4096)]
    # A group with a largest norm, and one without.
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01}]
    if ours:
        groups[0]["max_grad_norm"] = 2.0
    optimizer = module.AdamW(groups, lr=0.1, eps=1.0, **({"backend": "compiled:" + sys.argv[1]} if ours else {}))
    for step in range(3):
        for i, p in enumerate(params):
            p.grad = torch.cos(torch.arange(float(p.numel())) + step + i).to(dtype)
        if not ours:
            torch.nn.utils.clip_grad_norm_(params[:2], 2.0)
        optimizer.step()
    results.append([p.detach().double() for p in params])
start = [torch.linspace(-1, 1, n).double() for n in (3000, 1, 4096)]
ours, theirs = ([p - old for p, old in zip(result, start, strict=True)] for result in results)
torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize("target", ONE_QUICK)
def test_an_optimizer_clips_as_torch_does(target):
    printed(OPTIMIZER, target)
