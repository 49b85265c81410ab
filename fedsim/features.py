"""Frozen encoders: data sets whose examples are features, encoded once and kept on disk.

Every client, strategy and scenario works on features as on images, since an encoded data set is a
data set. Its features lie in ``$FEDSIM_CACHE``, else ``~/.cache/fedsim``, in a memory-mapped file
named by the encoder's weights and the images' bytes: no image is encoded twice, whatever the
scenario, the seed or the number of clients.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data import Dataset, Examples, Indices, TensorExamples

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENCODE_BATCH = 32  # fastest on a CPU, where larger batches fall out of its cache
SAVE_EVERY = 64  # batches after which an interrupted encoding can be resumed


class FrozenEncoder(nn.Module):
    """A network that maps images in ``[0, 1]`` to features and is never trained.

    With ``mean`` and ``std``, grey images are repeated to as many channels as these have.

    Args:
        net: Maps normalised images to ``[n, d]``; it has an integer ``num_features``.
        label: Everything about the encoder that its weights do not say, e.g. the size to which it
            resizes images; part of the name of its features on disk.
        mean: Of every channel of the images the network was trained on, or None.
        std: Standard deviation of every channel, or None.

    Shapes:
        - **input:** ``[n, C, H, W]``.
        - **output:** ``[n, num_features]``.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        label: str,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"{label}: give both mean and std, or neither")
        # convolutions are up to three times as fast in this format on a CPU
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.label = label
        self.num_features = int(net.num_features)  # type: ignore[arg-type]
        self._moments = None if mean is None or std is None else (tuple(mean), tuple(std))

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features ``[n, d]``."""
        if self._moments is not None:
            mean, std = (torch.tensor(m, device=images.device) for m in self._moments)
            images = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.net(images)
        return features

    def digest(self) -> str:
        """A hash of weights and settings."""
        sha = hashlib.sha256(f"{self.label}|{self._moments}".encode())
        for name, tensor in self.net.state_dict().items():
            sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
            sha.update(tensor.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def encoded(
    *, dataset: Dataset, encoder: Callable[..., FrozenEncoder], device: str = "cpu"
) -> Dataset:
    """The data set with features in the place of images.

    Args:
        dataset: Images in memory; their normalisation is left to the encoder.
        encoder: Builds the encoder from ``input_shape``.
        device: Where images are encoded.

    Raises:
        TypeError: If the examples are not held as tensors.
    """
    train, test = (_tensors(part, dataset.name) for part in (dataset.train, dataset.test))
    net = encoder(input_shape=tuple(train.inputs.shape[1:]))
    digest = net.digest()

    def part(name: str, examples: TensorExamples) -> TensorExamples:
        key = hashlib.sha256(f"{digest}|{_content(examples)}".encode()).hexdigest()[:32]
        path = cache_folder() / "features" / f"{key}.npy"
        features = cached_features(net, examples, path, name, device)
        return dataclasses.replace(examples, inputs=features, mean=None, std=None)

    return dataclasses.replace(
        dataset,
        train=part(f"{dataset.name} train", train),
        test=part(f"{dataset.name} test", test),
    )


def cache_folder() -> Path:
    """``$FEDSIM_CACHE``, else ``~/.cache/fedsim``."""
    named = os.environ.get("FEDSIM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fedsim"


def cached_features(
    encoder: FrozenEncoder, examples: TensorExamples, path: Path, title: str, device: str = "cpu"
) -> Tensor:
    """Features of all examples, ``[N, d]``, memory-mapped; an interrupted encoding is resumed.

    Of several processes that ask at once, one encodes and the others wait for its file. Where the
    folder cannot be written the features stay in memory.

    Args:
        encoder: Encodes what is not on disk.
        examples: The images; ``mean`` and ``std`` are ignored.
        path: File of the features.
        title: Shown by the progress bar.
        device: Where images are encoded.
    """
    if not path.exists():
        plain = dataclasses.replace(examples, mean=None, std=None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return _encode_into(encoder.to(device), plain, None, title, device)
        with _alone(path):
            if not path.exists():  # another process may have made it meanwhile
                _encode_into(encoder.to(device), plain, path, title, device)
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal; gives what advances it."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is to be made, where the system has locks."""
    if fcntl is None:
        yield
        return
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _encode_into(
    encoder: FrozenEncoder, examples: TensorExamples, path: Path | None, title: str, device: str
) -> Tensor:
    """Encode batch by batch into a file that gets its name when it is whole, or into memory."""
    shape = len(examples.targets), encoder.num_features
    done = 0
    if path is None:
        table = np.empty(shape, np.float32)
        part = note = None
    else:
        part, note = path.with_suffix(".part.npy"), path.with_suffix(".part.json")
        done = json.loads(note.read_text()) if note.exists() and part.exists() else 0
        mode = "r+" if done else "w+"
        table = np.lib.format.open_memmap(part, mode, np.float32, shape)
    with progress_bar(f"encoding {title}", shape[0], done) as advance:
        for number, i in enumerate(range(done, shape[0], ENCODE_BATCH)):
            rows: Indices = np.arange(i, min(i + ENCODE_BATCH, shape[0]))
            table[rows] = encoder(examples.take(rows).to(device)).cpu().numpy()
            advance(len(rows))
            if note is not None and number % SAVE_EVERY == SAVE_EVERY - 1:
                table.flush()  # type: ignore[attr-defined]  # a memmap where there is a note
                note.write_text(json.dumps(i + len(rows)))
    if path is not None and part is not None and note is not None:
        table.flush()  # type: ignore[attr-defined]
        os.replace(part, path)
        note.unlink(missing_ok=True)
    return torch.from_numpy(np.asarray(table))


def _tensors(examples: Examples, name: str) -> TensorExamples:
    if not isinstance(examples, TensorExamples):
        raise TypeError(
            f"an encoder needs images held in memory; the examples of {name} are"
            f" {type(examples).__name__}; choose encoder=none"
        )
    return examples


def _content(examples: TensorExamples) -> str:
    """A hash of the images' bytes."""
    inputs = examples.inputs
    sha = hashlib.sha256(f"{inputs.dtype}|{tuple(inputs.shape)}".encode())
    for rows in inputs.split(4096):  # type: ignore[no-untyped-call]
        sha.update(rows.contiguous().numpy().tobytes())
    return sha.hexdigest()
