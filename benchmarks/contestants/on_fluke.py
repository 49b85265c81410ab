"""fluke: ``FedAVG`` with messages in memory, all evaluations off, examples in stored order."""

import sys

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.utils import FederationObserver
from workloads import CLASSES, LR, SEED, WORKLOADS, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch


def main() -> None:
    work, watch = WORKLOADS[sys.argv[1]], Stopwatch()
    torch.set_num_threads(1)
    env = FlukeENV()
    env.set_seed(SEED)
    env.set_device("cpu")
    env.set_inmemory(True)
    env.set_eval_cfg(
        task="classification",
        eval_every=num_rounds() + 1,
        pre_fit=False,
        post_fit=False,
        server=False,
        locals=False,
    )
    inputs, targets = examples(work)
    loaders = [
        FastDataLoader(x, y, num_labels=CLASSES, batch_size=work.batch)
        for x, y in zip(inputs, targets, strict=True)
    ]
    data = DummyDataContainer(loaders, [None] * work.clients, None, CLASSES)
    client = DDict(
        batch_size=work.batch,
        local_epochs=1,
        loss="CrossEntropyLoss",
        optimizer=DDict(name="SGD", lr=LR),
        scheduler=DDict(name="StepLR", step_size=num_rounds() + 1, gamma=1.0),
    )
    model = started(network(work)())
    params = DDict(model=model, client=client, server=DDict(weighted=True))
    method = FedAVG(work.clients, DataSplitter(data), params)

    class Timed(FederationObserver):
        def start_round(self, round, global_model):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN202, ARG002
            if round == 1:
                watch.mark()

        def end_round(self, round):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN202, ARG002
            watch.mark()

    method.set_callbacks(Timed())
    method.run(num_rounds(), work.cohort / work.clients, finalize=False)
    watch.report(["fluke-fl", "torch"], flat(list(method.server.model.parameters())))


if __name__ == "__main__":
    main()
