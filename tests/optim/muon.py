"""What the tests of Muon share."""

import optim


def make(params, **options) -> optim.Muon:
    """Return Muon with steps that can be seen, on the backend that needs no compiler."""
    return optim.Muon(params, **{"lr": 0.05, "backend": "eager", **options})
