"""Readers of the file formats that image data sets come in; a damaged file is one clear error."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.cache import Array, cached
from scenarios.locate import damaged

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Bytes of an idx file (the format of MNIST), plain or gzipped, in the shape it states.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except UNREADABLE as error:
        raise damaged(path, error) from error
    dims = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    if dims == 0 or len(raw) < 4 + 4 * dims:
        raise damaged(path, "no idx header of unsigned bytes")
    shape = tuple(np.frombuffer(raw, ">i4", dims, offset=4).tolist())
    expected = 4 + 4 * dims + int(np.prod(shape))
    if len(raw) != expected:
        raise damaged(path, f"an idx file of {expected} bytes expected, {len(raw)} found")
    return np.frombuffer(bytearray(raw), np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_npz(path: Path, *keys: str) -> list[Array]:
    """Arrays of an npz file.

    Raises:
        ValueError: If the file is damaged or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[key] for key in keys]
    except UNREADABLE as error:
        raise damaged(path, error) from error


def read_jpeg_npz(name: str, path: Path) -> NDArray[np.uint8]:
    """Images ``[N, 3, H, W]`` of an npz file with the keys ``jpeg`` and ``offsets``.

    Image ``i`` is the JPEG file in bytes ``offsets[i]..offsets[i + 1]``. Decoded once, see
    :func:`cached`.

    Raises:
        ValueError: If the file is damaged.
    """

    def decode() -> Array:
        jpeg, offsets = read_npz(path, "jpeg", "offsets")
        raw = jpeg.tobytes()
        parts = (raw[a:b] for a, b in pairwise(offsets.tolist()))
        try:
            return decode_images(parts, len(offsets) - 1)
        except UNREADABLE as error:
            raise damaged(path, error) from error

    return cached(name, path, decode)


def decode_images(files: Iterable[bytes | Path], num_images: int) -> NDArray[np.uint8]:
    """RGB images of one size, decoded to ``[N, 3, H, W]``."""
    from PIL import Image

    images: NDArray[np.uint8] | None = None
    for i, file in enumerate(files):
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        if images is None:
            images = np.empty((num_images, *pixels.shape), np.uint8)
        images[i] = pixels
    if images is None:
        raise ValueError("no images")
    return images
