"""All clients of a round at once with ``torch.func``, and nothing else."""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from workloads import LR, WORKLOADS, Workload, cohorts, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch


def rounds(work: Workload) -> Iterator[list[Tensor]]:
    """The weights after every round."""
    inputs, targets = examples(work)
    model = started(network(work)())
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (x,)), y)

    gradients = vmap(grad(loss))
    for cohort in cohorts(work):
        weights = {n: w.expand(work.cohort, *w.shape).clone() for n, w in whole.items()}
        own, classes = inputs[cohort], targets[cohort]
        batches = zip(
            torch.split(own, work.batch, 1), torch.split(classes, work.batch, 1), strict=True
        )
        for x, y in batches:
            found = gradients(weights, x, y)
            for name, weight in weights.items():
                weight.sub_(found[name], alpha=LR)
        whole = {name: weight.mean(0) for name, weight in weights.items()}
        yield list(whole.values())


def main() -> None:
    work, watch = WORKLOADS[sys.argv[1]], Stopwatch()
    torch.set_num_threads(1)
    run = rounds(work)
    watch.mark()
    for _ in range(num_rounds()):
        weights = next(run)
        watch.mark()
    watch.report(["torch"], flat(weights))


if __name__ == "__main__":
    main()
