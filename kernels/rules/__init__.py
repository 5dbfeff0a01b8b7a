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
from kernels.rules.cautious import cautious_adamw, cautious_lion
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
from kernels.rules.norms import adam_mini, lamb, lars, stable_adamw
from kernels.rules.prodigy import prodigy
from kernels.rules.sign import lion, signum

RULES = {
    rule.name: rule
    for rule in (
        *(adam, amsgrad, nadam, radam, sgd, momentum, adagrad, adadelta, lion),
        *(signum, laprop, adopt, adan, ademamix, schedule_free_adamw),
        *(lamb, lars, stable_adamw, adam_mini, cautious_adamw, cautious_lion, prodigy),
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
    "adam_mini",
    "adam_uncorrected",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "amsgrad_cautious",
    "amsgrad_uncorrected",
    "cautious_adamw",
    "cautious_lion",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "momentum",
    "muon",
    "muon_momentum",
    "nadam",
    "prodigy",
    "radam",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum",
    "rmsprop_momentum",
    "schedule_free_adamw",
    "sgd",
    "signum",
    "stable_adamw",
]
