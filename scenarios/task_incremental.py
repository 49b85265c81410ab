"""New classes in every experience, and at test time one is told which experience it is."""

import torch
from torch import Tensor

from fedsim.data import Indices
from fedsim.scenario import Split
from scenarios.class_incremental import ClassIncremental


class TaskIncremental(ClassIncremental):
    """Class-incremental data whose task labels are told; see :class:`ClassIncremental` for Args.

    The task label of an example is its experience, and :attr:`task_classes` are the classes
    among which the example is classified, bool ``[E, K]``.
    """

    def told_classes(self) -> Tensor:
        """See :meth:`ClassIncremental.told_classes`: the classes of every experience."""
        mask = torch.zeros(self.num_experiences, self.num_classes, dtype=torch.bool)
        mask[torch.from_numpy(self._experience_of), torch.arange(self.num_classes)] = True
        return mask

    def tasks(self, indices: Indices, experience: int, split: Split) -> Tensor:
        """See :meth:`PartitionedScenario.tasks`."""
        del split
        return torch.full((len(indices),), experience)
