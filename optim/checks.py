"""Checks before a step, with errors that name the parameter. Each `optimizer` is a `RuleOptimizer`."""

import torch

from optim import compressed, memory, totals, watch
from optim.backends import backend_of


def check(optimizer, params: list, grads: list) -> None:
    """Raise if a parameter that has a gradient cannot be updated; arguments and errors as of `launches.build`."""
    lanes = [lanes_of(optimizer, group) for group in optimizer.param_groups for _ in group["params"]]
    check_sums(optimizer)
    for group in optimizer.param_groups:
        compressed.check_group(optimizer, group)
    for i, grad in enumerate(grads):
        if grad is not None:
            check_tensors(optimizer, params[i], grad, lanes[i], i)


def check_sums(optimizer) -> None:
    """Raise ValueError if sums go over lanes and groups have different numbers of them."""
    groups = optimizer.param_groups
    rules = [totals.rule_of(optimizer, group) for group in groups]
    if any(rule.stages for rule in rules):
        totals.check_lanes(rules, [lanes_of(optimizer, group) for group in groups])


def check_tensors(optimizer, p: torch.Tensor, grad: torch.Tensor, lanes: int, i: int) -> None:
    """Raise RuntimeError or TypeError if the backend cannot update p with this gradient."""

    def name() -> str:
        return name_of(optimizer, p, i)

    kind = type(optimizer).__name__
    if grad.is_sparse:
        raise RuntimeError(f"{kind} does not support sparse gradients, consider SparseAdam instead: {name()}")
    for tensor, what in ((p, "parameters"), (grad, "gradients")):
        if tensor.layout != torch.strided:
            raise RuntimeError(f"{kind} does not support {what} of {tensor.layout}: {name()}")
    if memory.local(grad).shape != memory.local(p).shape or grad.device != p.device:
        raise RuntimeError(f"{name()} on {p.device} has a gradient of shape {list(grad.shape)} on {grad.device}")
    if memory.overlaps_itself(memory.local(p)):
        raise RuntimeError(f"{name()}: several elements share one place in memory (strides {tuple(p.stride())})")
    for tensor, what in ((p, "parameter"), (grad, "gradient")):
        if is_freed(tensor):
            raise RuntimeError(f"{name()}: the memory of the {what} has been freed or made smaller")
    if p.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(f"{name()} was made in inference mode, and can only be updated there")
    backend = backend_of(optimizer, p, grad)
    for tensor, what in ((p, "parameter"), (grad, "gradient")):
        if memory.real_dtype(tensor) not in backend.DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.DTYPES)
            raise TypeError(f"{name()}: a {what} of {tensor.dtype} (this backend takes {known})")
    if optimizer.rounding == "stochastic" and memory.real_dtype(p) == torch.float16:
        raise TypeError(f"{name()} is float16, and rounding='stochastic' is for bfloat16")
    compressed.check_parameter(optimizer, p, name)
    if lanes > 1 and memory.is_distributed(p):
        raise TypeError(f"{name()} is a DTensor, whose lanes could lie on several machines: lanes need plain tensors")


def is_freed(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's storage has been freed or made too small for it."""
    tensor = memory.local(tensor)
    return watch.is_plain(tensor) and not memory.has_memory(tensor)


def name_of(optimizer, p: torch.Tensor, i: int) -> str:
    """Return the name in messages of parameter i of all groups laid end to end."""
    names = [name for group in optimizer.param_groups for name in group.get("param_names", group["params"])]
    called = f" ({names[i]})" if isinstance(names[i], str) else ""
    return f"parameter {i}{called} of shape {list(p.shape)}"


def lanes_of(optimizer, group: dict) -> int:
    """Return the number of lanes of a group: 1 if all its hyperparameters are single values.

    Raises: ValueError if lane counts differ, or a parameter is not stacked accordingly; as `check_shapes`.
    """
    lanes = n_lanes(optimizer, group)
    optimizer.check_shapes(group, lanes)
    return lanes


def n_lanes(optimizer, group: dict) -> int:
    """Return and raise what `lanes_of` does, whatever shapes the rule needs."""
    names, hyper = totals.rule_of(optimizer, group).hyper, totals.hyper_of(optimizer, group)
    values = dict(zip(names, hyper, strict=True)) | dict(optimizer.initial(group))
    hyper = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
    for name, value in hyper.items():
        for p in group["params"]:
            if value.device.type != "cpu" and value.device != p.device:
                raise ValueError(f"{name} is on {value.device}, and a parameter of shape {list(p.shape)} on {p.device}")
    sizes = {name: v.numel() for name, v in hyper.items() if v.numel() != 1}
    if not sizes:
        return 1
    lanes = max(sizes.values())
    if min(sizes.values()) != lanes:
        counts = ", ".join(f"{name} has {n}" for name, n in sizes.items())
        raise ValueError(f"Hyperparameter tensors of a group must have as many lanes as each other: {counts}")
    for i, p in enumerate(group["params"]):
        if p.ndim == 0 or p.shape[0] != lanes:
            raise ValueError(
                f"Tensor {next(iter(sizes))} must be 1-element, or have as many elements as parameters have lanes: "
                f"it has {lanes}, so parameter {i} must be stacked [{lanes}, ...]; its shape is {list(p.shape)}"
            )
    return lanes
