"""FED-PUB's server: every client gets its own mean, weighted by what the models do alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Field, Form, fields_of
from fedsim.functional.packing import kept_entries, packed_size, unpack
from fedsim.functional.similarity import cosine_similarity, mix, similarity_weights
from fedsim.matrices import Matrix
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class FedPubState:
    """What the server holds.

    Attributes:
        shared: Plain mean of the last round's models; for clients that have not taken part yet.
        personal: Every client's own mean, of the round it last took part in.
        cohort: Clients of the last round.
        similarity: Cosines between their embeddings, ``[C, C]``.
        weights: The weights that follow, ``[C, C]``.
        mask_zeros: Mean share of mask entries that count as zero; None where clients do not say.
    """

    shared: Params
    personal: Mapping[int, Params]
    cohort: tuple[int, ...] = ()
    similarity: Tensor | None = None
    weights: Tensor | None = None
    mask_zeros: float | None = None


class FedPub(Strategy[FedPubState]):
    """Aggregates the models of a round once per client, by similarity of their embeddings.

    ``W_i = sum_j a_ij W_j`` with ``a_ij`` proportional to ``exp(scale * cos(e_i, e_j))`` over the
    clients of the round. The server keeps one model per client that ever took part.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        scale: The paper's ``tau``; 0 gives everybody the plain mean.

    Raises:
        ValueError: If ``scale`` is negative.

    Source:
        Baek et al., Personalized Subgraph Federated Learning, ICML 2023, arXiv:2206.10206. As in
        its code, clients weigh the same whatever their data; masks are not sent, as they need not
        be.
    """

    personal = True

    def __init__(
        self, *, sampler: Sampler, evaluation_sampler: Sampler, scale: float = 3.0
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if scale < 0:
            raise ValueError(f"strategy.scale must be 0 or more, got {scale}")
        self._scale = scale

    def init(self, params: Params) -> FedPubState:
        """See :meth:`Strategy.init`."""
        return FedPubState(shared=params, personal={})

    def payload(self, tick: Tick, state: FedPubState, client_id: int | None) -> Records:
        """The client's own mean; the plain one if it has none."""
        del tick
        if client_id is None:
            return {"arrays": state.shared}
        return {"arrays": state.personal.get(client_id, state.shared)}

    def aggregate(self, tick: Tick, state: FedPubState, uploads: Iterable[Upload]) -> FedPubState:
        """One mean for every client of the round, and the plain one."""
        del tick
        kept = list(uploads)
        cohort = tuple(upload.client_id for upload in kept)
        embeddings = torch.stack([upload.records["embedding"]["mean"] for upload in kept])
        weights = similarity_weights(embeddings, self._scale)
        models = [_model(u, state.personal.get(u.client_id, state.shared)) for u in kept]
        # the plain mean is one more client's
        rows = torch.cat([weights, torch.full((1, len(kept)), 1.0 / len(kept))])
        mixed: list[Params] = [{} for _ in rows]
        for name in state.shared:
            stacked = torch.stack([model[name] for model in models])
            exact = stacked if stacked.is_floating_point() else stacked.double()
            for params, tensor in zip(mixed, mix(rows, exact).to(stacked.dtype), strict=True):
                params[name] = tensor
        zeros = [z for u in kept if isinstance(z := u.metrics.get("mask_zeros"), float)]
        return FedPubState(
            shared=mixed[-1],
            personal={**state.personal, **dict(zip(cohort, mixed[:-1], strict=True))},
            cohort=cohort,
            similarity=cosine_similarity(embeddings),
            weights=weights,
            mask_zeros=sum(zeros) / len(zeros) if zeros else None,
        )

    def expects(self, tick: Tick, state: FedPubState, upload: Upload) -> Sequence[Form]:
        """A model and an embedding; or, packed, the entries that count."""
        del tick
        embedding = {"mean": Field(float, ("D",))}
        whole = fields_of(state.shared)
        forms = [Form(records={"arrays": whole, "embedding": embedding})]
        if "bits" in upload.records:
            bits = {n: b for n, b in upload.records["bits"].items() if n in state.shared}
            sent = {name: state.shared[name] for name in bits}
            forms.append(
                Form(
                    records={
                        "dense": {n: field for n, field in whole.items() if n not in bits},
                        "bits": {n: Field(torch.uint8, (packed_size(t),)) for n, t in sent.items()},
                        "values": {
                            n: Field(t.dtype, (kept_entries(bits[n], t),)) for n, t in sent.items()
                        },
                        "embedding": embedding,
                    }
                )
            )
        return forms

    def shared(self, state: FedPubState) -> Params:
        """See :meth:`Strategy.shared`."""
        return state.shared

    def measures(self, state: FedPubState) -> dict[str, float]:
        """A client's mean weight in its own model, and the share of masks that count as zero."""
        measures = {}
        if state.weights is not None:
            measures["own_weight"] = float(state.weights.diagonal().mean())
        if state.mask_zeros is not None:
            measures["mask_zeros"] = state.mask_zeros
        return measures

    def matrices(self, state: FedPubState) -> dict[str, Matrix]:
        """``similarity``: the cosines between the clients of the round."""
        if state.similarity is None:
            return {}
        return {"similarity": Matrix(clients=state.cohort, values=state.similarity)}


def _model(upload: Upload, sent: Params) -> Params:
    """The client's tensors; entries that it left out are as they were sent to it."""
    if "arrays" in upload.records:
        return upload.records["arrays"]
    bits, values = upload.records["bits"], upload.records["values"]
    return {
        **upload.records["dense"],
        **{name: unpack(bits[name], values[name], sent[name]) for name in bits},
    }
