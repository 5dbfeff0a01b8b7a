"""The files of tuned configurations: found, refused by name, written by several processes; and the ladder's rungs."""

import json
import logging
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optim
from kernels import lookup, registry
from kernels.config import Choice, Config, Device, Work, default
from tests.conftest import device_of

H100 = Device("NVIDIA H100 80GB HBM3", "sm_90", 132, 50 << 20, 80 << 30, 5120, 2619000)
H200 = Device("NVIDIA H200", "sm_90", 132, 50 << 20, 141 << 30, 6144, 3201000)
HALF = Device("NVIDIA H100 half", "sm_90", 66, 25 << 20, 40 << 30, 2560, 2619000)
A100 = Device("NVIDIA A100-SXM4-40GB", "sm_80", 108, 40 << 20, 40 << 30, 5120, 1215000)
WORK = Work("adam", 2**24 + 5)
WALK = Config(512, 4, blocks_per_chunk=4, num_stages=3, eviction="evict_first")
VERSIONS = {"triton": "3.7.1"}


def entry(config: Config = WALK) -> dict:
    numbers = {"median_us": 812.5, "interval_us": [810.0, 815.0], "copy_share": 0.93}
    return {
        "config": config,
        **numbers,
        "ties": [config, Config(1024, 8)],
        "machine_code": "0123456789abcdef",
        "triton": "3.7.1",
    }


