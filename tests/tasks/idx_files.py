"""Folders with a few digits in MNIST's format."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np

from experiments.tasks import data

TRAIN_IMAGES, TRAIN_LABELS, EVAL_IMAGES, EVAL_LABELS = data.FILES
REAL_MNIST = os.environ.get("MNIST_DIR")


def idx(array: np.ndarray) -> bytes:
    extents = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + extents + array.astype(np.uint8).tobytes()


def arrays(n_train: int = 3, n_eval: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: rng.integers(256, size=(n_train, 28, 28)),
        TRAIN_LABELS: np.arange(n_train) % 10,
        EVAL_IMAGES: rng.integers(256, size=(n_eval, 28, 28)),
        EVAL_LABELS: 9 - np.arange(n_eval) % 10,
    }


def emnist(split: str, labels: tuple[int, ...] = (1, 26, 9)) -> dict[str, np.ndarray]:
    """Return the files of a split of EMNIST, with these labels for training and the first two for evaluation."""
    contents = arrays(len(labels)) | {TRAIN_LABELS: np.array(labels), EVAL_LABELS: np.array(labels[:2])}
    return {f"emnist-{split}-{name.replace('t10k', 'test')}": array for name, array in contents.items()}


def write(folder: Path, contents: dict[str, np.ndarray], suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in contents.items():
        content = idx(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix == ".gz" else content)
    return folder


def cache_folder() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"], "adam-sandbox", "mnist")


def accept_as_original(monkeypatch, folder: Path) -> None:
    """Accept the hashes of the .gz files in the folder instead of MNIST's."""
    monkeypatch.setattr(
        data, "FILES", {name: hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() for name in data.FILES}
    )
