"""The workloads that fedsim and other simulators are compared on: data, model, first weights.

Nothing here but torch and NumPy: every contestant imports this in an environment of its own.

W1: 100 clients, all a round, 50 images each, small CNN (29,066 parameters), batches of 10.
W2: 50 clients, all a round, 36 vectors each, logistic regression, batches of 32 (32 and 4).
W3: 10,000 registered clients, 100 a round, 20 vectors each, logistic regression.

Federated averaging with one local epoch of plain SGD, no evaluation. All start from the weights
that the benchmark drew and wrote to a file.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

LR, SEED, CLASSES = 0.05, 0, 10
FOLDER = "FEDSIM_PEERS_FOLDER"  # names where the weights lie
ROUNDS = "FEDSIM_PEERS_ROUNDS"  # how many rounds are run


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sizes of one of the workloads above.

    Attributes:
        clients: Registered clients.
        cohort: Clients of a round.
        samples: Examples of a client.
        batch: Examples a step.
        shape: Of one example: an image for the CNN, a vector for logistic regression.
    """

    clients: int
    cohort: int
    samples: int
    batch: int
    shape: tuple[int, ...]

    @property
    def everyone(self) -> bool:
        """Whether all clients take part in every round, so that final weights can be compared."""
        return self.cohort == self.clients


WORKLOADS = {
    "W1": Workload(clients=100, cohort=100, samples=50, batch=10, shape=(1, 28, 28)),
    "W2": Workload(clients=50, cohort=50, samples=36, batch=32, shape=(64,)),
    "W3": Workload(clients=10_000, cohort=100, samples=20, batch=32, shape=(64,)),
}


def num_rounds() -> int:
    """Rounds to run."""
    return int(os.environ[ROUNDS])


def folder() -> Path:
    """Where the benchmark keeps its weights."""
    return Path(os.environ[FOLDER])


def examples(work: Workload) -> tuple[Tensor, Tensor]:
    """All clients' inputs ``[C, n, ...]`` and targets ``[C, n]``: a Gaussian blob per class."""
    rng = torch.Generator().manual_seed(SEED)
    centres = torch.randn(CLASSES, *work.shape, generator=rng)
    targets = torch.randint(CLASSES, (work.clients, work.samples), generator=rng)
    inputs = torch.randn(work.clients, work.samples, *work.shape, generator=rng)
    for own, classes in zip(inputs, targets, strict=True):
        own.add_(centres[classes], alpha=0.5)
    return inputs, targets


def cohorts(work: Workload) -> Iterator[list[int]]:
    """The clients of every round."""
    draw = random.Random(SEED)
    while True:
        yield sorted(draw.sample(range(work.clients), work.cohort))


class CNN(nn.Module):
    """Two 5x5 convolutions and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 5), nn.Conv2d(8, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 96), nn.Linear(96, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[n, 10]``."""
        maps = max_pool2d(self.conv1(inputs).relu(), 2)
        maps = max_pool2d(self.conv2(maps).relu(), 2)
        logits: Tensor = self.fc2(self.fc1(maps.flatten(1)).relu())
        return logits


class Linear(nn.Linear):
    """Logistic regression on 64 features."""

    def __init__(self) -> None:
        super().__init__(64, CLASSES)


def network(work: Workload) -> type[nn.Module]:
    """The class of the workload's model."""
    return CNN if len(work.shape) == 3 else Linear


def started(model: nn.Module) -> nn.Module:
    """The model with the first weights in it."""
    start = torch.from_numpy(np.load(folder() / "start.npy"))
    nn.utils.vector_to_parameters(start, model.parameters())
    return model


def flat(tensors: list[Tensor]) -> np.ndarray:
    """All weights behind one another."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()
