"""Reads labelled images, 28 x 28: MNIST and data sets of its shape, as IDX files or in a .npz file."""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.errors import DataError, first_line
from experiments.common.run_info import readable
from experiments.tasks.image_folders import SPLITS, STARTS, file_of, find, is_npz

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CLASSES = 1000
UNREADABLE = (OSError, EOFError, zlib.error)
# What `git hash-object` prints for the four IDX files, unpacked. MNIST's were computed; the others are from public
# repositories with what torchvision unpacked, and the labels and KMNIST's test images fit torchvision's MD5 sums.
KNOWN = {
    "MNIST": (
        "bbce27659e0fc2b7ed2a64c127849380a477099b",
        "d6b4c5db3b52063d543fb397aede09aba0dc5234",
        "1170b2cae98de7a524b163fcc379ac8f00925b12",
        "d1c3a970612bbd2df47a3c0697f82bd394abc450",
    ),
    "Fashion-MNIST": (
        "ff2f5a96367a3c1656f09c93649f07143ff8b11e",
        "30424ca2ea876655f5bba14f9f07132769687975",
        "37bac79bc6f002d965f363e0b20514904504a4d9",
        "2195a4d0957e013db98d03e51697e2315816cce2",
    ),
    "KMNIST": (
        "3cf037df1ccd08cf71c7e9465ca6bc729e79a251",
        "180cd088d65c3b75d97d046ad75476d1176666e0",
        "1adcabe5a6e822ca4ae03c51ca387e9ca736ad11",
        "6e9269c40e2642f2ac5bda1536e4a56c582e5be1",
    ),
}


class Images(NamedTuple):
    """Labelled images, upright, for training and evaluation."""

    name: str  # as `read` says
    source: str  # the folder or file
    x_train: np.ndarray  # [n, 28, 28]: uint8, or float32 in [0, 1]
    y_train: np.ndarray  # int64 [n], from 0
    x_eval: np.ndarray  # as x_train
    y_eval: np.ndarray  # as y_train


def read(given: str | os.PathLike[str], option: str) -> Images:
    """Read the images that a path names; see `image_folders`.

    The name is MNIST, Fashion-MNIST or KMNIST if the values are theirs, "EMNIST letters" by the names of the files, or
    "MNIST-format data from NAME".

    Args:
        option: how the path was given, for messages.
    Raises: DataError.
    """
    path = os.path.expanduser(given)
    if is_npz(path):
        return from_npz(path, option)
    folder, start = find(path, option)
    return from_npz(folder, option) if is_npz(folder) else from_idx(folder, start, option)


def mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of pixels scaled to [0, 1]; for constant images 1 instead of 0.

    images: [n, ...], uint8 or float32 in [0, 1].
    """
    if images.min() == images.max():
        return float(images.flat[0]) / (255 if images.dtype == np.uint8 else 1), 1.0
    if images.dtype != np.uint8:
        return float(images.mean(dtype=np.float64)), float(images.std(dtype=np.float64))
    # Counts are exact, and a part of the images at a time needs little memory.
    parts = (images[i : i + 1024].reshape(-1) for i in range(0, len(images), 1024))
    counts = sum((np.bincount(part, minlength=256) for part in parts), np.zeros(256, np.int64))
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    return float(mean), math.sqrt(np.average(np.square(values - mean), weights=counts))


def from_idx(folder: str, start: str, option: str) -> Images:
    """Read four IDX files of a folder, whose names are `STARTS[start]`. Raises: DataError."""
    names = STARTS[start]
    arrays = [read_idx(folder, name, names, option) for name in names]
    # The letters of EMNIST are counted from 1, and its images are stored column by column.
    first = int(start == "emnist-letters")
    n_classes = SPLITS[start.removeprefix("emnist-")] if start else MAX_CLASSES
    check(arrays, names, f"{option}: in {folder!r}", first, n_classes)
    if start:
        arrays[::2] = (images.transpose(0, 2, 1) for images in arrays[::2])
        name = start.replace("emnist-", "EMNIST ")
    else:
        resolved = Path(folder).resolve()
        name = named(arrays, (resolved.parent.name if resolved.name == "raw" else resolved.name) or folder)
    arrays[1::2] = (labels.astype(np.int64) - first for labels in arrays[1::2])
    return Images(name, readable(os.path.join(folder, start) if start else folder), *arrays)


def read_idx(folder: str, name: str, names: tuple[str, ...], option: str) -> np.ndarray:
    """Read the uint8 array [n, height, width] or [n] of an IDX file, raw or gzipped, whatever its name says."""
    rank = 3 if "images" in name else 1
    if (path := file_of(folder, name)) is None:
        raise DataError(f"{option}: {folder!r} has no {name}, and it has to hold {', '.join(names)}, each raw or .gz")
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except UNREADABLE as error:
        raise DataError(f"{option}: {path!r} cannot be read ({error}), and a whole IDX file is needed") from error
    # IDX: two zero bytes, the data type (8: uint8), the rank, each extent as a big-endian uint32, the values.
    start = 4 + 4 * rank
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) < start:
        raise DataError(
            f"{option}: {path!r} starts with {content[:4].hex() or 'nothing'}, and an IDX file of uint8 and "
            f"rank {rank} starts with 000008{rank:02x} and {rank} extents"
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    size = start + math.prod(shape)
    if not len(content) == size > start:
        raise DataError(
            f"{option}: {path!r} has {len(content)} bytes and declares the shape {shape}, which needs exactly {size} "
            "and must not be empty"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def from_npz(path: str, option: str) -> Images:
    """Read a .npz file: x_train, x_test [n, 28, 28] or [n, 784], y_train, y_test [n] or [n, 1]. Raises: DataError."""
    where = f"{option}: in {path!r}"
    arrays = [read_array(path, name, option) for name in ARRAYS]
    if (arrays[0].dtype.kind == "f") != (arrays[2].dtype.kind == "f"):
        raise DataError(f"{where}, x_train is {arrays[0].dtype} and x_test {arrays[2].dtype}, and both need one scale")
    arrays[::2] = (as_pixels(x, f"{where}, {name}") for x, name in zip(arrays[::2], ARRAYS[::2], strict=True))
    arrays[1::2] = (as_labels(y, f"{where}, {name}") for y, name in zip(arrays[1::2], ARRAYS[1::2], strict=True))
    check(arrays, ARRAYS, where)
    arrays[1::2] = (y.astype(np.int64) for y in arrays[1::2])
    return Images(named(arrays, os.path.basename(path)), readable(path), *arrays)


def read_array(path: str, name: str, option: str) -> np.ndarray:
    try:
        # numpy leaves a damaged file open that it opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if name in archive.files:
                return archive[name]
            has = ", ".join(archive.files) or "nothing"
    # A damaged zip archive or header raises almost anything.
    except Exception as error:
        raise DataError(
            f"{option}: {path!r} cannot be read ({first_line(error)}), and a whole .npz is needed"
        ) from error
    raise DataError(f"{option}: {path!r} has no {name}, and it has to hold {', '.join(ARRAYS)}: it holds {has}")


def as_pixels(x: np.ndarray, where: str) -> np.ndarray:
    """Return images as uint8, if they are integers or multiples of 1/255, or else as float32. Raises: DataError."""
    if x.ndim == 2 and x.shape[1] == 28 * 28:
        x = x.reshape(len(x), 28, 28)
    most = {"i": 255, "u": 255, "f": 1}.get(x.dtype.kind)
    # NaN fails any comparison.
    if most is None or (x.size and not (x.min() >= 0 and x.max() <= most)):
        raise DataError(f"{where} holds {x.dtype} and has to hold pixels: integers from 0 to 255 or floats from 0 to 1")
    if most == 255:
        return x.astype(np.uint8)
    x = x.astype(np.float32)
    whole = np.rint(x * 255).astype(np.uint8)
    return whole if np.array_equal(np.divide(whole, np.float32(255)), x) else x


def as_labels(y: np.ndarray, where: str) -> np.ndarray:
    """Return labels [n] or [n, 1] as [n]. Raises: DataError if they are no whole numbers."""
    if y.ndim not in (1, 2) or y[:1].size != len(y[:1]):
        raise DataError(f"{where} has the shape {list(y.shape)}, and labels have the shape [n] or [n, 1]")
    if y.dtype.kind not in "iuf" or not np.array_equal(y, np.floor(y)):
        raise DataError(f"{where} holds {y.dtype} and has to hold labels: whole numbers from 0 to {MAX_CLASSES - 1}")
    return y.reshape(-1)


def check(arrays: list[np.ndarray], names: tuple[str, ...], where: str, first=0, n_classes=MAX_CLASSES) -> None:
    """Raise DataError unless all images are 28 x 28, each with one of n_classes labels, the least of which is first."""
    for i in 0, 2:
        images, labels = arrays[i : i + 2]
        if images.shape[1:] != (28, 28) or not len(images):
            size = "x".join(map(str, images.shape))
            raise DataError(f"{where}, {names[i]} holds {size} pixels, and only images of 28x28 are accepted")
        if len(images) != len(labels):
            raise DataError(
                f"{where}, {names[i + 1]} holds {len(labels)} labels, and each of {len(images)} images needs one"
            )
        last = first + n_classes - 1
        if (wrong := labels[(labels < first) | (labels > last)]).size:
            raise DataError(
                f"{where}, {names[i + 1]} holds a label {wrong[0]}, and only {first} to {last} are accepted"
            )


def named(arrays: list[np.ndarray], origin: str) -> str:
    """Return the name of the data set whose values these are, or where they are from."""
    if arrays[0].dtype == arrays[2].dtype == np.uint8 and max(y.max() for y in arrays[1::2]) < 256:
        ids = tuple(map(git_id, arrays))
        if ids in KNOWN.values():
            return next(name for name in KNOWN if KNOWN[name] == ids)
    return readable(f"MNIST-format data from {origin}")


def git_id(array: np.ndarray) -> str:
    """Return what `git hash-object` prints for values 0 to 255 as an IDX file."""
    extents = b"".join(n.to_bytes(4, "big") for n in array.shape)
    header = bytes((0, 0, 8, array.ndim)) + extents
    sha1 = hashlib.sha1(b"blob %d\0" % (len(header) + array.size) + header, usedforsecurity=False)
    sha1.update(np.ascontiguousarray(array, np.uint8).data)
    return sha1.hexdigest()
