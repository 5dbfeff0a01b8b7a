"""Which configuration a launch gets, by fallback level, and what is said about it."""

import logging
from dataclasses import asdict

import pytest
import torch

import optim
from kernels import lookup, registry
from kernels.config import Config, CpuConfig, Device, default, device_facts
from optim import launches
from tests.conftest import device_of
from tests.kernels.devices import A100, H100, H200, HALF, VERSIONS, WALK, WORK, choose, entry, key

pytestmark = pytest.mark.usefixtures("folders")


@pytest.mark.parametrize(
    ("measured", "level", "why"),
    [
        ({H100: [24]}, "exact", "measured on NVIDIA H100 80GB HBM3 at this size"),
        ({H100: [22, 25]}, "bucket", "measured on NVIDIA H100 80GB HBM3 at 1 octave from this size"),
        ({H100: [22]}, "bucket", "measured on NVIDIA H100 80GB HBM3 at 2 octaves from this size"),
        # Three octaves are too many, here and elsewhere.
        ({H100: [21], H200: [27]}, "default", "nothing like adam/float32/float32/float32/nearest/aligned/long/24 was"),
        (
            {H200: [24], A100: [24]},
            "relative",
            "NVIDIA H200 is the sm_90 whose bandwidth per multiprocessor is nearest",
        ),
        # Half of an H100 has as much for each multiprocessor as the whole.
        ({H200: [24], HALF: [26]}, "relative", "NVIDIA H100 half is the sm_90"),
        ({H100: [23], H200: [24]}, "bucket", "at 1 octave"),
        ({A100: [24]}, "default", "was measured on NVIDIA H100 80GB HBM3 or another sm_90"),
        ({}, "default", "nothing like"),
    ],
)
def test_each_rung_is_taken_where_those_above_are_missing(measured, level, why):
    for device, buckets in measured.items():
        registry.record(device, VERSIONS, {key(bucket): entry() for bucket in buckets})
    choice = choose()
    assert choice.level == level
    assert why in str(choice)
    assert choice.config == (default() if level == "default" else WALK)
    assert f"block_size {asdict(choice.config)['block_size']}" in str(choice)


@pytest.mark.parametrize(
    "other",
    [
        {"rule": "lion"},
        {"dtypes": ("bfloat16", "float32", "float32")},
        {"rounding": "stochastic"},
        {"aligned": False},
        {"rows": "short"},
    ],
)
def test_what_was_measured_of_other_work_is_not_used(other):
    registry.record(H100, VERSIONS, {key(24, WORK._replace(**other)): entry()})
    assert choose().level == "default"
    assert choose(work=WORK._replace(**other)).level == "exact"


def test_devices_of_unknown_bandwidth_come_last_and_in_the_order_of_their_names():
    unknown = [Device(name, "sm_90") for name in ("b", "a")]
    for device, config in zip((*unknown, H200), (Config(256, 2), Config(512, 4), WALK), strict=True):
        registry.record(device, VERSIONS, {key(24): entry(config)})
    assert choose().config == WALK
    assert choose(Device("c", "sm_90")).config == Config(512, 4)


@pytest.mark.parametrize("n_elements", [0, 1, 2**24 - 1, 2**24, 2**25 - 1])
def test_buckets_are_octaves(n_elements):
    bucket = WORK._replace(n_elements=n_elements).bucket
    assert 2**bucket <= max(1, n_elements) < 2 ** (bucket + 1)


@pytest.mark.gpu_too
def test_a_step_says_its_rung_once_at_debug_level(caplog):
    p = torch.zeros(8, device=device_of("triton"), requires_grad=True)
    p.grad = torch.ones_like(p)
    launches.debug_once.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="optim"):
        for _ in range(2):
            optimizer = optim.Adam([p], backend="triton")
            for _ in range(2):
                optimizer.step()
    (message,) = [r.getMessage() for r in caplog.records if r.name == "optim"]
    assert message.startswith(f"adam on {p.device}: default: ")


def test_eager_formulas_look_nothing_up(monkeypatch):
    monkeypatch.setattr(lookup, "choose_on_cpu", None)
    monkeypatch.setattr(lookup, "choose", None)
    monkeypatch.setattr(registry, "load", None)
    p = torch.zeros(8, requires_grad=True)
    p.grad = torch.ones_like(p)
    optim.Adam([p], backend="eager").step()
    assert (p < 0).all()


def cpu_step(n_elements: int = 2**20):
    p = torch.zeros(n_elements, requires_grad=True)
    p.grad = torch.linspace(-1, 1, n_elements)
    optimizer = optim.Adam([p], backend="cpu")
    optimizer.step()
    (part,) = optimizer._parts
    return p, part.table


def test_a_cpu_gets_what_was_measured_on_it_and_the_same_numbers(folders):
    pytest.importorskip("numba", reason="the cpu backend needs Numba")
    here, other = device_facts("cpu"), Device("Another (znver5), 64 cores", "cpu", 64)
    config = CpuConfig(2**12, 16, 1)
    registry.record(other, VERSIONS, {key(20): {**entry(), "config": CpuConfig(2**18), "ties": []}})
    before, table = cpu_step()
    assert table.choice
    assert (table.choice.level, table.choice.config, table.chunk_size) == ("default", CpuConfig(), 2**14)
    registry.record(here, VERSIONS, {key(20): {**entry(), "config": config, "ties": []}})
    after, table = cpu_step()
    assert table.choice
    assert (table.choice.level, table.choice.config, table.chunk_size) == ("exact", config, 2**12)
    assert torch.equal(before, after)
    assert lookup.explain(WORK._replace(n_elements=2**20)).splitlines()[1].startswith("exact: measured on")


def test_a_file_of_a_cpu_with_configurations_of_a_gpu_is_ignored(folders, caplog):
    here = device_facts("cpu")
    registry.record(here, VERSIONS, {key(20): {**entry(), "config": CpuConfig(2**12), "ties": []}})
    (path,) = folders[0].glob("*.json")
    path.write_text(path.read_text().replace('"piles"', '"num_warps"'))
    assert lookup.choose_on_cpu(WORK._replace(n_elements=2**20)).level == "default"
    assert "has a configuration with other fields" in caplog.text


def test_explain_names_rung_reason_configuration_and_what_was_measured(folders):
    first, second, third = lookup.explain(WORK, torch.device("cpu")).splitlines()
    name = device_facts("cpu").name
    assert first == f"{key(24)} on {name}"
    why = f"nothing like {key(24)} was measured on {name} or another cpu"
    assert second == f"default: {why} (chunk_size 16384, piles 64, threads 0)"
    assert third == f"Measured so far: nothing, in {', '.join(map(str, folders))}"
    registry.record(H100, VERSIONS, {key(22): {**entry(), "default_over_this": [1.05, 1.04, 1.062]}})
    lines = lookup.explain(WORK, H200).splitlines()
    assert lines[0] == f"{key(24)} on NVIDIA H200"
    assert lines[1].startswith("relative: nothing like it was measured on NVIDIA H200; NVIDIA H100 80GB HBM3 is the")
    assert lines[2] == (
        "812.5 us [810, 815]; 93% of copy bandwidth; the default takes 1.050 [1.040, 1.062] times as long; "
        "2 others could not be told from it; Triton 3.7.1"
    )
    assert lines[3].startswith("Measured so far: NVIDIA H100 80GB HBM3 (1 entry), in ")
