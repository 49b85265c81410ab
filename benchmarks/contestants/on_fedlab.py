"""FedLab: its serial SGD trainer and synchronous server, driven as by its standalone pipeline."""

import sys

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from torch.utils.data import DataLoader, TensorDataset
from workloads import LR, WORKLOADS, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch


def main() -> None:
    work, watch = WORKLOADS[sys.argv[1]], Stopwatch()
    inputs, targets = examples(work)

    class Data:
        def get_dataloader(self, client, batch_size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            own = TensorDataset(inputs[client], targets[client])
            return DataLoader(own, batch_size=batch_size)

    trainer = SGDSerialClientTrainer(started(network(work)()), work.clients, cuda=False)
    trainer.setup_dataset(Data())
    trainer.setup_optim(1, work.batch, LR)
    server = SyncServerHandler(
        started(network(work)()), num_rounds(), work.cohort / work.clients, cuda=False
    )
    server.num_clients = work.clients
    watch.mark()
    while not server.if_stop:
        chosen = server.sample_clients()
        trainer.local_process(server.downlink_package, chosen)
        for package in trainer.uplink_package:
            server.load(package)
        watch.mark()
    watch.report(["fedlab", "torch"], flat(list(server.model.parameters())))


if __name__ == "__main__":
    main()
