"""Which launch configuration a table gets, and why.

What was measured on a GPU lies in a file of its own (`registry`). The choice is made when a table is built, from what
the files say about the likes of it, on this rung or the next:

    exact     this device, with as many elements to a factor of two
    bucket    this device, with up to four times as many, or as few
    relative  another device of the same architecture, the one whose bandwidth per multiprocessor is nearest
    default   nothing of all this was measured
"""

import math

import torch

from kernels import registry
from kernels.config import Choice, Config, Device, Work, default, device_facts

MOST_OCTAVES = 2


def nearest(entries: dict, work: Work) -> tuple[int, dict] | None:
    """Of a device's entries the one of the same kind whose size is nearest; (octaves away, entry)."""
    found = []
    for key, entry in entries.items():
        kind, _, bucket = key.rpartition("/")
        if kind == work.kind and abs(int(bucket) - work.bucket) <= MOST_OCTAVES:
            found.append((abs(int(bucket) - work.bucket), int(bucket), entry))
    if not found:
        return None
    # Two as near as each other: the smaller size, which no order of entries can change.
    octaves, _, entry = min(found, key=lambda item: item[:2])
    return octaves, entry


def climb(work: Work, device: Device, files: dict[str, tuple[Device, dict]]) -> Choice:
    """Take the first rung of the ladder that holds.

    Args:
        files: for each slug the device and its entries, as `registry.load` returns them.
    """
    _, own = files.get(device.slug, (device, {}))
    if found := nearest(own, work):
        octaves, entry = found
        size = "this size" if octaves == 0 else f"{octaves} octave{'s' * (octaves > 1)} from this size"
        return Choice(entry["config"], "bucket" if octaves else "exact", f"measured on {device.name} at {size}", entry)
    relatives = []
    for slug, (other, entries) in sorted(files.items()):
        if slug != device.slug and other.arch == device.arch and (found := nearest(entries, work)):
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
    return Choice(default(device.warp_size), "default", why)


def default_of(device: torch.device) -> Config:
    """What the device gets where nothing is known; Triton's interpreter what an NVIDIA GPU gets."""
    return default(device_facts(device).warp_size) if device.type == "cuda" else default()


def choose(work: Work, device: torch.device) -> Choice:
    """The configuration for what a launch does on a device; Triton's interpreter gets the default."""
    if device.type != "cuda":
        return Choice(default_of(device), "default", f"{device.type} is no GPU")
    return climb(work, device_facts(device), registry.load())


def explain(work: Work, device: torch.device | Device | None = None) -> str:
    """Which rung of the ladder the configuration of a launch comes from, why, and what was measured.

    Args:
        work: for example `Work("adam", 2**24)`.
        device: a GPU, or the facts about one that is not there; by default the one that is.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, torch.device):
        choice, name = choose(work, device), device_facts(device).name if device.type == "cuda" else str(device)
    else:
        choice, name = climb(work, device, registry.load()), device.name
    lines = [f"{work.key} on {name}", str(choice)]
    if choice.entry:
        lines.append(registry.measured(choice.entry))
    known = [
        f"{found.name} ({len(entries)} entr{'y' if len(entries) == 1 else 'ies'})"
        for found, entries in registry.load().values()
    ]
    lines.append(f"Measured so far: {', '.join(known) or 'no GPU'}, in {', '.join(map(str, registry.folders()))}")
    return "\n".join(lines)
