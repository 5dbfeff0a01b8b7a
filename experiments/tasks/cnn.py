"""A small convolutional network as a stack of lanes: matrix products with unfolded inputs, no grouped convolution.

Images are `[..., channels, height, width, batch]`. With the batch innermost, a patch is unfolded along the width alone
(K times the memory, not K^2): the K rows that it spans lie one behind the other, so that a row of outputs is one
matrix product with a view.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from experiments.tasks.mlp import linear
from experiments.tasks.model import Model

KERNEL = 5
SIDE = 28
AT_ONCE = 6
"""At most so many lanes that share an image are convolved together: more do not fit into the cache."""


def cnn(channels: tuple[int, int] = (8, 16), n_out: int = 10) -> Model:
    """Return a LeNet-like model of 28 x 28 images: two 5 x 5 convolutions, each with ReLU and 2 x 2 max pooling."""
    a, b = channels
    first = SIDE - KERNEL + 1
    second = first // 2 - KERNEL + 1
    n_features = b * (second // 2) ** 2

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            *(nn.Conv2d(1, a, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, KERNEL), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(n_features, n_out),
        )

    widths = (SIDE**2, a * first**2, a * (first // 2) ** 2, b * second**2, n_features, n_out)
    # Ten classes, the usual number, are left out, as in results of earlier versions.
    name = f"cnn {a}-{b}" + f"-{n_out}" * (n_out != 10)
    return Model(name, widths, build, cnn_forward, grain=2 * AT_ONCE)


def cnn_forward(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the outputs `[lanes, n_out, batch]`; see `Model.forward` for the arguments."""
    weight1, bias1, weight2, bias2, weight3, bias3 = params
    lanes, channels = bias1.shape
    n_inputs, batch, _ = x.shape
    images = x.mT.reshape(n_inputs, 1, SIDE, SIDE, batch)
    # Lanes that share an image are more channels of one convolution, a few at a time.
    at_once = max(n for n in range(1, AT_ONCE + 1) if lanes // n_inputs % n == 0)
    shared = images.repeat_interleave(lanes // at_once // n_inputs, dim=0)
    of_group = weight1.reshape(-1, at_once * channels, 1, KERNEL, KERNEL), bias1.reshape(-1, at_once * channels)
    hidden = ConvolvePoolReLU.apply(*of_group, shared).unflatten(1, (at_once, channels)).flatten(0, 1)
    hidden = ConvolvePoolReLU.apply(weight2, bias2, hidden)
    return linear(weight3, bias3, hidden.flatten(1, 3))


class ConvolvePoolReLU(torch.autograd.Function):
    """Convolution of each image with its weight, no padding; 2 x 2 maximum pooling; ReLU.

    weight `[n, out, in, K, K]`, bias `[n, out]`, images `[n, in, h, w, batch]`; returns `[n, out, h', w', batch]`,
    where h' is (h - K + 1) / 2. Bias and ReLU follow the pooling: the result is the same, at a quarter of the work.
    If outputs are equal, the first is the maximum, as in torch.

    Images are processed one at a time, in buffers that stay in the cache. The unfolded input and the outputs before
    pooling are several times as large as the images; the backward pass computes them again.
    """

    @staticmethod
    def forward(ctx, weight: torch.Tensor, bias: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        n, out, _, size, _ = weight.shape
        height, width, batch = (images.shape[2] - size + 1) // 2, (images.shape[3] - size + 1) // 2, images.shape[4]
        pooled = images.new_empty(n, out, height, width, batch)
        is_left = images.new_empty(n, height, 2, out, width, batch, dtype=torch.bool)
        is_upper = images.new_empty(n, height, out, width, batch, dtype=torch.bool)
        rows = images.new_empty(2 * height, out, 2 * width * batch)
        larger = images.new_empty(height, 2, out, width, batch)
        left, right = rows.view(height, 2, out, width, 2, batch).unbind(4)
        upper, lower = larger.unbind(1)
        for i, unfolded in enumerate(unfolding(images, size)):
            patches = patch_rows(unfolded, size)
            torch.bmm(rows_first(weight[i]).flatten(1).expand(len(patches), -1, -1), patches, out=rows)
            torch.ge(left, right, out=is_left[i])
            torch.maximum(left, right, out=larger)
            torch.ge(upper, lower, out=is_upper[i])
            torch.maximum(upper, lower, out=pooled[i].transpose(0, 1))
            pooled[i].add_(bias[i, :, None, None, None]).relu_()
        ctx.save_for_backward(weight, images, pooled, is_left, is_upper)
        return pooled

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, images, pooled, is_left, is_upper = ctx.saved_tensors
        n, out, channels, size, _ = weight.shape
        _, height, _, _, width, batch = is_left.shape
        weight_grad, bias_grad = torch.empty_like(weight), weight.new_empty(n, out)
        images_grad = torch.zeros_like(images) if ctx.needs_input_grad[2] else None
        rows = images.new_empty(2 * height, out, 2 * width * batch)
        larger = images.new_empty(height, 2, out, width, batch)
        left, right = rows.view(height, 2, out, width, 2, batch).unbind(4)
        upper, lower = larger.unbind(1)
        zero = grad.new_zeros(())
        for i, unfolded in enumerate(unfolding(images, size)):
            of_pooled = torch.where(pooled[i] > 0, grad[i], zero)
            bias_grad[i] = of_pooled.sum(dim=(1, 2, 3))
            of_pooled = of_pooled.transpose(0, 1)
            torch.where(is_upper[i], of_pooled, zero, out=upper)
            torch.sub(of_pooled, upper, out=lower)
            torch.where(is_left[i], larger, zero, out=left)
            torch.sub(larger, left, out=right)
            products = torch.bmm(rows, patch_rows(unfolded, size).mT).sum(dim=0)
            weight_grad[i] = rows_first(products.view(out, size, channels, size))
            if images_grad is not None:
                # Add each product to the rows it was computed from, then each column to its place in the image.
                transposed = rows_first(weight[i]).flatten(1).T.contiguous()
                unfolded.zero_()
                for row, patches in zip(rows, patch_rows(unfolded, size), strict=True):
                    patches.addmm_(transposed, row)
                for j, column in enumerate(unfolded.unflatten(3, (-1, batch)).unbind(2)):
                    images_grad[i, :, :, j : j + 2 * width] += column.transpose(0, 1)
        return weight_grad, bias_grad, images_grad


def rows_first(weight: torch.Tensor) -> torch.Tensor:
    """Return weights `[out, in, K, K]` as `[out, K, in, K]`, rows before channels as in a patch, and the other way."""
    return weight.transpose(1, 2)


def unfolding(images: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield each image unfolded along its width, `[h, channels, K, (w - K + 1) * batch]`.

    All share one buffer: the next image overwrites the one before.
    """
    _, channels, height, width, batch = images.shape
    unfolded = images.new_empty(height, channels, size, width - size + 1, batch)
    for image in images:
        yield unfolded.copy_(image.unfold(2, size, 1).permute(1, 0, 4, 2, 3)).flatten(3)


def patch_rows(unfolded: torch.Tensor, size: int) -> torch.Tensor:
    """Return the patches of each row of outputs, a view `[h - K + 1, K * channels * K, (w - K + 1) * batch]`."""
    height, columns = len(unfolded), unfolded.shape[-1]
    per_row = unfolded[0].numel()
    return unfolded.as_strided((height - size + 1, size * per_row // columns, columns), (per_row, columns, 1))
