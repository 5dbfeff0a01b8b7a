"""Data, stacked models, populations, sweeps and what is drawn from them."""

from kernels.commands import refuse_others

refuse_others(__name__)
