"""Seconds an epoch of value training takes, with and without searching keys, on 50,000 features.

    python benchmarks/dkvb.py --codebooks 256 --pairs 4096

Three ways to do the same epoch (batch 256, SGD 0.3, gradient norm clipped at 1, label smoothing):

* ``cached rows``: what ``client=dkvb`` does, through fedsim's client and training loop;
* ``bare loop``: ``torch.nn.EmbeddingBag`` on the same rows, written out by hand;
* ``key search``: the module on features, which looks up the nearest keys in every batch. It is
  measured on ``--search-batches`` batches and scaled to the epoch.

Features are random: their values do not matter to the time. ``--threads`` sets torch's threads.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from clients.dkvb import DKVB
from fedsim.backbones.keyvalue_head import KeyValueHead
from fedsim.backbones.keyvalue_options import Lookup, Readout
from fedsim.backbones.vision import Flatten
from fedsim.client import Setting
from fedsim.clock import Clock
from fedsim.data import Dataset, TensorExamples
from fedsim.model import Model
from fedsim.state import ClientState
from fedsim.training import LocalTraining
from fedsim.wire import Download
from scenarios.order import SameOrder
from scenarios.partition import IID
from scenarios.single import Single

CLASSES, BATCH = 10, 256
Head = Callable[[int, int], KeyValueHead]


def dataset(examples: int, features: int) -> Dataset:
    """Random features with random classes."""
    rng = torch.Generator().manual_seed(0)

    def part(n: int) -> TensorExamples:
        return TensorExamples(
            inputs=torch.randn(n, features, generator=rng),
            targets=torch.randint(CLASSES, (n,), generator=rng),
        )

    return Dataset(name="noise", train=part(examples), test=part(10), num_classes=CLASSES)


def client_of(data: Dataset, head: Head) -> DKVB:
    """A client that holds all the data."""
    width = data.train.inputs.shape[1]
    scenario = Single(
        dataset=data, partition=IID(), order=SameOrder(), num_clients=1, num_experiences=1, seed=0
    )
    setting = Setting(
        scenario=scenario,
        clock=Clock(num_experiences=1, rounds_per_experience=10),
        model=lambda: Model(Flatten(input_shape=(width,)), CLASSES, head),
        seed=0,
    )
    optimizer = partial(torch.optim.SGD, lr=0.3)
    training = LocalTraining(optimizer=optimizer, epochs=1, batch_size=BATCH, clip_norm=1.0)
    return DKVB(setting, training=training)


def cached_epoch(client: DKVB, down: Download) -> float:
    """Seconds of the client's epoch, its rows being looked up already."""
    shard = client.scenario.shard(0, 0, "train")
    start = time.perf_counter()
    batches = client.batches(shard, down, ClientState(), torch.Generator().manual_seed(0))
    client.fit(batches, down, ClientState())
    return time.perf_counter() - start


def bare_epoch(rows: torch.Tensor, targets: torch.Tensor, num_rows: int) -> float:
    """Seconds of the same epoch written out by hand."""
    bag = nn.EmbeddingBag(num_rows, CLASSES, mode="mean", sparse=True)
    nn.init.zeros_(bag.weight)
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.3)
    start = time.perf_counter()
    order = torch.randperm(len(rows))
    for i in range(0, len(rows), BATCH):
        part = order[i : i + BATCH]
        optimizer.zero_grad(set_to_none=True)
        logits = bag(rows[part])
        functional.cross_entropy(logits, targets[part], label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(bag.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - start


def searching_epoch(data: Dataset, head: KeyValueHead, batches: int) -> float:
    """Seconds of an epoch that searches keys, from some of its batches."""
    inputs, targets = data.train.inputs, data.train.targets
    optimizer = torch.optim.SGD([head.values], lr=0.3)
    head.train()
    start = time.perf_counter()
    for i in range(batches):
        part = slice(i * BATCH, (i + 1) * BATCH)
        optimizer.zero_grad(set_to_none=True)
        logits = head(inputs[part])
        functional.cross_entropy(logits, targets[part], label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_([head.values], 1.0)
        optimizer.step()
    each = (time.perf_counter() - start) / batches
    return each * -(-len(inputs) // BATCH)


def main() -> None:
    """Measure the three and print them with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--codebooks", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--search-batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = dataset(options.examples, options.features)
    lookup = Lookup(codebooks=options.codebooks, pairs=options.pairs)
    head = partial(KeyValueHead, lookup=lookup, readout=Readout(sparse=True), seed=0)
    client = client_of(data, head)
    num_rows = client.model.head.num_rows
    # which rows an example fetches does not matter to the time of an epoch: draw them
    rng = torch.Generator().manual_seed(1)
    drawn = torch.randint(options.pairs, (options.examples, options.codebooks), generator=rng)
    rows = (drawn + torch.arange(options.codebooks) * options.pairs).to(torch.int32)
    client._rows[(0, 0)] = rows
    down = Download(client_id=0, tick=client.setting.clock.at(1, 0), records={})
    # in turn, and the fastest of each, so that other load on the machine hits all alike
    cached, bare = [], []
    for _ in range(options.repeats):
        cached.append(cached_epoch(client, down))
        bare.append(bare_epoch(rows, client.scenario.shard(0, 0, "train").targets, num_rows))
    search = searching_epoch(data, head(options.features, CLASSES), options.search_batches)
    result = {
        "cached_rows_s": round(min(cached), 3),
        "bare_loop_s": round(min(bare), 3),
        "key_search_s": round(search, 2),
        "cached_over_bare": round(min(cached) / min(bare), 3),
        "search_over_cached": round(search / min(cached), 1),
    }
    print(json.dumps({**vars(options), **result}, indent=2))


if __name__ == "__main__":
    main()
