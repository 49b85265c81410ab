"""Modules that map inputs to features ``[n, num_features]``."""
