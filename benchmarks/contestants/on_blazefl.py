"""BlazeFL: its own FedAvg classes, clients one after the other, driven as in its quick start."""

import sys

import blazefl.contrib.fedavg as blazefl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import LR, SEED, WORKLOADS, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch


def main() -> None:
    name = sys.argv[1]
    work, watch = WORKLOADS[name], Stopwatch()
    inputs, targets = examples(work)

    class Models:
        def select_model(self, model_name: str) -> nn.Module:
            return started(network(WORKLOADS[model_name])())

    class Data:
        def get_dataset(self, type_, cid):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
            return TensorDataset(inputs[cid], targets[cid])

        def set_dataset(self, type_, cid, dataset):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            raise NotImplementedError("the data stay as they are")

        def get_dataloader(self, type_, cid, batch_size=None, generator=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
            return DataLoader(self.get_dataset(type_, cid), batch_size=batch_size)

    common = {
        "model_selector": Models(),
        "model_name": name,
        "dataset": Data(),
        "num_clients": work.clients,
        "device": "cpu",
        "batch_size": work.batch,
        "seed": SEED,
    }
    share = work.cohort / work.clients
    server = blazefl.FedAvgBaseServerHandler(
        global_round=num_rounds(), sample_ratio=share, **common
    )
    trainer = blazefl.FedAvgBaseClientTrainer(epochs=1, lr=LR, **common)
    watch.mark()
    while not server.if_stop():
        chosen = server.sample_clients()
        trainer.local_process(server.downlink_package(), chosen)
        for package in trainer.uplink_package():
            server.load(package)
        watch.mark()
    watch.report(["blazefl", "torch"], flat(list(server.model.parameters())))


if __name__ == "__main__":
    main()
