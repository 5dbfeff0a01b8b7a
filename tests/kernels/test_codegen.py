"""What the compiler makes of the kernel for GPUs that need not be there. Runs without the interpreter."""

import json
from collections import Counter

import pytest

from experiments import autotune
from kernels import codegen, rules
from kernels.codegen import VARIANTS
from tests.kernels import compiler
from tests.kernels.compiler import MAIN, SOME, offline

N_STATES = {name: len(rule.states) for name, rule in rules.RULES.items()}


def machine_code(*arguments: str) -> dict:
    """Facts by (target, rule, dtype), from a process without the interpreter."""
    facts = [json.loads(line) for line in compiler.printed(MAIN, *arguments).splitlines()]
    return {(fact["target"], fact["rule"], fact["dtype"]): fact for fact in facts}


def check(fact: dict) -> None:
    """A full block of 4 elements a thread moves in one access a tensor, and nothing is spilled."""
    n_states = N_STATES[fact["rule"]]
    p_bits, state_bits = (32 * dtype.itemsize for dtype in VARIANTS[fact["dtype"]][:2])
    # Muon's momentum writes directions where parameters would be, and does not read them.
    for kind, n_p in (("loads", 1 if fact["rule"] == "muon_momentum" else 2), ("stores", 1)):
        expected = Counter({p_bits: n_p}) + Counter({state_bits: n_states})
        assert fact[kind].get("128", 0) == expected[128], fact
        # The table's int64 entries are 64 bits wide too.
        assert fact[kind].get("64", 0) >= expected[64], fact
    assert fact["spills"] == 0, fact
    # 64 registers let an NVIDIA multiprocessor hold 32 of its 64 warps, 80 let it hold 24, 96 let it hold 20, 112 18.
    ceiling = 64 if fact["dtype"] == "float32" and n_states < 3 else 80
    if fact["dtype"] == "bfloat16-states" and n_states == 3:
        ceiling = 96  # noise for the rounding of four tensors
    if n_states == 4:
        ceiling = 112 if fact["dtype"] == "bfloat16-states" else 96
    assert fact["registers"] <= ceiling, fact


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])  # the others are among the slow tests
def test_adam_does_so_in_every_dtype(target):
    facts = machine_code(target, "--rule", "adam")
    assert len(facts) == len(VARIANTS)
    for fact in facts.values():
        check(fact)


