"""The discrete key-value bottleneck as the head of a frozen encoder."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fedsim.backbones.keyvalue_options import KeyFitting, Lookup, Readout, ValueStart
from fedsim.functional.codebooks import fit_codebooks
from fedsim.functional.keyvalue import (
    add_columns,
    chunk,
    fetch,
    fetch_counts,
    gaussian_projections,
    nearest_pairs,
    project,
    to_rows,
    to_tokens,
    vote,
)
from fedsim.seeding import generator

HIDDEN = 128  # width of the mlp decoder, as in the paper's code


class KeyValueHead(nn.Module):
    """Frozen projections and keys, trainable values.

    Projections, standard normal keys and the decoder are drawn from ``seed``: processes with the
    same seed build the same. Counting and masking are state of the head: ``counts`` says how often
    training fetched every row, ``masked`` which rows are never fetched (unlearning).

    Args:
        num_features: Width ``d`` of the features.
        num_classes: ``K``.
        lookup: How features find pairs.
        readout: How values become logits.
        seed: Of everything that is drawn.

    Shapes:
        - **input:** features ``[n, d]``.
        - **output:** logits ``[n, K]``.

    Source:
        Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240.
    """

    projections: Tensor
    keys: Tensor
    counts: Tensor
    masked: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        lookup: Lookup,
        readout: Readout,
        seed: int,
    ) -> None:
        super().__init__()
        self.lookup, self.readout, self.seed = lookup, readout, seed
        books, key_size = lookup.codebooks, lookup.key_size
        if num_features % lookup.tokens:
            raise ValueError(
                f"{num_features} features cannot be cut into {lookup.tokens} tokens; for a feature"
                " map [c, h, w] give lookup.tokens=h*w, for pooled features 1"
            )
        width = num_features // lookup.tokens
        if lookup.projection == "chunk":
            if width % books:
                raise ValueError(
                    f"{width} features cannot be cut into {books} equal chunks; use"
                    " projection gaussian or another number of codebooks"
                )
            key_size = width // books
            projections = torch.empty(0)
        else:
            rng = generator(seed, "projections")
            projections = gaussian_projections(width, books, key_size, rng)
        keys = torch.randn(books, lookup.pairs, key_size, generator=generator(seed, "keys"))
        self.register_buffer("projections", projections)
        self.register_buffer("keys", keys)
        self.register_buffer("counts", torch.zeros(self.num_rows))
        self.register_buffer("masked", torch.zeros(self.num_rows, dtype=torch.bool))
        value_size = readout.value_size or num_classes
        table = torch.zeros(self.num_rows, value_size)
        self.values = nn.Parameter(_started(table, readout.start, generator(seed, "values")))
        self.decoder = self._decoder(books * value_size, num_classes)

    @property
    def num_rows(self) -> int:
        """Rows of the table, ``B * M``."""
        return self.lookup.codebooks * self.lookup.pairs

    def heads(self, features: Tensor) -> Tensor:
        """What every codebook sees, ``[B, n * T, q]``, the tokens of an example in a row."""
        features = to_tokens(features.flatten(1), self.lookup.tokens)
        if self.lookup.projection == "chunk":
            return chunk(features, self.lookup.codebooks)
        return project(features, self.projections)

    def allowed(self, *, only_used: bool) -> Tensor | None:
        """Pairs that may be fetched, bool ``[B, M]``; None allows all."""
        open_rows = ~self.masked
        if only_used and bool((self.counts > 0).any()):
            open_rows = open_rows & (self.counts > 0)
        shape = self.lookup.codebooks, self.lookup.pairs
        return None if bool(open_rows.all()) else open_rows.view(shape)

    @torch.no_grad()
    def rows(self, features: Tensor, *, only_used: bool = False) -> Tensor:
        """The rows that features fetch, int32 ``[n, T * B * k]``; for given keys never others.

        Args:
            features: ``[n, d]``.
            only_used: Look among the rows that training has fetched.
        """
        allowed = self.allowed(only_used=only_used)
        pairs = nearest_pairs(self.heads(features), self.keys, self.lookup.top_k, allowed)
        return to_rows(pairs, self.lookup.pairs).reshape(len(features), -1)

    def decode(self, rows: Tensor) -> Tensor:
        """Logits ``[n, K]`` of rows ``[n, T * B * k]``: all that is trained, and the fast path."""
        books, tokens, sparse = self.lookup.codebooks, self.lookup.tokens, self.readout.sparse
        if self.decoder is None:
            return vote(self.values, rows, books, tokens=tokens, sparse=sparse)
        logits: Tensor = self.decoder(fetch(self.values, rows, books, tokens=tokens, sparse=sparse))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[n, K]``; in training mode the fetches are counted."""
        rows = self.rows(features, only_used=self.lookup.only_used and not self.training)
        if self.training:
            self.count(rows)
        return self.decode(rows)

    def count(self, rows: Tensor, times: int = 1) -> None:
        """Add fetches to the counter."""
        self.counts += fetch_counts(rows, self.num_rows).to(self.counts) * times

    def reset_counts(self) -> None:
        """Forget all fetches, as at the start of training."""
        self.counts.zero_()

    @torch.no_grad()
    def fit_keys(self, features: Tensor, fitting: KeyFitting, seed: int | None = None) -> None:
        """Fit the keys to unlabelled features and freeze them; the counter starts anew.

        Args:
            features: ``[N, d]``.
            fitting: How.
            seed: Of batches and starts; None takes the head's.
        """
        root = self.seed if seed is None else seed
        keys = fit_codebooks(
            self._head_batches(features, fitting, root),
            pairs=self.lookup.pairs,
            decay=fitting.decay,
            dead_share=fitting.dead_share,
            start=fitting.start,
            rng=generator(root, "key fitting"),
        )
        self.keys.copy_(keys)
        self.reset_counts()

    def grow(self, classes: int) -> None:
        """Give the votes further classes; those known so far keep their logits.

        Raises:
            ValueError: If the decoder is not ``vote``.
        """
        if self.decoder is not None:
            raise ValueError(f"only the decoder vote can grow, not {self.readout.decoder}")
        self.values = nn.Parameter(add_columns(self.values.detach(), classes))

    def _head_batches(self, features: Tensor, fitting: KeyFitting, seed: int) -> Iterator[Tensor]:
        for epoch in range(fitting.epochs):
            order = torch.randperm(len(features), generator=generator(seed, "key batches", epoch))
            for i in range(0, len(order), fitting.batch_size):
                yield self.heads(features[order[i : i + fitting.batch_size]])

    def _decoder(self, width: int, num_classes: int) -> nn.Module | None:
        """The decoder's layers, drawn from the seed; None for votes."""
        if self.readout.decoder == "vote":
            return None
        if self.readout.decoder == "linear":
            decoder = nn.Sequential(nn.Linear(width, num_classes))
        else:
            decoder = nn.Sequential(
                nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes)
            )
        _draw(decoder.parameters(), generator(self.seed, "decoder"))
        return decoder.requires_grad_(self.readout.train_decoder)


def _started(table: Tensor, start: ValueStart, rng: torch.Generator) -> Tensor:
    """A table of zeros with its values before training."""
    if start == "uniform":
        return table.uniform_(generator=rng)
    if start == "zeros":
        return table
    return table.normal_(std=1.0 if start == "normal" else 0.001, generator=rng)


@torch.no_grad()
def _draw(parameters: Iterable[Tensor], rng: torch.Generator) -> None:
    """Torch's own initialisation of linear layers, from a generator: U(-1/sqrt(d), 1/sqrt(d))."""
    bound = 1.0
    for parameter in parameters:
        if parameter.dim() == 2:
            bound = parameter.shape[1] ** -0.5
        parameter.uniform_(-bound, bound, generator=rng)
