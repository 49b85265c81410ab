import pytest
import torch

from fedsim.clock import Clock
from fedsim.sampling import Uniform
from fedsim.wire import Upload
from strategies.gcfl import GCFL
from strategies.mean import Mean

CLOCK = Clock(num_experiences=1, rounds_per_experience=20)
SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
PARAMS = {"w": torch.zeros(2), "b": torch.zeros(1)}
LEFT, RIGHT = [1.0, 0.1], [-1.0, 0.1]


def upload(client, w, b=0.0):
    arrays = {"w": torch.tensor(w), "b": torch.tensor([b])}
    return Upload(client_id=client, num_examples=client + 1, records={"arrays": arrays})


def tense(strategy, state, round_=1):
    """Clients 0 and 2 pull one way, 1 and 3 the other."""
    moved = [upload(c, [v + s for v, s in zip(_base(strategy, state, c), side, strict=True)])
             for c, side in enumerate((LEFT, RIGHT, LEFT, RIGHT))]  # fmt: skip
    return strategy.aggregate(CLOCK.at(round_), state, iter(moved))


def _base(strategy, state, client):
    return strategy.payload(CLOCK.at(1), state, client)["arrays"]["w"].tolist()


def test_clients_that_pull_apart_are_averaged_apart():
    strategy = GCFL(**SAMPLERS, warmup=0, smallest=2)
    state = tense(strategy, strategy.init(PARAMS))
    assert sorted(c.clients for c in state.clusters) == [(0, 2), (1, 3)]
    assert _base(strategy, state, 0) == pytest.approx(LEFT)
    assert _base(strategy, state, 3) == pytest.approx(RIGHT)
    assert strategy.shared(state)["w"].tolist() == pytest.approx([0.0, 0.1])
    assert strategy.measures(state)["clusters"] == 2


@pytest.mark.parametrize(
    "options",
    [{"warmup": 1}, {"smallest": 5}, {"mean_below": 0.05}, {"largest_above": 1.5}],
)
def test_without_a_reason_to_split_it_is_the_mean(options):
    strategy = GCFL(**SAMPLERS, **{"warmup": 0, "smallest": 2, **options})
    state = tense(strategy, strategy.init(PARAMS))
    assert [c.clients for c in state.clusters] == [(0, 1, 2, 3)]
    plain = Mean(**SAMPLERS, weighting="clients")
    uploads = [upload(c, side) for c, side in enumerate((LEFT, RIGHT, LEFT, RIGHT))]
    mean = plain.aggregate(CLOCK.at(1), PARAMS, uploads)
    assert torch.equal(strategy.payload(CLOCK.at(1), state, 0)["arrays"]["w"], mean["w"])


def test_clusters_only_get_smaller_and_keep_their_models_while_absent():
    strategy = GCFL(**SAMPLERS, warmup=0, smallest=2)
    state = tense(strategy, strategy.init(PARAMS))
    kept = state.of(1).params
    state = strategy.aggregate(CLOCK.at(2), state, [upload(0, [5.0, 0.0]), upload(2, [5.0, 0.0])])
    assert state.of(1).params is kept
    assert _base(strategy, state, 2) == [5.0, 0.0]


def test_newcomers_join_the_largest_cluster():
    strategy = GCFL(**SAMPLERS, warmup=0, smallest=2)
    state = strategy.init(PARAMS)
    assert _base(strategy, state, 9) == [0.0, 0.0]
    state = strategy.aggregate(CLOCK.at(1), state, [upload(c, LEFT) for c in range(3)])
    state = strategy.aggregate(CLOCK.at(2), state, [upload(9, LEFT)])
    assert state.of(9).clients == (0, 1, 2, 9)


def test_updates_that_agree_have_a_share_of_one():
    strategy = GCFL(**SAMPLERS, warmup=0)
    state = strategy.aggregate(
        CLOCK.at(1), strategy.init(PARAMS), [upload(c, LEFT) for c in (0, 1)]
    )
    assert strategy.measures(state)["mean_share"] == pytest.approx(1.0)
    assert len(state.clusters) == 1


def test_impossible_arguments_are_refused():
    for wrong in ({"mean_below": -1.0}, {"smallest": 1}, {"warmup": -1}):
        with pytest.raises(ValueError, match="strategy"):
            GCFL(**SAMPLERS, **wrong)
