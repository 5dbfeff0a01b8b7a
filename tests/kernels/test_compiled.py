"""Steps as Triton compiles them for GPUs that need not be there, simulated and compared with the eager formulas.

What this shows: that layouts, masks, widths, alignment, shared memory, asynchronous copies and their waits, as they
are in the LLVM IR of each target, update every element once and rightly. What it cannot show is in the docstring of
`kernels.simulator`: what ptxas and AMD's back end make of it, races in global memory, launches, streams and graphs.

The compiler needs processes without the interpreter, in which the other tests run.
"""

import json
import subprocess
import sys

import pytest

import optim
from kernels import rules
from kernels.codegen import VARIANTS
from kernels.config import Config, candidates, default
from tests.kernels.compiler import CLEAN, SOME, printed
from tests.kernels.simulated import ONE_QUICK, TARGETS, WARP_SIZE, parses

__all__ = ["parses"]

SCRIPT = """
import json, sys
from dataclasses import astuple
from kernels import rules
from kernels.config import Config
from kernels.simulator import Fault, trial

for rule, target, dtype, config in json.loads(sys.argv[1]):
    try:
        found = trial.compare(rules.RULES[rule], target, dtype, Config(*config))._asdict()
    except (Fault, NotImplementedError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found), flush=True)
"""


def check_all(cases: list[tuple[str, str, str, Config]]) -> None:
    """Assert of all cases, in one process, that what they update agrees."""
    given = [(rule, target, dtype, list(vars(config).values())) for rule, target, dtype, config in cases]
    found = [json.loads(line) for line in printed(SCRIPT, json.dumps(given)).splitlines()]
    wrong = [
        (case, result)
        for case, result in zip(cases, found, strict=True)
        if not ("error" not in result and result["deviation"] <= 1 and result["left_out"] and result["elements"])
    ]
    assert not wrong, wrong


