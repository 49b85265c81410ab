import pytest
import torch
from torch.testing import assert_close

from clients.prototypes import Prototypes
from clients.prototypes_table import joined, overlaid
from fedsim.arrays import Params
from fedsim.backbones.vision import Conv4
from fedsim.client import Setting
from fedsim.clock import Clock, MilestoneClock
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.wire import Download
from scenarios.datasets import digits
from scenarios.missions import Mission, Missions
from tests.strategies.test_prototypes import TRAINING, run, setting, strategy

EMPTY = {
    "classes": torch.empty(0, dtype=torch.int64),
    "means": torch.empty(0, 4),
    "counts": torch.empty(0, dtype=torch.int32),
}


def table(classes, means, counts) -> Params:
    return {
        "classes": torch.tensor(classes),
        "means": torch.tensor(means),
        "counts": torch.tensor(counts, dtype=torch.int32),
    }


def download(chosen, rows=EMPTY, round_=1, client_id=0, **records):
    moment = chosen.clock.at(round_, client_id)
    return Download(client_id=client_id, tick=moment, records={"prototypes": rows, **records})


def client(chosen=None, **options):
    return Prototypes(chosen or setting(), training=TRAINING, **options)


def test_changed_rows_replace_and_new_rows_join():
    old = table([1, 4], [[1.0], [4.0]], [1, 1])
    new = overlaid(old, table([0, 4], [[9.0], [5.0]], [2, 2]))
    assert new["classes"].tolist() == [0, 1, 4]
    assert new["means"].flatten().tolist() == [9.0, 1.0, 5.0]
    assert new["counts"].tolist() == [2, 1, 2]


def test_the_clients_copy_is_the_running_mean():
    own = {"classes": torch.tensor([4, 6]), "sums": torch.tensor([[8.0], [3.0]])}
    own["counts"] = torch.tensor([2, 1], dtype=torch.int32)
    copy = joined(table([4], [[1.0]], [2]), own)
    assert copy["classes"].tolist() == [4, 6]
    assert copy["means"].flatten().tolist() == [2.5, 3.0]


def test_the_upload_is_the_missions_own_statistics_whatever_is_known():
    chosen = setting()
    rows = table([0, 5], [[9.0] * 4, [9.0] * 4], [7, 7])
    plain = client(chosen).train(download(chosen), ClientState())
    knowing = client(chosen).train(download(chosen, rows), ClientState())
    for name, tensor in plain.records["statistics"].items():
        assert torch.equal(tensor, knowing.records["statistics"][name])


def test_a_merged_mission_is_not_sent_again():
    chosen, state = setting(), ClientState()
    merged = {"position": torch.tensor(0)}
    reply = client(chosen).train(download(chosen, merged=merged), state)
    assert (reply.num_examples, reply.records) == (0, {})


def test_the_encoder_stays_in_evaluation_mode_and_unchanged():
    scenario = Missions(
        dataset=digits(),
        num_clients=2,
        num_experiences=2,
        mission=Mission(classes=3, shots=5),
        seed=0,
    )
    chosen = Setting(
        scenario=scenario,
        clock=Clock(num_experiences=2, rounds_per_experience=1),
        model=lambda: Model(Conv4(input_shape=(1, 8, 8), width=8), 10),
        seed=0,
    )
    worker = client(chosen)
    before = {name: t.clone() for name, t in worker.model.state_dict().items()}
    record = worker.train(download(chosen), ClientState()).records["statistics"]
    assert all(torch.equal(before[name], t) for name, t in worker.model.state_dict().items())
    shard = scenario.shard(0, 0, "train")
    with torch.no_grad():
        single = torch.cat([worker.model.features(x[None]) for x in shard.inputs])
    first = single[shard.targets == record["classes"][0]].sum(0)
    assert_close(record["sums"][0], first, atol=1e-5, rtol=1e-5)


def test_unknown_classes_are_errors_and_never_predicted():
    chosen = setting()
    worker = client(chosen)
    reply = worker.evaluate(download(chosen), ClientState())
    assert reply.metrics["accuracy"][0] == 0.0
    down = download(chosen, table([2], [[0.0] * 4], [1]))
    worker.load(worker.model, down, ClientState())
    batch = next(chosen.scenario.shard(0, 0, "test").batches(8))
    assert (worker.predict(worker.model, batch, down, ClientState()).argmax(1) == 2).all()


def test_clipping_bounds_what_an_example_adds():
    chosen = setting()
    record = (
        client(chosen, clip_norm=0.1).train(download(chosen), ClientState()).records["statistics"]
    )
    assert (record["sums"].norm(dim=1) <= 0.1 * record["counts"] + 1e-6).all()


