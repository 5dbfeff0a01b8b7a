"""The rules of all optimizers, a dozen lines each; see `kernels.rule` for what a rule is."""

from kernels.rule import Rule
from kernels.rules.adam_like import (
    adam,
    adam_cautious,
    adam_uncorrected,
    amsgrad,
    amsgrad_cautious,
    amsgrad_uncorrected,
    nadam,
    radam,
)
from kernels.rules.classic import (
    adadelta,
    adagrad,
    momentum,
    rmsprop,
    rmsprop_centered,
    rmsprop_centered_momentum,
    rmsprop_momentum,
    sgd,
)
from kernels.rules.muon import muon, muon_momentum
from kernels.rules.newer import adan, ademamix, adopt, laprop, schedule_free_adamw
from kernels.rules.sign import lion, signum

RULES = {
    rule.name: rule
    for rule in (
        *(adam, amsgrad, nadam, radam, sgd, momentum, adagrad, adadelta, lion),
        *(signum, laprop, adopt, adan, ademamix, schedule_free_adamw),
        *(adam_uncorrected, amsgrad_uncorrected, adam_cautious, amsgrad_cautious),
        *(muon_momentum, muon),
        *(rmsprop, rmsprop_momentum, rmsprop_centered, rmsprop_centered_momentum),
    )
}
"""Every rule by its name."""

__all__ = [
    "RULES",
    "Rule",
    "adadelta",
    "adagrad",
    "adam",
    "adam_cautious",
    "adam_uncorrected",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "amsgrad_cautious",
    "amsgrad_uncorrected",
    "laprop",
    "lion",
    "momentum",
    "muon",
    "muon_momentum",
    "nadam",
    "radam",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum",
    "rmsprop_momentum",
    "schedule_free_adamw",
    "sgd",
    "signum",
]
