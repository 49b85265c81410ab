"""The acceptance checks of federated reconnaissance on bundled digits, with raw pixels."""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from clients.prototypes import Prototypes as Client
from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting
from fedsim.clock import Clock
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.simulation import Simulation
from fedsim.training import LocalTraining
from scenarios.datasets import digits
from scenarios.missions import Mission, Missions
from tests.fedsim.builders import first_arrays
from tests.strategies.test_prototypes import strategy

DIGITS = digits()


def setting(num_clients, num_experiences, **rules):
    scenario = Missions(
        dataset=DIGITS,
        num_clients=num_clients,
        num_experiences=num_experiences,
        mission=Mission(**rules),
        evaluation_points=True,
        seed=0,
    )
    return Setting(
        scenario=scenario,
        clock=Clock(num_experiences=num_experiences, rounds_per_experience=1),
        model=lambda: Model(Flatten(input_shape=(1, 8, 8)), 10),
        seed=0,
    )


def run(chosen, server, client):
    grid = LocalGrid(client_app_of(lambda _: client), chosen.scenario.num_clients)
    simulation = Simulation(setting=chosen, client=client, strategy=server)
    loop = Loop(
        strategy=server,
        grid=grid,
        roster=grid.roster,
        clock=chosen.clock,
        seed=0,
        evaluator=simulation.evaluate,
    )
    return [log for log, _ in loop.run(first_arrays(chosen))]


def prototype_logs(chosen):
    training = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1))
    return run(chosen, strategy(), Client(chosen, training=training))


def central_accuracy(indices):
    """Nearest class mean in NumPy over the given training images."""
    x, y = DIGITS.train.inputs.flatten(1).double().numpy(), DIGITS.train.targets.numpy()
    x, y = x[indices], y[indices]
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    test = DIGITS.test.inputs.flatten(1).double().numpy()
    nearest = ((test[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    return (nearest == DIGITS.test.targets.numpy()).mean()


def test_five_clients_reach_the_accuracy_of_the_pooled_data():
    chosen = setting(5, 22, classes=2, shots=6)
    logs = prototype_logs(chosen)
    seen = np.concatenate([chosen.scenario.indices(None, e, "train") for e in range(22)])
    assert len(np.unique(seen)) == len(seen) == len(DIGITS.train.targets)
    central = central_accuracy(seen)
    assert central == pytest.approx(0.90, abs=0.01)
    assert logs[-1].server.metrics["after/field"] == pytest.approx(central, abs=1e-6)


def test_what_is_lost_class_by_class_is_lost_to_more_candidates():
    chosen = setting(1, 10, classes=1, shots=60, recurring=False)
    logs = prototype_logs(chosen)
    final = [log.server.metrics for log in logs[5:]]
    restricted = [metrics["accuracy_among_met"][:5] for metrics in final]
    among_all = [np.mean(metrics["accuracy"][:5]) for metrics in final]
    for later in restricted:
        assert later == pytest.approx(restricted[0], abs=1e-6)
    assert among_all[-1] < among_all[0] - 0.01


def test_sequential_fine_tuning_forgets_where_prototypes_do_not():
    chosen = setting(1, 10, classes=1, shots=60, recurring=False)
    logs = prototype_logs(chosen)
    training = LocalTraining(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=5, batch_size=16)
    ones = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    naive = run(chosen, FedAvg(**ones), SGD(chosen, training=training))

    def final(log):
        metrics = log.server.metrics
        return np.average(metrics["accuracy"], weights=metrics["examples"])

    assert final(logs[-1]) >= 0.85
    assert final(naive[-1]) <= 0.35
