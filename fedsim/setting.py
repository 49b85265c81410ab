"""What all clients of a run share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedsim.clock import Clock
from fedsim.evaluation import Evaluation
from fedsim.faults import Faults
from fedsim.model import Model
from fedsim.running import RunningStatistics
from fedsim.scenario import Scenario
from fedsim.seeding import derive
from fedsim.training import seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every client of a run shares.

    Attributes:
        scenario: The data.
        clock: The time.
        model: Builds the model; called once per process.
        seed: Seed of the run.
        device: Where the model trains, e.g. ``cpu`` or ``cuda``.
        evaluation: When clients are tested and on what.
        faults: What goes wrong on purpose, or None.
        running: What becomes of running statistics that do not travel, or None where all do.
    """

    scenario: Scenario
    clock: Clock
    model: Callable[[], Model]
    seed: int
    device: str = "cpu"
    evaluation: Evaluation = field(default_factory=Evaluation)
    faults: Faults | None = None
    running: RunningStatistics | None = None

    def prefetch(self, round_: int, client_ids: Sequence[int]) -> None:
        """Cut what these clients train on in a round, all at once, before they are asked for it."""
        met: dict[int, list[int]] = {}
        for client_id in client_ids:
            position = self.clock.at(round_, client_id).experience
            if position >= 0:
                experience = self.scenario.experience_at(client_id, position)
                met.setdefault(experience, []).append(client_id)
        for experience, clients in met.items():
            self.scenario.prefetch(clients, experience, "train")


def initial_model(setting: Setting) -> Model:
    """The model every run with this seed starts from."""
    with seeded(derive(setting.seed, "init")):
        return setting.model()
