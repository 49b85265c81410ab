"""Data set x partition over clients x order over time."""
