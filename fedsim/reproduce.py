"""The `fedsim-reproduce` command: a paper's claims as checks, with our numbers.

``fedsim-reproduce NAME`` imports ``fedsim.reproductions.NAME`` and prints what its function
``checks(runner)`` yields. A run that was made before is read from its directory, and one that was
interrupted goes on from its last checkpoint, so an interrupted reproduction goes on where it
stopped.
"""

import argparse
import hashlib
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.checks import ConfigError, Node
from fedsim.config import compose, resolve
from fedsim.interruption import unbroken

Summary = Node
Simulate = Callable[[Node, Path], Summary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim.

    Attributes:
        claim: In words.
        wanted: What must hold, in words; a paper's number where there is one.
        ours: What was measured, in words.
        holds: Whether it does; None for a number that is only reported.
    """

    claim: str
    wanted: str
    ours: str
    holds: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs configurations and remembers their summaries.

    Attributes:
        folder: Where the run directories go.
        seeds: Seeds that claims are averaged over.
        extra: Overrides of every run, e.g. from the command line.
        simulate: Runs a resolved configuration in a directory, where it leaves ``summary.json``.
    """

    folder: Path
    seeds: Sequence[int]
    simulate: Simulate
    extra: Sequence[str] = ()

    def run(self, *overrides: str) -> Summary:
        """The summary of one run, read from disk where the same one was finished before."""
        words = [*overrides, *self.extra]
        node = resolve(compose([*words, "overwrite=true", "progress=false"]))
        key = hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:12]
        run_dir = self.folder / key
        path = run_dir / "summary.json"
        if not path.exists():
            print(f"  running {' '.join(words)}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            self.simulate(node, run_dir)
            print(f"  took {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        summary: Summary = json.loads(path.read_text(encoding="utf-8"))
        return summary

    def over_seeds(self, *overrides: str) -> list[Summary]:
        """Summaries of one run per seed."""
        return [self.run(*overrides, f"seed={seed}") for seed in self.seeds]


def mean(summaries: Sequence[Summary], name: str) -> float:
    """Mean of an entry over summaries; NaN where one lacks it."""
    values = [s.get(name) for s in summaries]
    numbers = [float(v) for v in values if v is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) and values else math.nan


def main() -> None:
    """Run the checks of one reproduction; exit with 1 if a claim does not hold."""
    sys.path.append(str(Path.cwd()))
    parser = argparse.ArgumentParser(prog="fedsim-reproduce", description=__doc__)
    parser.add_argument("name", help="module in fedsim/reproductions/")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("overrides", nargs="*", help="added to every run's configuration")
    args = parser.parse_intermixed_args()  # overrides may stand behind options
    try:
        with unbroken():
            module = importlib.import_module(f"fedsim.reproductions.{args.name}")
    except ModuleNotFoundError as error:
        if error.name != f"fedsim.reproductions.{args.name}":
            raise
        sys.exit(f"fedsim-reproduce: there is no {args.name!r}; known: {', '.join(known())}")
    runner = Runner(
        folder=args.folder / args.name,
        seeds=range(args.seeds),
        simulate=_simulate,
        extra=args.overrides,
    )
    try:
        failed = show(args.name, module.checks(runner))
    except ConfigError as error:
        sys.exit(f"fedsim-reproduce: {error}")
    sys.exit(1 if failed else 0)


def known() -> list[str]:
    """Reproductions by name."""
    from fedsim import reproductions

    folder = Path(str(reproductions.__file__)).parent
    return sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def show(name: str, checks: Iterator[Check]) -> int:
    """Print each check as it is made and all as a table; returns how many do not hold."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Reproduction: {name}", title_justify="left")
    for column in ("claim", "wanted", "ours", ""):
        table.add_column(column)
    verdicts: list[bool | None] = []
    for check in checks:
        verdict = {True: "holds", False: "FAILS", None: ""}[check.holds]
        verdicts.append(check.holds)
        line = f"{check.claim}: {check.ours} (wanted: {check.wanted}) {verdict}"
        print(line.rstrip(), file=sys.stderr, flush=True)  # a reproduction may take an hour
        cells = (escape(text) for text in (check.claim, check.wanted, check.ours))
        table.add_row(*cells, verdict)
    Console(width=110).print(table)
    failed = verdicts.count(False)
    print(f"{verdicts.count(True)} hold, {failed} fail, {verdicts.count(None)} are only reported")
    return failed


def _simulate(node: Node, run_dir: Path) -> Summary:
    """Make a run, or go on with it if it was interrupted."""
    with unbroken():
        from fedsim.checkpoint_files import CheckpointError, manifests
        from fedsim.main import simulate

    started = time.perf_counter()
    if manifests(run_dir):
        try:
            return simulate(node, run_dir, started=started, resume=True)
        except CheckpointError as error:
            print(f"  from the beginning: {error}", file=sys.stderr, flush=True)
    return simulate(node, run_dir, started=started)


if __name__ == "__main__":
    main()
