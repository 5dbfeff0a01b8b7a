"""Python processes without the interpreter, which replaces the compiler in those of the tests.

Importing torch and Triton takes seconds: one process of the session does so, and is forked for each script.
"""

import atexit
import functools
import json
import os
import subprocess
import sys

# Between targets of NVIDIA little differs: two of them are spared the other dtypes.
SOME = ["float32", "bfloat16-states"]
CLEAN = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}

SERVER = """
import json, os, sys, tempfile, traceback
import torch, triton
import optim
from kernels import codegen
try: from kernels.simulator import trial
except ImportError: pass  # llvmlite is missing

def run(script, arguments):
    sys.argv = ["-c", *arguments]
    exec(compile(script, "script", "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                run(*json.loads(line))
                code = 0
            except SystemExit as end: code = int(end.code or 0)
            except BaseException: traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        print(json.dumps([code, out.read(), err.read()]), flush=True)
"""


@functools.cache
def server() -> subprocess.Popen:
    """The process that has imported everything; ends with this one."""
    started = subprocess.Popen([sys.executable, "-c", SERVER], stdin=-1, stdout=-1, text=True, env=CLEAN)
    atexit.register(started.communicate)
    return started


def python(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """What comes of a script in a process of its own, in which `optim` and the compiler are imported."""
    process = server()
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps([script, arguments]) + "\n")
    process.stdin.flush()
    code, out, err = json.loads(process.stdout.readline())
    return subprocess.CompletedProcess(["-c", *arguments], code, out, err)


def printed(script: str, *arguments: str) -> str:
    """What a script that must not fail prints."""
    done = python(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


MAIN = "import sys; from kernels import codegen; sys.exit(codegen.main(sys.argv[1:]))"
"""The command, to be run with arguments."""
OFFLINE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class Offline:
    get_current_target = staticmethod(lambda: GPUTarget(*json.loads(sys.argv[1])))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

driver.set_active(Offline())
import optim
from kernels import launch

kernels = {name: getattr(launch, name) for name in ("prologue_kernel", "multi_tensor_kernel")}

launched = []

class Warm:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        return lambda *args, **kw: launched.append(self.kernel.warmup(*args, grid=grid, **kw))

for name, kernel in kernels.items():
    setattr(launch, name, Warm(kernel))
"""


def offline(script: str, *target) -> dict:
    """What the script prints, in a process whose driver is that of a GPU which is not there. Nothing is launched."""
    return json.loads(printed(OFFLINE + script, json.dumps(target or ("cuda", 90, 32))))
