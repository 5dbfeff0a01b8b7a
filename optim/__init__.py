"""Drop-in optimizers with torch's constructors and `state_dict`s, whose step is one launch."""

from kernels import __version__ as __version__
from kernels.commands import refuse_others
from optim.adam import Adam, AdamW, NAdam, RAdam
from optim.adan import Adan, AdEMAMix
from optim.adaptive import Adadelta, Adagrad, RMSprop
from optim.adopt import ADOPT, LaProp
from optim.cautious import CautiousAdamW, CautiousLion
from optim.custom import from_rule
from optim.lion import Lion, Signum
from optim.muon import Muon
from optim.norms import LAMB, LARS, AdamMini, StableAdamW
from optim.prodigy import Prodigy
from optim.schedule_free import AdamWScheduleFree
from optim.sgd import SGD

refuse_others(__name__)

__all__ = [
    "ADOPT",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamMini",
    "AdamW",
    "AdamWScheduleFree",
    "Adan",
    "CautiousAdamW",
    "CautiousLion",
    "LaProp",
    "Lion",
    "Muon",
    "NAdam",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Signum",
    "StableAdamW",
    "from_rule",
]
