"""Parameter shapes of well-known networks, in the order of their usual implementations."""

from collections.abc import Callable, Iterator
from itertools import pairwise

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """Return ResNet-50's shapes for 1000 classes (arXiv:1512.03385): 161 tensors, 25,557,032 parameters."""

    def conv_norm(n_in: int, n_out: int, kernel: int) -> Iterator[Shape]:
        yield from ((n_out, n_in, kernel, kernel), (n_out,), (n_out,))

    shapes, n_in = [*conv_norm(3, 64, 7)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for (a, b), kernel in zip(pairwise((n_in, width, width, 4 * width)), (1, 3, 1), strict=True):
                shapes += conv_norm(a, b, kernel)
            if block == 0:
                shapes += conv_norm(n_in, 4 * width, 1)
            n_in = 4 * width
    return [*shapes, (1000, n_in), (1000,)]


def transformer_blocks(width: int, blocks: int, *, inputs_first: bool) -> Iterator[Shape]:
    """Yield 12 shapes a block: norm, attention in and out, norm, and two layers of four times the width."""
    for _ in range(blocks):
        for n_in, n_out in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
            if (n_in, n_out) in ((width, 3 * width), (width, 4 * width)):
                yield from ((width,), (width,))
            yield from ((n_in, n_out) if inputs_first else (n_out, n_in), (n_out,))


def gpt2(width: int = 768, blocks: int = 12) -> list[Shape]:
    """Return GPT-2 small's shapes (Radford et al. 2019), with tied embeddings: 148 tensors, 124,439,808 parameters."""
    inner = transformer_blocks(width, blocks, inputs_first=True)
    return [(50257, width), (1024, width), *inner, (width,), (width,)]


def gpt2_medium() -> list[Shape]:
    """Return GPT-2 medium's shapes, with tied embeddings: 292 tensors, 354,823,168 parameters."""
    return gpt2(width=1024, blocks=24)


def vit_b16() -> list[Shape]:
    """Return ViT-B/16's shapes, 224 pixels, 1000 classes (arXiv:2010.11929): 152 tensors, 86,567,656 parameters."""
    width, patches = 768, (224 // 16) ** 2
    stem = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 1 + patches, width)]
    return [*stem, *transformer_blocks(width, 12, inputs_first=False), (width,), (width,), (1000, width), (1000,)]


def mnist_mlp() -> list[Shape]:
    """Return the shapes of an MLP 784-128-128-10, the larger one of `throughput sweep`: 118,282 parameters."""
    return [shape for n_in, n_out in pairwise((784, 128, 128, 10)) for shape in ((n_out, n_in), (n_out,))]


LISTS: dict[str, Callable[[], list[Shape]]] = {
    "ResNet-50": resnet50,
    "GPT-2 small": gpt2,
    "ViT-B/16": vit_b16,
    "GPT-2 medium": gpt2_medium,
    "MNIST MLP": mnist_mlp,
}
