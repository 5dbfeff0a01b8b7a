"""Learning rates that differ between lanes, under torch's schedulers.

With a `[K]` tensor a scheduler computes each lane's value as it would a float, and then writes all of them with
`lr.fill_`, which torch's tensors refuse for more than one value.
"""

import sys
from typing import TypeGuard

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau, _format_param

FORMAT_PARAM = _format_param.__code__  # by which torch's schedulers check arguments that replace hyperparameters
FLATTENS = "lanes differ in {0}, and one number would replace all their values: pass {1} as a tensor of {2} values"


class Lanes(torch.Tensor):
    """A `[K]` learning rate whose `fill_` takes `[K]` values; what is computed from it, or saved, is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    _reduced: tuple[float, torch.Tensor] | None = None  # what ReduceLROnPlateau will write, and the lanes' values

    def fill_(self, value) -> torch.Tensor:
        """Set every lane's value, in place. Raises: ValueError if one value would replace different ones."""
        if self._reduced and isinstance(value, float) and value == self._reduced[0]:
            value = self._reduced[1]
        self._reduced = None
        values = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        if values.numel() == 1 and differ(self):
            raise ValueError(f"lr: {FLATTENS.format('lr', 'what the scheduler takes', self.numel())}")
        if values.numel() not in (1, self.numel()):
            raise ValueError(f"lr has {self.numel()} lanes, and the scheduler gives it {values.numel()} values")
        return self.copy_(values.expand(self.shape) if values.numel() == 1 else values.reshape(self.shape))

    def __float__(self) -> float:
        """Return the largest lane's value to ReduceLROnPlateau, which writes the reduced one; else as a tensor does."""
        caller = sys._getframe(1)
        scheduler = caller.f_locals.get("self")
        if not isinstance(scheduler, ReduceLROnPlateau):
            return super().__float__()
        index = next(i for i, group in enumerate(scheduler.optimizer.param_groups) if group["lr"] is self)
        least, old = scheduler.min_lrs[index], self.double()
        if isinstance(least, torch.Tensor) and least.numel() > 1:
            raise ValueError(f"ReduceLROnPlateau takes one min_lr for all lanes of a group, not {least.numel()}")
        new = (old * scheduler.factor).clamp(min=float(least))
        # As for a float, a value that would hardly change is kept. If any changes, the largest does.
        largest = old.nan_to_num(0.0, 0.0).max().item()
        expected = max(largest * scheduler.factor, float(least))
        if largest - expected > scheduler.eps:
            self._reduced = expected, torch.where(old - new > scheduler.eps, new, old)
        return largest

    def __reduce_ex__(self, protocol):
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        return memo.setdefault(id(self), self.detach().clone().as_subclass(Lanes))


def differ(value) -> TypeGuard[torch.Tensor]:
    """Return whether this is a tensor of several values that are not all the same."""
    return isinstance(value, torch.Tensor) and value.numel() > 1 and bool((value != value.reshape(-1)[0]).any())


def param_groups(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Return `optimizer.param_groups`, of which it is the getter, with each `[K]` lr as `Lanes`."""
    groups = vars(optimizer).get("param_groups")
    if groups is None:
        raise AttributeError("param_groups")
    for group in groups:
        kind = type(lr := group.get("lr"))  # kept short, because each step runs it
        if kind is not float and kind is not Lanes and isinstance(lr, torch.Tensor) and lr.numel() > 1:
            group["lr"] = lr.as_subclass(Lanes)
    caller = sys._getframe(1)
    if caller.f_code is FORMAT_PARAM and caller.f_back:
        check_argument(groups, caller.f_back.f_locals.get("self"), caller.f_locals["name"], caller.f_locals["param"])
    return groups


def check_argument(groups: list[dict], scheduler: LRScheduler | None, name: str, argument) -> None:
    """Raise ValueError if a scheduler's argument would replace different values of lanes by one number.

    Called while the scheduler is constructed, before it changes a group.
    """
    arguments = argument if isinstance(argument, (list, tuple)) else [argument] * len(groups)
    for group, value in zip(groups, arguments, strict=False):
        momentum = group["betas"][0] if "betas" in group else group.get("momentum")
        what = "beta1" if "betas" in group else "momentum"
        replaced = {"base_lr": ("lr", group.get("lr")), "max_momentum": (what, momentum)}
        replaced["base_momentum"] = replaced["max_momentum"]
        if isinstance(scheduler, OneCycleLR):
            replaced["max_lr"] = replaced["base_lr"]
        what, old = replaced.get(name, ("", None))
        size = value.numel() if isinstance(value, torch.Tensor) else 1
        if size == 1 and differ(old):
            raise ValueError(f"Invalid {name}: {value} ({FLATTENS.format(what, name, old.numel())})")
        lanes = group["lr"].numel() if isinstance(group.get("lr"), torch.Tensor) else 1
        if size > 1 and lanes > 1 and size != lanes:
            raise ValueError(f"Invalid {name}: {size} values for {lanes} lanes")


def adopt(optimizer: torch.optim.Optimizer, group: dict) -> None:
    """Check a new group's `[K]` lr, and put a copy into the defaults, because schedulers change the group's in place.

    Raises: ValueError if its dtype is not a floating-point one.
    """
    lr, default = group.get("lr"), optimizer.defaults.get("lr")
    if not isinstance(lr, Lanes):
        return
    if not lr.is_floating_point():
        raise ValueError(f"Invalid lr: a tensor of {lr.dtype} (one of a floating-point dtype)")
    if isinstance(default, torch.Tensor) and default.data_ptr() == lr.data_ptr():
        optimizer.defaults["lr"] = default.detach().clone()


def to_save(state_dict: dict) -> dict:
    """Replace each lr in an optimizer's state, in place, by a plain tensor over the same memory."""
    for group in state_dict.get("param_groups", []):
        if isinstance(group.get("lr"), Lanes):
            group["lr"] = group["lr"].as_subclass(torch.Tensor)
    return state_dict
