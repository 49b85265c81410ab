"""Averaging a part of the model; the rest never leaves the clients."""

from collections.abc import Iterable, Sequence

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Form, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.metrics import Weighting
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Upload
from strategies.mean import by_examples


class FedPer(Strategy[Params]):
    """Averages the tensors whose names do not begin with one of ``private``.

    The record ``base`` holds the shared tensors in both directions. With ``private: ['']`` nothing
    is shared and every client learns alone.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        private: Beginnings of the names of private tensors, e.g. ``head.``.
        weighting: ``examples`` weighs clients by their training examples, ``clients`` equally.

    Raises:
        ValueError: If ``weighting`` is unknown.

    Source:
        Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv:1912.00818.
    """

    personal = True

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        private: Sequence[str] = ("head.",),
        weighting: Weighting = "examples",
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        self._private = tuple(private)
        self._by_examples = by_examples(weighting)

    def init(self, params: Params) -> Params:
        """The shared tensors.

        Raises:
            ValueError: If a beginning in ``private`` fits no tensor.
        """
        for prefix in self._private:
            if not any(name.startswith(prefix) for name in params):
                raise ValueError(f"strategy.private: no tensor's name begins with {prefix!r}")
        return {n: tensor for n, tensor in params.items() if not n.startswith(self._private)}

    def payload(self, tick: Tick, state: Params, client_id: int | None) -> Records:
        """The shared tensors, for everybody."""
        del tick, client_id
        return {"base": state} if state else {}

    def aggregate(self, tick: Tick, state: Params, uploads: Iterable[Upload]) -> Params:
        """The new mean of the shared tensors."""
        del tick
        if not state:
            for _ in uploads:  # replies are made when they are asked for
                pass
            return state
        return weighted_mean(
            (upload.num_examples if self._by_examples else 1, upload.records["base"])
            for upload in uploads
        )

    def expects(self, tick: Tick, state: Params, upload: Upload) -> Sequence[Form]:
        """The shared tensors; no record where nothing is shared."""
        del tick, upload
        return [Form(records={"base": fields_of(state)} if state else {})]

    def shared(self, state: Params) -> Params:
        """See :meth:`Strategy.shared`."""
        return state
