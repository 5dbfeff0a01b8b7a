"""What the compiler makes of the kernels that form sums, and that rules without sums pay nothing for them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import triton

from kernels.codegen import VARIANTS
from kernels.occupancy import LIMITS
from tests.kernels import compiler
from tests.kernels.compiler import MAIN, SOME, offline
from tests.kernels.summing import RULES

STAGES = """
import json, sys
from kernels import codegen
from tests.kernels.summing import RULES

for target, rule, dtype in json.loads(sys.argv[1]):
    print(json.dumps(codegen.compile_stages(RULES[rule], target, dtype)))
"""


def check(rule: str, target: str, dtype: str, stage: int, facts: dict) -> None:
    """Loads of full pieces are 128 bits wide, nothing is spilled, and half of a multiprocessor's warps fit."""
    p_bits, state_bits = (8 * dtype.itemsize for dtype in VARIANTS[dtype][:2])
    # Of what it adds up, a clipping stage reads gradients alone.
    reads = Counter({p_bits: 1}) if RULES[rule].stages[stage].clips else Counter({p_bits: 2}) + Counter({state_bits: 2})
    elements = 8  # of each thread
    sums, totals = facts["sums"], facts["totals"]
    assert sums["loads"]["128"] == sum(n * elements * bits // 128 for bits, n in reads.items()), sums
    # Else they are as wide as an element.
    for bits, n in reads.items():
        assert sums["loads"].get(str(bits), 0) >= n * elements, sums
    assert (sums["spills"], totals["spills"]) == (0, 0), facts
    assert max(sums["registers"], totals["registers"]) <= 64, facts


def check_all(targets: list[str], dtypes: list[str]) -> None:
    cases = [(rule, target, dtype) for rule in ("lamb", "lamb, clipped") for target in targets for dtype in dtypes]
    given = json.dumps([(target, rule, dtype) for rule, target, dtype in cases])
    for case, line in zip(cases, compiler.printed(STAGES, given).splitlines(), strict=True):
        stages = json.loads(line)
        assert len(stages) == len(RULES[case[0]].stages)
        for i, facts in enumerate(stages):
            check(*case, i, facts)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_sums_are_formed_with_128_bit_loads_and_no_spills(target):
    check_all([target], SOME)


@pytest.mark.slow
def test_they_are_so_in_every_dtype():
    check_all(["sm_90"], [dtype for dtype in VARIANTS if dtype not in SOME])


@pytest.mark.slow
def test_they_are_so_on_every_target():
    check_all([name for name in LIMITS if name not in ("sm_90", "gfx942", "sm_110")], SOME[:1])


ADDITIONS = """
import re, sys, torch
from kernels import codegen
from tests.kernels.summing import RULES

asm = codegen.sums(RULES["lamb"], 0, sys.argv[1], (torch.float32,) * 3).asm
text = codegen.cuobjdump(asm["cubin"], "--dump-sass") if "cubin" in asm else asm["amdgcn"]
print(len(re.findall(r"\\b(?:DADD|v_add_f64)\\b", text)))
"""


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_full_and_masked_pieces_are_added_up_by_the_same_instructions(target):
    """Each of two sums takes 7 additions of a thread's 8 elements and, in steps that halve, 8 of 256 threads'."""
    assert compiler.printed(ADDITIONS, target) == "30\n"


def test_the_command_prints_what_a_rule_with_clipping_launches():
    (line,) = compiler.printed(MAIN, "sm_90", "--rule", "sgd", "--dtype", "float32", "--clip").splitlines()
    ((stage),) = json.loads(line)["stages"]
    check("adam, clipped", "sm_90", "float32", 0, stage)
    (line,) = compiler.printed(MAIN, "sm_90", "--rule", "sgd", "--dtype", "float32").splitlines()
    assert "stages" not in json.loads(line)


LAUNCHED = """
from kernels import codegen, reductions, table
from kernels.config import Choice, default
from tests.kernels.summing import RULES

target, rule, p = TARGET, RULES["lamb, clipped"], torch.zeros(5000)
config, own = default(codegen.parse_target(target).warp_size), ("sums_kernel", "totals_kernel")
launch.lookup.default_of = lambda device: config
kernels |= {name: getattr(reductions, name) for name in own}
for name in own:
    setattr(reductions, name, Warm(kernels[name]))
made = table.build(rule, [table.Entry(p, (p.clone(), p.clone()), torch.zeros(1))], p.dtype, config.chunk_size)
made.choice = Choice(config, "test", "asked for")
for combined in (False, True):
    for totals in made.stages:
        totals.combined = combined
    launch.launcher(made)([p.clone()], None, None)
for name, kernel in kernels.items():
    setattr(reductions if name in own else launch, name, kernel)
prologue, traversal = codegen.prologue(rule, target), codegen.compiled(rule, target, "float32", config)
sums = [codegen.sums(rule, stage, target, (p.dtype,) * 3) for stage in range(2)]
whole = [codegen.totals(rule, stage, target) for stage in range(2)]
parts = [[codegen.totals(rule, stage, target, first, not first) for first in (True, False)] for stage in range(2)]
before = [prologue, sums[0], whole[0], sums[1], whole[1], traversal]
before += [prologue, sums[0], *parts[0], sums[1], *parts[1], traversal]
print(json.dumps([[kernel.hash for kernel in kernels] for kernels in (launched, before)]))
"""


@pytest.mark.parametrize(
    ("name", "target"),
    [("sm_90", ("cuda", 90, 32)), pytest.param("gfx942", ("hip", "gfx942", 64), marks=pytest.mark.slow)],
)
def test_a_launch_finds_the_kernels_of_stages_that_were_compiled_before_it(name, target):
    launched, before = offline(LAUNCHED.replace("TARGET", repr(name)), *target)
    assert launched == before


DIGESTS = """
import json, sys, triton
from kernels import codegen, rules

def digests(rule, target):
    kernels = codegen.prologue(rule, target), codegen.compiled(rule, target)
    return [codegen.facts(kernel.asm)["digest"] for kernel in kernels]

targets, names = json.loads(sys.argv[1])
found = {target: {name: digests(rules.RULES[name], target) for name in names} for target in targets}
print(json.dumps({triton.__version__: found}))
"""


def test_rules_without_sums_compile_to_the_machine_code_that_they_had_before_there_were_sums():
    """Digests of their prologue and traversal. After a change that is meant, a failure prints those to be kept."""
    known = json.loads(Path(__file__).with_name("digests.json").read_text())
    if triton.__version__ not in known:
        pytest.skip(f"machine code of Triton {triton.__version__} is not in digests.json")
    expected = known[triton.__version__]
    found = json.loads(compiler.printed(DIGESTS, json.dumps([[*expected], [*expected["sm_90"]]])))
    assert found == {triton.__version__: expected}, json.dumps(found)
