"""A gated recurrent unit as a stack of lanes: it reads an image row by row."""

from collections.abc import Sequence

import torch
from torch import nn

from experiments.tasks.mlp import linear
from experiments.tasks.model import Model, in_tiles

ROWS, COLUMNS = 28, 28
AT_ONCE = 16
"""Number of lanes that go through all steps together on the CPU."""


class RowByRow(nn.Module):
    """A torch.nn.GRU that reads images `[batch, 784]` row by row, with a linear layer after the last row."""

    def __init__(self, hidden: int, n_out: int):
        super().__init__()
        self.gru = nn.GRU(COLUMNS, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.gru(x.unflatten(1, (ROWS, COLUMNS)))
        return self.linear(outputs[:, -1])


def gru(hidden: int = 32, n_out: int = 10) -> Model:
    """Return a GRU that reads 28 rows of 28 pixels, in the form of torch.nn.GRU.

    Reference: Cho et al. 2014, arXiv:1406.1078.
    """
    widths = (ROWS * COLUMNS, ROWS * 3 * hidden, ROWS * 3 * hidden, n_out)
    forward = in_tiles(gru_forward, AT_ONCE)
    return Model(f"gru {COLUMNS}-{hidden}-{n_out}", widths, lambda: RowByRow(hidden, n_out), forward, AT_ONCE, AT_ONCE)


def gru_forward(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the outputs `[lanes, n_out, batch]` of lanes that share their input x, `[batch, 784]`.

    Args:
        params: weight_ih `[lanes, 3 * hidden, 28]`, weight_hh `[lanes, 3 * hidden, hidden]`, bias_ih and bias_hh
            `[lanes, 3 * hidden]`, each with the gates r, z, n; weight and bias of the linear layer.
    """
    weight_ih, weight_hh, bias_ih, bias_hh, weight, bias = params
    lanes, gates, _ = weight_ih.shape
    rows = x.unflatten(1, (ROWS, COLUMNS)).permute(1, 2, 0)
    # One product for all rows and lanes.
    stacked = weight_ih.reshape(1, lanes * gates, COLUMNS).expand(ROWS, -1, -1)
    projected = torch.baddbmm(bias_ih.reshape(1, -1, 1), stacked, rows).unflatten(1, (lanes, gates))
    return linear(weight, bias, Recurrence.apply(projected, weight_hh, bias_hh))


class Recurrence(torch.autograd.Function):
    """The recurrence of a GRU: returns the last hidden state `[lanes, hidden, batch]`, starting from zeros.

    r, z = sigmoid(projected_rz + weight_rz h + bias_rz)
    n = tanh(projected_n + r * (weight_n h + bias_n))
    h <- (1 - z) * n + z * h

    projected: `[steps, lanes, 3 * hidden, batch]`, the input's share of each step, gates in the order r, z, n.
    weight: `[lanes, 3 * hidden, hidden]`; bias: `[lanes, 3 * hidden]`.
    The backward pass is written by hand: through autograd a step takes 1.2 times as long.
    """

    @staticmethod
    def forward(ctx, projected: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        steps, lanes, width, batch = projected.shape
        hidden = width // 3
        states = projected.new_zeros(steps + 1, lanes, hidden, batch)
        gates = torch.empty_like(projected)
        candidates = torch.empty_like(states[1:])  # the factors of r
        for h, h_next, of_input, gate, candidate in zip(states, states[1:], projected, gates, candidates, strict=False):
            recurrent = linear(weight, bias, h)
            rz, n = gate.split((2 * hidden, hidden), dim=1)
            candidate.copy_(recurrent[:, 2 * hidden :])
            torch.add(of_input[:, : 2 * hidden], recurrent[:, : 2 * hidden], out=rz).sigmoid_()
            torch.addcmul(of_input[:, 2 * hidden :], rz[:, :hidden], candidate, out=n).tanh_()
            torch.lerp(n, h, rz[:, hidden:], out=h_next)
        ctx.save_for_backward(weight, states, gates, candidates)
        return states[-1]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, states, gates, candidates = ctx.saved_tensors
        hidden = weight.shape[2]
        transposed = weight.mT.contiguous()
        projected_grad = torch.empty_like(gates)
        weight_grad, bias_grad = torch.zeros_like(weight), weight.new_zeros(weight.shape[:2])
        recurrent_grad = torch.empty_like(gates[0])
        steps = list(zip(states, gates, candidates, projected_grad, strict=False))
        for h, gate, candidate, of_input in reversed(steps):
            r, z, n = gate.split(hidden, dim=1)
            r_grad, z_grad, n_grad = of_input.split(hidden, dim=1)
            tanh_backward(grad - grad * z, n, grad_input=n_grad)
            sigmoid_backward(n_grad * candidate, r, grad_input=r_grad)
            sigmoid_backward(grad * (h - n), z, grad_input=z_grad)
            recurrent_grad[:, : 2 * hidden] = of_input[:, : 2 * hidden]
            torch.mul(n_grad, r, out=recurrent_grad[:, 2 * hidden :])
            weight_grad.baddbmm_(recurrent_grad, h.mT)
            bias_grad += recurrent_grad.sum(dim=2)
            grad = torch.baddbmm(grad * z, transposed, recurrent_grad)
        return projected_grad, weight_grad, bias_grad


tanh_backward = torch.ops.aten.tanh_backward.grad_input
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
