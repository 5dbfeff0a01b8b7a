"""Every claim, by its name on the command line."""

from __future__ import annotations

from typing import Any

from experiments.papers import (
    adam_paper,
    adam_vae,
    article,
    article_accumulation,
    article_beta1,
    beta2_half_life,
    beta2_transition,
    bias_correction,
    block_hessians,
    equal_betas,
    heavy_tailed,
    known_answers,
    square_root_scaling,
    stability_edge,
    weight_decay_timescale,
)
from experiments.papers.claim import Claim

MODULES: tuple[Any, ...] = (
    adam_paper,
    adam_vae,
    stability_edge,
    beta2_transition,
    beta2_half_life,
    square_root_scaling,
    bias_correction,
    equal_betas,
    block_hessians,
    heavy_tailed,
    weight_decay_timescale,
    article,
    article_beta1,
    article_accumulation,
    known_answers,
)
"""In the order in which claims are listed and tried."""
CLAIMS: dict[str, Claim] = {claim.name: claim for module in MODULES for claim in module.CLAIMS}
