"""Clients on the small planted graph, and a grid that keeps every message."""

from functools import partial

import torch

from fedsim.apps import client_app_of
from fedsim.arrays import to_record
from fedsim.backbones.graph import GCN
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.evaluation import Evaluation
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.model import Model
from fedsim.sampling import Uniform
from fedsim.training import LocalTraining
from tests.scenarios.graph_toy import scenario

SAMPLERS = {"sampler": Uniform(seed=0), "evaluation_sampler": Uniform(seed=0)}
AFTER_TRAINING = Evaluation(when="after_training", selection="best_validation")


def setting(rounds=3, data=None, **changes):
    """Four clients, a small GCN, tests in every round."""
    data = data or scenario()
    gcn = partial(GCN, input_shape=data.input_shape, hidden=8)
    return Setting(
        scenario=data,
        clock=Clock(num_experiences=1, rounds_per_experience=rounds, evaluate_every=1),
        model=lambda: Model(gcn(), 4),
        seed=0,
        **{"evaluation": AFTER_TRAINING, **changes},
    )


def training():
    """One full-batch step of Adam, whose moments stay."""
    optimizer = partial(torch.optim.Adam, lr=0.05)
    return LocalTraining(optimizer=optimizer, batch_size=0, keep_optimizer=True)


class Tapped(LocalGrid):
    """Keeps every message in both directions: ``(to or from the client, round, records)``."""

    def __init__(self, client):
        super().__init__(client_app_of(lambda _: client), 4, raise_errors=True)
        self.seen = []

    def stream(self, messages, **options):
        messages = list(messages)
        for message in messages:
            client = self.roster.client(message.metadata.dst_node_id)
            self.seen.append(("down", client, message.content))
        for reply in super().stream(messages, **options):
            self.seen.append(("up", self.roster.client(reply.metadata.src_node_id), reply.content))
            yield reply


def run(client, strategy):
    """The logs, the final arrays and the grid."""
    grid = Tapped(client)
    loop = Loop(
        strategy=strategy,
        grid=grid,
        roster=grid.roster,
        clock=client.setting.clock,
        seed=0,
        evaluation=client.setting.evaluation,
    )
    logs = list(loop.run(to_record(dict(initial_model(client.setting).state_dict()))))
    return [log for log, _ in logs], logs[-1][1], grid
