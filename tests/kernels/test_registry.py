"""The files of tuned configurations: found, refused by name, written by several processes."""

import json
import logging
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import lookup, registry
from kernels.config import Config, Device
from tests.kernels.devices import H100, VERSIONS, WALK, WORK, choose, entry, key

pytestmark = pytest.mark.usefixtures("folders")


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
        assert choose().level == "exact"
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
            choice = lookup.choose_from(work, H100, {device.slug: (device, entries)})
            assert isinstance(choice.config, Config)
            assert str(choice)


def test_a_file_of_a_future_version_is_kept_beside_the_one_that_is_written(folders, caplog):
    path = folders[0] / f"{H100.slug}.json"
    folders[0].mkdir()
    path.write_text(BAD["future"][0])
    assert registry.record(H100, VERSIONS, {key(24): entry()}) == path
    assert choose().level == "exact"
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
    assert choose().level == "exact"
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith(f"{folders[0] / H100.slug}.json cannot be written: ")
    assert registry.record(H100, VERSIONS, {key(24): entry()}, into=folders[:1]) is None


def test_facts_of_a_device_that_is_not_there_make_a_name_for_a_file():
    assert Device("AMD Instinct MI300X/OAM (x)", "gfx942").slug == "amd-instinct-mi300x-oam-x"
    assert Device("...", "sm_90").slug == "unnamed"
