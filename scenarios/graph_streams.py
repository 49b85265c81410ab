"""When the nodes of a client arrive: at once, class by class, or chunk by chunk."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Indices
from fedsim.seeding import numpy_generator
from scenarios.graph_data import GraphDataset

Visible = Literal["all", "seen"]


class GraphStream(ABC):
    """Which experience every node of a client belongs to.

    Attributes:
        visible: ``all``: every experience shows the client's whole subgraph, and only its own
            nodes are trained and tested. ``seen``: the subgraph holds the nodes of the
            experiences that the client has met so far and the links among them, so it grows.
    """

    visible: Visible = "all"

    @abstractmethod
    def arrivals(
        self, dataset: GraphDataset, nodes: Indices, client_id: int, num_experiences: int, seed: int
    ) -> Indices:
        """Experience of each of the client's nodes, in ``[0, num_experiences)``.

        Args:
            dataset: The graph.
            nodes: The client's nodes, ``[n]``.
            client_id: The client.
            num_experiences: Length of the stream ``E``.
            seed: Seed of the run.

        Raises:
            ValueError: If there cannot be so many experiences.
        """

    def task_classes(self, dataset: GraphDataset, num_experiences: int, seed: int) -> Tensor | None:
        """See :attr:`fedsim.scenario.Scenario.task_classes`; None unless a stream tells tasks."""
        del dataset, num_experiences, seed
        return None


class AllAtOnce(GraphStream):
    """One experience with all nodes."""

    def arrivals(
        self, dataset: GraphDataset, nodes: Indices, client_id: int, num_experiences: int, seed: int
    ) -> Indices:
        """See :meth:`GraphStream.arrivals`."""
        del dataset, client_id, seed
        if num_experiences != 1:
            raise ValueError(
                f"all nodes arrive at once, so num_experiences must be 1, got {num_experiences};"
                " use scenario=graph_class_incremental or scenario=graph_node_arrival"
            )
        return np.zeros(len(nodes), np.int64)


class NewClasses(GraphStream):
    """Every experience brings the nodes of some classes, the same for all clients.

    The classes are split evenly; the first experiences get one more where needed.

    Args:
        class_order: ``sorted``, ``shuffled`` (from the run's seed) or a list of all classes.
        visible: See :class:`GraphStream`.
        task_labels: Whether one is told, at test time too, which experience a node belongs to.

    Raises:
        ValueError: If an argument is unknown.
    """

    def __init__(
        self,
        *,
        class_order: Literal["sorted", "shuffled"] | Sequence[int] = "shuffled",
        visible: Visible = "all",
        task_labels: bool = False,
    ) -> None:
        if isinstance(class_order, str) and class_order not in ("sorted", "shuffled"):
            raise ValueError(f"class_order must be sorted, shuffled or a list, got {class_order!r}")
        self.visible = _known(visible)
        self._class_order = class_order
        self._task_labels = task_labels

    def arrivals(
        self, dataset: GraphDataset, nodes: Indices, client_id: int, num_experiences: int, seed: int
    ) -> Indices:
        """See :meth:`GraphStream.arrivals`."""
        del client_id
        of_class = self._experience_of(dataset, num_experiences, seed)
        arrivals: Indices = of_class[dataset.data.y.numpy()[nodes]]
        return arrivals

    def task_classes(self, dataset: GraphDataset, num_experiences: int, seed: int) -> Tensor | None:
        """See :meth:`GraphStream.task_classes`."""
        if not self._task_labels:
            return None
        of_class = self._experience_of(dataset, num_experiences, seed)
        return torch.from_numpy(of_class == np.arange(num_experiences)[:, None])

    def _experience_of(self, dataset: GraphDataset, num_experiences: int, seed: int) -> Indices:
        """Experience of every class, ``[K]``."""
        num_classes = dataset.num_classes
        if not 1 <= num_experiences <= num_classes:
            raise ValueError(
                f"num_experiences must lie in [1, {num_classes}], the number of classes of"
                f" {dataset.name}; got {num_experiences}"
            )
        if self._class_order == "shuffled":
            classes = numpy_generator(seed, "classes").permutation(num_classes)
        elif self._class_order == "sorted":
            classes = np.arange(num_classes)
        else:
            classes = np.array([int(c) for c in self._class_order], np.int64)
            if not np.array_equal(np.sort(classes), np.arange(num_classes)):
                raise ValueError(
                    f"class_order must name each class 0..{num_classes - 1} once, got"
                    f" {classes.tolist()}"
                )
        experience_of = np.empty(num_classes, np.int64)
        for experience, group in enumerate(np.array_split(classes, num_experiences)):
            experience_of[group] = experience
        return experience_of


class NewNodes(GraphStream):
    """Every experience brings an equal, random share of the client's nodes.

    Args:
        visible: See :class:`GraphStream`; ``seen`` is a graph that grows.
    """

    def __init__(self, *, visible: Visible = "seen") -> None:
        self.visible = _known(visible)

    def arrivals(
        self, dataset: GraphDataset, nodes: Indices, client_id: int, num_experiences: int, seed: int
    ) -> Indices:
        """See :meth:`GraphStream.arrivals`."""
        if not 1 <= num_experiences <= len(nodes):
            raise ValueError(
                f"num_experiences must lie in [1, {len(nodes)}], the number of nodes of client"
                f" {client_id} of {dataset.name}; got {num_experiences}"
            )
        chunks = np.arange(len(nodes)) * num_experiences // len(nodes)
        return numpy_generator(seed, "arrival", client_id).permutation(chunks)


def _known(visible: Visible) -> Visible:
    if visible not in ("all", "seen"):
        raise ValueError(f"visible must be all or seen, got {visible!r}")
    return visible
