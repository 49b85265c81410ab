"""In which order a client meets the experiences of a scenario."""

from abc import ABC, abstractmethod

from fedsim.seeding import numpy_generator


class Order(ABC):
    """Order of the experiences, per client."""

    @abstractmethod
    def experience_at(self, client_id: int, position: int, num_experiences: int, seed: int) -> int:
        """Which experience the client meets at a position of its stream.

        Args:
            client_id: The client.
            position: Experiences the client has had before, in ``[0, num_experiences)``.
            num_experiences: Length of the stream ``E``.
            seed: Seed of the run.
        """


class SameOrder(Order):
    """Every client meets the experiences in the scenario's order."""

    def experience_at(self, client_id: int, position: int, num_experiences: int, seed: int) -> int:
        """See :meth:`Order.experience_at`."""
        del client_id, num_experiences, seed
        return position


class ShuffledOrder(Order):
    """Every client meets the experiences in its own order, drawn from ``(seed, client)``."""

    def experience_at(self, client_id: int, position: int, num_experiences: int, seed: int) -> int:
        """See :meth:`Order.experience_at`."""
        rng = numpy_generator(seed, "order", client_id)
        return int(rng.permutation(num_experiences)[position])
