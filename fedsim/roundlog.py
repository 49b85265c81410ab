"""What happened in one round, as the loop hands it to whoever records it."""

from dataclasses import dataclass, field

from fedsim.clock import Tick
from fedsim.gate import Rejection
from fedsim.matrices import Matrix
from fedsim.wire import Upload

BEFORE = Tick(0, -1, 0, is_first=False, is_last=False)  # the untrained model is measured here


@dataclass(slots=True)
class RoundLog:
    """What happened in one round.

    Attributes:
        tick: The server's time.
        cohort: Clients whose updates were aggregated, in order.
        idle: Clients that were asked but had no data or had not joined.
        rejections: Updates that were refused.
        num_examples: Training examples behind the aggregate.
        train_loss: Example-weighted mean of the clients' training losses; NaN without any.
        upload_bytes: Sent by clients, by record name, rejected updates included.
        download_bytes: Sent to clients, by record name, for training and evaluation.
        seconds: Wall time by phase: configure, train, aggregate, evaluate; and, with faults,
            ``waiting``: virtual seconds, which nobody spent.
        evaluations: Uploads of evaluating clients, in client order.
        server: The server's own evaluation of the global model, or None.
        measures: Further numbers, by name: what the strategy says of its state or, with Flower's
            strategies, the mean of what the clients measured; and what the server's evaluation
            found besides accuracy and loss.
        matrices: Numbers between the clients of the round, by name.
        is_void: Whether the round's result may not be used, so that the run ends with it.
    """

    tick: Tick
    cohort: list[int] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    num_examples: int = 0
    train_loss: float = float("nan")
    upload_bytes: dict[str, int] = field(default_factory=dict)
    download_bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: list[Upload] = field(default_factory=list)
    server: Upload | None = None
    measures: dict[str, float] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    is_void: bool = False
