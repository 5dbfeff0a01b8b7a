"""What `experiments.throughput` can time, by the names that its options accept."""

import torch

from experiments.bench import networks
from experiments.bench.implementations import OptimizerCase

CASES = (
    OptimizerCase("Adam", {}),
    OptimizerCase("Adam", {}, torch.bfloat16),
    OptimizerCase("AdamW", {}),
    OptimizerCase("AdamW", {}, torch.bfloat16),
    OptimizerCase("NAdam", {}),
    OptimizerCase("RAdam", {}),
    OptimizerCase("SGD", {}),
    OptimizerCase("SGD", {"momentum": 0.9}),
    OptimizerCase("Adagrad", {}),
    OptimizerCase("RMSprop", {}),
    OptimizerCase("Adadelta", {}),
    # The default eps, 1e-8, is 0 in float16, and torch divides by it except in its fused step.
    OptimizerCase("Adam", {"eps": 1e-4}, torch.float16),
    # The Triton kernel has no float64.
    OptimizerCase("Adam", {}, torch.float64),
)
MODEL_CASES = CASES[:4]
MORE_CASES = (
    OptimizerCase("AdamW", {"max_grad_norm": 1.0}),
    # torch has no LAMB: it is compared with our AdamW.
    OptimizerCase("LAMB", {}),
    # It takes matrices alone.
    OptimizerCase("Muon", {}),
)
"""Steps that are more than one pass over all tensors."""

MODELS = {name: make() for name, make in networks.LISTS.items()}
SIZES: dict[str, list[networks.Shape]] = {f"2^{power}": [(2**power,)] for power in range(10, 31)} | MODELS
SIZES["ViT-B/16 matrices"] = [shape for shape in networks.vit_b16() if len(shape) == 2]

CPU_SIZES = ["2^16", "2^20", "2^22", "2^24", "ResNet-50"]
CUDA_SIZES = [f"2^{power}" for power in (27, 20, 24, 28, 29, 30, 16, 22, 12, 26, 18, 10, 14, 25)]
"""Most informative first, because a time budget cuts off the last ones."""

NOISE = "noise of MNIST's shapes"
"""The name of what stands in for MNIST where it is not on this machine and must not be downloaded."""
