"""Muon, whose step is two launches around products of matrices: `optim.muon` has those, and these are its two rules.

Both have the same hyperparameters, so that the two launches share them; nesterov and match_rms_adamw are 0 or 1.
"""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average

HYPER = ("lr", "momentum", "weight_decay", "nesterov", "match_rms_adamw")
TRIAL = (1.0, 0.9, 0.01, 1.0, 1.0)

# Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; match_rms_adamw: Liu et al. 2025, arXiv:2502.16982.


@triton.jit
def muon_momentum_coefficients(hyper, step):
    _, momentum, _, nesterov, _ = hyper
    of_grad = nesterov * (1.0 - momentum)
    return 1.0 - momentum, of_grad, 1.0 - of_grad


@triton.jit
def muon_momentum_update(direction, grad, state, coefficients):
    (momentum_buffer,) = state
    one_minus_momentum, of_grad, of_buffer = coefficients
    momentum_buffer = average(momentum_buffer, one_minus_momentum, grad)
    return of_grad * grad + of_buffer * momentum_buffer, (momentum_buffer,)


@triton.jit
def muon_coefficients(hyper, step, scalars):
    lr, _, weight_decay, _, match_rms_adamw = hyper
    rows, columns = scalars
    original = tl.sqrt(tl.where(rows > columns, rows / columns, 1.0))
    ratio = tl.where(match_rms_adamw != 0.0, 0.2 * tl.sqrt(tl.maximum(rows, columns)), original)
    return (1.0 - lr * weight_decay, lr * ratio), scalars


@triton.jit
def muon_update(p, orthogonal, state, coefficients):
    decay, step_size = coefficients
    return decay * p - step_size * orthogonal, state


muon_momentum = Rule(
    name="muon_momentum",
    coefficients=muon_momentum_coefficients,
    update=muon_momentum_update,
    hyper=HYPER,
    states=("momentum_buffer",),
    trial=TRIAL,
)
"""
    momentum_buffer <- momentum * momentum_buffer + (1 - momentum) * grad
    direction       <- momentum * momentum_buffer + (1 - momentum) * grad    momentum_buffer without nesterov

The first launch: in place of a parameter it writes a direction, whatever that was before.
"""
muon = Rule(
    name="muon",
    coefficients=muon_coefficients,
    update=muon_update,
    hyper=HYPER,
    states=(),
    scalars=("rows", "columns"),
    trial=TRIAL,
)
"""
    p <- (1 - lr * weight_decay) * p - lr * ratio * orthogonal
    ratio = sqrt(max(1, rows / columns))      or 0.2 * sqrt(max(rows, columns)) with match_rms_adamw

The second launch: its gradients are orthogonal directions, and scalars the sizes of their matrices, which stay.
"""
