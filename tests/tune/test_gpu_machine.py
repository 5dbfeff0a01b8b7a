"""The tensors on which a GPU is tuned, and the check of what a kernel does to them, as far as they need no GPU."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import optim
from experiments.tune import buffers, gpu_machine, race
from experiments.tune.race import LaunchCase, Skipped
from kernels import eager, rules
from kernels import table as tables
from kernels.codegen import VARIANTS
from kernels.config import Config
from tests.kernels.compiler import CLEAN
from tests.tune.careless import careless
from tests.tune.fake_gpu import CASE

CPU = torch.device("cpu")


def outcome(case: LaunchCase) -> list[torch.Tensor]:
    return buffers.outcome(case, CPU, eager.CHUNK_SIZE, eager.launcher)


@pytest.mark.parametrize("trial", [(), (0.25,) * 6])
def test_a_rule_whose_hyperparameters_have_new_names_is_tried_with_values_of_its_own(monkeypatch, trial):
    names = ("rate", "first", "second", "floor", "shrink", "pull")
    assert len(names) == len(rules.adam.hyper)
    monkeypatch.setitem(rules.RULES, "mine", replace(rules.adam, name="mine", hyper=names, trial=trial))
    before = [
        t for entry in buffers.allocate(LaunchCase("mine", "float32", "short", 8), CPU).entries for t in (entry.p,)
    ]
    after = outcome(LaunchCase("mine", "float32", "short", 8))
    assert all(t.isfinite().all() for t in after)
    assert (after[0] != before[0]).all()


def test_a_rule_of_ones_own_is_tried_with_its_defaults_and_a_step_that_16_bits_show():
    def prepare(hyper, step):
        lr, beta1, beta2, reach = hyper
        return lr, beta1 * beta2 * reach

    def update(p, grad, state, coefficients):
        lr, reach = coefficients
        return p - lr * reach * grad, ()

    classes = [
        optim.from_rule(update, prepare, defaults={"lr": lr, "betas": betas, "reach": 2.0}, name="Mine")
        for lr, betas in ((1e-4, (0.8, 0.7)), (1e-2, (0.9, 0.6)))
    ]
    ours, other = (cls([torch.zeros(3, requires_grad=True)]).rule({}) for cls in classes)
    assert (ours.trial_values, other.trial_values) == ((1.0, 0.8, 0.7, 2.0), (1.0, 0.9, 0.6, 2.0))
    # They are no part of what functions are compiled for.
    assert replace(ours, trial=()) == ours
    assert hash(replace(ours, trial=())) == hash(ours)


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_moves_every_element_when_it_is_tried(name):
    case = LaunchCase(name, "float32", "short", 8)
    before = buffers.allocate(case, CPU).entries
    after = iter(outcome(case))
    for entry in before:
        for old in (entry.p, *entry.states):
            new = next(after)
            assert new.isfinite().all()
            assert old is not entry.p or (new != old).all()


def test_a_gpu_without_free_memory_says_what_did_not_fit(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_machine.gpu_timing, "copies", full)
    monkeypatch.setattr(buffers, "allocate", full)
    with pytest.raises(MemoryError, match=r"a copy of 7.5 GB does not fit into the memory that is left"):
        gpu_machine.copy_seconds(28 * 2**28, torch.device("cpu"))
    with pytest.raises(MemoryError, match=r"7.5 GB do not fit into the memory that is free"):
        gpu_machine.sampler(CASE._replace(bucket=28), torch.device("cpu"))


@pytest.mark.parametrize(
    "case",
    [
        *(LaunchCase("adam", "float32", "long", bucket) for bucket in (18, 20)),
        *(LaunchCase("nadam", "bfloat16-states", "medium", bucket) for bucket in (16, 18, 20)),
        *(LaunchCase("sgd", "bfloat16-stochastic", "short", bucket) for bucket in (12, 16, 20)),
        LaunchCase("lion", "float16", "long", 18, aligned=False),
        LaunchCase("adam", "bfloat16", "short", 13, aligned=False),
    ],
    ids=lambda case: case.work.key,
)
def test_the_tensors_of_a_case_are_what_its_key_says(case):
    entries, grads = buffers.allocate(case, torch.device("cpu"))
    _, _, stochastic = VARIANTS[case.dtype]
    work = tables.work_of(rules.RULES[case.rule], entries, grads[0].dtype, 0 if stochastic else None)
    assert work.key == case.work.key
    assert race.case_of(work.key) == case
    element = sum(t.element_size() for t in (entries[0].p, entries[0].p, grads[0]))
    assert case.bytes_per_element == element + sum(2 * state.element_size() for state in entries[0].states)


def test_every_default_case_can_be_made_and_the_most_telling_comes_first():
    cases = [*race.cases([*rules.RULES], [*VARIANTS], ["short", "medium", "long"], [16, 20, 24, 28], True)]
    assert len(set(cases)) == len(cases)
    assert cases[0].bucket == 24
    assert len({case.work.key for case in cases}) > 0.9 * len(cases)
    for case in cases:
        sizes = buffers.shapes(case.rows, case.bucket)
        total = sum(lanes * size for lanes, size in sizes)
        assert total.bit_length() - 1 == case.bucket


@pytest.mark.gpu_too
@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("aligned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_check_passes_what_the_kernel_does(rule, aligned):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = LaunchCase(rule, "bfloat16-states", "short", 12, aligned)
    for each in (case, case._replace(dtype="float32")):
        gpu_machine.check_update(each, device, Config(4096, 16))  # raises where the kernel differs
        # Of what is compared, parameters have moved, but for what rounding to bfloat16 holds in its place.
        before, after = (tensors[:: 1 + len(rules.RULES[rule].states)] for tensors in buffers.expected(each, device))
        moved = torch.cat([(old != new).flatten() for old, new in zip(before, after, strict=True)])
        assert moved.float().mean() > 0.8


@pytest.mark.gpu_too
def test_the_check_fails_what_leaves_one_element_out(monkeypatch):
    monkeypatch.setattr(gpu_machine.launch, "launcher", careless(gpu_machine.launch.launcher))
    gpu_machine.check_update.cache_clear()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Skipped, match="its updates are wrong"):
            gpu_machine.check_update(LaunchCase("adam", dtype, "short", 12), device, Config(4096, 16))


FAKE_DRIVER = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime import driver
from kernels import codegen, multi_tensor, rules
from kernels.config import Config

class Driver:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    is_active = lambda self: True

driver.set_active(Driver())
keys, key_of = [], compiler.get_cache_key
compiler.get_cache_key = lambda *args, **more: keys.append(key_of(*args, **more)) or keys[-1]
config = Config(512, 4, 4, 3, "evict_first")
codegen.compile_update(rules.adam, "sm_90", "bfloat16-stochastic", config)
dtypes = torch.bfloat16, torch.bfloat16, torch.float32
constants = multi_tensor.update_constants(rules.adam, *dtypes, True, config)
arguments = [torch.empty(4, dtype=getattr(torch, name)) for name in ("int64", "int32", "int32", "float32", "int32")]
multi_tensor.multi_tensor_kernel.warmup(*arguments, None, None, grid=(1,), num_warps=config.num_warps, **constants)
print(len(keys), keys[0] == keys[1])
"""


@pytest.mark.slow
def test_a_launch_finds_what_the_static_analysis_has_compiled():
    done = subprocess.run([sys.executable, "-c", FAKE_DRIVER], capture_output=True, text=True, env=CLEAN)
    assert done.stdout.split() == ["2", "True"], done.stderr
