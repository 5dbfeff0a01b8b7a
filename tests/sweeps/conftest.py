"""What keeps the tests of sweeps short."""

import pytest

from experiments.reports import writer
from tests.sweeps.small import write_report


@pytest.fixture
def no_figures(monkeypatch):
    """Draw no figures, which take seconds."""
    monkeypatch.setattr(writer, "write", write_report)
