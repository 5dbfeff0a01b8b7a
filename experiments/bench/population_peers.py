"""The same population of MLPs trained by others: JAX and torch.func, each as its users would write it for speed.

JAX: one jitted `lax.scan` over all steps between two evaluations, over `vmap` of `value_and_grad` and `optax.adam`;
data, indices and learning rates are on the device, parameters and states are donated. torch.func: `vmap` of
`grad_and_value` and Adam's formula, in place of a loop, once as it is and once through `torch.compile`.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from experiments.tasks.problems import Problem


def jax_scan(problem: Problem, params: Sequence[torch.Tensor], lrs: torch.Tensor) -> Callable[[torch.Tensor], list]:
    """Return a call that takes a step for each row of indices, int64 `[steps, batch]`, and returns the parameters.

    Args:
        params: weights and biases, `[lanes, ...]`, where the first call starts; they are copied.
        lrs: `[lanes]`.
    """
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    x, y = (jnp.asarray(t.numpy()) for t in (problem.data.x_train, problem.data.y_train))

    def loss_fn(p, xb, yb):
        for w, b in zip(p[0:-2:2], p[1:-2:2], strict=True):
            xb = jax.nn.relu(xb @ w.T + b)
        return optax.softmax_cross_entropy_with_integer_labels(xb @ p[-2].T + p[-1], yb).mean()

    def one_lane(p, state, lr, xb, yb):
        loss, grads = jax.value_and_grad(loss_fn)(p, xb, yb)
        updates, state = optax.adam(lr).update(grads, state, p)
        return optax.apply_updates(p, updates), state, loss

    def steps(carried, lr, batches):
        def step(carried, index):
            p, state, losses = carried
            p, state, loss = jax.vmap(one_lane, in_axes=(0, 0, 0, None, None))(p, state, lr, x[index], y[index])
            return (p, state, losses + loss), None

        return jax.lax.scan(step, carried, batches)[0]

    run_all = jax.jit(steps, donate_argnums=0)
    lanes = [jnp.array(p.detach().numpy()) for p in params]
    carried = [lanes, jax.jit(jax.vmap(optax.adam(1e-3).init))(lanes), jnp.zeros(len(lrs))]
    lr = jnp.asarray(lrs.numpy())

    def run(batches: torch.Tensor) -> list:
        carried[:] = jax.block_until_ready(run_all(tuple(carried), lr, jnp.asarray(batches.numpy())))
        return carried[0]

    return run


def torch_vmap(
    problem: Problem, params: Sequence[torch.Tensor], lrs: torch.Tensor, compiled: bool = False
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """As `jax_scan`, by torch.func; `torch.compile` needs a C++ compiler."""
    x, y = problem.data.x_train, problem.data.y_train

    def loss_fn(p, xb, yb):
        for w, b in zip(p[0:-2:2], p[1:-2:2], strict=True):
            xb = functional.relu(functional.linear(xb, w, b))
        return functional.cross_entropy(functional.linear(xb, p[-2], p[-1]), yb)

    def one_lane(p, averages, squares, lr, correction1, correction2, xb, yb):
        grads, loss = torch.func.grad_and_value(loss_fn)(p, xb, yb)
        averages = [m + (1 - 0.9) * (g - m) for m, g in zip(averages, grads, strict=True)]
        squares = [v + (1 - 0.999) * (g * g - v) for v, g in zip(squares, grads, strict=True)]
        new = [
            w - lr / correction1 * m / ((v / correction2).sqrt() + 1e-8)
            for w, m, v in zip(p, averages, squares, strict=True)
        ]
        return new, averages, squares, loss

    in_dims = (0, 0, 0, 0, None, None, None, None)
    step: Callable[..., tuple] = torch.func.vmap(one_lane, in_dims=in_dims)
    step = torch.compile(step) if compiled else step
    states = [[p.detach().clone() for p in params], *([torch.zeros_like(p) for p in params] for _ in range(2))]
    done, losses = torch.zeros((), dtype=torch.float64), torch.zeros(len(lrs))

    def run(batches: torch.Tensor) -> list[torch.Tensor]:
        for index in batches:
            done.add_(1)
            corrections = ((1 - beta**done).float() for beta in (0.9, 0.999))
            *states[:], loss = step(*states, lrs, *corrections, x[index], y[index])
            losses.add_(loss)
        return states[0]

    return run
