"""How the training examples of a data set are dealt to clients; test examples follow them."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from fedsim.data import Dataset, Indices
from fedsim.seeding import numpy_generator
from scenarios.holdings import Dealt, Drawn, Holdings, Whole, dirichlet, mirror, raise_to_minimum


class Partition(ABC):
    """Gives every client its part of a data set."""

    @abstractmethod
    def holdings(self, dataset: Dataset, num_clients: int, seed: int) -> Holdings:
        """Who holds what.

        Args:
            dataset: The data to distribute.
            num_clients: Number of clients ``C``.
            seed: Seed of the run; the same seed gives the same holdings.

        Raises:
            ValueError: If the data does not suffice for so many clients.
        """


class Dealing(Partition):
    """A partition that gives every example to exactly one client.

    A subclass deals the training examples; test examples are mirrored (:func:`mirror`).
    """

    @abstractmethod
    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """Client of every training example, ``[N]``."""

    def deal_test(
        self, dataset: Dataset, owners: Indices, num_clients: int, rng: np.random.Generator
    ) -> Indices:
        """Client of every test example, ``[M]``, given those of the training examples."""
        del num_clients
        return mirror(dataset.train.targets.numpy(), owners, dataset.test.targets.numpy(), rng)

    def holdings(self, dataset: Dataset, num_clients: int, seed: int) -> Dealt:
        """See :meth:`Partition.holdings`."""
        _require(dataset, num_clients, examples_per_client=1)
        train = self.deal(dataset, num_clients, numpy_generator(seed, "partition"))
        rng = numpy_generator(seed, "partition", "test")
        test = self.deal_test(dataset, train, num_clients, rng)
        return Dealt(owners={"train": train, "test": test}, num_clients=num_clients)


class IID(Dealing):
    """Every client gets a random sample; sizes differ by one at most."""

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        return rng.permutation(np.arange(len(dataset.train.targets)) % num_clients)


class Dirichlet(Dealing):
    """Label skew: each class is split over the clients in proportions drawn from a Dirichlet.

    Clients left with too little take examples from the largest clients, so the method ends after
    one pass for every ``alpha`` and every number of clients.

    Args:
        alpha: Concentration; ``0.1`` is a strong skew, ``100`` nearly IID.
        min_examples: Fewest training examples of a client.

    Raises:
        ValueError: If ``alpha`` is not positive or ``min_examples`` is negative.

    Source:
        Hsu et al., Measuring the Effects of Non-Identical Data Distribution, arXiv:1909.06335;
        proportions per class over the clients as in Yurochkin et al., ICML 2019, arXiv:1905.12022,
        which draws again until every client has enough: here examples are moved instead.
    """

    def __init__(self, *, alpha: float, min_examples: int = 1) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if min_examples < 0:
            raise ValueError(f"min_examples must be 0 or more, got {min_examples}")
        self._alpha = alpha
        self._min_examples = min_examples

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        _require(dataset, num_clients, self._min_examples)
        targets = dataset.train.targets.numpy()
        order = _by_class(targets, rng)
        owners = np.empty(len(targets), np.int64)
        end = 0
        for count in np.bincount(targets, minlength=dataset.num_classes):
            members, end = order[end : end + count], end + int(count)
            edges = np.cumsum(dirichlet(rng, self._alpha, num_clients))
            places = (np.arange(count) + 0.5) / max(count, 1) * edges[-1]
            owners[members] = np.searchsorted(edges, places)
        return raise_to_minimum(owners, num_clients, self._min_examples, rng)


class Shards(Dealing):
    """Label-sorted shards: each client gets a few runs of the examples sorted by class.

    Args:
        shards_per_client: Shards a client gets; few shards mean few classes.

    Raises:
        ValueError: If ``shards_per_client`` is not positive.

    Source:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
        AISTATS 2017, arXiv:1602.05629.
    """

    def __init__(self, *, shards_per_client: int) -> None:
        if shards_per_client < 1:
            raise ValueError(f"shards_per_client must be at least 1, got {shards_per_client}")
        self._shards_per_client = shards_per_client

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        _require(dataset, num_clients, self._shards_per_client)
        targets = dataset.train.targets.numpy()
        num_shards = num_clients * self._shards_per_client
        client_of_shard = rng.permutation(num_shards) // self._shards_per_client
        owners = np.empty(len(targets), np.int64)
        shards = np.arange(len(targets)) * num_shards // len(targets)
        owners[_by_class(targets, rng)] = client_of_shard[shards]
        return owners


class QuantitySkew(Dealing):
    """Clients differ in how many examples they hold, not in the classes.

    Args:
        law: Distribution of the sizes.
        spread: Standard deviation of the size's logarithm for ``lognormal`` (``0`` is equal
            sizes), concentration alpha for ``dirichlet`` (small is unequal).
        min_examples: Fewest training examples of a client.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *, law: Literal["lognormal", "dirichlet"], spread: float, min_examples: int = 1
    ) -> None:
        if law not in ("lognormal", "dirichlet"):
            raise ValueError(f"law must be lognormal or dirichlet, got {law!r}")
        if spread < 0 or (law == "dirichlet" and spread == 0):
            raise ValueError(f"spread must be positive (lognormal: or 0), got {spread} for {law}")
        if min_examples < 1:
            raise ValueError(f"min_examples must be at least 1, got {min_examples}")
        self._law = law
        self._spread = spread
        self._min_examples = min_examples

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        _require(dataset, num_clients, self._min_examples)
        if self._law == "lognormal":
            weights = rng.lognormal(sigma=self._spread, size=num_clients)
        else:
            weights = dirichlet(rng, self._spread, num_clients)
        rest = len(dataset.train.targets) - num_clients * self._min_examples
        edges = np.cumsum(weights)
        extra = np.searchsorted(edges, (np.arange(rest) + 0.5) / max(rest, 1) * edges[-1])
        base = np.repeat(np.arange(num_clients), self._min_examples)
        return rng.permutation(np.concatenate((base, extra)))


