"""Devices to run on, and their memory."""

import math
import os
import re

import torch

from experiments.common import values
from experiments.common.errors import OptionError
from experiments.common.values import Kind, word


def memory() -> int:
    """Bytes of memory that are free; 8 GiB where nothing says it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30


DEVICES = "auto, cpu, cuda or cuda:N"


def device_name(value: str | torch.device) -> str:
    """A device by its name."""
    return str(value) if isinstance(value, torch.device) else word(DEVICES).take(value)


def resolve_device(device: str, engine: str = "local") -> str:
    """The device to run on. Raises: OptionError if it is not there, which only a cluster can say of its own."""
    device = values.taken("--device", device, Kind(DEVICES, device_name))
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu(:0)?|cuda(:\d{1,3})?", device, re.ASCII):
        raise OptionError(f"--device accepts {DEVICES}, not {values.shown(device)}")
    if device.startswith("cpu"):
        return "cpu"
    wanted = torch.device(device)
    if engine == "local" and wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def check_kernels(device: str) -> None:
    """Raise OptionError, one sentence, if Triton cannot run kernels on a GPU, as where there is no C compiler."""
    if device.startswith("cuda"):
        from experiments.common import preflight  # which imports Triton

        preflight.check(device)


def total_memory(device: str) -> float:
    """Bytes of memory that the device has, whether they are free or not; infinite where nothing says it."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def memory_budget(device: str) -> int:
    """Bytes that a chunk may take: half of what is free; of a cluster's GPUs, which nobody asks here, 8 GiB."""
    if not device.startswith("cuda"):
        return memory() // 2
    return torch.cuda.mem_get_info(device)[0] // 2 if torch.cuda.is_available() else 8 * 2**30
