"""What the compiler makes of the kernel for GPUs that need not be there. Runs without the interpreter."""

import json
import os
import subprocess
import sys

import pytest

CLEAN = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def machine_code() -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.codegen", *TARGETS], capture_output=True, text=True, check=True, env=CLEAN
    )
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    return {(fact["target"], fact["p_dtype"]): fact for fact in facts}


@pytest.mark.parametrize("target", TARGETS)
def test_float32_hot_path_loads_and_stores_128_bits_without_spills(machine_code, target):
    fact = machine_code[target, "float32"]
    # p, grad, exp_avg, exp_avg_sq in; p, exp_avg, exp_avg_sq out.
    assert fact["loads"]["128"] == 4
    assert fact["stores"]["128"] == 3
    assert fact["spills"] == 0
    # 64 registers let an NVIDIA multiprocessor hold 32 of its 64 warps.
    assert fact["registers"] <= 64


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16_hot_path_moves_four_elements_at_once(machine_code, target):
    fact = machine_code[target, "bfloat16"]
    assert fact["loads"]["128"] == 2  # the states
    assert fact["stores"]["128"] == 2
    assert fact["loads"]["64"] >= 2  # p and grad; the table's int64 entries are 64 bits wide too
    assert fact["stores"]["64"] == 1
    assert fact["spills"] == 0


def test_nothing_about_hyperparameters_or_sizes_is_compiled_in():
    """Sweeps of different values, steps and sizes use one compiled traversal and one prologue for each dtype."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env=CLEAN)
    assert json.loads(done.stdout) == {"prologue_kernel": 1, "multi_tensor_kernel": 2}


# A driver that knows its target and nothing else: launches are compiled for sm_90 and not made.
COUNT = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

class Offline:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

driver.set_active(Offline())
import optim
from kernels import multi_tensor

kernels = {name: getattr(multi_tensor, name) for name in ("prologue_kernel", "multi_tensor_kernel")}

class Warm:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid): return lambda *args, **kw: self.kernel.warmup(*args, grid=grid, **kw)

for name, kernel in kernels.items():
    setattr(multi_tensor, name, Warm(kernel))

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
print(json.dumps({name: sum(len(c[0]) for c in kernel.device_caches.values()) for name, kernel in kernels.items()}))
"""
