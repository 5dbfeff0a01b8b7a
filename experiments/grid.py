"""The place where `OptionError` was, for programs that import it from here; it is in `experiments.common.errors`."""

from experiments.common.errors import OptionError

__all__ = ["OptionError"]
