"""Devices on which runs are trained, and their memory."""

import math
import os
import re

import torch

from experiments.common import values
from experiments.common.errors import OptionError
from experiments.common.values import Kind, word


def memory() -> int:
    """Return the bytes of free memory; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 8 * 2**30


DEVICES = "auto, cpu, cuda or cuda:N"


def device_name(value: str | torch.device) -> str:
    """Return a device's name."""
    return str(value) if isinstance(value, torch.device) else word(DEVICES).take(value)


def resolve_device(device: str, engine: str = "local") -> str:
    """Return the name of the device to run on; "auto" is the GPU if there is one.

    Raises: OptionError if this machine lacks the device; with another engine than "local" its machines decide.
    """
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
    """Raise OptionError if the device is a GPU on which Triton cannot run kernels, for example without a C compiler."""
    if device.startswith("cuda"):
        from experiments.common import preflight  # imports Triton

        preflight.check_gpu(device)


def total_memory(device: str) -> float:
    """Return the bytes of memory that the device has, free or not; infinite where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def memory_budget(device: str) -> int:
    """Return the bytes that a chunk may take: half of the free memory, or 8 GiB for the GPUs of a cluster."""
    if not device.startswith("cuda"):
        return memory() // 2
    return torch.cuda.mem_get_info(device)[0] // 2 if torch.cuda.is_available() else 8 * 2**30
