"""Update rules and the launches that apply them to lists of tensors."""

from kernels.commands import refuse_others

refuse_others(__name__)
