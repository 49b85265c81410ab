"""Server side of the discrete key-value bottleneck: shared keys, merged rows of values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Field, Form, fields_of
from fedsim.functional.codebooks import Cells, Codebooks, average, draw_cells, revive
from fedsim.functional.keyvalue import most_fetched
from fedsim.functional.rows import MERGES, Merge, RowUpdate, merge_rows
from fedsim.sampling import Sampler
from fedsim.seeding import generator
from fedsim.strategy import Strategy
from fedsim.wire import Config, Upload

_HEAD = "head."


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRounds:
    """The first rounds of a run, in which keys are fitted to sums over the clients' data.

    Attributes:
        rounds: How many; ``0`` leaves the keys as the clients make them from seed or public data.
        decay: Of the moving average over rounds; ``0`` makes each round a step of k-means over all
            clients' data.
        dead_share: A key used by less than this share of the mean is drawn anew from the cells.
    """

    rounds: int = 0
    decay: float = 0.0
    dead_share: float = 0.1

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"strategy.keys.rounds must be 0 or more, got {self.rounds}")
        if not 0.0 <= self.decay < 1.0 or self.dead_share < 0.0:
            raise ValueError(
                "strategy.keys.decay must lie in [0, 1) and dead_share be 0 or more, got"
                f" {self.decay} and {self.dead_share}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearning:
    """A class to be forgotten in the last round, by masking pairs; nothing is trained for it.

    Attributes:
        label: The class.
        pairs: Pairs of every codebook to mask, those its examples fetched most.
    """

    label: int
    pairs: int = 1

    def __post_init__(self) -> None:
        if self.label < 0 or self.pairs < 1:
            raise ValueError(
                "strategy.unlearning needs a label of at least 0 and at least 1 pair, got"
                f" {self.label} and {self.pairs}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueState:
    """What the server holds.

    Attributes:
        values: ``[R, v]``.
        counts: Fetches of every row in training, over all clients and rounds, ``[R]``.
        masked: Rows that nobody may fetch, bool ``[R]``.
        books: Keys and their averages.
        holders: Clients that have the fitted keys.
        decoder: The decoder's tensors; empty for votes.
    """

    values: Tensor
    counts: Tensor
    masked: Tensor
    books: Codebooks
    holders: frozenset[int]
    decoder: Params


class DKVB(Strategy[KeyValueState]):
    """Merges the rows of values that clients touched; all others keep their bits.

    Clients download the rows that anybody has touched, and the keys once if the server fitted
    them. ``num_clients=1`` is the central method.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        merge: ``count_weighted``, ``sum`` or ``fedavg``, see
            :func:`fedsim.functional.rows.merge_rows`.
        keys: The key rounds.
        unlearning: A class to forget, or None.
        seed: Of the draws that replace dead keys.

    Source:
        Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240, for the method;
        Shah et al., Unlearning via Sparse Representations, 2023, arXiv:2311.15268, for masking.
        The federated form is ours.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        merge: Merge = "count_weighted",
        keys: KeyRounds,
        unlearning: Unlearning | None = None,
        seed: int,
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if merge not in MERGES:
            raise ValueError(f"strategy.merge must be one of {', '.join(MERGES)}, got {merge!r}")
        self._merge = merge
        self._keys = keys
        self._unlearning = unlearning
        self._seed = seed
        self._encoded: tuple[KeyValueState, Records] | None = None

    def init(self, params: Params) -> KeyValueState:
        """See :meth:`Strategy.init`.

        Raises:
            ValueError: If the model's head is no key-value bottleneck.
        """
        head = {n.removeprefix(_HEAD): t for n, t in params.items() if n.startswith(_HEAD)}
        if "values" not in head or "keys" not in head:
            raise ValueError("strategy=dkvb needs head=keyvalue")
        keys = head["keys"]
        empty = torch.zeros(keys.shape[:2], dtype=keys.dtype)
        return KeyValueState(
            values=head["values"],
            counts=head["counts"],
            masked=head["masked"],
            books=Codebooks(keys=keys, sums=torch.zeros_like(keys), counts=empty),
            holders=frozenset(),
            decoder={
                n.removeprefix("decoder."): t for n, t in head.items() if n.startswith("decoder.")
            },
        )

    def config(self, tick: Tick) -> Config:
        """What the round is for."""
        phase = self.phase(tick)
        if phase == "unlearn" and self._unlearning is not None:
            return {"phase": phase, "unlearn-class": self._unlearning.label}
        return {"phase": phase}

    def phase(self, tick: Tick) -> str:
        """``keys``, ``values`` or, in the last round and if a class is to go, ``unlearn``."""
        if tick.round <= self._keys.rounds:
            return "keys"
        clock, _ = self._bound()
        if self._unlearning is not None and tick.round == clock.num_rounds:
            return "unlearn"
        return "values"

    def payload(self, tick: Tick, state: KeyValueState, client_id: int | None) -> Records:
        """Touched rows and masks; keys for those who lack them."""
        if self._encoded is None or self._encoded[0] is not state:
            self._encoded = state, self._encode(state)
        records = dict(self._encoded[1])
        fitting = tick.round <= self._keys.rounds
        if self._keys.rounds == 0 or (client_id in state.holders and not fitting):
            del records["keys"]
        return records

    def aggregate(
        self, tick: Tick, state: KeyValueState, uploads: Iterable[Upload]
    ) -> KeyValueState:
        """Move the keys, merge the rows or mask those of a class, as the round asks."""
        phase = self.phase(tick)
        if phase == "keys":
            return self._move_keys(tick, state, uploads)
        if phase == "unlearn":
            return self._mask(state, uploads)
        counts = state.counts.clone()
        holders = set(state.holders)
        decoders: list[tuple[float, Params]] = []

        def updates() -> Iterator[RowUpdate]:
            for upload in uploads:
                rows = upload.records["rows"]
                counts.index_add_(0, rows["indices"], rows["counts"].to(counts.dtype))
                holders.add(upload.client_id)
                if "decoder" in upload.records:
                    decoders.append((upload.num_examples, upload.records["decoder"]))
                yield RowUpdate(
                    indices=rows["indices"],
                    deltas=rows["deltas"],
                    counts=rows["counts"],
                    num_examples=upload.num_examples,
                )

        values = merge_rows(state.values, updates(), self._merge)
        return replace(
            state,
            values=values,
            counts=counts,
            holders=frozenset(holders),
            decoder=_mean(decoders) if decoders else state.decoder,
        )

    def expects(self, tick: Tick, state: KeyValueState, upload: Upload) -> Sequence[Form]:
        """What the round is for, with row numbers that the table has."""
        del upload
        indices = Field(torch.int64, ("m",), low=0, high=len(state.values) - 1)
        counts, phase = Field(int, ("m",), low=0), self.phase(tick)
        if phase == "unlearn":
            return [Form(records={"fetched": {"indices": indices, "counts": counts}})]
        if phase == "keys":
            heads, weights = ("m", state.books.keys.shape[2]), Field(float, ("m",), low=0)
            moments = {"sums": Field(float, heads), "squares": Field(float, heads, low=0)}
            return [Form(records={"cells": {"indices": indices, "counts": weights, **moments}})]
        deltas = Field(state.values.dtype, ("m", *state.values.shape[1:]))
        records = {"rows": {"indices": indices, "deltas": deltas, "counts": counts}}
        decoder = {"decoder": fields_of(state.decoder)}
        return [Form(records={**records, **decoder}, optional=frozenset(decoder))]

    def shared(self, state: KeyValueState) -> Params:
        """See :meth:`Strategy.shared`."""
        return {
            "head.values": state.values,
            "head.counts": state.counts,
            "head.masked": state.masked,
            "head.keys": state.books.keys,
            **{f"head.decoder.{name}": tensor for name, tensor in state.decoder.items()},
        }

    def measures(self, state: KeyValueState) -> dict[str, float]:
        """Shares of the rows that were ever fetched and that are masked."""
        return {
            "rows_used": float((state.counts > 0).float().mean()),
            "rows_masked": float(state.masked.float().mean()),
        }

    def _encode(self, state: KeyValueState) -> Records:
        indices = (state.counts > 0).nonzero().flatten()
        records: Records = {
            "keys": {"keys": state.books.keys},
            "values": {
                "indices": indices,
                "values": state.values[indices],
                "counts": state.counts[indices],
            },
        }
        if bool(state.masked.any()):
            records["masked"] = {"indices": state.masked.nonzero().flatten()}
        if state.decoder:
            records["decoder"] = state.decoder
        return records

    def _move_keys(
        self, tick: Tick, state: KeyValueState, uploads: Iterable[Upload]
    ) -> KeyValueState:
        """One step of the keys from the sums of all clients."""
        books = state.books
        codebooks, pairs, size = books.keys.shape
        counts = torch.zeros(codebooks * pairs)
        sums, squares = torch.zeros(len(counts), size), torch.zeros(len(counts), size)
        for upload in uploads:
            part = upload.records["cells"]
            counts.index_add_(0, part["indices"], part["counts"])
            sums.index_add_(0, part["indices"], part["sums"])
            squares.index_add_(0, part["indices"], part["squares"])
        shape = books.keys.shape
        cells = Cells(
            counts=counts.view(shape[:2]), sums=sums.view(shape), squares=squares.view(shape)
        )
        books = average(books, cells, self._keys.decay)
        rng = generator(self._seed, "key revival", tick.round)
        threshold = self._keys.dead_share * float(cells.counts[0].sum()) / pairs
        return replace(state, books=revive(books, draw_cells(cells, pairs, rng), threshold))

    def _mask(self, state: KeyValueState, uploads: Iterable[Upload]) -> KeyValueState:
        """Mask the pairs that the examples of the class to forget fetched most."""
        if self._unlearning is None:
            raise RuntimeError("no class to forget is configured")
        fetched = torch.zeros(len(state.counts), dtype=torch.int64)
        for upload in uploads:
            part = upload.records["fetched"]
            fetched.index_add_(0, part["indices"], part["counts"])
        mask = most_fetched(fetched, state.books.keys.shape[0], self._unlearning.pairs)
        return replace(state, masked=state.masked | mask)


def _mean(weighted: list[tuple[float, Params]]) -> Params:
    """Example-weighted mean of the clients' tensors."""
    total = sum(n for n, _ in weighted)
    parts = [(n / total, params) for n, params in weighted]
    return {n: torch.stack([p[n] * share for share, p in parts]).sum(0) for n in weighted[0][1]}
