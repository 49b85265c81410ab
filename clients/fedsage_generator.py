"""The neighbour generator of FedSage+, and the graph with hidden nodes that it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data import Inputs
from fedsim.functional.neighbour_generation import reconstruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How neighbours are generated and how that is learnt.

    Attributes:
        neighbours: Largest number of generated neighbours of a node; 0 generates none, which is
            federated averaging.
        widths: Hidden layers between a code and the features of its neighbours.
        hidden: Share of a client's nodes that are hidden for the generator to find, in ``(0, 1)``.
        epochs: Steps of every client by itself, before the first exchange.
        sample: Most nodes whose codes are sent in a round.
        degree: Coefficient of the loss of the number of missing neighbours.
        features: Coefficient of the loss of their features.
        exchange: Coefficient of the sum of other clients' losses.
    """

    neighbours: int = 5
    widths: Sequence[int] = (64,)
    hidden: float = 0.3
    epochs: int = 20
    sample: int = 16
    degree: float = 1.0
    features: float = 1.0
    exchange: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.hidden < 1.0:
            raise ValueError(f"client.generation.hidden must lie in (0, 1), got {self.hidden}")
        if any(width < 1 for width in self.widths):
            raise ValueError(f"client.generation.widths must be 1 or more, got {list(self.widths)}")
        if self.sample < 1:
            raise ValueError(f"client.generation.sample must be 1 or more, got {self.sample}")
        for name in ("neighbours", "epochs", "degree", "features", "exchange"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"client.generation.{name} must be 0 or more, got {getattr(self, name)}"
                )


class FeatureGenerator(nn.Module):
    """Features of a node's neighbours from its code: linear layers, ReLU between, tanh last.

    Args:
        width: Of a code.
        hidden: Widths of the layers between.
        neighbours: Neighbours ``p`` of a node.
        num_features: Features ``D`` of a neighbour.

    Shapes:
        - **input:** ``[s, width]``.
        - **output:** ``[s, p, D]``, in ``(-1, 1)``.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], neighbours: int, num_features: int
    ) -> None:
        super().__init__()
        widths = [width, *hidden, neighbours * num_features]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self._shape = (neighbours, num_features)

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        for position, layer in enumerate(self.layers):
            codes = layer(functional.relu(codes) if position else codes)
        return torch.tanh(codes).view(-1, *self._shape)


class NeighbourGenerator(nn.Module):
    """How many neighbours every node of a graph lacks, and what they look like.

    Args:
        encoder: A graph backbone; its embeddings are the codes.
        generation: See :class:`Generation`.
        num_features: Features ``D`` of a node.

    Source:
        Zhang et al., NeurIPS 2021, arXiv:2106.13430: encoder, degree and feature generator, codes
        with N(0, 1) noise. The encoder is the run's backbone here; there is no dropout in the
        feature generator and no classification loss.
    """

    def __init__(self, encoder: Any, generation: Generation, num_features: int) -> None:
        super().__init__()
        width, self.neighbours = encoder.num_features, max(generation.neighbours, 1)
        self.encoder = encoder
        self.degree = nn.Linear(width, 1)
        self.features = FeatureGenerator(width, generation.widths, self.neighbours, num_features)

    def codes(self, graph: Inputs) -> Tensor:
        """Embeddings of all nodes, without noise, ``[m, width]``."""
        codes: Tensor = self.encoder.embed(graph)
        return codes

    def missing(self, codes: Tensor) -> Tensor:
        """Expected number of missing neighbours, ``[m]``, 0 or more."""
        return functional.relu(self.degree(codes)).squeeze(1)

    def generate(self, codes: Tensor) -> Tensor:
        """Features of neighbours, ``[m, p, D]``, other ones at every call."""
        generated: Tensor = self.features(noisy(codes))
        return generated

    def counts(self, codes: Tensor) -> Tensor:
        """Number of neighbours to generate, int64 ``[m]``, at most ``p``."""
        return self.missing(codes).round().long().clamp(max=self.neighbours)


class Lesson(NamedTuple):
    """A client's graph without the nodes that its generator is to find.

    Attributes:
        graph: The visible nodes and the links between them.
        counts: Hidden neighbours of every visible node, int64 ``[v]``.
        hidden: Features of the hidden nodes, ``[h, D]``.
        linked: Which visible node is linked to which hidden one, bool ``[v, h]``.
    """

    graph: Inputs
    counts: Tensor
    hidden: Tensor
    linked: Tensor

    def loss(self, model: NeighbourGenerator, generation: Generation) -> Tensor:
        """``degree * L_d + features * L_f`` over the visible nodes.

        ``L_d`` is the mean smooth L1 distance between predicted and true numbers of hidden
        neighbours, ``L_f`` is :func:`fedsim.functional.neighbour_generation.reconstruction`.
        """
        codes = model.codes(self.graph)
        number = functional.smooth_l1_loss(model.missing(codes), self.counts.float())
        return generation.degree * number + generation.features * self.distance(model, codes)

    def distance(self, model: NeighbourGenerator, codes: Tensor) -> Tensor:
        """``L_f`` of the visible nodes, given their codes."""
        return reconstruction(model.generate(codes), self.counts, self.hidden, self.linked)


def lesson(graph: Inputs, share: float, rng: torch.Generator) -> Lesson:
    """Hide a share of a graph's nodes, at least one and not all.

    Args:
        graph: With ``x`` and ``edge_index``.
        share: In ``(0, 1)``.
        rng: Draws the nodes.
    """
    from torch_geometric.data import Data
    from torch_geometric.utils import subgraph

    size = len(graph.x)
    number = min(max(round(share * size), 1), size - 1)
    away = torch.zeros(size, dtype=torch.bool)
    away[torch.randperm(size, generator=rng)[:number]] = True
    away = away.to(graph.x.device)
    links, _ = subgraph(~away, graph.edge_index, relabel_nodes=True, num_nodes=size)
    # where a node stands among the visible ones or among the hidden ones
    place = torch.where(away, away.cumsum(0), (~away).cumsum(0)) - 1
    source, target = graph.edge_index
    cut = ~away[source] & away[target]
    linked = torch.zeros(size - number, number, dtype=torch.bool, device=away.device)
    linked[place[source[cut]], place[target[cut]]] = True
    return Lesson(
        graph=Data(x=graph.x[~away], edge_index=links),
        counts=linked.sum(dim=1),
        hidden=graph.x[away],
        linked=linked,
    )


def noisy(codes: Tensor) -> Tensor:
    """Codes with independent N(0, 1) noise, from torch's own generator."""
    return codes + torch.randn_like(codes)
