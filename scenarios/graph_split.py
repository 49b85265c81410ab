"""Which nodes are for training, validation and test: a property of the node, not of the client."""

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor

from fedsim.scenario import Split
from scenarios.graph_data import MASKS, GraphDataset

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
UNUSED = -1


class NodeSplit(ABC):
    """Assigns every node to a split."""

    @abstractmethod
    def roles(self, dataset: GraphDataset, draw: int) -> Tensor:
        """Position of every node's split in :data:`SPLITS`, or :data:`UNUSED`; int64 ``[N]``.

        Args:
            dataset: The graph.
            draw: Number of the split in the stream of random numbers, see
                :meth:`scenarios.graph_partition.GraphPartition.draw`.
        """


class RandomSplit(NodeSplit):
    """Uniformly random over all nodes, before they are dealt; not stratified.

    One permutation gives training, test and validation nodes, in that order.

    Args:
        train: Share of training nodes.
        test: Share of test nodes; the rest is for validation.
        seed: Seed of the stream of permutations.

    Raises:
        ValueError: If a share is negative, there are no training nodes or the sum exceeds 1.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206: shares
        of 0.2, 0.4 and 0.4, and the partitions into 5, 10 and 20 clients drawn one after another
        from seed 1234, each with the next permutation.
    """

    def __init__(self, *, train: float = 0.2, test: float = 0.4, seed: int = 1234) -> None:
        if not (0.0 < train <= 1.0 and test >= 0.0 and train + test <= 1.0 + 1e-9):
            raise ValueError(
                f"train must be positive, test 0 or more and their sum at most 1; got {train} and"
                f" {test}"
            )
        self._train = train
        self._test = test
        self._seed = seed

    def roles(self, dataset: GraphDataset, draw: int) -> Tensor:
        """See :meth:`NodeSplit.roles`."""
        num_nodes = len(dataset.data.y)
        rng = torch.Generator().manual_seed(self._seed)
        for _ in range(draw):
            torch.randperm(num_nodes, generator=rng)
        order = torch.randperm(num_nodes, generator=rng)
        train = round(num_nodes * self._train)
        test = round(num_nodes * self._test)
        roles = torch.full((num_nodes,), SPLITS.index("val"))
        roles[order[:train]] = SPLITS.index("train")
        roles[order[train : train + test]] = SPLITS.index("test")
        return roles


class OwnSplit(NodeSplit):
    """The data set's own masks; nodes in none of them are not used.

    Args:
        column: Which split, where the data set has several.
    """

    def __init__(self, *, column: int = 0) -> None:
        self._column = column

    def roles(self, dataset: GraphDataset, draw: int) -> Tensor:
        """See :meth:`NodeSplit.roles`; the same for every draw."""
        del draw
        roles = torch.full((len(dataset.data.y),), UNUSED)
        for i, name in enumerate(MASKS):
            if name not in dataset.data:
                raise ValueError(f"{dataset.name} has no {name}; use a random split")
            mask = dataset.data[name]
            masks = mask.unsqueeze(1) if mask.dim() == 1 else mask
            if not 0 <= self._column < masks.shape[1]:
                raise ValueError(
                    f"{dataset.name} has {masks.shape[1]} splits, so column must lie in"
                    f" [0, {masks.shape[1]}), got {self._column}"
                )
            roles[masks[:, self._column].bool()] = i
        return roles
