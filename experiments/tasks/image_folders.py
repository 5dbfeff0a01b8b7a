"""Finds the files of MNIST, and of images like it, by the path that was given.

The path may name

- a folder with train-images-idx3-ubyte and the three files that belong to it, each raw or gzipped;
- a folder that torchvision downloads to, with MNIST/raw, FashionMNIST/raw, KMNIST/raw or EMNIST/raw, or one of these;
- one split of EMNIST, by what its files' names begin with: EMNIST/raw/emnist-letters;
- a .npz file with x_train, y_train, x_test and y_test, or a folder with one such file.
"""

import os

from experiments.common.errors import DataError

PLAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SPLITS = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
"""The splits of EMNIST, with their numbers of classes."""
STARTS = {"": PLAIN} | {
    f"emnist-{split}": tuple(f"emnist-{split}-{name.replace('t10k', 'test')}" for name in PLAIN) for split in SPLITS
}
"""The names of four IDX files, by what they begin with: those of MNIST, and those of each split of EMNIST."""
OTHERS = ("FashionMNIST", "KMNIST", "EMNIST")


def find(path: str, option: str) -> tuple[str, str]:
    """Return the folder with the files that a path names and what their names begin with, or a .npz file and "".

    Raises: DataError if there are none, or if several data sets could be meant.
    """
    if not os.path.isdir(path):
        return find_split(path, option)
    places = [os.path.join(path, *more) for more in ((), ("raw",), ("MNIST", "raw"))]
    folder = next((place for place in places if starts_in(place)), None)
    if folder is None:
        others = [name for name in OTHERS if starts_in(os.path.join(path, name, "raw"))]
        if not others:
            return npz_in(path, option), ""
        if len(others) > 1:
            raise DataError(f"{option}: {path!r} holds {' and '.join(others)}, so one of these folders has to be named")
        folder = os.path.join(path, others[0], "raw")
    starts = starts_in(folder)
    if starts[0] and len(starts) > 1:
        example = os.path.join(folder, starts[0])
        raise DataError(f"{option}: {folder!r} holds {', '.join(starts)}, so one has to be named, such as {example!r}")
    return folder, starts[0]


def find_split(path: str, option: str) -> tuple[str, str]:
    """Return the folder of a split of EMNIST and what the names of its files begin with. Raises: DataError."""
    parent, last = os.path.split(path.rstrip(os.sep))
    parent = parent or os.curdir
    if not last.startswith("emnist-") or not os.path.isdir(parent):
        raise DataError(
            f"{option} takes a folder with the IDX files {', '.join(PLAIN)}, or a .npz file, and {path!r} is not a "
            "folder or such a file"
        )
    places = (os.path.join(parent, *more) for more in ((), ("raw",), ("EMNIST", "raw")))
    splits = [(place, start) for place in places for start in starts_in(place) if start]
    for place, start in splits:
        if start == last:
            return place, start
    has = ", ".join(start for _, start in splits) or "no split of EMNIST"
    raise DataError(f"{option}: {parent!r} has {has}, and {last} was asked for")


def starts_in(folder: str) -> list[str]:
    """Return the keys of `STARTS` of which a folder holds at least one file, in their order."""
    return [start for start, names in STARTS.items() if any(file_of(folder, name) for name in names)]


def file_of(folder: str, name: str) -> str | None:
    """Return the path of an IDX file, gzipped or raw, also as .idx, if the folder holds it."""
    names = (f"{spelling}{suffix}" for suffix in (".gz", "") for spelling in (name, name.replace("-idx", ".idx")))
    return next((path for name in names if os.path.isfile(path := os.path.join(folder, name))), None)


def is_npz(path: str) -> bool:
    return path.lower().endswith(".npz") and os.path.isfile(path)


def npz_in(folder: str, option: str) -> str:
    """Return the path of the one .npz file of a folder. Raises: DataError if it holds none, or several."""
    try:
        paths = sorted(path for name in os.listdir(folder) if is_npz(path := os.path.join(folder, name)))
    except OSError as error:
        raise DataError(f"{option}: {folder!r} cannot be read ({error}), and it has to hold {PLAIN[0]}") from error
    if len(paths) > 1:
        raise DataError(f"{option}: {folder!r} holds {len(paths)} .npz files, so one has to be named, as {paths[0]!r}")
    if not paths:
        raise DataError(
            f"{option}: {folder!r} has no {PLAIN[0]}, and it has to hold {', '.join(PLAIN)}, each raw or .gz, or those "
            "in MNIST/raw, as torchvision does, or one .npz file"
        )
    return paths[0]
