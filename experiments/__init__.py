"""Data, stacked models, populations, sweeps and what is drawn from them."""
