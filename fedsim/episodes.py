"""Episodic base training: an encoder whose class means tell unseen classes apart.

An encoder is trained once for every distinct configuration: its weights lie in ``$FEDSIM_CACHE``,
else ``~/.cache/fedsim``, under a hash of everything that decides them, in NumPy's format without
pickle. A sweep over seeds, clients or missions so trains it a single time.
"""

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedsim.data import Dataset, TensorExamples
from fedsim.features import FrozenEncoder, cache_folder, progress_bar
from fedsim.pool import ImagePool
from fedsim.seeding import derive, generator
from fedsim.training import cosine, seeded

EpisodeLoss = Callable[[Tensor, Tensor], Tensor]  # support [N, S, d], queries [N, Q, d] -> scalar
RECIPE = 1  # part of the hash; raise it when training itself changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """How an encoder is trained.

    The loss is the plain average of ``losses``. Every episode draws ``ways`` classes and of each
    ``shots + queries`` distinct images. The learning rate falls as half a cosine to zero.

    Attributes:
        losses: Each maps ``(support [N, S, d], queries [N, Q, d])`` to a scalar; see
            :mod:`fedsim.functional.metric_losses`.
        optimizer: Builds the optimiser from the parameters.
        episodes: Number of optimiser steps.
        ways: Classes of an episode.
        shots: Support images of a class.
        queries: Query images of a class.
        rotations: Turn images by 0, 90, 180 and 270 degrees and take each as a class of its own.
        precision: ``bfloat16`` runs convolutions in half precision, twice as fast on CPUs that
            have it in hardware and slower on others; ``float32`` everywhere else.
        threads: Threads of a tensor operation; does not change what is learned.
        seed: Draws initial weights and episodes.

    Source:
        Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017, arXiv:1703.05175;
        as base training of Hendryx et al., 2021, arXiv:2109.00150 (Adam, cosine).
    """

    losses: Sequence[EpisodeLoss]
    optimizer: Callable[..., Optimizer]
    episodes: int
    ways: int
    shots: int
    queries: int
    rotations: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError("losses must name at least one loss")
        for name in ("ways", "shots", "queries", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.episodes < 0:
            raise ValueError(f"episodes must be 0 or more, got {self.episodes}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")


def prototypical(
    *,
    input_shape: tuple[int, ...],
    dataset: Dataset,
    backbone: Callable[..., nn.Module],
    training: Episodes,
    num_classes: int | None = None,
    parts: Literal["train", "both"] = "train",
) -> FrozenEncoder:
    """An encoder trained on episodes, from the cache where the same one was trained before.

    Args:
        input_shape: Shape of the images it will encode; must be that of the data set.
        dataset: Images of the base classes, held in memory.
        backbone: Builds the network from ``input_shape``.
        training: How to train.
        num_classes: Train on classes ``0..num_classes-1`` only; None takes all.
        parts: Train on the training part, or on both parts of the data set.

    Raises:
        ValueError: If shapes differ or there are fewer classes than ways.
        TypeError: If the images are not held in memory.
    """
    if parts not in ("train", "both"):
        raise ValueError(f"parts must be train or both, got {parts!r}")
    examples = _tensors(dataset, parts)
    shape = tuple(examples[0].inputs.shape[1:])
    if shape != tuple(input_shape):
        raise ValueError(f"the encoder learns from shape {shape} but must encode {input_shape}")
    facts = {
        "recipe": RECIPE,
        "data": [_digest(part) for part in examples],
        "num_classes": num_classes,
        "backbone": fingerprint(backbone),
        "training": {k: v for k, v in fingerprint(training).items() if k != "threads"},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / "encoders" / f"{key}.npz"
    with seeded(derive(training.seed, "encoder")):
        net = backbone(input_shape=shape)
        if not _restore(net, path):
            pool = ImagePool(
                examples=examples,
                num_classes=num_classes,
                per_class=training.shots + training.queries,
                rotations=training.rotations,
            )
            start = time.process_time()
            loss = train(net, pool, training, title=f"base training on {dataset.name}")
            facts |= {
                "loss": None if math.isnan(loss) else loss,
                "cpu_s": round(time.process_time() - start, 1),
            }
            _save(net, path, facts)
    mean, std = examples[0].mean, examples[0].std
    return FrozenEncoder(net, label=f"prototypical {key}", mean=mean, std=std)


def started(*, input_shape: tuple[int, ...], encoder: Callable[..., FrozenEncoder]) -> nn.Module:
    """A backbone that starts from an encoder's weights and can be trained further.

    Args:
        input_shape: Shape of one example.
        encoder: Builds the encoder from ``input_shape``; its normalisation is the data set's.
    """
    net: nn.Module = encoder(input_shape=input_shape).net
    return net.requires_grad_(True)


def train(net: nn.Module, pool: ImagePool, training: Episodes, *, title: str = "") -> float:
    """Train the network in place; returns the mean loss of the last tenth of the episodes.

    Raises:
        ValueError: If the pool has fewer classes than an episode.
    """
    if len(pool) < training.ways:
        raise ValueError(
            f"an episode has {training.ways} ways, but there are {len(pool)} classes with enough"
            " images; use fewer ways or rotations=true"
        )
    rng = generator(training.seed, "episodes")
    optimizer = training.optimizer(net.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    recent: list[float] = []
    net.train()
    with _threads(training.threads), progress_bar(title, training.episodes) as advance:
        for number in range(training.episodes):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(number / training.episodes)
            loss = _episode(net, pool, training, rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            recent = [*recent, loss.item()][-max(training.episodes // 10, 1) :]
            advance(1)
    net.eval()
    return sum(recent) / len(recent) if recent else math.nan


def fingerprint(value: Any) -> Any:
    """The value as JSON that differs when what it builds does; functions go by their full name."""
    if isinstance(value, partial):
        return {"of": fingerprint(value.func), **fingerprint(dict(value.keywords))}
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: fingerprint(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(k): fingerprint(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(v) for v in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _episode(net: nn.Module, pool: ImagePool, training: Episodes, rng: torch.Generator) -> Tensor:
    images = pool.draw(training.ways, rng)
    batch = pool.prepare(images)
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    half = training.precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        embeddings = net(batch)
    embeddings = embeddings.float().unflatten(0, images.shape[:2])
    support, queries = embeddings[:, : training.shots], embeddings[:, training.shots :]
    terms = [loss(support, queries) for loss in training.losses]
    return torch.stack(terms).mean()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(dataset: Dataset, parts: str) -> list[TensorExamples]:
    chosen = [dataset.train] if parts == "train" else [dataset.train, dataset.test]
    tensors = [part for part in chosen if isinstance(part, TensorExamples)]
    if len(tensors) < len(chosen):
        raise TypeError(
            f"base training needs images held in memory; those of {dataset.name} are not"
        )
    return tensors


def _digest(examples: TensorExamples) -> str:
    sha = hashlib.sha256(f"{examples.mean} {examples.std}".encode())
    for tensor in (examples.inputs, examples.targets):
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _restore(net: nn.Module, path: Path) -> bool:
    """Load weights that were saved; False if there are none."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as saved:
        net.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved.files})
    return True


def _save(net: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """Write weights whole or not at all; a folder that cannot be written keeps none."""
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    except OSError:
        return
    with os.fdopen(handle, "wb") as file:
        np.savez(file, allow_pickle=False, **weights)
    os.replace(part, path)
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