def key(bucket: int, work: Work = WORK) -> str:
    return f"{work.kind}/{bucket}"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Three empty folders: of the environment variable, of the user, of the package."""
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "PACKAGED", tmp_path / "packaged")
    registry.warn_once.cache_clear()
    return registry.folders()


def choose(device: Device = H100, work: Work = WORK) -> Choice:
    return lookup.climb(work, device, registry.load())


def test_what_is_written_is_read_again_sorted_and_with_a_schema(folders):
    for bucket in (26, 24):
        assert registry.record(H100, VERSIONS, {key(bucket): entry()}) == folders[0] / "nvidia-h100-80gb-hbm3.json"
    text = (folders[0] / "nvidia-h100-80gb-hbm3.json").read_text()
    content = json.loads(text)
    assert content["schema"] == 1
    assert content["device"]["bus_bits"] == 5120
    assert content["versions"] == VERSIONS
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    device, entries = registry.load()[H100.slug]
    assert device == H100
    assert entries == {key(24): entry(), key(26): entry()}
    assert {path.name for path in folders[0].iterdir()} == {
        "nvidia-h100-80gb-hbm3.json",
        ".nvidia-h100-80gb-hbm3.json.lock",
    }


def test_the_variable_goes_before_the_user_and_the_user_before_the_package(folders):
    configs = [Config(256, 2), Config(512, 4), Config(2048, 8)]
    for folder, config in reversed(list(zip(folders, configs, strict=True))):
        registry.write(folder / f"{H100.slug}.json", H100, VERSIONS, {key(24): entry(config)})
        assert choose().config == config
    # What only the package has is still found.
    registry.write(folders[2] / f"{H100.slug}.json", H100, VERSIONS, {key(10): entry()})
    assert choose(work=WORK._replace(n_elements=2**10)).config == WALK


@pytest.mark.parametrize(
    ("measured", "rung", "why"),
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
def test_each_rung_is_taken_where_those_above_are_missing(measured, rung, why):
    for device, buckets in measured.items():
        registry.record(device, VERSIONS, {key(bucket): entry() for bucket in buckets})
    choice = choose()
    assert choice.rung == rung
    assert why in str(choice)
    assert choice.config == (default() if rung == "default" else WALK)
    assert f"block_size {choice.config.block_size}" in str(choice)


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
    assert choose().rung == "default"
    assert choose(work=WORK._replace(**other)).rung == "exact"


def test_devices_of_unknown_bandwidth_come_last_and_in_the_order_of_their_names():
    unknown = [Device(name, "sm_90") for name in ("b", "a")]
    for device, config in zip((*unknown, H200), (Config(256, 2), Config(512, 4), WALK), strict=True):
        registry.record(device, VERSIONS, {key(24): entry(config)})
    assert choose().config == WALK
    assert choose(Device("c", "sm_90")).config == Config(512, 4)


GOOD = json.dumps(
    {
        "schema": 1,
        "device": {"name": H100.name, "arch": "sm_90"},
        "versions": VERSIONS,
        "entries": {key(24): {"config": {"block_size": 512, "num_warps": 4}, "median_us": 1.0}},
    }
)
BAD = {
    "half": (GOOD[: len(GOOD) // 2], ""),
    "empty": ("", ""),
    "future": (GOOD.replace('"schema": 1', '"schema": 2'), "its schema is 2, and this version reads 1"),
    "foreign": ('{"name": "something else"}', "it is no such file"),
    "list": ("[1, 2]", "it is no such file"),
    "no power": (GOOD.replace("512", "500"), "block_size accepts powers of two, not 500"),
    "other field": (GOOD.replace("num_warps", "num_ctas"), "other fields than this version's"),
    "bad key": (GOOD.replace("nearest", "up"), "an entry is named"),
    "bad number": (GOOD.replace("1.0", '"fast"'), "median_us of adam/float32/float32/float32/nearest/aligned/long/24"),
    "bad device": (GOOD.replace('"arch"', '"color"'), "it describes no device"),
    "deep": ("[" * 100_000, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_named_once_and_ignored(folders, caplog, name):
    text, why = BAD[name]
    folders[0].mkdir()
    (folders[0] / "bad.json").write_text(text)
    registry.record(H100, VERSIONS, {key(24): entry()})
    for _ in range(3):
        assert choose().rung == "exact"
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert message.startswith(f"{folders[0] / 'bad.json'} is ignored: ")
    assert why in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_raises_anything(tmp_path, data):
    """Bytes cut off, put in, changed; or any JSON value in place of any other."""
    path = tmp_path / "damaged.json"
    if data.draw(st.booleans(), label="bytes"):
        raw = bytearray(GOOD.encode())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(raw)))
            raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    else:
        content = json.loads(GOOD)
        at, fields = content, data.draw(st.integers(1, 4))
        for _ in range(fields):
            name = data.draw(st.sampled_from(sorted(at)))
            if not isinstance(at[name], dict) or not at[name] or _ == fields - 1:
                scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                at[name] = data.draw(st.recursive(scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
                break
            at = at[name]
        raw = json.dumps(content).encode()
    path.write_bytes(raw)
    # The state of the file is no part of what is tried: each is read as if it were new.
    found = registry.read.__wrapped__(path, 0, 0)
    if found is not None:
        device, _, entries = found
        for work in (WORK, WORK._replace(n_elements=0)):
            choice = lookup.climb(work, H100, {device.slug: (device, entries)})
            assert isinstance(choice.config, Config)
            assert str(choice)


def test_a_file_of_a_future_version_is_kept_beside_the_one_that_is_written(folders, caplog):
    path = folders[0] / f"{H100.slug}.json"
    folders[0].mkdir()
    path.write_text(BAD["future"][0])
    assert registry.record(H100, VERSIONS, {key(24): entry()}) == path
    assert choose().rung == "exact"
    assert path.with_name(f"{path.name}.ignored").read_text() == BAD["future"][0]
    assert "its schema is 2" in caplog.text


# A process for each rule, all of which start when everything is imported; exits with the worst status of them.
WRITERS = """
import os, sys
from pathlib import Path
from kernels import registry
from kernels.config import Config, Device
path, rule, rules = Path(sys.argv[1]), None, sys.argv[2:]
for name in rules:
    if not os.fork():
        rule = name
        break
else:
    sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in rules))
for bucket in range(25):
    key = f"{rule}/float32/float32/float32/nearest/aligned/long/{bucket}"
    registry.write(path, Device("gpu", "sm_90"), {}, {key: {"config": Config(512, 4), "median_us": float(bucket)}})
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "new" / "gpu.json"
    rules = ("adam", "lion", "sgd")
    with subprocess.Popen([sys.executable, "-c", WRITERS, str(path), *rules]) as writers:
        while writers.poll() is None:
            # A reader in between never sees half a file.
            assert not path.exists() or registry.checked(json.loads(path.read_text()))
            time.sleep(0.001)
    assert writers.returncode == 0
    _, _, entries = registry.checked(json.loads(path.read_text()))
    assert len(entries) == 25 * len(rules)
    assert sorted(p.name for p in path.parent.iterdir()) == [".gpu.json.lock", "gpu.json"]


