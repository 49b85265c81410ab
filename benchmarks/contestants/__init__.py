"""One program per simulator, each run as a process of its own by ``benchmarks/peers.py``."""
