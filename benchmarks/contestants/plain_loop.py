"""A plain PyTorch loop over the clients of a round: one model, one optimiser, data in memory."""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from workloads import LR, WORKLOADS, Workload, cohorts, examples, flat, network, num_rounds, started

from contestants.stopwatch import Stopwatch

Order = Callable[[int, int], Tensor | slice]  # round, client -> in which order its examples come


def as_stored(_round: int, _client: int) -> slice:
    """The examples in the order in which they lie."""
    return slice(None)


def rounds(work: Workload, order: Order = as_stored) -> Iterator[list[Tensor]]:
    """The weights after every round."""
    inputs, targets = examples(work)
    model = started(network(work)())
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR)
    whole = [p.detach().clone() for p in params]
    for number, cohort in enumerate(cohorts(work), start=1):
        total = [torch.zeros_like(w) for w in whole]
        for client in cohort:
            with torch.no_grad():
                for p, w in zip(params, whole, strict=True):
                    p.copy_(w)
            rows = order(number, client)
            own, classes = inputs[client][rows], targets[client][rows]
            for x, y in zip(
                torch.split(own, work.batch), torch.split(classes, work.batch), strict=True
            ):
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for t, p in zip(total, params, strict=True):
                    t.add_(p, alpha=work.samples)
        whole = [t / (work.samples * work.cohort) for t in total]
        yield whole


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
