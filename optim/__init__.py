"""Drop-in optimizers with torch's constructors and `state_dict`s, whose step is one launch."""

from kernels import __version__ as __version__
from kernels.commands import refuse_others
from optim.adam import Adam, AdamW, NAdam, RAdam
from optim.adaptive import Adadelta, Adagrad, RMSprop
from optim.custom import from_rule
from optim.lion import Lion
from optim.sgd import SGD

refuse_others(__name__)

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RAdam", "RMSprop", "from_rule"]
