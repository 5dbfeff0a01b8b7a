"""Checks of the arguments of constructors, with torch's error messages."""

from collections.abc import Callable

import torch

from optim import watch

Value = float | torch.Tensor


def accepted(value, name: str, values: tuple) -> None:
    """Raise ValueError unless the value is one of `values`."""
    if value not in values:
        raise ValueError(f"Invalid {name}: {value!r} (one of {', '.join(map(str, values))})")


def refused(value: Value, accepts: Callable) -> list[float]:
    """Return the elements of a value that are not accepted; none for a tensor whose values cannot be read."""
    if not isinstance(value, torch.Tensor):
        return [] if accepts(value) else [value]
    if not watch.is_plain(value) or watch.in_a_mode():
        return []
    values = value.detach().to(torch.float64)
    return values[~accepts(values)].flatten().tolist()


def check(name: str, value: Value, accepts: Callable) -> None:
    """Raise ValueError unless every element of the value is accepted."""
    if bad := refused(value, accepts):
        raise ValueError(f"Invalid {name}: {bad[0]}")


def check_non_negative(group: dict, *keys: str) -> None:
    """Raise ValueError, as torch words it, unless these hyperparameters of the group are 0 or more."""
    words = {"lr": "learning rate", "eps": "epsilon value"}
    for key in keys:
        check(words.get(key, f"{key} value"), group[key], lambda v: v >= 0)


def check_betas(betas: tuple[Value, ...], n: int | None = None) -> None:
    """Raise ValueError unless all betas are in [0, 1), and n of them if n is given."""
    if n is not None and len(betas) != n:
        raise ValueError(f"Invalid betas: {betas} ({n} values)")
    for i, beta in enumerate(betas):
        check(f"beta parameter at index {i}", beta, lambda v: (v >= 0) & (v < 1))


def options(arguments: dict) -> dict:
    """Return the defaults of groups: all arguments of a constructor except `params` and `own`."""
    return {k: v for k, v in arguments.items() if k not in ("self", "params", "own", "__class__")}