def test_a_writer_that_dies_leaves_the_file_and_no_lock(tmp_path):
    path = tmp_path / "gpu.json"
    registry.write(path, H100, VERSIONS, {key(24): entry()})
    before = path.read_bytes()
    dies = WRITERS.replace("for bucket", "registry.os.replace = lambda *_: registry.os._exit(9)\nfor bucket")
    assert subprocess.run([sys.executable, "-c", dies, str(path), "adam"]).returncode == 9
    assert path.read_bytes() == before
    registry.write(path, H100, VERSIONS, {key(25): entry()})
    _, _, entries = registry.checked(json.loads(path.read_text()))
    assert set(entries) == {key(24), key(25)}


def test_without_permission_the_next_folder_is_written_to_and_it_is_said_once(folders, caplog):
    # A file where a folder should be stops root too.
    folders[0].parent.mkdir(parents=True, exist_ok=True)
    folders[0].write_text("")
    for bucket in (24, 25):
        assert registry.record(H100, VERSIONS, {key(bucket): entry()}) == folders[1] / f"{H100.slug}.json"
    assert choose().rung == "exact"
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith(f"{folders[0] / H100.slug}.json cannot be written: ")
    assert registry.record(H100, VERSIONS, {key(24): entry()}, into=folders[:1]) is None


def test_facts_of_a_device_that_is_not_there_make_a_name_for_a_file():
    assert Device("AMD Instinct MI300X/OAM (x)", "gfx942").slug == "amd-instinct-mi300x-oam-x"
    assert Device("...", "sm_90").slug == "unnamed"


@pytest.mark.parametrize("n_elements", [0, 1, 2**24 - 1, 2**24, 2**25 - 1])
def test_buckets_are_octaves(n_elements):
    bucket = WORK._replace(n_elements=n_elements).bucket
    assert 2**bucket <= max(1, n_elements) < 2 ** (bucket + 1)


@pytest.mark.gpu_too
def test_a_step_says_its_rung_once_at_debug_level(caplog):
    p = torch.zeros(8, device=device_of("triton"), requires_grad=True)
    p.grad = torch.ones_like(p)
    optim.launches.debug_once.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="optim"):
        for _ in range(2):
            optimizer = optim.Adam([p], backend="triton")
            for _ in range(2):
                optimizer.step()
    (message,) = [r.getMessage() for r in caplog.records if r.name == "optim"]
    assert message.startswith(f"adam on {p.device}: default: ")


def test_cpu_backends_look_nothing_up(monkeypatch):
    monkeypatch.setattr(lookup, "choose", None)
    monkeypatch.setattr(registry, "load", None)
    for backend in ("cpu", "eager"):
        p = torch.zeros(8, requires_grad=True)
        p.grad = torch.ones_like(p)
        optim.Adam([p], backend=backend).step()


def test_explain_names_rung_reason_configuration_and_what_was_measured(folders):
    first, second, third = lookup.explain(WORK, torch.device("cpu")).splitlines()
    assert first == f"{key(24)} on cpu"
    assert second == "default: cpu is no GPU (block_size 1024, num_warps 8, blocks_per_chunk 1, num_stages 1)"
    assert third == f"Measured so far: no GPU, in {', '.join(map(str, folders))}"
    registry.record(H100, VERSIONS, {key(22): {**entry(), "default_over_this": [1.05, 1.04, 1.062]}})
    lines = lookup.explain(WORK, H200).splitlines()
    assert lines[0] == f"{key(24)} on NVIDIA H200"
    assert lines[1].startswith("relative: nothing like it was measured on NVIDIA H200; NVIDIA H100 80GB HBM3 is the")
    assert lines[2] == (
        "812.5 us [810, 815]; 93% of copy bandwidth; the default takes 1.050 [1.040, 1.062] times as long; "
        "2 others could not be told from it; Triton 3.7.1"
    )
    assert lines[3].startswith("Measured so far: NVIDIA H100 80GB HBM3 (1 entry), in ")
