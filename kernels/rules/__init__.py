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
from kernels.rules.sign import lion

RULES = {
    rule.name: rule
    for rule in (
        *(adam, amsgrad, nadam, radam, sgd, momentum, adagrad, adadelta, lion),
        *(adam_uncorrected, amsgrad_uncorrected, adam_cautious, amsgrad_cautious),
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
    "amsgrad",
    "amsgrad_cautious",
    "amsgrad_uncorrected",
    "lion",
    "momentum",
    "nadam",
    "radam",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum",
    "rmsprop_momentum",
    "sgd",
]
