"""Pictures of attractors: hit counts, colours, backgrounds, all for many images at a time.

Letters: ``b`` images, ``s`` side in pixels. What is drawn at random comes in as uniform numbers in
``[0, 1)``, so that an image depends on its own numbers only.

Source:
    Anderson and Farrell, Improving Fractal Pre-training, WACV 2022, arXiv:2110.03091.
"""

import torch
from torch import Tensor
from torch.nn import functional


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers of ``[0, 1)`` as ones of ``[low, high)``."""
    return low + (high - low) * u


def hit_counts(points: Tensor, side: int, window: Tensor | None = None) -> Tensor:
    """How many points fall into every pixel of a window.

    The window is the bounding box of the points; ``window`` shifts its centre by up to 20 % of its
    extent and scales the extent by U(0.5, 2), per axis.

    Args:
        points: ``[b, p, 2]``, x to the right and y downwards.
        side: ``s``.
        window: Uniform numbers ``[b, 4]``, or None for the bounding box itself.

    Returns:
        Counts, ``[b, s, s]``.
    """
    low, high = points.amin(dim=1), points.amax(dim=1)
    extent = (high - low).clamp(min=1e-6)
    centre = (low + high) / 2
    if window is not None:
        centre = centre + between(window[:, :2], -0.2, 0.2) * extent
        extent = extent * between(window[:, 2:], 0.5, 2.0)
    # the far edge of the box belongs to the last pixel
    scaled = (points - (centre - extent / 2)[:, None]) / extent[:, None] * (side * (1 - 1e-6))
    inside = ((scaled >= 0) & (scaled < side)).all(dim=2)
    pixels = scaled.clamp(0, side - 1).long()
    flat = pixels[..., 1] * side + pixels[..., 0]
    counts = torch.zeros(len(points), side * side, device=points.device)
    counts.scatter_add_(1, flat, inside.to(counts.dtype))
    return counts.view(-1, side, side)


def grey(counts: Tensor, patches: Tensor | None = None) -> Tensor:
    """Counts divided by the largest of the image, in ``[0, 1]``.

    Args:
        counts: ``[b, s, s]``.
        patches: Binary patches ``[b, 3, 3]`` stamped at every point instead of a pixel, or None.
    """
    if patches is not None:
        stamped = functional.conv2d(
            counts[None], patches[:, None].flip(2, 3), padding=1, groups=len(counts)
        )
        counts = stamped[0]
    return counts / counts.amax(dim=(1, 2), keepdim=True).clamp(min=1.0)


def colour(pictures: Tensor, u: Tensor) -> Tensor:
    """Grey pictures in colour, black where no point fell.

    ``hue = (255 grey + h0) mod 256`` with one ``h0``, one saturation U(0.3, 1) and one value
    U(0.5, 1) per image.

    Args:
        pictures: ``[b, s, s]`` in ``[0, 1]``.
        u: ``[b, 3]``: hue, saturation and value.

    Returns:
        RGB, ``[b, 3, s, s]``.
    """
    start, saturation, value = (u[:, i, None, None] for i in range(3))
    hue = torch.remainder(255.0 * pictures + 256.0 * start, 256.0) / 256.0
    flat = torch.ones_like(pictures)
    lit = (pictures > 0).to(pictures.dtype)
    return hsv_to_rgb(hue, between(saturation, 0.3, 1.0) * flat, between(value, 0.5, 1.0) * lit)


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB ``[b, 3, s, s]`` of hue, saturation and value in ``[0, 1]``, each ``[b, s, s]``."""
    channels = []
    for shift in (5.0, 3.0, 1.0):
        k = torch.remainder(shift + 6.0 * hue, 6.0)
        fall = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
        channels.append(value - value * saturation * fall)
    return torch.stack(channels, dim=1)


def plasma(noise: Tensor, decay: Tensor) -> Tensor:
    """Heights of a random landscape by the diamond-square algorithm, in ``[0, 1]``.

    On a grid that wraps around, the middle of every square becomes the mean of its corners plus
    noise, then the middle of every side that of its four neighbours; each halving of the squares
    multiplies the noise by ``decay``.

    Args:
        noise: Standard normal, ``[b, m, m]``; ``m`` is a power of two.
        decay: Roughness, ``[b]``.

    Returns:
        ``[b, m, m]``.
    """
    side = noise.shape[1]
    height = torch.zeros_like(noise)
    height[:, 0, 0] = noise[:, 0, 0]
    step, scale = side, torch.ones_like(decay)[:, None, None]
    while step > 1:
        half = step // 2
        scale = scale * decay[:, None, None]
        corner = height[:, ::step, ::step]
        across = corner + corner.roll(-1, 1)
        middle = (across + across.roll(-1, 2)) / 4 + scale * noise[:, half::step, half::step]
        height[:, half::step, half::step] = middle
        upright = (corner + corner.roll(-1, 1) + middle + middle.roll(1, 2)) / 4
        height[:, half::step, ::step] = upright + scale * noise[:, half::step, ::step]
        level = (corner + corner.roll(-1, 2) + middle + middle.roll(1, 1)) / 4
        height[:, ::step, half::step] = level + scale * noise[:, ::step, half::step]
        step = half
    low, high = height.amin(dim=(1, 2), keepdim=True), height.amax(dim=(1, 2), keepdim=True)
    return (height - low) / (high - low).clamp(min=1e-6)


