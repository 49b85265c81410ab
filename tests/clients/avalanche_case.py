"""A small federation for the tests of Avalanche's strategies, and every strategy with options."""

import random
from functools import partial

import torch
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import nn

from clients.avalanche import Avalanche
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.class_incremental import ClassIncremental
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.toy import toy

TRAINING = LocalTraining(
    optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    epochs=2,
    batch_size=5,
    keep_optimizer=True,
)
METHODS = [
    "naive",
    "ewc",
    "ewc-online",
    "lwf",
    "replay",
    "replay-balanced",
    "si",
    "mas",
    "rwalk",
    "gem",
    "agem",
    "der",
    "icarl",
    "gdumb",
    "cumulative",
    "er-ace",
    "cwr",
    "from-scratch",
    "feature-replay",
    "mer",
]


def strategy(name):
    """A strategy class of Avalanche's with options, as a partial."""
    from avalanche.training import plugins
    from avalanche.training import supervised as s

    from clients.avalanche_plugins import SynapticIntelligence

    return {
        "naive": lambda: partial(s.Naive),
        "ewc": lambda: partial(s.EWC, ewc_lambda=1.0),
        "ewc-online": lambda: partial(s.EWC, ewc_lambda=1.0, mode="online", decay_factor=0.5),
        "lwf": lambda: partial(s.LwF, alpha=1.0, temperature=2.0),
        "replay": lambda: partial(s.Replay, mem_size=10),
        "replay-balanced": lambda: partial(
            s.Naive, plugins=[plugins.ReplayPlugin(mem_size=10, task_balanced_dataloader=True)]
        ),
        "si": lambda: partial(s.Naive, plugins=[SynapticIntelligence(si_lambda=100.0)]),
        "mas": lambda: partial(s.MAS, lambda_reg=0.1),
        "rwalk": lambda: partial(s.Naive, plugins=[plugins.RWalkPlugin(delta_t=2)]),
        "gem": lambda: partial(s.GEM, patterns_per_exp=6),
        "agem": lambda: partial(s.AGEM, patterns_per_exp=6, sample_size=6),
        "der": lambda: partial(s.DER, mem_size=10, batch_size_mem=5),
        "icarl": lambda: partial(s.ICaRL, memory_size=8, buffer_transform=None, fixed_memory=True),
        "gdumb": lambda: partial(s.GDumb, mem_size=10),
        "cumulative": lambda: partial(s.Cumulative),
        "er-ace": lambda: partial(s.ER_ACE, mem_size=10, batch_size_mem=5),
        "cwr": lambda: partial(s.CWRStar, cwr_layer_name="head"),
        "from-scratch": lambda: partial(s.FromScratchTraining),
        "feature-replay": lambda: partial(
            s.FeatureReplay, last_layer_name="head", mem_size=10, batch_size_mem=5
        ),
        "mer": lambda: partial(s.MER, mem_size=10, batch_size_mem=3, n_inner_steps=2),
    }[name]()


class Network(nn.Module):
    """Two layers with dropout, and with batch normalisation where the method can bear it."""

    num_features = 6

    def __init__(self, norm):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6),
            nn.BatchNorm1d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.2),
        )

    def forward(self, inputs):
        return self.layers(inputs)


def setting(*, rounds=1, clients=1, norm=True, clock=None, scenario=None):
    scenario = scenario or ClassIncremental(
        dataset=toy(num_classes=6, shape=[4], train_examples=60 * clients, test_examples=24),
        partition=IID(),
        order=SameOrder(),
        num_clients=clients,
        num_experiences=3,
        seed=0,
    )
    clock = clock or Clock(num_experiences=3, rounds_per_experience=rounds)
    return Setting(
        scenario=scenario, clock=clock, model=lambda: Model(Network(norm), 6), seed=3, device="cpu"
    )


def setting_for(name, **options):
    """MER trains on single examples, of which batch normalisation has no variance."""
    return setting(norm=name != "mer", **options)


def client(name, settings, training=TRAINING):
    return Avalanche(settings, training=training, strategy=strategy(name))


def stored(state):
    """The state as another process would read it."""
    text = recorddict_to_proto(state._records).SerializeToString()
    return ClientState(recorddict_from_proto(ProtoRecordDict.FromString(text)))


def start(settings):
    return {name: t.clone() for name, t in initial_model(settings).state_dict().items()}


def download(settings, round_, arrays, client_id=0):
    tick = settings.clock.at(round_, client_id)
    return Download(client_id=client_id, tick=tick, records={"arrays": arrays})


def run(clients, settings, rounds, state=None, client_id=0):
    """Uploads of one client alone in the federation; round ``r`` is trained by ``clients(r)``."""
    state = ClientState(RecordDict()) if state is None else state
    arrays, uploads = start(settings), []
    for round_ in rounds:
        down = download(settings, round_, arrays, client_id)
        arrays = clients(round_).train(down, state).records["arrays"]
        uploads.append(arrays)
    return uploads, state


def seed(number):
    torch.manual_seed(number)
    random.seed(number)
