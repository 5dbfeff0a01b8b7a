"""Files of measured launch configurations, as the commands read them: found, printed and compared."""

from pathlib import Path

from experiments.common.errors import OptionError
from kernels import registry
from kernels.config import Device


def files_of(name: str | None) -> list[tuple[Path, tuple[Device, dict, dict]]]:
    """Read registry files: one by its path, all of a GPU by its slug, or all. Raises: OptionError if none is there."""
    if name and name.endswith(".json"):
        paths = [Path(name)]
    else:
        folders = [folder for folder in registry.folders() if folder.is_dir()]
        paths = [path for folder in folders for path in sorted(folder.glob("*.json")) if name in (None, path.stem)]
    found = [(path, content) for path in paths if (content := registry.read_now(path))]
    if not found:
        places = name if name and name.endswith(".json") else f"{name or 'any device'} in {places_text()}"
        raise OptionError(f"there is no file of measured configurations that can be read: {places}")
    return found


def places_text() -> str:
    return ", ".join(map(str, registry.folders()))


def print_files(found: list[tuple[Path, tuple[Device, dict, dict]]]) -> int:
    from experiments.tune import report

    for path, (device, versions, entries) in found:
        installed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        print(f"# {device.name} ({device.arch})\n\n{path}: {len(entries)} entries; {installed}\n")
        print(report.entries_table(entries) if entries else "", end="\n\n")
    return 0


def differences(a: dict, b: dict) -> list[dict]:
    """Return a row for each case for which the entries of two files name different configurations."""
    return [
        {
            "case": key,
            "A": a[key]["config"].label if key in a else "-",
            "B": b[key]["config"].label if key in b else "-",
            "A us": a.get(key, {}).get("median_us", "-"),
            "B us": b.get(key, {}).get("median_us", "-"),
        }
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key]["config"] != b[key]["config"]
    ]