def test_noise_has_the_stated_scale_and_zero_noise_is_none():
    chosen = setting(1, base_classes=11, num_experiences=2, mission={"classes": 1})
    sums = {
        noise: client(chosen, clip_norm=100.0, noise=noise)
        .train(download(chosen), ClientState())
        .records["statistics"]["sums"]
        for noise in (0.0, 0.01)
    }
    plain = client(chosen).train(download(chosen), ClientState()).records["statistics"]["sums"]
    assert torch.equal(sums[0.0], plain)
    assert 0.7 < (sums[0.01] - plain).std().item() < 1.3  # noise * clip_norm = 1, 44 numbers


def test_classes_below_the_minimum_stay_at_home():
    chosen = setting(mission={"shots": 4})
    assert (
        len(
            client(chosen, min_count=4)
            .train(download(chosen, round_=2), ClientState())
            .records["statistics"]["classes"]
        )
        == 3
    )
    assert (
        len(
            client(chosen, min_count=5)
            .train(download(chosen, round_=2), ClientState())
            .records["statistics"]["classes"]
        )
        == 0
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "mahalanobis"])
def test_every_metric_learns_the_toy(metric):
    chosen = setting(mission={"replacement": True})
    shrinkage = {"shrinkage": 0.1} if metric == "mahalanobis" else {}
    server, logs = run(chosen, metric=metric, **shrinkage)
    final = logs[-1].evaluations[0].metrics["accuracy"]
    assert sum(final) / len(final) > 0.9
    assert (server.state.outer is not None) == (metric == "mahalanobis")


def test_full_shrinkage_predicts_like_euclidean():
    results = []
    for options in ({}, {"metric": "mahalanobis", "shrinkage": 1.0}):
        _, logs = run(setting(), **options)
        results.append(logs[-1].evaluations[2].metrics["accuracy"])
    assert results[0] == results[1]


def test_clients_know_the_servers_table_when_they_evaluate():
    """Rows that changed reach a client that has older ones."""
    chosen = setting()
    _, logs = run(chosen)
    server = strategy()
    _, again = run(chosen, server)
    worker = client(chosen)
    full = download(chosen, server.payload(None, server.state, None)["prototypes"], round_=4)
    expected = worker.evaluate(full, ClientState()).metrics["accuracy"]
    assert logs[-1].evaluations[0].metrics["accuracy"] == pytest.approx(expected, nan_ok=True)
    assert again[-1].download_bytes["prototypes"] > 0


def test_the_copy_is_tested_before_the_merge():
    _, logs = run(setting(mission={"replacement": True}, evaluation_points=True))
    measures = logs[-1].measures
    for name in ("before/base", "before/field", "before/mission", "before/mean"):
        assert 0.5 < measures[name] <= 1.0
    assert measures["before/mission_among_mission"] >= measures["before/mission"]
    assert measures["update_s_per_class"] > 0


def before_by_round(clock):
    _, logs = run(setting(clock=clock, mission={"replacement": True}, evaluation_points=True))
    found = {}
    for log in logs:
        values = {n: v for n, v in log.measures.items() if n.startswith("before/")}
        if values:
            found[log.tick.round] = values
    return found


@pytest.mark.parametrize(
    ("clock", "rounds"),
    [
        (Clock(num_experiences=4, rounds_per_experience=3), [1, 4, 7, 10]),
        (Clock(num_experiences=4, rounds_per_experience=3, evaluate_every=2), [1, 4, 7, 10]),
        (MilestoneClock(num_experiences=4, rounds_per_experience=3, milestones=[2]), [4, 10]),
    ],
    ids=["last rounds", "every second round", "milestones"],
)
def test_a_mission_of_several_rounds_is_tested_before_its_only_merge(clock, rounds):
    """In its first round, with the values that a mission of a single round has."""
    single = before_by_round(Clock(num_experiences=4, rounds_per_experience=1))
    expected = {r: single[(r + 2) // 3] for r in rounds}
    found = before_by_round(clock)
    assert found.keys() == expected.keys()
    for r in rounds:
        assert found[r] == pytest.approx(expected[r], nan_ok=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "metric must be one of"),
        ({"metric": "mahalanobis"}, "shrinkage belongs to metric mahalanobis"),
        ({"shrinkage": 0.1}, "shrinkage belongs to metric mahalanobis"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"noise": 0.1}, "positive with a clip_norm"),
        (
            {"noise": 0.1, "clip_norm": 1.0, "metric": "mahalanobis", "shrinkage": 0.5},
            "without noise",
        ),
        ({"min_count": 0}, "min_count must be at least 1"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        client(**options)