ALL, FEW = [*rules.RULES], ["nadam", "adan", "lamb"]
OTHERS = [dtype for dtype in VARIANTS if dtype != SOME[0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "names", "dtypes"),
    [
        *(("sm_90", ALL, SOME[:1]), ("gfx942", ALL, SOME[:1])),
        *(("sm_90", FEW, OTHERS), ("gfx942", FEW, SOME[1:]), ("sm_80", FEW, SOME), ("sm_100", FEW, SOME)),
    ],
)
def test_every_rule_does_so_and_some_do_on_every_target(target, names, dtypes):
    facts = machine_code(target, "--rule", *names, "--dtype", *dtypes)
    assert {(rule, dtype) for _, rule, dtype in facts} == {(rule, dtype) for rule in names for dtype in dtypes}
    for fact in facts.values():
        check(fact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sm90"],
            "gfx90a, gfx942, gfx950, not 'sm90'",
        ),
        (["sm_90", "--rule", "adamax"], "invalid choice: 'adamax'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    done = compiler.python(MAIN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_target_that_this_triton_is_too_old_for_is_named(monkeypatch, capsys):
    codegen.check_target("gfx950")
    monkeypatch.setattr(codegen, "TRITON", (3, 7))
    codegen.check_target("sm_110")
    monkeypatch.setattr(codegen, "TRITON", (3, 6))
    with pytest.raises(ValueError, match=r"^accepts sm_110 from Triton 3\.7 on, and this is "):
        codegen.check_target("sm_110")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert autotune.main(["--dry-run", "--target", "sm_110"]) == 2
    assert "--target accepts sm_110 from Triton 3.7 on" in capsys.readouterr().err


def counts(script: str) -> dict:
    """How many kernels were compiled for sm_90 by what the script does with optimizers."""
    return offline(script + REPORT)


@pytest.mark.parametrize(
    ("name", "target", "buffers"),
    [
        ("sm_90", ("cuda", 90, 32), "1"),
        ("gfx942", ("hip", "gfx942", 64), "1"),
        # Then launches say nothing of 2 GiB.
        pytest.param("gfx942", ("hip", "gfx942", 64), "0", marks=pytest.mark.slow),
    ],
)
def test_a_launch_finds_what_was_compiled_before_it(name, target, buffers, monkeypatch):
    monkeypatch.setitem(compiler.CLEAN, "AMDGCN_USE_BUFFER_OPS", buffers)
    launched, before = offline(FOUND.replace("TARGET", repr(name)), *target)
    assert launched == before


def test_nothing_about_hyperparameters_or_sizes_is_compiled_in():
    """Sweeps of different values, steps and sizes use one compiled traversal and one prologue for each dtype."""
    assert counts(VALUES) == {"prologue_kernel": 1, "multi_tensor_kernel": 2}


def test_every_rule_compiles_once_its_prologue_included():
    """For all classes and options, twice, with other values and sizes."""
    family = rules.RULES.values()
    prologues = {(rule.coefficients, len(rule.states) + len(rule.scalars)) for rule in family}
    n_sums = len([rule for rule in family if rule.sums])
    assert counts(FAMILY) == {
        "prologue_kernel": len(prologues),
        # Rules that differ in their coefficients alone share a traversal.
        "multi_tensor_kernel": len({rule.update for rule in family}),
        "sums_kernel": n_sums,
        "totals_kernel": n_sums,
    }


FOUND = """
from kernels import codegen, rules, table
from kernels.config import Choice, default

rule, p = rules.adam, torch.zeros(5000)
config = default(codegen.parse_target(TARGET).warp_size)
made = table.build(rule, [table.Entry(p, (p.clone(), p.clone()), torch.zeros(1))], p.dtype, config.chunk_size)
made.choice = Choice(config, "test", "asked for")
launch.launcher(made)([p.clone()], None, None)
for name, kernel in kernels.items():
    setattr(launch, name, kernel)
before = [codegen.prologue(rule, TARGET).hash, codegen.compiled(rule, TARGET, "float32", config).hash]
print(json.dumps([[kernel.hash for kernel in launched], before]))
"""

VALUES = """
sizes = ((1, 7, "float32"), (3, 5000, "float32"), (16, 1024, "float32"), (16, 999, "bfloat16"))
for lanes, n, dtype in sizes:
    p = torch.zeros(lanes, n, dtype=getattr(torch, dtype), requires_grad=True)
    p.grad = torch.ones_like(p)
    for lr, beta, eps in ((1e-3, 0.9, 1e-8), (0.0, 0.0, 1.0), (1.0, 0.999, 0.0)):
        values = torch.full((lanes,), lr) if lanes > 1 else lr
        options = {"betas": (beta, 0.99), "eps": eps, "weight_decay": lr, "maximize": beta == 0}
        optimizer = optim.AdamW([p], lr=values, **options, backend="triton")
        for _ in range(3):
            optimizer.step()
"""

FAMILY = """
from kernels import reductions

for name in ("sums_kernel", "totals_kernel"):
    kernels[name] = getattr(reductions, name)
    setattr(reductions, name, Warm(kernels[name]))

classes = [(name, {}) for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RAdam", "RMSprop", "SGD")]
classes += [(name, {}) for name in ("Signum", "LaProp", "ADOPT", "Adan", "AdEMAMix", "AdamWScheduleFree", "Muon")]
classes += [(name, {}) for name in ("LAMB", "LARS", "StableAdamW", "AdamMini", "CautiousAdamW", "CautiousLion")]
classes += [("Prodigy", {})]
momentum, centered = {"momentum": 0.9}, {"centered": True}
uncorrected, cautious = {"bias_correction": False}, {"cautious_weight_decay": True}
classes += [("AdamW", {**options, "amsgrad": a}) for options in (uncorrected, cautious) for a in (False, True)]
classes += [("Adam", {"amsgrad": True}), ("SGD", momentum), ("SGD", {**momentum, "nesterov": True})]
classes += [("RMSprop", options) for options in (momentum, centered, {**momentum, **centered})]
for lr, n in ((1.0, 7), (1e-3, 5000)):
    for name, options in classes:
        p = torch.zeros((n, 1) if name == "Muon" else n, requires_grad=True)
        optimizer = getattr(optim, name)([p], lr=lr, **options, backend="triton")
        p.grad = torch.ones_like(p)
        optimizer.step()
        # As GradScaler does it, at addresses of any alignment.
        optimizer.grad_scale, optimizer.found_inf = torch.ones(3)[1], torch.zeros(5)[2]
        optimizer.step()
"""

REPORT = """
print(json.dumps({name: sum(len(c[0]) for c in kernel.device_caches.values()) for name, kernel in kernels.items()}))
"""
