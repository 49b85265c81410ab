"""Random generators derived from a path of names, so that results depend on no execution order.

There is no generator that lives for a whole run: each purpose derives a fresh one from
``(seed, purpose, round, client)``. A run can therefore be resumed, reordered or spread over
processes without saving any generator state.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed that is a pure function of the run's seed and the path.

    >>> derive(0, "train", 3, 7) == derive(0, "train", 3, 7)
    True
    >>> derive(0, "train", 3, 7) == derive(0, "train", 7, 3)
    False

    Args:
        seed: Seed of the run.
        path: Purpose first, then whatever tells one draw from another, e.g. round and client.
    """
    text = "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A torch generator for one purpose (see :func:`derive`), on the CPU."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose (see :func:`derive`)."""
    return np.random.default_rng(derive(seed, *path))
