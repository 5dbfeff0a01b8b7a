"""What other versions of torch, and other optimizers, have written into a `state_dict`."""

from kernels.rules import RULES

ABSENT = {
    **dict.fromkeys(("maximize", "capturable", "differentiable", "amsgrad", "nesterov", "centered"), False),
    **dict.fromkeys(("foreach", "fused"), None),
    **{"decoupled_weight_decay": False, "momentum": 0, "initial_accumulator_value": 0},
}
"""What torch takes groups to mean that were saved before there were these options."""
FAMILY_STATES = {name for rule in RULES.values() for name in (*rule.states, *rule.scalars)}


def check_names(optimizer, parameter: int | str, state: dict) -> None:
    """Raise ValueError if a loaded state is one that another optimizer of the family keeps.

    Names that nobody here knows are a wrapper's. SGD accepts all: it needs no state.
    """
    own = optimizer.state_names
    if not isinstance(state, dict) or any(name in state for name in own) or set(own) <= set(optimizer.late_states):
        return
    if others := [name for name in state if name in FAMILY_STATES]:
        raise ValueError(
            f"The loaded state of parameter {parameter} has {', '.join(others)}: it is not one of "
            f"{type(optimizer).__name__}, which keeps {', '.join(own)}"
        )
