"""How many warps of a kernel fit on a multiprocessor."""

import pytest

from kernels.occupancy import LIMITS, occupancy


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "warps", "limited_by"),
    [
        ("sm_90", 32, 0, 8, 64, "warps"),
        # 62 registers are dealt as 64: a quarter of 65536 holds 8 warps of them.
        ("sm_90", 62, 0, 8, 32, "registers"),
        ("sm_90", 65, 0, 4, 28, "registers"),
        # 7 warps a part would be 28, of which blocks of 8 fill 24.
        ("sm_90", 65, 0, 8, 24, "registers"),
        ("sm_90", 16, 64 * 1024, 8, 24, "shared memory"),
        ("sm_90", 16, 300 * 1024, 8, 0, "shared memory"),
        ("sm_86", 16, 0, 1, 16, "blocks"),
        ("sm_86", 16, 0, 4, 48, "warps"),
        ("sm_120", 16, 0, 1, 24, "blocks"),
        ("sm_110", 16, 0, 1, 24, "blocks"),
        ("sm_110", 16, 64 * 1024, 8, 24, "shared memory"),
        # 512 registers a lane: 4 waves of 128 in each of four SIMDs.
        ("gfx942", 128, 0, 4, 16, "registers"),
        ("gfx942", 64, 0, 4, 32, "warps"),
        # A wave of its own takes no barrier; workgroups of two do, and 16 of those are all the waves there are.
        ("gfx942", 64, 0, 1, 32, "warps"),
        ("gfx942", 64, 0, 2, 32, "warps"),
        ("gfx942", 64, 32 * 1024, 4, 8, "shared memory"),
        ("gfx950", 64, 32 * 1024, 4, 20, "shared memory"),
    ],
)
def test_occupancy_is_what_a_hand_counts(target, registers, shared, num_warps, warps, limited_by):
    found = occupancy(LIMITS[target], registers, shared, num_warps)
    assert (found.warps, found.limited_by) == (warps, limited_by)
    assert found.share == warps / LIMITS[target].warps
    assert found.blocks * num_warps == warps
