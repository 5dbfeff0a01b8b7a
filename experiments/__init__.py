"""Data, stacked models, populations, sweeps and what is drawn from them."""

from kernels import __version__ as __version__
from kernels.commands import refuse_others

refuse_others(__name__)
