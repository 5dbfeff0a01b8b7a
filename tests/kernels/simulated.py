"""What tests of simulated kernels share."""

import pytest

from tests.kernels.compiler import printed

TARGETS = ("sm_90", "gfx942")
WARP_SIZE = {"sm_90": 32, "gfx942": 64}
ONE_QUICK = [TARGETS[0], pytest.param(TARGETS[1], marks=pytest.mark.slow)]


@pytest.fixture(autouse=True, scope="module")
def parses():
    """Skip all where llvmlite's LLVM cannot read this Triton's IR: that of another Triton, or llvmlite, perhaps can."""
    pytest.importorskip("llvmlite", reason="the simulator reads LLVM IR by llvmlite")
    script = (
        "import llvmlite.binding as llvm; from kernels import codegen, rules\n"
        "for target in ('sm_90', 'gfx942'):\n"
        "    ir = codegen.compiled(rules.RULES['sgd'], target).asm['llir']\n"
        "    try: llvm.parse_assembly(ir)\n"
        "    except RuntimeError as error: print(str(error).splitlines()[0]); break"
    )
    if reason := printed(script):
        pytest.skip(f"llvmlite cannot parse this Triton's IR: {reason}")
