"""Plain averaging with a choice of weights."""

from collections.abc import Iterable, Sequence

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Form, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.metrics import Weighting
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload


class Mean(Strategy[Params]):
    """The mean of the clients' models.

    With ``examples`` it is Flower's ``FedAvg``; with ``clients`` it is what FED-PUB's reference
    code calls federated averaging, where every client reports one example: its graph.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        weighting: ``examples`` weighs clients by their training examples, ``clients`` equally.

    Raises:
        ValueError: If ``weighting`` is unknown.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
        AISTATS 2017, arXiv:1602.05629.
    """

    def __init__(
        self, *, sampler: Sampler, evaluation_sampler: Sampler, weighting: Weighting = "examples"
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        self._by_examples = by_examples(weighting)

    def init(self, params: Params) -> Params:
        """See :meth:`Strategy.init`."""
        return params

    def payload(self, tick: Tick, state: Params, client_id: int | None) -> Records:
        """The mean, for everybody."""
        del tick, client_id
        return {"arrays": state}

    def aggregate(self, tick: Tick, state: Params, uploads: Iterable[Upload]) -> Params:
        """The new mean."""
        del tick, state
        return weighted_mean(
            (upload.num_examples if self._by_examples else 1, upload.records["arrays"])
            for upload in uploads
        )

    def expects(self, tick: Tick, state: Params, upload: Upload) -> Sequence[Form]:
        """A model like the mean."""
        del tick, upload
        return [Form(records={"arrays": fields_of(state)})]

    def shared(self, state: Params) -> Params:
        """See :meth:`Strategy.shared`."""
        return state


def by_examples(weighting: Weighting) -> bool:
    """Whether clients weigh by their examples.

    Raises:
        ValueError: If the word is neither ``examples`` nor ``clients``.
    """
    if weighting not in ("examples", "clients"):
        raise ValueError(f"strategy.weighting must be examples or clients, got {weighting!r}")
    return weighting == "examples"
