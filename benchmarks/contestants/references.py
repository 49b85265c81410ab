"""Before anything is timed: first weights, and the plain loop's weights after every round.

fedsim draws the order of a client's examples anew in every round, other simulators take them as
stored. Batches differ, so there is one reference for each.
"""

import itertools
import sys

import numpy as np
import torch
from workloads import SEED, WORKLOADS, Workload, flat, folder, num_rounds

from contestants.fedsim_parts import Owned, dataset
from contestants.plain_loop import Order, as_stored, rounds
from contestants.stopwatch import Stopwatch
from fedsim.backbones.vision import Flatten, LeNet
from fedsim.client import Setting, initial_model
from fedsim.clock import Clock
from fedsim.model import Model
from fedsim.seeding import generator
from scenarios.order import SameOrder
from scenarios.single import Single


def first_weights(name: str, work: Workload) -> np.ndarray:
    """Those with which fedsim begins."""
    scenario = Single(
        dataset=dataset(workload=name),
        partition=Owned(),
        order=SameOrder(),
        num_clients=work.clients,
        seed=SEED,
    )
    backbone = LeNet if len(work.shape) == 3 else Flatten
    setting = Setting(
        scenario=scenario,
        clock=Clock(num_experiences=1, rounds_per_experience=1),
        model=lambda: Model(backbone(input_shape=work.shape), scenario.num_classes),
        seed=SEED,
    )
    return flat(list(initial_model(setting).parameters()))


def main() -> None:
    name = sys.argv[1]
    work = WORKLOADS[name]
    torch.set_num_threads(1)
    np.save(folder() / "start.npy", first_weights(name, work))

    def drawn(number: int, client: int) -> torch.Tensor:
        return torch.randperm(work.samples, generator=generator(SEED, "train", number, client))

    orders: dict[str, Order] = {"stored": as_stored, "drawn": drawn}
    if not work.everyone:
        orders = {}  # each simulator draws its own clients
    for title, order in orders.items():
        kept = [flat(weights) for weights in itertools.islice(rounds(work, order), num_rounds())]
        np.save(folder() / f"{title}.npy", np.stack(kept))
    Stopwatch().report([])


if __name__ == "__main__":
    main()