class Natural(Dealing):
    """The data's own groups (writers, alphabets, ...) are dealt whole to the clients.

    Test examples go to the client that holds their group; those without groups, or whose group
    has no training example, are mirrored.
    """

    def deal(self, dataset: Dataset, num_clients: int, rng: np.random.Generator) -> Indices:
        """See :meth:`Dealing.deal`."""
        if dataset.train.groups is None:
            raise ValueError(
                f"partition=natural needs data with groups, and {dataset.name} has none;"
                " use dataset=omniglot or dataset=toy with num_groups, or another partition"
            )
        names, groups = np.unique(dataset.train.groups.numpy(), return_inverse=True)
        if len(names) < num_clients:
            raise ValueError(
                f"num_clients={num_clients} is more than the {len(names)} groups of"
                f" {dataset.name}; use num_clients={len(names)} or fewer, or another partition"
            )
        return (rng.permutation(len(names)) % num_clients)[groups]

    def deal_test(
        self, dataset: Dataset, owners: Indices, num_clients: int, rng: np.random.Generator
    ) -> Indices:
        """See :meth:`Dealing.deal_test`."""
        mirrored = super().deal_test(dataset, owners, num_clients, rng)
        if dataset.test.groups is None or dataset.train.groups is None:
            return mirrored
        names, first = np.unique(dataset.train.groups.numpy(), return_index=True)
        groups = dataset.test.groups.numpy()
        place = np.minimum(np.searchsorted(names, groups), len(names) - 1)
        return np.where(names[place] == groups, owners[first[place]], mirrored)


class Resampled(Partition):
    """Every client draws its examples from the whole data: for populations of any size.

    Clients share examples. Nothing is kept per client, so a million clients cost nothing until
    they are asked for their data.

    Args:
        samples_per_client: Training examples a client draws, without replacement.
        test_samples_per_client: Test examples a client draws, without replacement.
        alpha: Label skew between the clients, see :class:`Drawn`; None draws uniformly.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *, samples_per_client: int, test_samples_per_client: int, alpha: float | None = None
    ) -> None:
        if samples_per_client < 1 or test_samples_per_client < 0:
            raise ValueError(
                "samples_per_client must be at least 1 and test_samples_per_client at least 0,"
                f" got {samples_per_client} and {test_samples_per_client}"
            )
        if alpha is not None and alpha <= 0:
            raise ValueError(f"alpha must be positive or null, got {alpha}")
        self._samples = samples_per_client
        self._test_samples = test_samples_per_client
        self._alpha = alpha

    def holdings(self, dataset: Dataset, num_clients: int, seed: int) -> Drawn:
        """See :meth:`Partition.holdings`."""
        if num_clients < 1:
            raise ValueError(f"num_clients must be at least 1, got {num_clients}")
        train, test = dataset.train.targets.numpy(), dataset.test.targets.numpy()
        for name, wanted, given in (
            ("samples_per_client", self._samples, len(train)),
            ("test_samples_per_client", self._test_samples, len(test)),
        ):
            if wanted > given:
                raise ValueError(f"{name}={wanted} is more than {dataset.name} has: {given}")
        return Drawn(
            targets={"train": train, "test": test},
            num_draws={"train": self._samples, "test": self._test_samples},
            alpha=self._alpha,
            seed=seed,
        )


class Own(Partition):
    """Every client has the whole data that it finds: for devices that hold their own and no other.

    In one process that is the same data for everybody.
    """

    def holdings(self, dataset: Dataset, num_clients: int, seed: int) -> Whole:
        """See :meth:`Partition.holdings`."""
        del num_clients, seed
        return Whole({"train": len(dataset.train.targets), "test": len(dataset.test.targets)})


def _by_class(targets: Indices, rng: np.random.Generator) -> Indices:
    """Examples sorted by class, in random order inside a class."""
    shuffled = rng.permutation(len(targets))
    return shuffled[np.argsort(targets[shuffled], kind="stable")]


def _require(dataset: Dataset, num_clients: int, examples_per_client: int) -> None:
    """Raise where the data does not suffice."""
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")
    available, needed = len(dataset.train.targets), num_clients * examples_per_client
    if needed > available:
        raise ValueError(
            f"num_clients={num_clients} with {examples_per_client} or more training examples each"
            f" needs {needed}, and {dataset.name} has {available}; use fewer clients,"
            " or partition=resampled, where clients share examples"
        )
