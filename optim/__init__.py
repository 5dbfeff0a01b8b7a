"""Drop-in optimizers: torch's constructors and `state_dict`s over one launch a step."""

from optim.adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
