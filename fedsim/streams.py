"""A client's experiences as an Avalanche scenario, so that Avalanche's strategies train on them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedsim.data import Shard
from fedsim.scenario import Scenario, Split

if TYPE_CHECKING:  # importing Avalanche takes seconds, so only those who call us pay
    from avalanche.benchmarks import CLScenario, DatasetExperience


class ShardExamples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The examples of one shard as pairs ``(input, class)``; the shard is built on first access.

    A pickled or copied instance carries the shard and not the scenario, so a replay buffer that
    holds it can be saved with a client's state.

    Args:
        scenario: Where the shard comes from.
        client_id: The client, or None for all clients' data.
        experience: Number of the experience in the scenario.
        split: Training or test part.
    """

    def __init__(
        self, *, scenario: Scenario, client_id: int | None, experience: int, split: Split
    ) -> None:
        indices = scenario.indices(client_id, experience, split)
        self.targets: list[int] = scenario.targets(split)[torch.from_numpy(indices)].tolist()
        self._source: tuple[Scenario, int | None, int, Split] | None
        self._source = (scenario, client_id, experience, split)
        self._inputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._load()[index], self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"targets": self.targets, "_inputs": self._load(), "_source": None}

    def _load(self) -> Tensor:
        if self._inputs is None:
            if self._source is None:
                raise RuntimeError("a copied dataset always carries its inputs")
            scenario, client_id, experience, split = self._source
            shard: Shard = scenario.shard(client_id, experience, split)
            self._inputs = shard.inputs
        return self._inputs


def avalanche_scenario(scenario: Scenario, client_id: int) -> "CLScenario":
    """The client's stream as an Avalanche scenario with ``train_stream`` and ``test_stream``.

    Position ``i`` of either stream is the client's ``i``-th experience,
    ``scenario.shard(client_id, scenario.experience_at(client_id, i), split)``; examples are built
    when they are first read. An experience has ``classes_in_this_experience``,
    ``previous_classes``, ``classes_seen_so_far``, ``future_classes`` (lists) and ``task_labels``:
    the number of the experience in the scenario where the scenario tells task labels, else 0.
    The scenario has ``n_classes_per_exp`` and ``classes_order`` of the client's training data,
    which iCaRL needs. An experience in which the client holds nothing is there and empty.

    Args:
        scenario: The federated scenario.
        client_id: In ``[0, num_clients)``.
    """
    from avalanche.benchmarks import CLScenario, EagerCLStream

    splits: tuple[Split, Split] = ("train", "test")
    experiences = {split: _experiences(scenario, client_id, split) for split in splits}
    result = CLScenario([EagerCLStream(split, experiences[split]) for split in splits])
    new: list[list[int]] = []
    for experience in experiences["train"]:
        earlier = set(experience.previous_classes)
        new.append([c for c in experience.classes_in_this_experience if c not in earlier])
    result.n_classes_per_exp = [len(classes) for classes in new]
    result.classes_order = [c for classes in new for c in classes]
    for split in splits:
        for experience in experiences[split]:
            experience.benchmark = result
    return result


def _experiences(scenario: Scenario, client_id: int, split: Split) -> "list[DatasetExperience]":
    """All experiences of one stream, in the client's order."""
    from avalanche.benchmarks import DatasetExperience
    from avalanche.benchmarks.utils import _make_taskaware_classification_dataset

    order = [scenario.experience_at(client_id, i) for i in range(scenario.num_experiences)]
    parts = [
        ShardExamples(scenario=scenario, client_id=client_id, experience=e, split=split)
        for e in order
    ]
    classes = [set(part.targets) for part in parts]
    result = []
    for position, (number, part) in enumerate(zip(order, parts, strict=True)):
        task = number if scenario.task_classes is not None else 0
        # one number for all, as Avalanche joins it with its own buffers; it fails on no examples
        dataset = _make_taskaware_classification_dataset(
            part, targets=part.targets, task_labels=task if len(part) else []
        )
        seen = set().union(*classes[:position]), set().union(*classes[: position + 1])
        experience = DatasetExperience(dataset=dataset, current_experience=position)
        experience.classes_in_this_experience = sorted(classes[position])
        experience.previous_classes = sorted(seen[0])
        experience.classes_seen_so_far = sorted(seen[1])
        experience.future_classes = sorted(set().union(*classes) - seen[1])
        experience.task_label = task
        experience.task_labels = [task]
        result.append(experience)
    return result
