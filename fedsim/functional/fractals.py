"""Iterated function systems: sampling them, and points of their attractors.

Letters: ``n`` maps of a system, at most ``MAPS``; ``b`` systems side by side; ``p`` points.

Source:
    Anderson and Farrell, Improving Fractal Pre-training, WACV 2022, arXiv:2110.03091.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAPS = 4  # most maps of a system
BURN_IN = 20  # steps after which a walker has forgotten where it started
JITTER_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Systems:
    """Systems of affine maps ``x -> A x + c``, side by side.

    Attributes:
        matrices: ``A``, ``[b, MAPS, 2, 2]``.
        offsets: ``c``, ``[b, MAPS, 2]``.
        sizes: Maps that a system has, int64 ``[b]``; the others are zero and never chosen.
    """

    matrices: Tensor
    offsets: Tensor
    sizes: Tensor

    def pick(self, numbers: Tensor) -> "Systems":
        """Some of the systems, in the order of their numbers."""
        return Systems(
            matrices=self.matrices[numbers],
            offsets=self.offsets[numbers],
            sizes=self.sizes[numbers],
        )

    def to(self, device: str | torch.device) -> "Systems":
        """The systems on another device."""
        return Systems(
            matrices=self.matrices.to(device),
            offsets=self.offsets.to(device),
            sizes=self.sizes.to(device),
        )


def sample_system(rng: torch.Generator, sigma_shift: float = 0.0) -> Systems:
    """One system of 2 to 4 maps, every one a contraction.

    ``A = U diag(s1, s2) V`` with rotations by angles uniform in ``[-pi, pi]``, random signs on one
    side, and singular values from :func:`sample_singular_values` with a sigma factor uniform in
    ``[(5 + n) / 2, (6 + n) / 2]``; offsets uniform in ``[-1, 1]``.

    Args:
        rng: Draws everything.
        sigma_shift: Added to the sigma factor: below 0 gives dust, above 0 featureless blobs.
    """
    n = int(torch.randint(2, MAPS + 1, (), generator=rng))
    sigma = uniform(rng, (5 + n) / 2, (6 + n) / 2) + sigma_shift
    values = sample_singular_values(n, sigma, rng)
    angles = (2 * torch.rand(n, 2, generator=rng) - 1) * math.pi
    signs = torch.randint(2, (n, 2), generator=rng) * 2.0 - 1.0
    left, right = rotation(angles[:, 0]), rotation(angles[:, 1])
    matrices, offsets = torch.zeros(1, MAPS, 2, 2), torch.zeros(1, MAPS, 2)
    matrices[0, :n] = (left * (values * signs)[:, None, :]) @ right
    offsets[0, :n] = 2 * torch.rand(n, 2, generator=rng) - 1
    return Systems(matrices=matrices, offsets=offsets, sizes=torch.tensor([n]))


def sample_singular_values(n: int, sigma: float, rng: torch.Generator) -> Tensor:
    """Singular values ``1 >= s1 >= s2 >= 0`` of ``n`` maps with ``sum s1 + 2 s2 = sigma``.

    Drawn one after the other, each uniform in the range that leaves the rest a solution.

    Args:
        n: Number of maps.
        sigma: Sigma factor, in ``[0, 3 n]``.
        rng: Draws them.

    Returns:
        ``[n, 2]``.

    Raises:
        ValueError: If there is no solution.
    """
    if not 0.0 <= sigma <= 3.0 * n:
        raise ValueError(f"the sigma factor of {n} maps must lie in [0, {3 * n}], got {sigma}")
    values = torch.empty(n, 2)
    left = sigma  # may still be spent
    due = sigma - 3 * n + 3  # must be spent now, since a later map takes 3 at most
    for i in range(n - 1):
        first = uniform(rng, max(0.0, due / 3), min(1.0, left))
        left, due = left - first, due - first
        second = uniform(rng, max(0.0, due / 2), min(first, left / 2))
        left, due = left - 2 * second, due - 2 * second + 3
        values[i, 0], values[i, 1] = first, second
    second = uniform(rng, max(0.0, (left - 1) / 2), left / 3)
    values[-1, 0], values[-1, 1] = left - 2 * second, second
    return values


def join(systems: list[Systems]) -> Systems:
    """Systems side by side."""
    return Systems(
        matrices=torch.cat([s.matrices for s in systems]),
        offsets=torch.cat([s.offsets for s in systems]),
        sizes=torch.cat([s.sizes for s in systems]),
    )


def jitter_system(system: Systems, rng: torch.Generator) -> Systems:
    """The system with one map scaled by U(0.8, 1.1), if that leaves it a contraction.

    Four scales are tried; if none will do, the system stays as it is.

    Args:
        system: One system.
        rng: Draws map and scale.
    """
    which = int(torch.randint(int(system.sizes[0]), (), generator=rng))
    norm = float(torch.linalg.matrix_norm(system.matrices[0, which], ord=2))
    for _ in range(JITTER_TRIES):
        scale = uniform(rng, 0.8, 1.1)
        if norm * scale <= 1.0:
            matrices, offsets = system.matrices.clone(), system.offsets.clone()
            matrices[0, which] *= scale
            offsets[0, which] *= scale
            return Systems(matrices=matrices, offsets=offsets, sizes=system.sizes)
    return system


def attractor(systems: Systems, draws: Tensor) -> Tensor:
    """Points of the attractors, by many walkers side by side ("chaos game").

    All walkers start at the fixed point of the first map, which lies in the attractor. In every
    step each takes map ``i`` with probability ``|det A_i| / sum |det A|``; the points after the
    burn-in are kept.

    Args:
        systems: ``b`` systems.
        draws: Uniform numbers in ``[0, 1)``, one per step and walker, ``[b, steps, walkers]``,
            with more than ``BURN_IN`` steps, on the systems' device.

    Returns:
        ``[b, (steps - BURN_IN) * walkers, 2]``.
    """
    b, steps, walkers = draws.shape
    chances = torch.linalg.det(systems.matrices).abs()
    exists = torch.arange(MAPS, device=draws.device) < systems.sizes[:, None]
    flat = chances.sum(dim=1, keepdim=True) <= 0  # every map is a line or a point
    chances = torch.where(flat, exists.to(chances.dtype), chances)
    bounds = (chances.cumsum(dim=1) / chances.sum(dim=1, keepdim=True)).contiguous()
    chosen = torch.searchsorted(bounds, draws.reshape(b, -1).contiguous(), right=True)
    chosen = torch.minimum(chosen, systems.sizes[:, None] - 1)
    table = torch.cat([systems.matrices.flatten(2), systems.offsets], dim=2).reshape(b * MAPS, 6)
    first = torch.arange(b, device=draws.device)[:, None] * MAPS
    numbers = (chosen + first).view(b, steps, walkers)
    start = fixed_point(systems.matrices[:, 0], systems.offsets[:, 0])
    x, y = (start[:, axis, None].expand(b, walkers) for axis in (0, 1))
    points = torch.empty(steps - BURN_IN, b, walkers, 2, device=draws.device)
    for step in range(steps):
        a = table[numbers[:, step]]
        x, y = (
            a[..., 0] * x + a[..., 1] * y + a[..., 4],
            a[..., 2] * x + a[..., 3] * y + a[..., 5],
        )
        if step >= BURN_IN:
            points[step - BURN_IN, ..., 0], points[step - BURN_IN, ..., 1] = x, y
    return points.transpose(0, 1).reshape(b, -1, 2)


def fixed_point(matrix: Tensor, offset: Tensor) -> Tensor:
    """``(I - A)^-1 c``, ``[b, 2]``; near a map that moves nothing, the nearest to it."""
    system = torch.eye(2, device=matrix.device) - matrix
    solution: Tensor = torch.linalg.pinv(system) @ offset[..., None]
    return solution[..., 0]


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices ``[n, 2, 2]`` of angles ``[n]`` in radians."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], dim=1)


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    """A number uniform in ``[low, high]``."""
    return low + (high - low) * float(torch.rand((), generator=rng))
