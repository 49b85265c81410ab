"""fedsim against a plain loop, `torch.func`, Flower's own engine and other simulators, in one run.

    python benchmarks/peers.py                     all workloads; results/peers.json, peers.png
    python benchmarks/peers.py W2 --repeats 5      one of them
    python benchmarks/peers.py W1 --python pfl=/path/to/pfl/bin/python --python fluke=...

Workloads: W1, W2, W3 (see `benchmarks/workloads.py`), fedpub (FED-PUB, Cora in 10 subgraphs, all
clients tested in every round) and prototypes (1,000 clients on missions of five classes).

Every contestant is a process of its own, on one core and one thread; they take turns, A B C A B C.
A round is the median after the first. The time to the end of round 1 begins with the process, so
imports, data and a runtime's start are in it. Other simulators pin other versions, so each has an
environment of its own, which `--python` names (pfl, fluke, fedlab, blazefl); Flower's own engine
needs fedsim's extra `ray`. Who is not installed is left out, with a line that says so.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from contestants.entries import ENTRIES, FEW, LOOP, OURS, WORKLOADS, Entry
from contestants.processes import FailedError, Machine, version_of
from contestants.report import Row, plot, rows_of, show

OUT = Path(__file__).parent / "results"
KEYS = sorted({entry.key for entry in ENTRIES})


def main() -> None:
    """Measure, print and save."""
    options = parsed()
    pythons = dict.fromkeys(KEYS, sys.executable) | dict(options.python)
    rows, raw = [], {}
    present = installed(pythons, options.only)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(folder=Path(folder), core=last_core(), timeout=options.timeout)
        for workload in options.workloads:
            entries = [entry for entry in present if workload in entry.workloads]
            runs, gaps = compare(machine, workload, entries, pythons, options)
            raw[workload] = runs
            rows += rows_of(workload, runs, gaps)
    if not rows:
        sys.exit("no contestant gave a result; what each said stands above")
    show(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "argv": sys.argv,
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "rows": rows,
        "runs": raw,
    }
    (options.out / "peers.json").write_text(json.dumps(content, indent=2))
    plot(rows, options.out / "peers.png")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=WORKLOADS, help=" ".join(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of everyone (default 3)")
    parser.add_argument("--rounds", type=int, help="rounds, of which the first is not timed")
    parser.add_argument(
        "--python", action="append", default=[], type=environment, metavar="NAME=PYTHON",
        help="interpreter of an environment: " + ", ".join(KEYS),
    )  # fmt: skip
    parser.add_argument("--only", help="contestants, by names or parts of them, and commas")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a contestant")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if options.rounds is not None and options.rounds < 2:
        parser.error("--rounds must be at least 2, since the first is not timed")
    return options


def environment(text: str) -> tuple[str, str]:
    """``NAME=PYTHON`` as a pair."""
    name, _, python = text.partition("=")
    if name not in KEYS or not Path(python).is_file():
        raise argparse.ArgumentTypeError(f"NAME=PYTHON with NAME one of {', '.join(KEYS)}")
    return name, python


def installed(pythons: dict[str, str], only: str | None) -> list[Entry]:
    """The contestants that can run; a line for each that cannot."""
    asked = {part.strip().lower() for part in only.split(",")} if only else {""}
    names = {entry.name.lower() for entry in ENTRIES}
    parts = asked - names  # a whole name means this one, else whoever's name contains it
    chosen = [
        entry
        for entry in ENTRIES
        if entry.name.lower() in asked or any(part in entry.name.lower() for part in parts)
    ]
    missing = {e: e.package for e in chosen if version_of(pythons[e.key], e.package) is None}
    for entry, package in missing.items():
        if entry.key == OURS:
            print(
                f"{entry.name}: left out, {package} is not installed; it is in fedsim's extra ray"
            )
        else:
            print(
                f"{entry.name}: left out, {package} is not in {pythons[entry.key]}; make an"
                f" environment of its own, `pip install {package}` there, and name it with"
                f" --python {entry.key}=PYTHON"
            )
    return [entry for entry in chosen if entry not in missing]


def last_core() -> int | None:
    """The core that contestants share."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def compare(
    machine: Machine,
    workload: str,
    entries: list[Entry],
    pythons: dict[str, str],
    options: argparse.Namespace,
) -> tuple[dict[str, list[Row]], dict[str, float | None]]:
    """What every contestant reported in every repeat, and how far it is from the plain loop."""
    most = max((entry.rounds(workload, options.rounds) for entry in entries), default=0)
    if workload in FEW:
        prepare(machine, workload, most, pythons[OURS])
    runs: dict[str, list[Row]] = {entry.name: [] for entry in entries}
    gaps: dict[str, float | None] = {}
    for repeat in range(options.repeats):
        for entry in entries:
            rounds = entry.rounds(workload, options.rounds)
            try:
                found = machine.run(pythons[entry.key], entry.arguments(workload, rounds), rounds)
            except FailedError as error:
                print(f"{workload}, {entry.name}: {error}", file=sys.stderr)
                continue
            runs[entry.name].append({**found, "repeat": repeat})
            gaps[entry.name] = gap(machine.folder, workload, entry, rounds)
            print(f"{workload}, {entry.name}: {found['seconds']:.1f} s", file=sys.stderr)
    return runs, gaps


def prepare(machine: Machine, workload: str, rounds: int, python: str) -> None:
    """First weights and the weights to compare with."""
    for left in machine.folder.glob("*.npy"):
        left.unlink()
    try:
        machine.run(python, ["-m", "contestants.references", workload], rounds)
    except FailedError as error:
        sys.exit(str(error))


def gap(folder: Path, workload: str, entry: Entry, rounds: int) -> float | None:
    """How far a contestant's result is from the plain loop's, or None where it cannot be told."""
    final, kept = folder / "final.npy", folder / f"{workload}-loop.npy"
    if not final.exists():
        return None
    found = np.load(final)
    final.unlink()
    if workload in FEW:
        path = folder / f"{entry.reference}.npy"
        expected = np.load(path)[rounds - 1] if path.exists() else None
    else:
        if entry.name == LOOP:
            np.save(kept, found)
        expected = np.load(kept) if kept.exists() else None
    return None if expected is None else float(np.abs(found - expected).max())


if __name__ == "__main__":
    main()
