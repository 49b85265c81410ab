"""Do metric losses help classes that were never trained on? Paired few-shot runs.

    python benchmarks/few_shot.py                  # six characters in four orientations, 20 ways
    python benchmarks/few_shot.py --no-rotations --ways 6
    python benchmarks/few_shot.py --data digits --no-rotations --ways 6 --splits 84
    python benchmarks/few_shot.py --data strokes --no-rotations --episodes 200 --splits 3

For every split, the same network on the same episodes is trained once with the prototypical loss
alone (CE) and once with each average of losses, then tested on episodes of unseen classes. Printed
are accuracy, the ratio of the distance to the own class mean to that between class means, and the
mean differences to the network as drawn and to CE, each with its standard error over the splits.

Base classes: six of the ten digits, drawn anew for every split; six invented characters and 40
unseen ones, new for every split; half of the strokes; the background of Omniglot.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.backbones.vision import Conv4
from fedsim.data import Dataset, TensorExamples
from fedsim.episodes import EpisodeLoss, Episodes, train
from fedsim.functional import metric_losses
from fedsim.functional.metric_losses import labels_of
from fedsim.pool import ImagePool
from scenarios.datasets import digits
from scenarios.omniglot import omniglot
from scenarios.strokes import strokes

CE, PT, ICNN = metric_losses.prototypical, metric_losses.proto_triplet, metric_losses.icnn
LOSSES: dict[str, list[EpisodeLoss]] = {
    "CE": [CE],
    "CE + PT": [CE, PT],
    "CE + ICNN": [CE, ICNN],
    "CE + PT + ICNN": [CE, PT, ICNN],
    "CE + ICNN support": [CE, partial(ICNN, pairs="support")],
    "CE + ICNN query": [CE, partial(ICNN, pairs="query")],
}
WAYS = {"digits": 4, "characters": 4, "strokes": 5, "omniglot": 5}  # of a test episode
QUERIES = {"digits": 50, "characters": 15, "strokes": 15, "omniglot": 15}
FEW = 6  # base classes of digits and characters
UNSEEN = 40  # characters beside them
DRAWN = "as drawn"  # the network before any training
BACKGROUND = 964  # characters of Omniglot


def main() -> None:
    """Print one row per average of losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=sorted(WAYS), default="characters")
    parser.add_argument("--ways", type=int, default=20, help="of a training episode")
    parser.add_argument(
        "--rotations",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on every class in four orientations, each a class of its own",
    )
    parser.add_argument("--episodes", type=int, default=50, help="to train on")
    parser.add_argument("--queries", type=int, default=5, help="of a class in training")
    parser.add_argument("--rate", type=float, default=2e-3, help="of Adam, at the start")
    parser.add_argument("--width", type=int, default=32, help="channels of a block")
    parser.add_argument("--splits", type=int, default=24)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split")
    parser.add_argument("--tests", type=int, default=200, help="test episodes of a split")
    parser.add_argument("--losses", nargs="+", choices=sorted(LOSSES), default=list(LOSSES)[1:3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [DRAWN, "CE", *args.losses]
    splits = range(args.first, args.first + args.splits)
    results = np.array([_split(args, split, names) for split in splits])
    print(f"{args.data}, {args.splits} splits, CPU {time.process_time():.0f} s")
    for place, name in enumerate(names):
        accuracy, ratio, loss = results[:, place].mean(0)
        print(f"{name:18} accuracy {100 * accuracy:.1f}, ratio {ratio:.3f}, loss {loss:.4f}")
        for other in range(min(place, 2)):
            gain = results[:, place] - results[:, other]
            (points, apart, _), (error, spread, _) = gain.mean(0), _standard_error(gain)
            print(
                f"{'':12} to {names[other]:8} {100 * points:+.2f} +- {100 * error:.2f} points,"
                f" ratio {apart:+.3f} +- {spread:.3f}",
            )


def _split(
    args: argparse.Namespace, split: int, names: list[str]
) -> list[tuple[float, float, float]]:
    """Accuracy, ratio and last training loss of every average of losses on one choice."""
    images, targets, base, unseen = _data(args.data, split)
    known = torch.isin(targets, base)
    mean, std = images[known].mean(), images[known].std()
    images = (images - mean) / std
    examples = TensorExamples(
        inputs=images[known], targets=torch.searchsorted(base, targets[known])
    )
    shots = 5
    pool = ImagePool(
        examples=[examples],
        num_classes=None,
        per_class=shots + args.queries,
        rotations=args.rotations,
    )
    groups = [images[targets == label] for label in unseen]
    results = []
    for name in names:
        torch.manual_seed(split)
        net = Conv4(input_shape=tuple(images.shape[1:]), width=args.width)
        training = Episodes(
            losses=LOSSES.get(name, [CE]),
            optimizer=partial(torch.optim.Adam, lr=args.rate),
            episodes=0 if name == DRAWN else args.episodes,
            ways=args.ways,
            shots=shots,
            queries=args.queries,
            seed=split,
        )
        loss = train(net, pool, training)
        rng = torch.Generator().manual_seed(split)
        tested = few_shot(net, groups, WAYS[args.data], QUERIES[args.data], args.tests, rng)
        results.append((*tested, loss))
    return results


def _data(name: str, split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, their classes, and which classes are base and unseen, ascending."""
    if name == "digits":
        order = np.random.default_rng([split, 7]).permutation(10)
        base, unseen = torch.tensor(sorted(order[:FEW])), torch.tensor(sorted(order[FEW:]))
        return *_joined(digits()), base, unseen
    if name == "characters":
        labels = torch.arange(FEW + UNSEEN)
        images, targets = _joined(strokes(num_classes=FEW + UNSEEN, seed=split))
        return images, targets, labels[:FEW], labels[FEW:]
    data = strokes() if name == "strokes" else omniglot(part="both", image_size=14)
    cut = data.num_classes // 2 if name == "strokes" else BACKGROUND
    labels = torch.arange(data.num_classes)
    return *_joined(data), labels[:cut], labels[cut:]


def _joined(data: Dataset) -> tuple[Tensor, Tensor]:
    parts = [part for part in (data.train, data.test) if isinstance(part, TensorExamples)]
    images = torch.cat([part.inputs for part in parts])
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return images, torch.cat([part.targets for part in parts])


@torch.no_grad()
def few_shot(
    net: nn.Module,
    groups: list[Tensor],
    ways: int,
    queries: int,
    episodes: int,
    rng: torch.Generator,
) -> tuple[float, float]:
    """Accuracy and ratio over episodes of five shots; ``groups`` are the images of each class."""
    embedded = [net(group) for group in groups]
    values = []
    for _ in range(episodes):
        chosen = [embedded[i] for i in torch.randperm(len(embedded), generator=rng)[:ways].tolist()]
        drawn = [e[torch.randperm(len(e), generator=rng)[: 5 + queries]] for e in chosen]
        images = torch.stack(drawn)
        means, points = images[:, :5].mean(1), images[:, 5:].flatten(0, 1)
        labels = labels_of(images[:, 5:])
        table = torch.cdist(points, means)
        right = (table.argmin(1) == labels).float().mean()
        within = table.gather(1, labels.unsqueeze(1)).mean()
        values.append((right.item(), (within / torch.pdist(means).mean()).item()))
    accuracy, ratio = np.mean(values, axis=0).tolist()
    return accuracy, ratio


def _standard_error(gain: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(gain) < 2:
        return np.full(gain.shape[1], np.nan)
    error: NDArray[np.float64] = gain.std(0, ddof=1) / np.sqrt(len(gain))
    return error


if __name__ == "__main__":
    main()
