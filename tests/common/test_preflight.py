"""What keeps Triton from running a first kernel: processes in which its own build fails, and the sentences for them."""

import os
import shutil
import sys

import pytest
import torch

from experiments import autotune, gpu, sweep, throughput
from experiments.common import preflight, processes
from experiments.common.errors import OptionError
from tests.kernels.devices import H100

# The extension that launches kernels, which the first one has built; nothing of it needs a GPU.
BUILDS = ["-c", "from triton.backends.nvidia.driver import CudaUtils; CudaUtils()"]
NEEDS = "Triton cannot run a kernel here: it needs"
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """An environment in which nothing is built yet."""
    left_out = ("CC", "TRITON_INTERPRET", "TRITON_LIBCUDA_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_LIBCUDA_PATH": str(tmp_path)}


def executable(path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_one_is_asked_for(bare):
    assert preflight.refusal({**bare, "PATH": "/nothing"}, BUILDS) == (
        f"{NEEDS} a C compiler, and there is none: install gcc or clang, or set CC to one"
    )


def test_what_cc_names_and_cannot_be_run_is_named(bare, tmp_path):
    (tmp_path / "text").write_text("no program")
    for named, why in (("/nothing/cc", "No such file or directory"), (str(tmp_path / "text"), "Permission denied")):
        assert preflight.refusal({**bare, "CC": named}, BUILDS) == (
            f"{NEEDS} a C compiler, and CC names {named}, which cannot be run ({why})"
        )


@needs_gcc
def test_missing_headers_of_python_are_named_in_any_language(bare, tmp_path):
    # As on a system without the package of headers: what -I names has none.
    script = 'for word; do [[ $word == -I*/include/python* ]] || words+=("$word"); done; exec gcc "${words[@]}"'
    environment = {**bare, "CC": executable(tmp_path / "cc", f"#!/bin/bash\n{script}\n"), "LANG": "de_DE.UTF-8"}
    assert preflight.refusal(environment, BUILDS) == (
        f"{NEEDS} Python.h, which the C compiler does not find: install the headers of {sys.executable}, in a package "
        "python3-dev or python3-devel for one of the system's"
    )


@needs_gcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("looked", ["in a folder", "by ldconfig"])
def test_a_missing_driver_library_is_named(bare, looked):
    if looked == "by ldconfig":
        del bare["TRITON_LIBCUDA_PATH"]
    found = preflight.refusal(bare, BUILDS)
    assert found
    assert found.startswith(f"{NEEDS} the driver's libcuda.so.1, and does not find it: ldconfig has to know its folder")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise RuntimeError('Triton Error [CUDA]: no kernel image\\nmore')", "RuntimeError: Triton Error [CUDA]: no"),
        ("print('error: of another kind'); assert False", "AssertionError"),
        ("import os; os.abort()", "its process was ended by SIGABRT"),
        ("import os; os._exit(7)", "its process ended with 7"),
        ("import time; time.sleep(60)", "the first one had not ended after 3 s"),
    ],
)
def test_what_nobody_has_thought_of_is_told_in_its_own_words(script, why, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 1.0)
    found = preflight.refusal(dict(os.environ), ["-c", script], limit=3.0)
    assert found
    assert found.startswith(f"Triton cannot run a kernel here: {why}")
    assert "\n" not in found
    assert preflight.refusal(dict(os.environ), ["-c", "pass"]) is None


# What clang and an older Triton print, which are not here.
@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("main.c:5:10: fatal error: 'Python.h' file not found\n1 error generated.", "it needs Python.h, which"),
        (
            'Traceback (most recent call last):\n  File "/x/triton/runtime/build.py", line 48, in _build\n'
            "OSError: [Errno 8] Exec format error: 'cc'\n",
            "it needs a C compiler, and CC names cc, which cannot be run (Exec format error)",
        ),
        (
            "main.c:1:10: error: unknown type name 'PyObject'\nTraceback (most recent call last):\n"
            '  File "/x/triton/runtime/build.py", line 48, in _build\n'
            "subprocess.CalledProcessError: Command '['cc', 'main.c']' returned non-zero exit status 1.\n",
            "it needs a C compiler, which fails: unknown type name 'PyObject'",
        ),
    ],
)
def test_what_other_compilers_print_is_understood(printed, why):
    made = processes.Outcome(processes.Stage("preflight", [], None, (), 1), "failed", 1.0, printed, 1)
    assert preflight.reason(made, 1.0).startswith(why)


COMMANDS = {
    gpu: [],
    autotune: ["tune"],
    throughput: ["step", "--device", "cuda"],
    sweep: ["regression", "--device", "cuda"],
}


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_commands_end_with_2_before_they_have_written_anything(module, bare, tmp_path, monkeypatch, capfd):
    for name, value in {**bare, "CC": "/nothing/cc"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for user in (gpu, autotune):
        monkeypatch.setattr(user, "device_facts", lambda device: H100)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(preflight, "COMMAND", BUILDS)
    assert module.main([*COMMANDS[module], "--out", str(tmp_path / "out")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"python -m {module.__name__}: {NEEDS} a C compiler, and CC names /nothing/cc, which")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_kernel_that_is_tried_runs(device):
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    preflight.launch(device)


def test_where_a_kernel_runs_no_process_is_started_and_what_a_compiler_prints_is_not_seen(monkeypatch, capfd):
    monkeypatch.setattr(preflight, "COMMAND", ["-c", "import os; os._exit(7)"])
    monkeypatch.setattr(preflight, "launch", lambda device: os.write(2, b"main.c:5:10: warning"))
    preflight.check_gpu()
    monkeypatch.setattr(preflight, "launch", lambda device: os.write(2, b"main.c:5:10: error") / 0)
    with pytest.raises(OptionError, match="its process ended with 7"):
        preflight.check_gpu()
    monkeypatch.setattr(preflight, "COMMAND", ["-c", "pass"])
    with pytest.raises(ZeroDivisionError):
        preflight.check_gpu()
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_a_gpu_that_runs_kernels_is_accepted():
    assert preflight.refusal(gpu.surroundings(processes.ROOT)) is None
