"""Rules compiled for the CPU are kept on disk, and found again only by those whom they suit."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optim
from kernels import rules
from kernels.rule import tl, triton

pytest.importorskip("numba", reason="what is kept is compiled by Numba")
cpu, object_code = (pytest.importorskip(f"kernels.{name}") for name in ("cpu", "object_code"))

FLOAT32 = (torch.float32,) * 3
STEP = """
import sys, torch, optim
p = torch.linspace(-1, 1, 5).requires_grad_()
p.grad = torch.ones_like(p)
optim.SGD([p], lr=0.5).step()
print(p.tolist(), "numba" in sys.modules)
"""
STEPPED = (torch.linspace(-1, 1, 5) - 0.5).tolist()


def step_in_another_process(cache: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, env=environment)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the user's; the folder of kept code, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "adam-sandbox" / "cpu"


@pytest.fixture(scope="module")
def image() -> bytes:
    from kernels import cpu_rule

    return cpu_rule.object_code(rules.sgd, torch.float32, torch.float32, torch.float32, False)[0]


@pytest.fixture
def numba_called(monkeypatch, image) -> list[str]:
    """The names of the rules that are compiled in the test; of them all, SGD's code comes out."""
    from kernels import cpu_rule

    names = []
    monkeypatch.setattr(cpu_rule, "object_code", lambda rule, *_: names.append(rule.name) or (image, {}))
    return names


def compile_rule(rule=rules.sgd, kinds=FLOAT32, stochastic=False):
    """As `cpu.compile_rule` does when it is first called in a process."""
    return cpu.compile_rule.__wrapped__(rule, *kinds, stochastic)


def test_another_process_finds_the_code_and_needs_no_numba(tmp_path):
    for numba in (True, False):
        done = step_in_another_process(tmp_path)
        assert (done.stdout, done.stderr) == (f"{STEPPED} {numba}\n", "")


@pytest.mark.slow
def test_processes_that_start_together_leave_one_whole_file(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        finished = [*pool.map(step_in_another_process, [tmp_path] * 4)]
    assert [done.stderr for done in finished] == [""] * 4
    assert {done.stdout.partition("]")[0] + "]" for done in finished} == {str(STEPPED)}
    (path,) = (tmp_path / "adam-sandbox" / "cpu").iterdir()
    assert object_code.load(path)


def test_code_is_compiled_once_for_a_rule_dtypes_and_rounding(cache, numba_called):
    bfloat16 = (torch.bfloat16, torch.float32, torch.bfloat16)
    for _ in range(2):
        compile_rule()
        compile_rule(kinds=bfloat16)
        compile_rule(kinds=bfloat16, stochastic=True)
        compile_rule(rules.lion)
    assert numba_called == ["sgd", "sgd", "sgd", "lion"]
    assert len([*cache.iterdir()]) == 4


@triton.jit
def twice(x):
    return 2.0 * x


@triton.jit
def thrice(x):
    return 3.0 * x


@triton.jit
def rate(hyper, step):
    return hyper


helper = twice  # Tests put others in its place.


@triton.jit
def with_helper(p, grad, state, coefficients):
    return p - coefficients[0] * helper(grad), state


GLOBAL = 2.0


@triton.jit
def with_global(p, grad, state, coefficients):
    return p - coefficients[0] * GLOBAL * grad, state


def test_a_changed_helper_constant_or_setting_is_another_rule(cache, monkeypatch):
    rule = rules.Rule("mine", rate, with_helper, ("lr",), ())
    paths = set()
    for helper in (twice, thrice):
        monkeypatch.setitem(globals(), "helper", helper)
        paths.add(object_code.path_of(rule, *FLOAT32, False))
    assert len(paths) == 2
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    paths.add(object_code.path_of(rule, *FLOAT32, False))
    monkeypatch.setattr(object_code.llvm, "get_host_cpu_name", lambda: "another")
    object_code.surroundings.cache_clear()
    paths.add(object_code.path_of(rule, *FLOAT32, False))
    object_code.surroundings.cache_clear()
    assert len(paths) == 4


def test_a_rule_that_depends_on_what_may_change_is_not_kept(cache, numba_called):
    for _ in range(2):
        compile_rule(rules.Rule("mine", rate, with_global, ("lr",), ()))
    assert numba_called == ["mine", "mine"]
    assert not cache.exists()


def cut(content: bytes, at: int) -> bytes:
    return content[:at]


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@given(damage=st.sampled_from([cut, flip]), where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_made_anew(cache, numba_called, damage, where):
    compile_rule()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole, int(where * len(whole))))
    numba_called.clear()
    assert compile_rule().prologue
    assert numba_called == ["sgd"]
    assert path.read_bytes() == whole