def background(height: Tensor, u: Tensor) -> Tensor:
    """Colours of a landscape by random affine maps of its height.

    Hue ``U(.25, 1) height + U(0, 1)``, saturation ``U(.1, .3) height + U(.4, .6)``, value
    ``U(.3, .6) height + U(.4, .6)``, clipped to 1.

    Args:
        height: ``[b, s, s]`` in ``[0, 1]``.
        u: ``[b, 6]``, scale and shift of hue, saturation and value.

    Returns:
        RGB, ``[b, 3, s, s]``.
    """
    a, c, d, e, f, g = (u[:, i, None, None] for i in range(6))
    hue = torch.remainder(between(a, 0.25, 1.0) * height + c, 1.0)
    saturation = between(d, 0.1, 0.3) * height + between(e, 0.4, 0.6)
    value = (between(f, 0.3, 0.6) * height + between(g, 0.4, 0.6)).clamp(max=1.0)
    return hsv_to_rgb(hue, saturation, value)


def turn(images: Tensor, u: Tensor) -> Tensor:
    """Each image transposed, flipped upside down and flipped sideways with probability 1/2.

    Args:
        images: ``[b, ..., s, s]``.
        u: ``[b, 3]``.
    """
    shape = (-1,) + (1,) * (images.dim() - 1)
    transposed, down, sideways = (u[:, i].lt(0.5).view(shape) for i in range(3))
    images = torch.where(transposed, images.transpose(-1, -2), images)
    images = torch.where(down, images.flip(-2), images)
    return torch.where(sideways, images.flip(-1), images)


def blur(images: Tensor, u: Tensor) -> Tensor:
    """Each image blurred by a 3x3 Gaussian with probability 1/2, sigma U(0.5, 1) pixels.

    Args:
        images: ``[b, c, s, s]``.
        u: ``[b, 2]``: whether, and sigma.
    """
    b, channels, side, _ = images.shape
    sigma = between(u[:, 1], 0.5, 1.0)[:, None]
    offsets = torch.tensor([-1.0, 0.0, 1.0], device=images.device)
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    line = line / line.sum(dim=1, keepdim=True)
    kernels = (line[:, :, None] * line[:, None, :]).repeat_interleave(channels, dim=0)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    flat = padded.reshape(1, b * channels, side + 2, side + 2)
    blurred = functional.conv2d(flat, kernels[:, None], groups=b * channels)
    blurred = blurred.view_as(images)
    return torch.where(u[:, 0].lt(0.5).view(-1, 1, 1, 1), blurred, images)


def place(pictures: Tensor, u: Tensor) -> Tensor:
    """Pictures shrunk to 0.15 to 0.6 of the side and put anywhere, cut by half at most.

    A pixel of the shrunk picture is as bright as the brightest that it covers: a fractal is mostly
    thin lines, of which every second pixel alone would be dust.

    Args:
        pictures: ``[b, s, s]``.
        u: ``[b, 3]``: size, and place of the centre.

    Returns:
        ``[b, s, s]``, zero outside the shrunk picture.
    """
    size = between(u[:, 0], 0.15, 0.6)
    pictures = _covered(pictures, size)
    centre = 2 * u[:, 1:] - 1
    zero = torch.zeros_like(size)
    theta = torch.stack(
        [
            torch.stack([1 / size, zero, -centre[:, 0] / size], dim=1),
            torch.stack([zero, 1 / size, -centre[:, 1] / size], dim=1),
        ],
        dim=1,
    )
    images = pictures[:, None]
    shape = list(images.shape)
    grid = functional.affine_grid(theta, shape, align_corners=False)
    # the powers of two are pooled away: a pixel now covers less than two by two
    quarter = 0.5 / (pictures.shape[-1] * size)[:, None, None]
    found = torch.zeros_like(images)
    for down in (-1, 1):
        for right in (-1, 1):
            shift = torch.stack([right * quarter, down * quarter], dim=-1)
            part = functional.grid_sample(images, grid + shift, "nearest", align_corners=False)
            found = torch.maximum(found, part)
    return found[:, 0]


def _covered(pictures: Tensor, size: Tensor) -> Tensor:
    """Each picture pooled by the largest power of two that shrinking to ``size`` allows."""
    side = pictures.shape[-1]
    shrunk = pictures
    for factor in (2, 4):
        pooled = functional.max_pool2d(pictures[:, None], factor, ceil_mode=True)
        grown = pooled.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        small = (size * factor <= 1)[:, None, None]
        shrunk = torch.where(small, grown[:, 0, :side, :side], shrunk)
    return shrunk
