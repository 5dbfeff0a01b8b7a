"""The hyperparameters that a sweep varies."""

AXES = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.9}
"""The axes, in the order of all tables, with the default values of an optimizer that has none of its own."""
BETAS = ("beta1", "beta2", "momentum")
"""The axes with values below 1, which are compared and spaced by 1 - value."""
