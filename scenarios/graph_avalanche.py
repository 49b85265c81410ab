"""A client's subgraphs as an Avalanche scenario."""

from typing import TYPE_CHECKING

from fedsim.scenario import Scenario, Split
from scenarios.graph_split import SPLITS

if TYPE_CHECKING:  # importing Avalanche takes seconds
    from avalanche.benchmarks import CLScenario, DatasetExperience


def avalanche_scenario(scenario: Scenario, client_id: int) -> "CLScenario":
    """The client's stream with ``train_stream``, ``val_stream`` and ``test_stream``.

    The data set of an experience has one item: the ``Data`` of the shard, whose ``mask`` tells the
    rows. An experience has ``classes_in_this_experience``, ``previous_classes``,
    ``classes_seen_so_far``, ``future_classes`` (lists, of the rows) and ``task_labels``: the number
    of the experience in the scenario where the scenario tells task labels, else 0.

    Args:
        scenario: A scenario of graph shards.
        client_id: In ``[0, num_clients)``.
    """
    from avalanche.benchmarks import CLScenario, EagerCLStream

    streams = [EagerCLStream(s, _experiences(scenario, client_id, s)) for s in SPLITS]
    return CLScenario(streams)


def _experiences(scenario: Scenario, client_id: int, split: Split) -> "list[DatasetExperience]":
    """All experiences of one stream, in the client's order."""
    from avalanche.benchmarks import DatasetExperience
    from avalanche.benchmarks.utils import AvalancheDataset

    order = [scenario.experience_at(client_id, i) for i in range(scenario.num_experiences)]
    shards = [scenario.shard(client_id, number, split) for number in order]
    classes = [set(shard.targets.tolist()) for shard in shards]
    result = []
    for position, (number, shard) in enumerate(zip(order, shards, strict=True)):
        before = set().union(*classes[:position])
        now = before | classes[position]
        dataset = AvalancheDataset([[shard.inputs]])
        experience = DatasetExperience(dataset=dataset, current_experience=position)
        experience.classes_in_this_experience = sorted(classes[position])
        experience.previous_classes = sorted(before)
        experience.classes_seen_so_far = sorted(now)
        experience.future_classes = sorted(set().union(*classes) - now)
        experience.task_label = number if scenario.task_classes is not None else 0
        experience.task_labels = [experience.task_label]
        result.append(experience)
    return result
