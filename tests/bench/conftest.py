"""The GPU that tests of benchmarks pretend to have."""

import pytest

from tests import pretended


@pytest.fixture
def h100(monkeypatch):
    """A GPU that need not be there, with 50 MiB of L2."""
    pretended.put_in(monkeypatch, pretended.H100)
