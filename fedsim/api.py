"""Runs from Python: start one, open finished ones, look at their numbers as data frames."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.metrics import Matrix, Weighting, accuracy_matrix
from fedsim.run_files import read_json, read_lines, read_yaml

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from fedsim.model import Model
    from fedsim.report.plots import Plot


def run(overrides: str | Sequence[str] = (), *, folder: str | Path | None = None) -> "Run":
    """Run a configuration in this process and return what it measured.

    ``fedsim.run("experiment=replay_digits_staggered seed=1")`` is the command line
    ``fedsim experiment=replay_digits_staggered seed=1``; choices of your own are found in
    ``--config-dir conf``, a word like the others.

    Args:
        overrides: The command line's words, as one string or as a list.
        folder: Run directory; by default the one that the command line would take.

    Raises:
        ConfigError: If the configuration cannot work.
    """
    import time

    started = time.perf_counter()
    from fedsim.config import compose_run, resolve
    from fedsim.main import simulate

    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    composed = compose_run(["progress=false", *words])
    node = resolve(composed.config)
    run_dir = composed.run_dir if folder is None else Path(folder)
    simulate(node, run_dir, started=started)
    composed.save(run_dir)
    return Run(path=run_dir)


def resume(path: str | Path, *, trust: bool = False) -> "Run":
    """Go on with an interrupted run in this process; a finished one is only opened.

    Args:
        path: The run directory.
        trust: Whether its configuration may name classes that ``conf/`` does not.

    Raises:
        ConfigError: If there is nothing to go on from; the text says why.
    """
    from fedsim.main import go_on

    go_on(Path(path), ["progress=false", f"trust={str(trust).lower()}"])
    return Run(path=Path(path))


def load(path: str | Path) -> "Run":
    """Open a run directory.

    Raises:
        FileNotFoundError: If it holds no run.
    """
    opened = Run(path=Path(path))
    if not (opened.path / "config.yaml").exists():
        raise FileNotFoundError(f"{path} holds no run: there is no config.yaml in it")
    return opened


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory. Everything is read when it is first asked for.

    Attributes:
        path: The run directory.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, every value resolved."""
        return read_yaml(self.path / "config.yaml")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """One number each; empty if the run did not finish."""
        return read_json(self.path / "summary.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, commit and command."""
        return read_json(self.path / "env.json")

    @cached_property
    def cut(self) -> dict[str, Any]:
        """How the scenario deals the data, see :func:`fedsim.cut.describe`; empty if unknown."""
        return read_json(self.path / "scenario.json")

    @cached_property
    def _hydra(self) -> dict[str, Any]:
        content: dict[str, Any] = read_yaml(self.path / ".hydra" / "hydra.yaml").get("hydra", {})
        return content

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choice of every configuration group, by the group's name; empty if unknown."""
        chosen = self._hydra.get("runtime", {}).get("choices", {})
        return {str(k): str(v) for k, v in chosen.items() if not str(k).startswith("hydra/")}

    @cached_property
    def overrides(self) -> list[str]:
        """The words after ``fedsim`` that made this run."""
        return [str(word) for word in self._hydra.get("overrides", {}).get("task", [])]

    @cached_property
    def command(self) -> str:
        """The command that repeats this run."""
        words = [word for word in self.overrides if not word.startswith("progress=")]
        if any(word.startswith("sweep=") for word in words):
            words.append("hydra.mode=RUN")  # this one job of the named sweep
        return shlex.join(["fedsim", *words])

    @cached_property
    def rows(self) -> "pd.DataFrame":
        """Every evaluation: one line per round, client and experience (see ``rows.jsonl``)."""
        import pandas as pd

        parquet = self.path / "rows.parquet"
        if parquet.exists():
            return pd.read_parquet(parquet)
        return read_lines(self.path / "rows.jsonl")

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """One line per round: seconds, bytes, cohort, training loss."""
        return read_lines(self.path / "rounds.jsonl")

    @cached_property
    def rejections(self) -> "pd.DataFrame":
        """One line per refused update: round, client, reason."""
        return read_lines(self.path / "rejections.jsonl")

    @cached_property
    def weights(self) -> "dict[str, Tensor]":
        """What the server held at the end, by name; of FedAvg and its kin the global model's."""
        from safetensors.torch import load_file

        return load_file(self.path / "model.safetensors")

    def model(self, *, trust: bool = False) -> "Model":
        """The global model as it was at the end, in evaluation mode.

        Args:
            trust: Whether the configuration may name classes that ``conf/`` does not.

        Raises:
            ConfigError: If the configuration cannot be trusted.
            ValueError: If the server of this method holds no model.
        """
        from fedsim.run_files import trained_model

        return trained_model(self.path, self.weights, trust=trust)

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """Numbers between pairs of clients, of the last round that has them.

        One entry per kind, e.g. FED-PUB's ``similarity``: ``name``, ``round``, ``clients`` and
        ``values`` ``[C, C]``.
        """
        path = self.path / "matrices.jsonl"
        last: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            last[line.split(",", 1)[0]] = line  # a line begins with its name; parse the last only
        return [json.loads(line) for line in last.values() if line.endswith("}")]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary)

    @property
    def weighting(self) -> str:
        """How clients weigh in accuracies, ``examples`` or ``clients``."""
        return str((self.config.get("evaluation") or {}).get("weighting", "examples"))

    @cached_property
    def judged(self) -> "pd.DataFrame":
        """The rows that the run is judged by: the server's, or of personal models the clients'."""
        if self.rows.empty:
            return self.rows
        server = self.rows[self.rows["client"].isna()]
        own = self.rows[self.rows["client"].notna()]
        trained = own if not own.empty else server
        personal = not trained.empty and (trained["model"] == "personal").any()
        return own if personal or server.empty else server

    @cached_property
    def accuracy(self) -> "pd.Series":
        """Test accuracy over all test data, by round; round 0 is the untrained model."""
        return accuracy_by(self.judged, "round", self.weighting)

    @cached_property
    def clients(self) -> "pd.Series":
        """Every client's accuracy on its own test data at the round the run is judged by."""
        own = self.rows[self.rows["client"].notna()] if not self.rows.empty else self.rows
        if own.empty:
            return accuracy_by(own, "client", "examples")
        chosen = self.summary.get("chosen_round", own["round"].max())
        series = accuracy_by(own[own["round"] == chosen], "client", "examples")
        series.index = series.index.astype(int)
        return series

    @cached_property
    def matrix(self) -> Matrix:
        """The accuracy matrix ``R[t, e]``, shape ``[E, E]`` (see :mod:`fedsim.metrics`)."""
        rows = self.judged
        if rows.empty or not (rows["round"] > 0).any():
            raise ValueError(f"{self.path} has no evaluations yet")
        trained = rows[rows["round"] > 0]
        last = trained.groupby("experience")["round"].transform("max")
        ends = trained[trained["round"] == last].astype({"client": object})
        ends = ends.where(ends.notna(), None)
        weighting: Weighting = "clients" if self.weighting == "clients" else "examples"
        return accuracy_matrix(ends.to_dict("records"), weighting=weighting)

    def plot_accuracy(self, against: str = "rounds") -> "Plot":
        """Accuracy against ``rounds``, ``bytes`` or ``seconds``."""
        from fedsim.report.curves import accuracy_plot

        return accuracy_plot({"": [self]}, against)

    def plot_matrix(self) -> "Plot":
        """The accuracy matrix as a heat map."""
        from fedsim.report.plots import matrix_plot

        return matrix_plot(self.matrix, "Accuracy matrix")

    def plot_clients(self) -> "Plot":
        """Every client's accuracy, the worst decile marked."""
        from fedsim.report.plots import clients_plot

        return clients_plot({"": [self.clients]})

    def plot_pairs(self) -> "list[Plot]":
        """A heat map for every kind of number between pairs of clients."""
        from fedsim.report.plots import pairs_plot

        return [pairs_plot(entry) for entry in self.pairs]

    def plot_cut(self) -> "Plot":
        """How many examples of each class every client holds."""
        from fedsim.report.cuts import labels_plot

        return labels_plot(self.cut)

    def plot_timeline(self) -> "Plot":
        """Which experience every client is in, over the rounds."""
        from fedsim.report.cuts import timeline_plot

        return timeline_plot(self.cut)


def accuracy_by(rows: "pd.DataFrame", key: str, weighting: str) -> "pd.Series":
    """Accuracy of the rows with the same key.

    Args:
        rows: Evaluations with ``client``, ``accuracy`` and ``num_examples``.
        key: Column that groups the rows, ``round`` or ``client``.
        weighting: ``examples`` weighs clients by their test examples, ``clients`` equally.
    """
    import pandas as pd

    if rows.empty:
        return pd.Series(dtype=float)
    known = rows[rows["accuracy"].notna() & (rows["num_examples"] > 0)]
    tested = pd.DataFrame(
        {
            key: known[key],
            "who": known["client"].fillna(-1) if weighting == "clients" else 0,
            "correct": known["accuracy"] * known["num_examples"],
            "examples": known["num_examples"],
        }
    )
    sums = tested.groupby([key, "who"])[["correct", "examples"]].sum()
    return (sums["correct"] / sums["examples"]).groupby(level=key).mean()
