"""Running statistics of normalisation layers that are not averaged.

Means and variances that a batch normalisation has seen are no weights: averaging them over clients
whose data differ describes nobody's data. They can stay at the clients, as in FedBN and SiloBN, or
be dropped altogether.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedsim.arrays import Params, Records
from fedsim.state import ClientState
from fedsim.wire import Download, Upload

Policy = Literal["average", "local", "drop"]
POLICIES = ("average", "local", "drop")
_STATE = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStatistics:
    """Statistics that do not travel: left out of what is sent, filled in where it arrives.

    Attributes:
        policy: ``local`` lets every client go on with its own; ``drop`` forgets what a client saw.
        initial: The statistics of the untrained model, by name; what clients without own ones, and
            the server, use.

    Source:
        Li et al., FedBN, ICLR 2021, arXiv:2102.07623, keeps the whole layers local; Andreux et al.,
        Siloed Federated Learning, 2020, arXiv:2008.07424, the statistics, as ``local`` does.
    """

    policy: Policy
    initial: Params

    def without(self, params: Params) -> Params:
        """The tensors that travel."""
        return {name: tensor for name, tensor in params.items() if name not in self.initial}

    def received(self, down: Download, state: ClientState) -> Download:
        """The download with the client's statistics, or the initial ones, where weights are."""
        own = {**self.initial, **state.get(_STATE, {})}
        records = {
            name: {**params, **own} if name in ("arrays", "base") else params
            for name, params in down.records.items()
        }
        return replace(down, records=records)

    def sent(self, upload: Upload, state: ClientState) -> Upload:
        """The upload without statistics, which go into the client's state if they are local."""
        found = {
            name: tensor.clone()
            for params in upload.records.values()
            for name, tensor in params.items()
            if name in self.initial
        }
        if found and self.policy == "local":
            state[_STATE] = found
        records: Records = {record: self.without(p) for record, p in upload.records.items()}
        return replace(upload, records=records)


def running_statistics(model: nn.Module) -> Params:
    """The buffers in which normalisation layers keep what they have seen, by name.

    >>> sorted(running_statistics(nn.BatchNorm1d(2)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    return {
        f"{prefix}.{name}" if prefix else name: buffer.detach().clone()
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for name, buffer in module.named_buffers(recurse=False)
    }
