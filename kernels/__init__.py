"""Update rules and the launches that apply them to lists of tensors."""

from importlib.metadata import PackageNotFoundError, version

from kernels.commands import refuse_others

try:
    __version__ = version("adam-sandbox")
except PackageNotFoundError:
    # A checkout that is used without being installed, as by `PYTHON=python3 make gpu`.
    __version__ = "unknown"

refuse_others(__name__)
