"""How a test says which case of the catalogue it is, and small runs to strike."""

from dataclasses import replace

import pytest
from flwr.serverapp import strategy as flower

from clients.sgd import SGD
from fedsim.apps import client_app_of
from fedsim.faults import Faults
from fedsim.gate import Gate
from fedsim.grid import LocalGrid
from fedsim.loop import Loop
from fedsim.results import digest
from tests.fedsim.builders import first_arrays, small_client, small_setting

ALL = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
OFFENDER = 1
SURVIVED, REJECTED, REFUSED, ENDED = "survived", "rejected", "refused", "ended"


def case(outcome):
    """Marks a test as one case of the catalogue."""

    def mark(test):
        test.outcomes = {"": outcome}
        return test

    return mark


def cases(table):
    """Marks a test as several: ``{name: (outcome, ...)}``, handed to it as ``case``."""

    def mark(test):
        test.outcomes = {name: row[0] for name, row in table.items()}
        return pytest.mark.parametrize("case", list(table.values()), ids=list(table))(test)

    return mark


def struck(**kinds):
    """Faults of a run of four clients."""
    return Faults(seed=0, num_clients=4, **kinds)


def run(strategy=None, *, faults=None, gate=None, kind=SGD, grid=LocalGrid, **options):
    """Three rounds of four clients; the logs and the digest of the model."""
    setting = options.pop("setting", None) or small_setting(num_experiences=1, rounds=3)
    client = small_client(replace(setting, faults=faults), kind=kind, **options)
    place = grid(client_app_of(lambda _: client), 4, raise_errors=True)
    loop = Loop(
        strategy=strategy or flower.FedAvg(**ALL),
        grid=place,
        roster=place.roster,
        clock=setting.clock,
        seed=0,
        gate=gate or Gate(max_norm=1e6),
        faults=faults,
    )
    rounds = list(loop.run(first_arrays(setting)))
    return [log for log, _ in rounds], digest(rounds[-1][1])


def rejections(logs):
    """Kind and client of everything that was refused."""
    return [(r.kind, r.client) for log in logs for r in log.rejections]
