"""fedsim: a federated and continual learning simulator."""