def walk(target: str, stages: int = 3, eviction: str = "") -> Config:
    return Config(512, 512 // (4 * WARP_SIZE[target]), 4, stages, eviction)


@pytest.mark.parametrize("target", ONE_QUICK)
def test_every_rule_updates_as_its_formulas_say(target):
    check_all([(rule, target, "float32", default(WARP_SIZE[target])) for rule in rules.RULES])


@pytest.mark.parametrize("target", TARGETS)
def test_adam_does_so_in_every_dtype_and_rounding(target):
    check_all([("adam", target, dtype, default(WARP_SIZE[target])) for dtype in VARIANTS if dtype != "float32"])


WALKS = [
    ("sm_90", SOME),
    pytest.param("sm_90", [name for name in VARIANTS if name not in SOME], marks=pytest.mark.slow),
    pytest.param("gfx942", [*VARIANTS], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("target", "dtypes"), WALKS, ids=str)
def test_adam_does_so_in_a_pipelined_walk(target, dtypes):
    check_all([("adam", target, dtype, walk(target)) for dtype in dtypes])


# The walk waits for as many copies as a rule reads arrays: a rule of each number, as the others differ in arithmetic.
WALKED = {len(rule.states): name for name, rule in rules.RULES.items() if name != "adam"}.values()


@pytest.mark.parametrize("target", ONE_QUICK)
def test_rules_of_every_number_of_states_do_so_in_a_pipelined_walk(target):
    check_all([(rule, target, "float32", walk(target, 3, "evict_first")) for rule in WALKED])


# Some of each: one takes one second to ten.
SEARCHED = [
    ("sm_90", "float32", 9),
    ("sm_90", "bfloat16-states", 10),
    ("gfx942", "float32", 11),
    ("gfx942", "bfloat16-states", 22),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype", "every"), SEARCHED)
def test_candidates_of_the_search_do_so(target, dtype, every):
    check_all([("adam", target, dtype, config) for config in candidates(WARP_SIZE[target])[::every]])


LARGE = """
import mmap, sys
import torch
from kernels import rules, table as tables
from kernels.config import Config
from kernels.simulator import backend

target, warp_size = sys.argv[1], int(sys.argv[2])
config, n = Config(512, 512 // (4 * warp_size), 4), 2**32
# Memory that exists where it is touched (0x4000 is MAP_NORESERVE).
maps = [mmap.mmap(-1, 4 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000) for _ in range(2)]
p, grad = (torch.frombuffer(m, dtype=torch.float32) for m in maps)
last = config.chunk_size
entry = tables.Entry(p, (), torch.zeros(1))
table = tables.build(rules.RULES["sgd"], [entry], torch.float32, config.chunk_size)
# Weight decay moves p even where the gradient's factor is 0.
values = {"lr": 0.5, "l2": 0.5}
table.set_hyper([(1.0, *(values.get(name, 0.0) for name in rules.RULES["sgd"].hyper))])
# Of two million chunks the last alone.
chosen = (table.chunk_index == n // last - 1).nonzero()[0]
table.chunk_row, table.chunk_index = table.chunk_row[chosen], table.chunk_index[chosen]
launch = backend.launcher(table, target, config)
for found_inf, moved in ((1.0, 0.0), (0.0, 0.75)):
    p[-2 * last:], grad[-2 * last:] = 1.0, 1.0
    launch([grad], None, torch.tensor([found_inf]))
    print((p[-last:] == 1 - moved).all().item(), (p[-2 * last:-last] == 1).all().item())
"""


@pytest.mark.parametrize("target", TARGETS)
def test_beyond_2_31_elements_a_step_is_taken_and_one_that_is_left_out_writes_nothing(target):
    assert printed(LARGE, target, str(WARP_SIZE[target])).split() == ["True"] * 4


def test_the_comparison_tells_a_wrong_rule():
    """The same IR with one sign changed fails."""
    script = """
from kernels import rules
from kernels.simulator import backend, trial, program

read = program.llvm.parse_assembly
changed = staticmethod(lambda ir: read(ir.replace("fsub float", "fadd float")))
program.llvm = type("Changed", (), {"parse_assembly": changed})
print(trial.compare(rules.RULES["sgd"], "sm_90").deviation > 1)
"""
    assert printed(script) == "True\n"


OPTIMIZER = """
import sys
import torch, optim

results = []
for module, options in ((optim, {"backend": "compiled:" + sys.argv[1]}), (torch.optim, {})):
    p = torch.linspace(-1, 1, 3000).reshape(3, 1000).requires_grad_()
    optimizer = module.AdamW([p], lr=0.1, **options)
    for step in range(3):
        p.grad = torch.cos(torch.arange(3000.0) + step).reshape(3, 1000)
        optimizer.step()
    results.append(p.detach())
torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize("target", ONE_QUICK)
def test_an_optimizer_takes_it_as_a_backend(target):
    printed(OPTIMIZER, target)


def test_run_prints_what_came_of_it():
    command = [sys.executable, "-m", "kernels.codegen", "sm_90", "--rule", "sgd", "--dtype", "float32", "--run"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN, check=True)
    found = json.loads(done.stdout)["run"]
    assert found["deviation"] <= 1
    assert found["left_out"]


WITHOUT_LLVMLITE = """
import sys
sys.modules["llvmlite"] = None
import torch, optim
from kernels import codegen

assert codegen.main(["sm_90", "--rule", "sgd", "--run"]) == 2
p = torch.zeros(3, requires_grad=True)
p.grad = torch.ones(3)
try:
    optim.SGD([p], backend="compiled:sm_90").step()
except ImportError as error:
    print(error, file=sys.stderr)
"""


def test_without_llvmlite_a_sentence_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LLVMLITE], capture_output=True, text=True, env=CLEAN)
    why = "what Triton compiles is simulated by llvmlite, which is missing: pip install 'llvmlite>=0.50'"
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines() == [f"python -m kernels.codegen: --run: {why}", why]


def test_under_the_interpreter_a_sentence_says_that_nothing_is_compiled():
    command = [sys.executable, "-m", "kernels.codegen"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert done.stderr == "python -m kernels.codegen: TRITON_INTERPRET accepts nothing here: it replaces the compiler\n"


def test_a_target_that_is_not_known_is_named():
    with pytest.raises(
        ValueError, match=r"Invalid backend: 'compiled:sm_9' \(compiled: and one of sm_80, .* not 'sm_9'"
    ):
        optim.Adam([], backend="compiled:sm_9")