def test_what_is_no_file_of_ours_is_left_alone(cache, numba_called):
    path = object_code.path_of(rules.sgd, *FLOAT32, False)
    assert path
    path.mkdir(parents=True)
    assert compile_rule()
    assert path.is_dir()
    path.rmdir()
    os.mkfifo(path)
    assert compile_rule()  # A pipe would wait for ever.
    path.unlink(missing_ok=True)
    object_code.keep(path, b"no object file")
    assert object_code.load(path) is None


def test_where_nothing_can_be_written_nothing_is_said(tmp_path):
    (tmp_path / "file").touch()
    done = step_in_another_process(tmp_path / "file")
    assert (done.stdout, done.stderr) == (f"{STEPPED} True\n", "")


def test_files_that_nobody_has_used_for_long_are_removed(cache, image):
    object_code.keep(cache / "old.o", image)
    object_code.keep(cache / "used.o", image)
    long_ago = time.time() - (object_code.DAYS + 1) * 24 * 3600
    for path in cache.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert object_code.load(cache / "used.o")
    object_code.keep(cache / "new.o", image)
    assert {path.name for path in cache.iterdir()} == {"used.o", "new.o"}


@triton.jit
def all_operations(p, grad, state, coefficients):
    x = tl.exp(grad) + tl.exp2(grad) + tl.log(grad) + tl.log2(grad) + tl.sin(grad) + tl.cos(grad) + tl.sqrt_rn(grad)
    y = tl.floor(x) + tl.ceil(x) + tl.abs(x) + tl.rsqrt(grad) + tl.div_rn(x, grad) + tl.maximum(x, grad)
    return p - tl.where(tl.minimum(x, y) > 0.0, x, y), state


def test_every_operation_that_a_rule_may_use_can_be_kept(cache):
    rule = rules.Rule("all", rate, all_operations, ("lr",), ())
    for kinds in (FLOAT32, (torch.float64,) * 3):
        compile_rule(rule, kinds)
        path = object_code.path_of(rule, *kinds, False)
        assert path
        assert object_code.load(path)


def wide(n_chunks: int = 5) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    p = torch.zeros(n_chunks * 2**14, requires_grad=True)
    p.grad = torch.ones_like(p)
    return p, optim.SGD([p], lr=0.5, backend="cpu")


def test_without_openmp_threads_of_python_update_all(cache, monkeypatch):
    assert object_code.has_openmp()
    with_openmp = object_code.path_of(rules.sgd, *FLOAT32, False)
    monkeypatch.setattr(object_code, "exported", lambda name: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert object_code.path_of(rules.sgd, *FLOAT32, False) != with_openmp
    cpu.fork_join.cache_clear()
    p, optimizer = wide()
    try:
        optimizer.step()
    finally:
        cpu.fork_join.cache_clear()
    assert (p == -0.5).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_made_by_fork_updates_all():
    # numpy compares: torch's own threads, too, stay with the parent.
    script = (
        "import os, torch\nfrom tests.kernels.test_object_code import wide\n"
        "torch.set_num_threads(2)\n"
        "p, optimizer = wide()\n"
        "optimizer.step()\n"
        "child = os.fork()\n"
        "optimizer.step()\n"
        "right = (p.detach().numpy() == -1).all()\n"
        "if child == 0: os._exit(not right)\n"
        "print(right, os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True 0\n", done.stderr
