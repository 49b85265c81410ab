"""Configuration groups of the `fedsim` command."""
