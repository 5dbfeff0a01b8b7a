"""Choose the launch configuration of a table.

Each device's measurements lie in a file of its own (see `registry`). The choice is made when a table is built, from
entries for the same kind of work, at the first fallback level that has one:

    exact     this device, the same number of elements to a factor of two
    bucket    this device, up to four times as many elements, or down to a quarter
    relative  another GPU of the same architecture, the one with the nearest bandwidth per multiprocessor
    default   no such entry: the default configuration
"""

import math

import torch

from kernels import registry
from kernels.config import Choice, Config, Device, Work, default, default_for, device_facts

MOST_OCTAVES = 2


def nearest(entries: dict, work: Work) -> tuple[int, dict] | None:
    """Return (octaves away, entry) of the entry of the same kind with the nearest size; None beyond `MOST_OCTAVES`."""
    found = []
    for key, entry in entries.items():
        kind, _, bucket = key.rpartition("/")
        if kind == work.kind and abs(int(bucket) - work.bucket) <= MOST_OCTAVES:
            found.append((abs(int(bucket) - work.bucket), int(bucket), entry))
    if not found:
        return None
    # Of two equally near sizes take the smaller, whatever the order of entries.
    octaves, _, entry = min(found, key=lambda item: item[:2])
    return octaves, entry


def choose_from(work: Work, device: Device, files: dict[str, tuple[Device, dict]]) -> Choice:
    """Choose the configuration of the first fallback level that has an entry.

    Args:
        files: device and entries by slug, as `registry.load` returns them.
    """
    _, own = files.get(device.slug, (device, {}))
    if found := nearest(own, work):
        octaves, entry = found
        size = "this size" if octaves == 0 else f"{octaves} octave{'s' * (octaves > 1)} from this size"
        return Choice(entry["config"], "bucket" if octaves else "exact", f"measured on {device.name} at {size}", entry)
    relatives = []
    for slug, (other, entries) in sorted(files.items()):
        if "cpu" != device.arch == other.arch and slug != device.slug and (found := nearest(entries, work)):
            bandwidths = device.bandwidth_per_multiprocessor, other.bandwidth_per_multiprocessor
            apart = abs(math.log(bandwidths[0] / bandwidths[1])) if all(bandwidths) else math.inf
            relatives.append((apart, slug, other, found[1]))
    if relatives:
        _, _, other, entry = min(relatives, key=lambda item: item[:2])
        return Choice(
            entry["config"],
            "relative",
            f"nothing like it was measured on {device.name}; {other.name} is the {device.arch} whose bandwidth per "
            "multiprocessor is nearest",
            entry,
        )
    why = f"nothing like {work.key} was measured on {device.name} or another {device.arch}"
    return Choice(default_for(device), "default", why)


def default_of(device: torch.device) -> Config:
    """Return the device's default configuration; Triton's interpreter gets that of an NVIDIA GPU."""
    return default(device_facts(device).warp_size) if device.type == "cuda" else default()


def choose(work: Work, device: torch.device) -> Choice:
    """Choose the configuration for a launch on a GPU or, by `kernels.cpu`, on the CPU."""
    return choose_from(work, device_facts(device), registry.load())


def explain(work: Work, device: torch.device | Device | None = None) -> str:
    """Explain which fallback level the configuration of a launch comes from, why, and what was measured.

    Args:
        work: for example `Work("adam", 2**24)`.
        device: a GPU or the CPU, or facts about one that is not present; by default the current GPU, if there is one.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, torch.device):
        device = device_facts(device)
    choice = choose_from(work, device, registry.load())
    lines = [f"{work.key} on {device.name}", str(choice)]
    if choice.entry:
        lines.append(registry.measured(choice.entry))
    known = [
        f"{found.name} ({len(entries)} entr{'y' if len(entries) == 1 else 'ies'})"
        for found, entries in registry.load().values()
    ]
    lines.append(f"Measured so far: {', '.join(known) or 'nothing'}, in {', '.join(map(str, registry.folders()))}")
    return "\n".join(lines)
