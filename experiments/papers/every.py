"""Every claim, by its name on the command line."""

from __future__ import annotations

from typing import Any

from experiments.papers import beta2_half_life, square_root_scaling, stability_edge, weight_decay_timescale
from experiments.papers.claim import Claim

MODULES: tuple[Any, ...] = (stability_edge, beta2_half_life, square_root_scaling, weight_decay_timescale)
"""In the order in which claims are listed and tried."""
CLAIMS: dict[str, Claim] = {claim.name: claim for module in MODULES for claim in module.CLAIMS}
