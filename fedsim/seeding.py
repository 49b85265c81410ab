"""Random generators derived from a path of names, so that results depend on no execution order.

There is no generator that lives for a whole run: each purpose derives a fresh one from
``(seed, purpose, round, client)``. A run can therefore be resumed, reordered or spread over
processes without saving any generator state.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


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
    digest = hashlib.blake2b(_text(seed, path), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def words(count: int, seed: int, *path: str | int, each: Sequence[int]) -> NDArray[np.uint64]:
    """Uniform 64-bit numbers for one purpose of each of several clients, ``[k, count]``.

    For few numbers for each of very many: making a generator takes longer than a hundred of these.

    Args:
        count: Numbers for each.
        seed: Seed of the run.
        path: As in :func:`derive`, without the last part.
        each: The last parts.
    """
    before = _text(seed, path) + b"/int:"
    rows = [hashlib.shake_128(b"%b%d" % (before, part)).digest(8 * count) for part in each]
    return np.frombuffer(b"".join(rows), "<u8").reshape(len(rows), count)


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A torch generator for one purpose (see :func:`derive`), on the CPU."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose (see :func:`derive`)."""
    return np.random.default_rng(derive(seed, *path))


def _text(seed: int, path: tuple[str | int, ...]) -> bytes:
    return "/".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)]).encode()
