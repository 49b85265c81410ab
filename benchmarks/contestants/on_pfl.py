"""pfl-research: federated averaging on its simulated backend, with PyTorch."""

import random
import sys

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy
from workloads import LR, SEED, WORKLOADS, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch


def main() -> None:
    work, watch = WORKLOADS[sys.argv[1]], Stopwatch()
    inputs, targets = examples(work)
    random.seed(SEED)

    class Trained(network(work)):  # type: ignore[misc]
        def loss(self, x, y, eval=False):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN202
            self.train(not eval)
            return cross_entropy(self(x), y)

        def metrics(self, x, y, eval=True):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN202, ARG002
            return {"examples": Weighted(len(y), 1)}  # asked for in the first round, so cheap

    class Timed(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
            watch.mark()
            return False, Metrics()

    net = started(Trained())
    clients = list(range(work.clients))
    users = get_user_sampler("minimize_reuse" if work.everyone else "random", clients)
    data = FederatedDataset(
        lambda user: Dataset([inputs[user], targets[user]], user_id=str(user)), users
    )
    central = torch.optim.SGD(net.parameters(), lr=1.0)
    model = PyTorchModel(net, torch.optim.SGD, central)
    backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
    params = NNAlgorithmParams(
        central_num_iterations=num_rounds(),
        evaluation_frequency=num_rounds() + 1,
        train_cohort_size=work.cohort,
        val_cohort_size=0,
    )
    training = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=LR, local_batch_size=work.batch
    )
    watch.mark()
    FederatedAveraging().run(
        params,
        backend,
        model,
        training,
        NNEvalHyperParams(local_batch_size=work.batch),
        callbacks=[Timed()],
    )
    watch.report(["pfl", "torch"], flat(list(net.parameters())))


if __name__ == "__main__":
    main()
