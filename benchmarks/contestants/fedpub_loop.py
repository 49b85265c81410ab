"""FED-PUB without a framework: the straight loop of ``benchmarks/fedpub.py``, round by round.

The subgraphs, the first weights and the draws of dropout are fedsim's, so accuracies must agree.
"""

import itertools

import numpy as np
import torch
from fedpub import Straight
from torch import Tensor
from torch.nn.functional import cosine_similarity
from workloads import num_rounds

from contestants.stopwatch import Stopwatch
from fedsim.build import build
from fedsim.client import initial_model
from fedsim.config import compose, resolve


def main() -> None:
    watch = Stopwatch()
    node = resolve(compose(["experiment=fedpub_cora_disjoint_10"]))
    simulation = build(node)
    setting, proxy = simulation.setting, simulation.client.proxy
    clients = [Straight(setting, number) for number in range(setting.scenario.num_clients)]
    received: list[dict[str, Tensor]] = [dict(initial_model(setting).state_dict())] * len(clients)
    curve = []
    watch.mark()
    for number in itertools.islice(itertools.count(1), num_rounds()):
        done = [c.round(number, r, proxy) for c, r in zip(clients, received, strict=True)]
        curve.append(sum(accuracy for *_, accuracy in done) / len(done))
        embeddings = torch.stack([embedding for _, embedding, _ in done])
        alike = cosine_similarity(embeddings[:, None], embeddings[None], dim=2)
        shares = torch.softmax(node["strategy"]["scale"] * alike, dim=1)
        received = [
            {
                name: sum(share * sent[name] for share, (sent, *_) in zip(row, done, strict=True))
                for name in done[0][0]
            }
            for row in shares
        ]
        watch.mark()
    watch.report(["torch", "torch-geometric", "fedsim-lab"], np.array(curve))


if __name__ == "__main__":
    main()
