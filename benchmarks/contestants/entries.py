"""Who takes part in which workload, and with which command."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

AVERAGING = ("W1", "W2", "W3")
WORKLOADS = (*AVERAGING, "fedpub", "prototypes")
LOOP = "plain loop"  # what the others are compared with
OURS = "fedsim"

ROUNDS = {"W1": 6, "W2": 21, "W3": 16, "fedpub": 16, "prototypes": 9}
FEW = {"W1": 4, "W2": 7, "W3": 4}  # of contestants whose rounds take seconds
_OWN = Path(__file__).parent / "conf"
_COMMAND = "from fedsim.main import main; main()"  # what the command `fedsim` does


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contestant.

    Attributes:
        name: As the table shows it.
        module: Its program, or empty for fedsim's own command.
        workloads: What it takes part in.
        package: The distribution that it needs in its environment.
        key: What ``--python`` calls its environment.
        words: Arguments after the workload.
        reference: Whose order of examples its weights are compared in.
        slow: Whether it runs fewer rounds.
    """

    name: str
    module: str = ""
    workloads: tuple[str, ...] = AVERAGING
    package: str = "torch"
    key: str = OURS
    words: tuple[str, ...] = ()
    reference: str = "stored"
    slow: bool = False

    def rounds(self, workload: str, asked: int | None) -> int:
        """Rounds that it runs, of which the first is not timed."""
        number = asked or ROUNDS[workload]
        return min(number, FEW[workload]) if self.slow and workload in FEW else number

    def arguments(self, workload: str, rounds: int) -> list[str]:
        """What comes after the name of the Python interpreter."""
        if self.module:
            return ["-m", f"contestants.{self.module}", workload, *self.words]
        length = "scenario.num_experiences" if workload == "prototypes" else _LENGTH
        chosen = [f"experiment={workload}", f"{length}={rounds}", *self.words]
        return ["-c", _COMMAND, "--config-dir", str(_OWN), *chosen]


_LENGTH = "clock.rounds_per_experience"


def _ours(name: str, *words: str, workloads: tuple[str, ...] = WORKLOADS) -> Entry:
    return Entry(
        name=name, workloads=workloads, package="fedsim-lab", words=words, reference="drawn"
    )


def _peer(name: str, package: str, module: str, key: str) -> Entry:
    return Entry(name=name, module=module, package=package, key=key)


ENTRIES: Sequence[Entry] = (
    Entry(name=LOOP, module="plain_loop"),
    Entry(name=LOOP, module="fedpub_loop", workloads=("fedpub",)),
    Entry(name=LOOP, module="prototypes_loop", workloads=("prototypes",)),
    Entry(
        name=f"{LOOP} with messages' bytes",
        module="prototypes_loop",
        workloads=("prototypes",),
        words=("--messages",),
    ),
    Entry(name="torch.func", module="torch_func"),
    _ours(OURS, "engine.cohort=auto"),
    _ours(f"{OURS}, one by one", "engine.cohort=off"),
    Entry(name="Flower, Ray", module="on_flower", package="ray", slow=True),
    _peer("pfl", "pfl", "on_pfl", "pfl"),
    _peer("fluke", "fluke-fl", "on_fluke", "fluke"),
    _peer("FedLab", "fedlab", "on_fedlab", "fedlab"),
    _peer("BlazeFL", "blazefl", "on_blazefl", "blazefl"),
)
