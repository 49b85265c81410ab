"""Flower's federated averaging, where its own code costs more than what it does.

Averaging blocks of clients is one product of weights and stacked tensors. It is used only where
clients are trained at once (``engine.cohort``), where results equal one by one up to rounding;
elsewhere Flower's own code sums client by client.
"""

import random
from collections.abc import Iterable
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from fedsim.arrays import Params, to_record
from fedsim.bundle import Bundle
from fedsim.grid import LocalGrid
from fedsim.replies import BlockReply, addressed, unread
from fedsim.wire import NUM_EXAMPLES, SERVER_ROUND

_TYPES = {"train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}


def average_blocks(
    strategy: FlowerStrategy, round_: int, replies: Iterable[Message]
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """What the strategy makes of the replies of a round, faster where it merely averages blocks."""
    if not averages(strategy):
        return strategy.aggregate_train(round_, replies)
    held = list(replies)
    blocks = [reply for reply in held if isinstance(reply, BlockReply) and unread(reply)]
    if not held or len(blocks) < len(held):
        return strategy.aggregate_train(round_, held)
    return _average(blocks)


def configured(
    strategy: FlowerStrategy,
    round_: int,
    arrays: ArrayRecord,
    grid: Grid,
    kind: Literal["train", "evaluate"],
) -> Iterable[Message]:
    """The messages of a round; what Flower's ``FedAvg`` asks, without walking over all nodes.

    Flower copies the list of nodes twice a round, which takes longer than the round if there are a
    million. Drawn are the same nodes, since the draw depends on their number only.
    """
    config = ConfigRecord()
    configure = strategy.configure_train if kind == "train" else strategy.configure_evaluate
    if not isinstance(grid, LocalGrid) or not isinstance(strategy, FedAvg):
        return configure(round_, arrays, config, grid)
    share, least = strategy.fraction_train, strategy.min_train_nodes
    if kind == "evaluate":
        share, least = strategy.fraction_evaluate, strategy.min_evaluate_nodes
    nodes = grid.nodes()
    size = max(int(len(nodes) * share), least)
    enough = 0 < size <= len(nodes) and len(nodes) >= strategy.min_available_nodes
    if not enough or share == 0.0 or _asks(strategy, kind):
        return configure(round_, arrays, config, grid)  # it has words for what is missing
    config[SERVER_ROUND] = round_
    content = RecordDict({strategy.arrayrecord_key: arrays, strategy.configrecord_key: config})
    chosen = random.sample(nodes, size)
    first = Message(content, chosen[0], _TYPES[kind])
    return [first, *(addressed(first, node) for node in chosen[1:])]


def _asks(strategy: FedAvg, kind: str) -> bool:
    """Whether a strategy asks its clients for something in a way of its own."""
    names = (f"configure_{kind}", "_construct_messages")
    return any(getattr(type(strategy), n) is not getattr(FedAvg, n) for n in names)


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
