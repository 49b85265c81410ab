"""Several runs side by side: what they share, in what they differ, and who belongs together."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.api import Run, load
from fedsim.sweep import last_events, read

# parts of the configuration that say what the data is like; the others say how one learns from it
SCENARIO = (
    "dataset", "encoder", "partition", "order", "scenario", "clock", "num_clients", "participation",
    "evaluation", "evaluation_participation",
)  # fmt: skip
_IGNORED = ("seed", "name", "progress", "overwrite", "objective", "logger", "experiment", "sweep")
_FIRST = ("mode", "strategy", "client", "dataset", "scenario", "partition")  # said before the rest
_PLAIN = {"_target_": "", "num_clients": "clients", "rounds_per_experience": "rounds"}
Values = tuple[str, ...]  # of one key, one per run


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        scenario: What is particular about the data, in words; empty if nothing varies.
        method: What is particular about the method, in words.
        settings: The values of what varies, by key.
        runs: The runs, by seed.
    """

    scenario: str
    method: str
    settings: dict[str, str]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Method and scenario in words."""
        return ", ".join(part for part in (self.method, self.scenario) if part)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs to be compared.

    Attributes:
        runs: Finished runs.
        unfinished: Runs that have no summary.
        failures: Job and first line of the error, of the jobs that failed.
    """

    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()

    @cached_property
    def varying(self) -> dict[str, Values]:
        """What varies between the runs, besides the seed: the values of every run, by key."""
        return differences(self.runs)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs that differ in nothing but the seed, by scenario."""
        members: dict[Values, list[Run]] = {}
        for i, run in enumerate(self.runs):
            key = tuple(values[i] for values in self.varying.values())
            members.setdefault(key, []).append(run)
        groups = [self._group(key, runs) for key, runs in members.items()]
        order = list(dict.fromkeys(group.scenario for group in groups))
        return tuple(sorted(groups, key=lambda group: order.index(group.scenario)))

    @cached_property
    def scenarios(self) -> dict[str, dict[str, tuple[Run, ...]]]:
        """The runs of every method, by scenario."""
        found: dict[str, dict[str, tuple[Run, ...]]] = {}
        for group in self.groups:
            found.setdefault(group.scenario, {})[group.method] = group.runs
        return found

    @cached_property
    def methods(self) -> list[str]:
        """Every method, in order of appearance."""
        return list(dict.fromkeys(group.method for group in self.groups))

    @cached_property
    def _telling(self) -> dict[bool, list[str]]:
        """Keys that tell scenarios (True) and methods (False) apart, as few as possible."""
        telling: dict[bool, list[str]] = {}
        for about_data in (True, False):
            keys = [k for k in self.varying if (k.split(".")[0] in SCENARIO) == about_data]
            keys.sort(key=lambda k: _FIRST.index(k) if k in _FIRST else len(_FIRST))
            columns = {key: self.varying[key] for key in keys}
            kept: list[str] = []
            for key in keys:
                before = len(set(zip(*(columns[k] for k in kept), strict=True))) if kept else 1
                if len(set(zip(*(columns[k] for k in (*kept, key)), strict=True))) > before:
                    kept.append(key)
            telling[about_data] = kept
        return telling

    def _group(self, key: Values, runs: Sequence[Run]) -> Group:
        settings = dict(zip(self.varying, key, strict=True))
        words = {
            about_data: [in_words(k, settings[k]) for k in keys if settings[k]]
            for about_data, keys in self._telling.items()
        }
        return Group(
            scenario=", ".join(words[True]),
            method=", ".join(words[False]) or self._fallback(),
            settings=settings,
            runs=tuple(sorted(runs, key=lambda run: int(run.config.get("seed", 0)))),
        )

    def _fallback(self) -> str:
        """A name for the only method."""
        choices = self.runs[0].choices
        return ", ".join(choices[g] for g in ("strategy", "client") if g in choices) or "this run"


def study(paths: Iterable[str | Path]) -> Study:
    """All runs at or below the paths.

    Raises:
        FileNotFoundError: If there is none.
    """
    runs: dict[Path, Run] = {}
    failures: list[tuple[str, str]] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        for found in _run_dirs(path):
            runs.setdefault(found.resolve(), load(found))
        for job, entry in last_events(read(path)).items():
            if entry["event"] == "failed":
                failures.append((job, entry["error"]))
    finished = tuple(run for run in runs.values() if run.finished)
    if not finished:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, paths))}")
    return Study(
        runs=finished,
        unfinished=tuple(run for run in runs.values() if not run.finished),
        failures=tuple(failures),
    )


def differences(runs: Sequence[Run]) -> dict[str, Values]:
    """The keys that vary between the runs besides the seed, each with one value per run.

    A group's choice stands for everything in that group that it decides. A key that repeats what
    another one says (values are copied to where they are used) is left out.
    """
    configs = [flat(run.config) for run in runs]
    seeds = tuple(str(config.get("seed", "")) for config in configs)
    choices = [run.choices if all(r.choices for r in runs) else {} for run in runs]
    found: dict[str, Values] = {}
    for key, values in _varying(choices):
        found[key] = tuple("" if value in ("none", "None") else value for value in values)
    for key, values in sorted(_varying(configs), key=lambda item: item[0].count(".")):
        repeated = values == seeds or values in found.values()
        if not repeated and not any(_decides(key, values, k, v) for k, v in found.items()):
            found[key] = values
    return found


def flat(node: Any, prefix: str = "") -> dict[str, str]:
    """Every dotted key of a configuration with its value as text."""
    if not isinstance(node, dict):
        return {prefix: "" if node is None else str(node)}
    values: dict[str, str] = {}
    for name, child in node.items():
        values |= flat(child, f"{prefix}.{name}" if prefix else str(name))
    return values


def in_words(key: str, value: str) -> str:
    """A setting as one would say it: ``partition.alpha=0.1`` is "alpha 0.1"."""
    leaf = key.split(".")[-1]
    if leaf == "_target_" or ("." not in key and not re.fullmatch(r"[-+.\de]+", value)):
        words = value.split(".")[-1] if leaf == "_target_" else value
        return words.replace("_", " ")
    return f"{_PLAIN.get(leaf, leaf).replace('_', ' ')} {value}"


def _varying(mappings: Sequence[dict[str, str]]) -> list[tuple[str, Values]]:
    """Keys whose values are not the same everywhere, in order."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    found = []
    for key in keys:
        if key.split(".")[0] not in _IGNORED:
            values = tuple(str(mapping.get(key, "")) for mapping in mappings)
            if len(set(values)) > 1:
                found.append((key, values))
    return found


def _decides(key: str, values: Values, group: str, choices: Values) -> bool:
    """Whether a key lies in a group that varies, and follows from the group's choice."""
    if group not in key.split("."):
        return False
    decided: dict[str, str] = {}
    return all(decided.setdefault(c, v) == v for c, v in zip(choices, values, strict=True))


def _run_dirs(path: Path) -> list[Path]:
    """Run directories at or below a path."""
    if (path / "config.yaml").exists() and (path / "rounds.jsonl").exists():
        return [path]
    found = (rounds.parent for rounds in path.rglob("rounds.jsonl"))
    return sorted(folder for folder in found if (folder / "config.yaml").exists())
