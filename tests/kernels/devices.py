"""GPUs that need not be there, and what is looked up for them."""

from importlib.metadata import version

import torch

from kernels import lookup, registry
from kernels.config import Choice, Config, Device, Work

H100 = Device("NVIDIA H100 80GB HBM3", "sm_90", 132, 50 << 20, 80 << 30, 5120, 2619000)
H200 = Device("NVIDIA H200", "sm_90", 132, 50 << 20, 141 << 30, 6144, 3201000)
HALF = Device("NVIDIA H100 half", "sm_90", 66, 25 << 20, 40 << 30, 2560, 2619000)
A100 = Device("NVIDIA A100-SXM4-40GB", "sm_80", 108, 40 << 20, 40 << 30, 5120, 1215000)
WORK = Work("adam", 2**24 + 5)
WALK = Config(512, 4, blocks_per_chunk=4, num_stages=3, eviction="evict_first")
VERSIONS = {"triton": "3.7.1"}
# Triton 3.6's interpreter takes a loop's end out of an array in a way that NumPy 2.4 refuses.
TRITON, NUMPY = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
LOOPS = torch.cuda.is_available() or TRITON >= (3, 7) or NUMPY < (2, 4)


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


def choose(device: Device = H100, work: Work = WORK) -> Choice:
    return lookup.choose_from(work, device, registry.load())
