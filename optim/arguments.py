"""What constructors take, and what they refuse, in torch's words."""

import torch

Value = float | torch.Tensor


def accepted(value, name: str, values: tuple) -> None:
    """Raise ValueError unless the value is one of those."""
    if value not in values:
        raise ValueError(f"Invalid {name}: {value!r} (one of {', '.join(map(str, values))})")


def check(name: str, value: Value, accepts) -> None:
    """Raise ValueError unless every element of the value is accepted."""
    if isinstance(value, torch.Tensor) and value.is_meta:
        return
    values = torch.as_tensor(value, dtype=torch.float64)
    bad = ~torch.as_tensor(accepts(values))
    if bad.any():
        first = values[bad].flatten()[0].item() if isinstance(value, torch.Tensor) else value
        raise ValueError(f"Invalid {name}: {first}")


def check_non_negative(group: dict, *keys: str) -> None:
    """Raise ValueError, as torch words it, unless these hyperparameters of the group are 0 or more."""
    words = {"lr": "learning rate", "eps": "epsilon value"}
    for key in keys:
        check(words.get(key, f"{key} value"), group[key], lambda v: v >= 0)


def check_betas(betas: tuple[Value, Value]) -> None:
    """Raise ValueError unless both betas are in [0, 1)."""
    for i, beta in enumerate(betas):
        check(f"beta parameter at index {i}", beta, lambda v: (v >= 0) & (v < 1))


def options(arguments: dict) -> dict:
    """The defaults of a group: all arguments of a constructor but what is not an option of groups."""
    return {k: v for k, v in arguments.items() if k not in ("self", "params", "own", "__class__")}
