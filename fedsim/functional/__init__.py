"""Pure functions: the mathematics of the methods, on plain tensors."""
