"""Flower's federated averaging of blocks of clients: one product of weights and stacked tensors.

Used only where clients are trained at once (``engine.cohort``), where results equal one by one up
to rounding; elsewhere Flower's own code sums client by client.
"""

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from fedsim.arrays import Params, to_record
from fedsim.bundle import Bundle
from fedsim.replies import NUM_EXAMPLES, BlockReply


def average_blocks(
    strategy: FlowerStrategy, round_: int, replies: Iterable[Message]
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """What the strategy makes of the replies of a round, faster where it merely averages blocks."""
    if not averages(strategy):
        return strategy.aggregate_train(round_, replies)
    held = list(replies)
    if not held or not all(isinstance(r, BlockReply) and r.upload is not None for r in held):
        return strategy.aggregate_train(round_, held)
    return _average([reply for reply in held if isinstance(reply, BlockReply)])


def averages(strategy: FlowerStrategy) -> bool:
    """Whether a strategy aggregates as Flower's ``FedAvg`` does by default."""
    return (
        isinstance(strategy, FedAvg)
        and type(strategy).aggregate_train is FedAvg.aggregate_train
        and strategy.train_metrics_aggr_fn is aggregate_metricrecords
        and strategy.weighted_by_key == NUM_EXAMPLES
    )


def _average(replies: list[BlockReply]) -> tuple[ArrayRecord, MetricRecord]:
    total = sum(reply.upload.num_examples for reply in replies)
    weights: dict[int, tuple[Bundle, list[float]]] = {}
    metrics: dict[str, float] = {}
    for reply in replies:
        row, upload = reply.row, reply.upload
        share = upload.num_examples / total
        bundle = row.bundle
        if id(bundle) not in weights:
            weights[id(bundle)] = bundle, [0.0] * len(bundle.rows)
        weights[id(bundle)][1][row.place] += share
        for name, value in upload.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value * share
    mean: Params = {}
    for bundle, shares in weights.values():
        share = sum(shares)
        factors = torch.tensor(shares, dtype=torch.float64)
        for name in bundle.rows[0]:
            part = _weighted(bundle, name, factors, share)
            mean[name] = part if name not in mean else mean[name].add_(part)
    return to_record(mean), MetricRecord({**metrics})


def _weighted(bundle: Bundle, name: str, factors: Tensor, share: float) -> Tensor:
    """Sum of the clients' tensors of this name times their factors; of integers a float."""
    if name in bundle.shared:
        tensor = bundle.shared[name]
        return (tensor if tensor.is_floating_point() else tensor.double()) * share
    stack = bundle.stack[name]
    flat = (stack if stack.is_floating_point() else stack.double()).reshape(len(factors), -1)
    return (factors.to(flat.dtype) @ flat).view(stack.shape[1:])
