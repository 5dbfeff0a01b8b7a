"""Where tuned configurations are kept while a test runs."""

import pytest

from kernels import registry


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three empty folders: of the environment variable, of the user, of the package."""
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "PACKAGED", tmp_path / "packaged")
    registry.warn_once.cache_clear()
    return registry.folders()
