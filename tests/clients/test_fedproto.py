"""FedProto: both sides."""

from functools import partial

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch.nn import functional
from torch.testing import assert_close

from clients.fedproto import FedProto as Client
from clients.sgd import SGD
from fedsim.arrays import to_params
from fedsim.clock import Tick
from fedsim.data import Batch
from fedsim.sampling import Uniform
from fedsim.state import ClientState
from fedsim.wire import Download, Upload
from strategies.fedproto import FedProto
from tests.fedsim.builders import first_arrays, small_client, small_loop, small_setting

TICK = Tick(1, 0, 0, is_first=True, is_last=False)


def strategy(**options):
    return FedProto(
        sampler=Uniform(seed=0), evaluation_sampler=Uniform(seed=0, fixed=True), **options
    )


def upload(client, weight, classes, sums, counts, n):
    statistics = {
        "classes": torch.tensor(classes),
        "sums": torch.tensor(sums),
        "counts": torch.tensor(counts),
    }
    records = {"arrays": {"w": torch.tensor([weight])}, "statistics": statistics}
    return Upload(client_id=client, num_examples=n, records=records)


def download(client, classes, means):
    table = {"classes": torch.tensor(classes), "means": torch.as_tensor(means)}
    arrays = to_params(first_arrays(client.setting))
    return Download(client_id=0, tick=TICK, records={"arrays": arrays, "prototypes": table})


def test_weights_and_prototypes_are_averaged():
    server = strategy()
    uploads = [
        upload(0, 1.0, [1], [[6.0]], [3], 3),
        upload(1, 5.0, [1, 2], [[2.0], [9.0]], [1, 1], 1),
    ]
    state = server.aggregate(TICK, server.init({"w": torch.zeros(1)}), uploads)
    assert state.arrays["w"].item() == 2.0
    assert state.classes.tolist() == [1, 2]
    assert state.means.flatten().tolist() == [2.0, 9.0]


def test_an_absent_class_keeps_its_prototype_and_momentum_mixes():
    server = strategy(momentum=0.25)
    state = server.init({"w": torch.zeros(1)})
    state = server.aggregate(TICK, state, [upload(0, 0.0, [1, 3], [[4.0], [8.0]], [1, 1], 2)])
    state = server.aggregate(TICK, state, [upload(0, 0.0, [0, 3], [[1.0], [4.0]], [1, 1], 2)])
    assert state.classes.tolist() == [0, 1, 3]
    assert state.means.flatten().tolist() == [1.0, 4.0, 5.0]


def test_the_loss_pulls_known_classes_only():
    client = small_client(kind=Client, strength=2.0)
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1])
    down = download(client, [1, 3], [[1.0] * 6, [2.0] * 6])
    value = client.loss(client.model, Batch(inputs, targets), down, ClientState())
    plain = functional.cross_entropy(client.model(inputs), targets)
    pull = (inputs[1] - 2.0).square().mean() / 2 + (inputs[2] - 1.0).square().mean() / 2
    assert_close(value, plain + 2.0 * pull)


def test_icnn_scores_the_batch_with_the_table_as_further_neighbours():
    """Points 0 and 1 of class 1; the table holds class 1 at 2 and class 3 at 5."""
    client = small_client(kind=Client, strength=2.0, pull="icnn", neighbours=2)
    inputs, targets = torch.zeros(2, 6), torch.tensor([1, 1])
    inputs[1, 0] = 1.0
    means = torch.zeros(2, 6)
    means[:, 0] = torch.tensor([2.0, 5.0])
    down = download(client, [1, 3], means.tolist())
    value = client.loss(client.model, Batch(inputs, targets), down, ClientState())
    plain = functional.cross_entropy(client.model(inputs), targets)
    # both neighbours of a point are of its class, at 1, 2 of 5 and 1, 1 of 4
    compact = 1 - ((1 / 5 + 2 / 5) / 2 + 1 / 4) / 2
    score = ((compact + 1) / 2 + 1) / 2  # no stranger is near
    assert_close(value, plain - 2.0 * torch.tensor(score).log(), atol=1e-5, rtol=1e-5)


def test_icnn_needs_no_table():
    client = small_client(kind=Client, strength=1.0, pull="icnn")
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs, torch.arange(8) % 2)
    down = download(client, [], torch.empty(0, 0))
    down.records["prototypes"]["classes"] = torch.empty(0, dtype=torch.int64)
    loss = client.loss(client.model, batch, down, ClientState())
    assert loss > functional.cross_entropy(client.model(batch.inputs), batch.targets)


def test_prediction_is_the_nearest_prototype_or_the_head():
    inputs = torch.zeros(2, 6)
    batch = Batch(inputs, torch.tensor([0, 1]))
    for classifier, expected in (("prototype", 3), ("head", None)):
        client = small_client(kind=Client, strength=1.0, classifier=classifier)
        down = download(client, [1, 3], [[9.0] * 6, [1.0] * 6])
        scores = client.predict(client.model, batch, down, ClientState())
        if expected is None:
            assert_close(scores, client.model(inputs))
        else:
            assert scores.argmax(1).tolist() == [3, 3]


def test_without_a_pull_and_with_the_head_it_is_federated_averaging():
    ours = small_client(kind=Client, strength=0.0, classifier="head")
    theirs = small_client(kind=SGD)
    four = {"min_train_nodes": 4, "min_evaluate_nodes": 4, "min_available_nodes": 4}
    runs = []
    for server, client in ((strategy(), ours), (FedAvg(**four), theirs)):
        logs = list(small_loop(server, client).run(first_arrays(client.setting)))
        runs.append(to_params(logs[-1][1]))
    for name, tensor in runs[1].items():
        assert_close(runs[0][name], tensor)


@pytest.mark.parametrize("pull", ["mse", "triplet", "icnn"])
def test_a_run_learns_its_prototypes(pull):
    client = small_client(small_setting(), kind=Client, strength=0.1, pull=pull)
    server = strategy()
    logs = [log for log, _ in small_loop(server, client).run(first_arrays(client.setting))]
    assert server.state.classes.tolist() == [0, 1, 2, 3]
    accuracy = logs[-1].evaluations[0].metrics["accuracy"]
    assert min(accuracy) > 0.8


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(small_client, kind=Client, strength=-1.0), "strength must be"),
        (partial(small_client, kind=Client, strength=1.0, pull="l1"), "pull must be"),
        (partial(small_client, kind=Client, strength=1.0, classifier="knn"), "classifier must be"),
        (partial(small_client, kind=Client, strength=1.0, neighbours=0), "neighbours must be"),
        (partial(strategy, momentum=1.0), "momentum must lie"),
    ],
)
def test_senseless_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
