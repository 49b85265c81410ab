"""Sweeps that can be called again: a ledger of what was tried, and jobs that cannot stop others.

``ledger.jsonl`` in the sweep folder gets one line when a sweep is called and one whenever a job
starts, goes on from a checkpoint, finishes, fails, is interrupted or is skipped. Lines are only
appended, so jobs may run in any process that Hydra's launchers start. A job is done when its
``summary.json`` exists; that file is written last.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedsim.checks import ConfigError, Node
from fedsim.interruption import unbroken
from fedsim.resumption import RunStoppedError

LEDGER = "ledger.jsonl"
FAILED = 1  # exit code of a sweep in which a job failed
# keys that say how a run shows and keeps itself, not what it computes
_SHOWING = ("progress", "overwrite", "resume", "trust", "checkpoint")
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of a sweep.

    Attributes:
        sweep_dir: Folder of the sweep.
        run_dir: Folder of the job.
        number: The job's number in the sweep, from 0.
        shown: Whether a line on the terminal says how the job went.
    """

    sweep_dir: Path
    run_dir: Path
    number: int
    shown: bool

    @property
    def name(self) -> str:
        """The job's overrides, which name its folder."""
        return str(self.run_dir.relative_to(self.sweep_dir.resolve()))

    def run(
        self, resolve: Callable[[], Node], simulate: Callable[[Node, bool], Entry]
    ) -> dict[str, Any] | None:
        """The job's summary, from an earlier call if it was finished then; None if it fails.

        A job that failed begins anew; one that was interrupted goes on, if that is possible.

        Args:
            resolve: Gives the configuration.
            simulate: Runs it; from its newest checkpoint, if the second argument says so.
        """
        began = time.perf_counter()
        try:
            node = resolve()
            if (summary := finished(self.run_dir, node)) is not None:
                self._note("skipped")
                return summary
            summary = self._simulate({**node, "progress": False, "overwrite": True}, simulate)
        except (KeyboardInterrupt, RunStoppedError) as error:
            with suppress(OSError):  # the disk may be full
                self._note("interrupted")
            if isinstance(error, RunStoppedError):
                raise
            print(
                f"\nthe same command with hydra.sweep.dir={self.sweep_dir} goes on from here",
                file=sys.stderr,
            )
            raise
        except Exception as error:  # whatever it is, the other jobs go on
            self._fail(error)
            return None
        seconds = round(time.perf_counter() - began, 3)
        self._note("finished", seconds=seconds, accuracy=summary.get("test_accuracy"))
        return summary

    def _simulate(self, node: Node, simulate: Callable[[Node, bool], Entry]) -> Entry:
        """Run the job, from a checkpoint if an interrupted call left one that can be used."""
        with unbroken():
            from fedsim.checkpoint_files import CheckpointError, manifests

        failed = (self.run_dir / "error.txt").exists()
        if manifests(self.run_dir) and not failed:
            self._note("resumed")
            try:
                return simulate(node, True)
            except CheckpointError as error:
                print(f"job {self.number + 1} begins anew: {error}", file=sys.stderr)
        self._note("started")
        return simulate(node, False)

    def _fail(self, error: Exception) -> None:
        text = str(error).strip() or type(error).__name__
        if not isinstance(error, ConfigError):
            text = f"{type(error).__name__}: {text}"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        trace = "".join(traceback.format_exception(error))
        (self.run_dir / "error.txt").write_text(trace, encoding="utf-8")
        self._note("failed", error=text.splitlines()[0])

    def _note(self, event: str, **values: Any) -> None:
        note(self.sweep_dir, {"event": event, "job": self.name, **values})
        if event == "finished":
            (self.run_dir / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
        if self.shown and event not in ("started", "resumed", "interrupted"):
            more = values.get("error", "")
            if event == "finished":
                accuracy = values["accuracy"]
                shown = "-" if accuracy is None else f"{accuracy:.3f}"
                more = f"test accuracy {shown}, {values['seconds']:.1f} s"
            print(f"job {self.number + 1} {event}: {self.name}  {more}".rstrip(), file=sys.stderr)


class Ledger:
    """What Hydra calls around a sweep; ``hydra.callbacks`` in ``conf/config.yaml`` names it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note that the sweep was called."""
        words = [*OmegaConf.to_container(config.hydra.overrides.task)]  # type: ignore[misc]
        note(Path(config.hydra.sweep.dir), {"event": "sweep", "overrides": words})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show what failed, if anything, and leave with an exit code that says so."""
        sweep_dir = Path(config.hydra.sweep.dir)
        jobs = last_events(this_call(read(sweep_dir)))
        count = {event: sum(e["event"] == event for e in jobs.values()) for event in _ENDS}
        print(
            f"{sweep_dir}: {count['finished']} finished, {count['skipped']} were finished before,"
            f" {count['failed']} failed",
            file=sys.stderr,
        )
        failed = {name: entry for name, entry in jobs.items() if entry["event"] == "failed"}
        if failed:
            _show(failed, distinguishing(jobs), sweep_dir)
            sys.exit(FAILED)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single run needs no ledger."""

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """A single run needs no ledger."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Jobs write their own lines."""

    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        """Jobs write their own lines."""


_ENDS = ("finished", "skipped", "failed")


def finished(run_dir: Path, node: Node) -> Entry | None:
    """The summary of an earlier run of this configuration; None if there is none.

    Raises:
        ConfigError: If the folder holds a finished run of another configuration.
    """
    if not (run_dir / "summary.json").exists():
        return None
    earlier = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    if not isinstance(earlier, dict):
        return None
    differ = [
        key
        for key in sorted({*map(str, earlier), *node})
        if key not in _SHOWING and earlier.get(key) != node.get(key)
    ]
    if differ:
        raise ConfigError(
            f"{run_dir} holds a finished run of another configuration ({', '.join(differ)} differ);"
            " choose another hydra.sweep.dir"
        )
    summary: Entry = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary


def note(sweep_dir: Path, entry: Entry) -> None:
    """Append one line to the ledger; a line is written at once, so processes do not mix theirs."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": round(time.time(), 3), **entry}) + "\n"
    with (sweep_dir / LEDGER).open("a", encoding="utf-8") as file:
        file.write(line)


def read(sweep_dir: Path) -> list[Entry]:
    """The ledger's lines; one that a killed process left unfinished is skipped."""
    entries = []
    path = sweep_dir / LEDGER
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def this_call(entries: list[Entry]) -> list[Entry]:
    """The lines since the sweep was last called."""
    starts = [i for i, entry in enumerate(entries) if entry["event"] == "sweep"]
    return entries[starts[-1] + 1 :] if starts else entries


def last_events(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The last line of every job, by the job's name."""
    return {entry["job"]: entry for entry in entries if "job" in entry}


def distinguishing(names: Iterable[str]) -> dict[str, str]:
    """The names without the overrides that all of them have; whole where nothing would be left."""
    parts = {name: name.split(",") for name in names}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    return {
        name: ",".join(part for part in words if part not in common) or name
        for name, words in parts.items()
    }


def _show(failed: dict[str, Entry], distinct: dict[str, str], sweep_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Failed jobs", title_justify="left")
    table.add_column("job", overflow="fold")
    table.add_column("error", overflow="fold")
    for name, entry in failed.items():
        table.add_row(distinct[name], entry["error"])
    console = Console(stderr=True)
    console.print(table)
    console.print(
        f"error.txt in a job's folder has the whole error. The same command with"
        f" hydra.sweep.dir={sweep_dir} tries these again and skips the finished ones.",
        soft_wrap=True,
    )
