"""The atlas: occupancy by hand, what is dropped and why, and facts about some configurations."""

import json

import pytest

from experiments.tune import static_analysis
from kernels.codegen import MachineCode
from kernels.config import Config
from kernels.occupancy import LIMITS
from tests.kernels.compiler import printed


def code(config: Config, rule: str = "adam", dtype: str = "float32", **facts) -> MachineCode:
    values = {"shared": 0, "registers": 40, "spills": 0, "instructions": 500, "digest": "a"}
    values |= {"loads": {32: 9, 128: 4}, "stores": {32: 6, 128: 3}}
    return MachineCode("sm_90", rule, dtype, config, **{**values, **facts})


def test_candidates_are_dropped_for_a_reason_and_the_same_program_is_kept_once():
    config = Config(1024, 8)
    twin, other = Config(1024, 8, eviction="evict_first"), Config(512, 4)
    cases = [
        (code(config), "kept"),
        (code(twin), "same code as 1024x8"),
        # Another number of warps runs the same text on other elements.
        (code(other), "kept"),
        (code(config, digest="b", spills=8), "spills"),
        (code(config, digest="c", shared=240 * 1024), "too much shared memory"),
        (code(config, digest="d", loads={64: 8, 128: 3}), "narrow access"),
        (code(config, digest="e", stores={64: 6}), "narrow access"),
        # Eight elements a thread are two accesses a tensor, or one of 256 bits.
        (code(Config(2048, 8), digest="f"), "narrow access"),
        (code(Config(2048, 8), digest="g", loads={128: 8}, stores={128: 6}), "kept"),
        (code(Config(2048, 8), digest="h", loads={256: 4}, stores={256: 3}), "kept"),
        # bfloat16 fills 64 bits with four elements, its states 128.
        (code(config, dtype="bfloat16", digest="i", loads={64: 2, 128: 2}, stores={64: 1, 128: 2}), "kept"),
        (code(config, "sgd", "bfloat16", digest="j", loads={64: 2}, stores={64: 1}), "kept"),
        (code(config, "sgd", "bfloat16", digest="l", loads={64: 2}, stores={32: 2}), "narrow access"),
        (code(Config(512, 8), "sgd", "bfloat16", digest="m", loads={64: 2, 128: 9}, stores={64: 1}), "narrow access"),
        (code(Config(2048, 8), "sgd", "bfloat16", digest="k", loads={128: 2}, stores={128: 1}), "kept"),
    ]
    codes, expected = zip(*cases, strict=True)
    rows = static_analysis.judge(list(codes), LIMITS["sm_90"])
    assert [row["verdict"] for row in rows] == list(expected)
    assert sum(static_analysis.verdicts(rows).values()) == len(rows)
    assert rows[0]["occupancy"] == 0.75
    assert rows[0]["loads"] == "4x128 9x32"
    assert "1 with the code of another" in static_analysis.markdown(rows, "adam", "sm_90", "float32", PROVENANCE)
    drawn = static_analysis.candidates_figure(rows, "adam", "sm_90", "float32")
    assert [ax.get_xlabel() for ax in drawn.axes] == [
        "registers a thread",
        "occupancy, % of 64 warps a multiprocessor",
    ]


PROVENANCE = {
    "command": "python -m experiments.autotune",
    "device": {"name": "CPU"},
    "git": {"commit": None, "dirty": None},
    "versions": {},
    "started": "2026-01-01T00:00:00",
}

GOLDEN = """
import json
import sys
from dataclasses import asdict
from kernels import codegen, rules
from kernels.config import Config
target = sys.argv[1]
warp = codegen.parse_target(target).warp_size // 32
for values in ((512, 4), (1024, 8, 4), (1024, 8, 4, 3), (2048, 8, 1, 1, "evict_first")):
    config = Config(values[0], values[1] // warp, *values[2:])
    print(json.dumps(asdict(codegen.compile_update(rules.adam, target, "float32", config))))
"""
CEILING = 128
"""Registers with which a multiprocessor still holds 16 warps. Of Triton 3.6 and 3.7 the larger is at most 114."""
SLOW_TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100")]


@pytest.mark.parametrize("target", ["sm_90", "gfx942", *SLOW_TARGETS])
def test_walks_and_larger_blocks_keep_128_bits_without_spills(target):
    facts = [json.loads(line) for line in printed(GOLDEN, target).splitlines()]
    assert len(facts) == 4
    assert len({fact["digest"] for fact in facts}) == 4
    for fact in facts:
        config = fact["config"]
        at_least = config["block_size"] // 1024 or 1
        wide = {
            kind: sum(int(bits) // 128 * n for bits, n in fact[kind].items() if int(bits) >= 128)
            for kind in ("loads", "stores")
        }
        assert wide["loads"] >= 4 * at_least, fact
        assert wide["stores"] >= 3 * at_least, fact
        assert fact["spills"] == 0, fact
        assert fact["registers"] <= CEILING, fact
        if config["num_stages"] > 1:
            # Blocks that are on their way need room, or loads of their own.
            assert wide["loads"] >= 8 * at_least, fact
