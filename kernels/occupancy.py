"""Occupancy: how many warps of a kernel a multiprocessor can hold at once, from the limits of its architecture.

NVIDIA: `arch_traits` of CCCL (libcudacxx/include/cuda/__device/arch_traits.h) and the arithmetic of cuda_occupancy.h of
the CUDA toolkit: a multiprocessor has four parts, each with a quarter of the registers, dealt to warps 256 at a time.
AMD: LLVM's AMDGPUBaseInfo.cpp: four SIMDs with 512 vector registers a lane, dealt 8 at a time, at most 8 waves each; a
workgroup of several waves takes one of 16 barriers. Scalar registers are not counted. The LDS is that of AMD's table of
GPU specifications.
"""

from typing import NamedTuple

PARTS = 4
SOURCES = {
    "sm": "CCCL, libcudacxx/include/cuda/__device/arch_traits.h; cuda_occupancy.h of the CUDA toolkit",
    "gfx": "LLVM, llvm/lib/Target/AMDGPU/Utils/AMDGPUBaseInfo.cpp; "
    "AMD, rocm.docs.amd.com/en/latest/reference/gpu-specs.html",
}


class Limits(NamedTuple):
    """The limits of a multiprocessor (AMD: compute unit).

    Attributes:
        warps, blocks: the most that are resident at once.
        shared_kib: shared memory, of which every block takes `reserved_kib` more than it asks for.
        registers: 32-bit registers of all lanes together.
        granule: the registers of all lanes of a warp are rounded up to its multiples.
    """

    warps: int
    blocks: int
    shared_kib: int
    reserved_kib: int = 1
    registers: int = 64 * 1024
    granule: int = 256
    warp_size: int = 32


CDNA = Limits(32, 16, 64, reserved_kib=0, registers=PARTS * 512 * 64, granule=8 * 64, warp_size=64)
LIMITS = {
    "sm_80": Limits(64, 32, 164),
    "sm_86": Limits(48, 16, 100),
    "sm_87": Limits(48, 16, 164),
    "sm_89": Limits(48, 24, 100),
    "sm_90": Limits(64, 32, 228),
    "sm_100": Limits(64, 32, 228),
    "sm_103": Limits(64, 32, 228),
    "sm_110": Limits(48, 24, 228),
    "sm_120": Limits(48, 24, 100),
    "sm_121": Limits(48, 24, 100),
    "gfx90a": CDNA,
    "gfx942": CDNA,
    "gfx950": CDNA._replace(shared_kib=160),
}


class Occupancy(NamedTuple):
    """Resident blocks and warps, the share of the most possible warps, and the resource that limits them."""

    blocks: int
    warps: int
    share: float
    limited_by: str


def occupancy(limits: Limits, registers: int, shared: int, num_warps: int) -> Occupancy:
    """Return a kernel's occupancy, given its registers per thread, and bytes of shared memory and warps per block."""
    of_warp = -(-max(1, registers) * limits.warp_size // limits.granule) * limits.granule
    of_block = -(-shared // 128) * 128 + limits.reserved_kib * 1024
    # A workgroup of a single wave needs no barrier.
    blocks = limits.warps if limits.warp_size == 64 and num_warps == 1 else limits.blocks
    most = {
        "warps": limits.warps // num_warps,
        "registers": limits.registers // PARTS // of_warp * PARTS // num_warps,
        "blocks": blocks,
        "shared memory": limits.shared_kib * 1024 // of_block if of_block else limits.warps,
    }
    # The first of equal limits, which is warps if all are resident.
    limited_by = min(most, key=lambda name: most[name])
    resident = most[limited_by]
    return Occupancy(resident, resident * num_warps, resident * num_warps / limits.warps, limited_by)
