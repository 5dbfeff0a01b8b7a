"""Where data is looked for while a test runs."""

import pytest

from experiments.tasks import data


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """Unset MNIST_DIR, use an empty cache, and cut the network."""

    def unreachable(*args, **kwargs):
        raise OSError("unreachable")

    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_download", unreachable)
