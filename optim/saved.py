"""`state_dict`s that other versions of torch or other optimizers have saved."""

from kernels.rules import RULES

ABSENT = {
    **dict.fromkeys(("maximize", "capturable", "differentiable", "amsgrad", "nesterov", "centered"), False),
    **dict.fromkeys(("foreach", "fused"), None),
    **{"decoupled_weight_decay": False, "momentum": 0, "initial_accumulator_value": 0},
}
"""The values that torch assumes for options that saved groups lack, because they are older."""
FAMILY_STATES = {name for rule in RULES.values() for name in (*rule.states, *rule.scalars)}


def check_names(optimizer, parameter: int | str, state: dict) -> None:
    """Raise ValueError if a loaded state belongs to another optimizer of this package.

    Unknown names belong to wrappers. SGD accepts all states, because it needs none.
    """
    own = optimizer.state_names
    if not isinstance(state, dict) or any(name in state for name in own) or set(own) <= set(optimizer.late_states):
        return
    if others := [name for name in state if name in FAMILY_STATES]:
        raise ValueError(
            f"The loaded state of parameter {parameter} has {', '.join(others)}: it is not one of "
            f"{type(optimizer).__name__}, which keeps {', '.join(own)}"
        )
