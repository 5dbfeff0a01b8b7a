"""What is read of a GPU: on builds of torch for CUDA and for ROCm, of architectures whose names are odd."""

import ast
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import torch

from experiments import autotune
from experiments.bench import gpu_info
from experiments.common import run_info
from experiments.tune import gpu_machine
from kernels.codegen import parse_target
from kernels.config import Device, cpu_name, device_facts
from kernels.occupancy import LIMITS
from tests import pretended
from tests.pretended import H100, MI300X, Properties

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("properties", [H100, MI300X], ids=lambda properties: properties.name)
def test_a_pretended_gpu_has_every_property_that_torch_declares(properties):
    stubs = ast.parse(Path(torch.__file__).with_name("_C").joinpath("__init__.pyi").read_text())
    classes = [node for node in stubs.body if isinstance(node, ast.ClassDef)]
    (declared,) = [node for node in classes if node.name == "_CudaDeviceProperties"]
    lines = [line for line in declared.body if isinstance(line, ast.AnnAssign)]
    kinds = {ast.unparse(line.target): ast.unparse(line.annotation) for line in lines}
    assert {"gcnArchName", "uuid", "L2_cache_size"} <= kinds.keys() <= set(Properties._fields)
    for name, kind in kinds.items():
        if name != "uuid":  # which torch declares to be text, and is not
            assert type(getattr(properties, name)) is {"str": str, "_int": int}[kind], name


def test_facts_of_an_nvidia_gpu_are_of_its_capability_not_of_its_name(monkeypatch):
    pretended.put_in(monkeypatch, H100)
    memory = 85_017_755_648
    assert device_facts(GPU) == Device("NVIDIA H100 80GB HBM3", "sm_90", 132, 50 << 20, memory, 5120, 2_619_000)
    assert device_facts(GPU).warp_size == 32


def test_facts_of_an_amd_gpu_name_the_architecture_without_its_features(monkeypatch):
    pretended.put_in(monkeypatch, MI300X)
    memory = 206_141_652_992
    assert device_facts(GPU) == Device("AMD Instinct MI300X", "gfx942", 304, 4 << 20, memory, 8192, 1_300_000)
    assert device_facts(GPU).warp_size == 64


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_89"),
        # Two digits of one number, and one of the other.
        ((10, 0), "sm_100"),
        ((10, 3), "sm_103"),
        ((11, 0), "sm_110"),
        ((12, 1), "sm_121"),
    ],
)
def test_every_capability_is_an_architecture_that_compiles(monkeypatch, capability, arch):
    major, minor = capability
    pretended.put_in(monkeypatch, H100._replace(major=major, minor=minor))
    assert device_facts(GPU).arch == arch
    assert arch in LIMITS
    # As Triton's driver numbers the target of a launch.
    assert parse_target(arch).arch == 10 * major + minor


@pytest.mark.parametrize(
    ("name", "warp_size"), [("gfx90a:sramecc+:xnack-", 64), ("gfx942", 64), ("gfx950", 64), ("gfx1100", 32)]
)
def test_warps_of_amd_are_as_wide_as_their_family_has_them(monkeypatch, name, warp_size):
    pretended.put_in(monkeypatch, MI300X._replace(gcnArchName=name, warp_size=warp_size))
    assert device_facts(GPU).warp_size == warp_size
    if warp_size == 64:
        assert parse_target(device_facts(GPU).arch).warp_size == LIMITS[device_facts(GPU).arch].warp_size == 64


def test_what_a_build_of_torch_does_not_tell_is_0(monkeypatch):
    class Old:
        name, major, minor, gcnArchName = "NVIDIA A10", 8, 6, "NVIDIA A10"

    pretended.put_in(monkeypatch, H100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Old)
    assert device_facts(GPU) == Device("NVIDIA A10", "sm_86")


@pytest.mark.parametrize("properties", [H100, MI300X], ids=lambda properties: properties.name)
def test_autotune_accepts_the_gpus_that_the_atlas_knows(monkeypatch, properties):
    pretended.put_in(monkeypatch, properties)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert autotune.gpu() == GPU
    assert gpu_machine.machine(GPU).facts == device_facts(GPU)
    assert run_info.describe_device("cuda")["name"] == properties.name


def test_a_gpu_that_the_atlas_does_not_know_is_named_by_its_architecture(monkeypatch, capsys):
    pretended.put_in(monkeypatch, H100._replace(name="Tesla T4", gcnArchName="Tesla T4", major=7, minor=5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert autotune.main(["tune"]) == 2
    assert "this GPU is a sm_75, and known are sm_80, " in capsys.readouterr().err


@pytest.mark.gpu
def test_this_gpu_is_described_as_triton_compiles_for_it():
    import triton

    properties, facts = torch.cuda.get_device_properties("cuda"), device_facts("cuda")
    assert {name for name in Properties._fields if hasattr(properties, name)} >= {"gcnArchName", "uuid", "warp_size"}
    # Abstract, and without a type, where pyright finds it.
    target = cast("GPUTarget", triton.runtime.driver.active.get_current_target())
    assert facts.arch == (target.arch if target.backend == "hip" else f"sm_{target.arch}")
    assert facts.warp_size == target.warp_size == properties.warp_size
    assert min(facts.multiprocessors, facts.l2_bytes, facts.memory_bytes, facts.bus_bits) > 0
    assert gpu_info.state("cuda") == {} or gpu_info.state("cuda")["driver"]


def test_without_llvmlite_a_cpu_has_the_name_that_the_system_gives_it(monkeypatch):
    pytest.importorskip("llvmlite", reason="it comes with Numba")
    assert device_facts("cpu").name.startswith(f"{cpu_name()} (")
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert device_facts("cpu").name == f"{cpu_name()}, {os.cpu_count()} cores"
