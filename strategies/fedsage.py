"""FedSage+'s server: has clients improve each other's neighbour generators, then averages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsim.arrays import Params, Records
from fedsim.clock import Tick
from fedsim.forms import Field, Fields, Form, fields_of
from fedsim.functional.params import weighted_mean
from fedsim.metrics import Weighting
from fedsim.sampling import Sampler
from fedsim.strategy import Strategy
from fedsim.wire import Config, Upload
from strategies.mean import by_examples

GENERATE, COMPARE, CLASSIFY = "generate", "compare", "classify"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedSageState:
    """What the server holds.

    Attributes:
        arrays: The global classifier.
        generators: Every client's generator, as it last sent it.
        codes: What every client's generator is to be applied to.
        gradients: Sum of the other clients' gradients of every generator, not fetched yet.
    """

    arrays: Params
    generators: Mapping[int, Params] = field(default_factory=dict)
    codes: Mapping[int, Params] = field(default_factory=dict)
    gradients: Mapping[int, Params] = field(default_factory=dict)


class FedSage(Strategy[FedSageState]):
    """Federated averaging on graphs that their owners mend with generated neighbours.

    The first ``2 * steps`` rounds improve the generators. In odd ones (``generate``) a client sends
    its generator with some noisy codes of nodes; in even ones (``compare``) every client gets all
    others' and returns, for each, the gradient of how far the generated neighbours are from its own
    nodes. The server adds the gradients of a generator up, so that its owner learns only their sum
    (with two clients: the one of the other), and hands them out in the next ``generate`` round or
    the first of the others (``classify``), which are federated averaging.

    Records down: ``arrays``; ``gradient``; ``generator.J`` and ``codes.J`` of client ``J``.
    Records up: ``generator`` and ``codes``; ``gradient.J``; ``arrays``. Features and links of
    nodes stay with the clients; gradients and codes are made from them.

    Args:
        sampler: Draws the clients that train.
        evaluation_sampler: Draws the clients that evaluate.
        steps: Steps of every generator with the help of other clients, two rounds each; 0 leaves
            generators as their owners train them.
        weighting: ``examples`` weighs clients by their training examples, ``clients`` equally.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Zhang et al., Subgraph Federated Learning with Missing Neighbor Generation, NeurIPS 2021,
        arXiv:2106.13430.
    """

    personal = True

    def __init__(
        self,
        *,
        sampler: Sampler,
        evaluation_sampler: Sampler,
        steps: int = 20,
        weighting: Weighting = "clients",
    ) -> None:
        super().__init__(sampler=sampler, evaluation_sampler=evaluation_sampler)
        if steps < 0:
            raise ValueError(f"strategy.steps must be 0 or more, got {steps}")
        self._steps = steps
        self._by_examples = by_examples(weighting)

    def init(self, params: Params) -> FedSageState:
        """See :meth:`Strategy.init`."""
        return FedSageState(arrays=params)

    def phase(self, tick: Tick) -> str:
        """What the round is for."""
        if tick.round > 2 * self._steps:
            return CLASSIFY
        return GENERATE if tick.round % 2 else COMPARE

    def config(self, tick: Tick) -> Config:
        """Tells the clients what the round is for."""
        return {"phase": self.phase(tick)}

    def payload(self, tick: Tick, state: FedSageState, client_id: int | None) -> Records:
        """The model and, by phase, the gradient of the client's generator or others' generators."""
        records: Records = {"arrays": state.arrays}
        if client_id is None:
            return records
        if self.phase(tick) == COMPARE:
            for other in sorted(state.generators.keys() - {client_id}):
                records[f"generator.{other}"] = state.generators[other]
                records[f"codes.{other}"] = state.codes[other]
        elif client_id in state.gradients:
            records["gradient"] = state.gradients[client_id]
        return records

    def expects(self, tick: Tick, state: FedSageState, upload: Upload) -> Sequence[Form]:
        """What the round is for; generators that nobody has sent yet must be alike."""
        phase = self.phase(tick)
        if phase == CLASSIFY:
            return [Form(records={"arrays": fields_of(state.arrays)})]
        if phase == COMPARE:
            others = state.generators.keys() - {upload.client_id}
            return [Form(records={f"gradient.{o}": fields_of(state.generators[o]) for o in others})]
        known = next(iter(state.generators.values()), None)
        fields = _alike(upload.records.get("generator", {})) if known is None else fields_of(known)
        codes = {"codes": Field(float, ("s", "C")), "counts": Field(int, ("s",), low=0)}
        records = {"generator": fields, "codes": codes}
        return [Form(records=records), Form(records={})]  # nothing, where nothing is generated

    def aggregate(self, tick: Tick, state: FedSageState, uploads: Iterable[Upload]) -> FedSageState:
        """New generators, sums of gradients, or the mean of the models."""
        phase = self.phase(tick)
        if phase == GENERATE:
            return _generated(state, uploads)
        if phase == COMPARE:
            return replace(state, gradients=_summed(uploads))
        present: list[int] = []

        def models() -> Iterable[tuple[float, Params]]:
            for upload in uploads:
                present.append(upload.client_id)
                yield upload.num_examples if self._by_examples else 1, upload.records["arrays"]

        arrays = weighted_mean(models())
        waiting = {c: g for c, g in state.gradients.items() if c not in present}
        return FedSageState(arrays=arrays, gradients=waiting)

    def shared(self, state: FedSageState) -> Params:
        """The global classifier."""
        return state.arrays


def _alike(params: Params) -> Fields:
    """Fields whose sizes, unknown to the server, must be the same in all uploads of a round."""
    return {
        name: Field(float, tuple(f"T{number}S{side}" for side in range(tensor.dim())))
        for number, (name, tensor) in enumerate(params.items())
    }


def _generated(state: FedSageState, uploads: Iterable[Upload]) -> FedSageState:
    """The new generators; gradients that were fetched are gone."""
    generators, codes = dict(state.generators), dict(state.codes)
    gradients = dict(state.gradients)
    for upload in uploads:
        gradients.pop(upload.client_id, None)
        if "generator" in upload.records:
            generators[upload.client_id] = upload.records["generator"]
            codes[upload.client_id] = upload.records["codes"]
    return replace(state, generators=generators, codes=codes, gradients=gradients)


def _summed(uploads: Iterable[Upload]) -> dict[int, Params]:
    """Sum over clients of the gradients of every generator, one upload in memory at a time."""
    totals: dict[int, Params] = {}
    for upload in uploads:
        for record, gradient in upload.records.items():
            owner = int(record.removeprefix("gradient."))
            if owner not in totals:
                totals[owner] = {name: tensor.clone() for name, tensor in gradient.items()}
                continue
            for name, tensor in gradient.items():
                totals[owner][name] += tensor
    return totals
