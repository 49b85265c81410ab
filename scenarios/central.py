"""All clients' data at one place: the upper bound of a federated scenario."""

import numpy as np
from torch import Tensor

from fedsim.data import Dataset, Indices, Shard
from fedsim.scenario import Scenario, Split
from scenarios.missions import Mission, Missions


class Central(Scenario):
    """One client that holds what all clients of another scenario hold.

    With ``cumulative``, it also keeps everything from earlier experiences: central training on all
    that anybody has seen, the bound that no federated method can pass.

    Args:
        scenario: Whose data; its test data stay as they are. Inputs that change over time are
            taken as they look in the current experience.
        num_clients: Must be 1.
        num_experiences: That of the scenario.
        cumulative: Whether earlier experiences' training data stay.

    Raises:
        ValueError: If there are several clients or the numbers of experiences differ.
    """

    def __init__(
        self, *, scenario: Scenario, num_clients: int, num_experiences: int, cumulative: bool = True
    ) -> None:
        super().__init__()
        if num_clients != 1:
            raise ValueError(
                f"central training has one client; set num_clients=1, not {num_clients}"
            )
        if num_experiences != scenario.num_experiences:
            raise ValueError(
                f"num_experiences is {num_experiences}, but the scenario has"
                f" {scenario.num_experiences}"
            )
        self.num_clients = num_clients
        self.num_experiences = num_experiences
        self.num_classes = scenario.num_classes
        self.input_shape = scenario.input_shape
        self.task_classes = scenario.task_classes
        self.base_classes = scenario.base_classes
        self.evaluation_points = scenario.evaluation_points
        self._scenario = scenario
        self._cumulative = cumulative

    def indices(self, client_id: int | None, experience: int, split: Split) -> Indices:
        """See :meth:`Scenario.indices`."""
        del client_id
        if split == "train" and self._cumulative:
            parts = [self._scenario.indices(None, e, split) for e in range(experience + 1)]
            return np.unique(np.concatenate(parts))
        return self._scenario.indices(None, experience, split)

    def build(self, indices: Indices, experience: int, split: Split) -> Shard:
        """See :meth:`Scenario.build`."""
        return self._scenario.build(indices, experience, split)

    def classes(self, experience: int) -> list[int]:
        """See :meth:`Scenario.classes`."""
        return self._scenario.classes(experience)

    def targets(self, split: Split) -> Tensor:
        """See :meth:`Scenario.targets`."""
        return self._scenario.targets(split)


def central_missions(  # noqa: PLR0913 - those of the missions, and whose they are
    *,
    dataset: Dataset,
    num_clients: int,
    pooled_clients: int,
    num_experiences: int,
    base_classes: int = 0,
    field_classes: int | None = None,
    mission: Mission,
    evaluation_points: bool = False,
    seed: int,
) -> Central:
    """Central training on what the clients of :class:`scenarios.missions.Missions` see.

    Args:
        dataset: See there, as for the other arguments.
        num_clients: Must be 1.
        pooled_clients: How many clients go on missions.
        num_experiences: Missions, plus one for the base where there is one.
        base_classes: The base.
        field_classes: Classes of the field.
        mission: What a client draws.
        evaluation_points: See :class:`fedsim.scenario.Scenario`.
        seed: Seed of the run.
    """
    scenario = Missions(
        dataset=dataset,
        num_clients=pooled_clients,
        num_experiences=num_experiences,
        base_classes=base_classes,
        field_classes=field_classes,
        mission=mission,
        evaluation_points=evaluation_points,
        seed=seed,
    )
    return Central(scenario=scenario, num_clients=num_clients, num_experiences=num_experiences)
