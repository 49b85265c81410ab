"""What a report says, in order: sections of tables and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedsim.api import Run
from fedsim.report.curves import AXES, accuracy_plot, forgetting_plot
from fedsim.report.cuts import cut_facts, cut_plots
from fedsim.report.measures import paired_table, ranks_table, results_tables
from fedsim.report.plots import COLORS, Plot, clients_plot, matrix_plot, pairs_plot, slug
from fedsim.report.study import Study
from fedsim.report.tables import Column, Table

MAX_MAPS = 24  # heat maps in a report; more hide the rest
MAX_CUTS = 12
Item = Table | Plot
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        title: Heading.
        text: What to know before looking; may be empty.
        items: Tables and pictures, in order.
        folded: Whether it is shown only on request.
    """

    title: str
    text: str = ""
    items: Sequence[Item]
    folded: bool = False


def sections(study: Study) -> list[Section]:
    """Every section that has something to show."""
    made = [
        _differences(study),
        Section(
            title="Results",
            items=[
                *results_tables(study),
                *(t for t in (paired_table(study), ranks_table(study)) if t is not None),
            ],
        ),
        Section(title="Over time", items=list(_curves(study))),
        _continual(study),
        Section(title="Clients", items=list(_clients(study))),
        _cuts(study),
        _faults(study),
        Section(title="Every run", items=[_runs(study)], folded=len(study.runs) > 12),
        Section(title="Environment and commands", items=[_environment(study), _commands(study)]),
    ]
    return [section for section in made if section.items]


def _differences(study: Study) -> Section:
    """What varies, first."""
    items: list[Item] = []
    if study.varying:
        rows = [
            (
                _heading(key),
                ", ".join(_distinct((value or "none").replace("_", " ") for value in values)),
            )
            for key, values in study.varying.items()
        ]
        seeds = _distinct(str(run.config.get("seed", "")) for run in study.runs)
        rows.append(("seed", ", ".join(seeds)))
        columns = [Column(title="setting"), Column(title="values")]
        items.append(Table(name="differences", title="What differs", columns=columns, rows=rows))
    shared = _shared(study)
    if shared:
        columns = [Column(title="setting"), Column(title="value")]
        title = "The same in all runs" if len(study.runs) > 1 else "Configuration"
        items.append(Table(name="shared", title=title, columns=columns, rows=shared))
    return Section(title="What was run", items=items)


def _shared(study: Study) -> list[tuple[str, str]]:
    """Choices and main numbers that all runs have in common."""
    first = study.runs[0]
    skipped = {"hydra", "experiment", "sweep", "logger", "engine"}
    rows = [
        (group.replace("_", " "), value.replace("_", " "))
        for group, value in sorted(first.choices.items())
        if group not in study.varying and group not in skipped and value not in ("none", "None")
    ]
    rows += [
        (_heading(key), str(first.config[key]))
        for key in ("num_clients", "participation")
        if key not in study.varying and key in first.config
    ]
    training = first.config.get("training") or {}
    for name in ("epochs", "batch_size"):
        key = f"training.{name}"
        if name in training and not any(k.endswith(key) for k in study.varying):
            rows.append((_heading(key), str(training[name])))
    if len(study.runs) == 1:
        rows.append(("seed", str(first.config.get("seed", ""))))
    return rows


def _curves(study: Study) -> Iterator[Plot]:
    """Accuracy against rounds, bytes and seconds, by scenario."""
    for scenario, methods in study.scenarios.items():
        for part, chunk in enumerate(_chunks(methods)):
            for against in AXES:
                name = slug(f"accuracy {scenario} {part or ''}")
                yield _titled(accuracy_plot(chunk, against, name), scenario)


def _continual(study: Study) -> Section:
    """Accuracy matrices and forgetting, where there is more than one experience."""
    items: list[Item] = []
    matrices = []
    for scenario, methods in study.scenarios.items():
        streams = {m: [r for r in runs if _is_stream(r)] for m, runs in methods.items()}
        streams = {method: runs for method, runs in streams.items() if runs}
        for part, chunk in enumerate(_chunks(streams)):
            name = slug(f"forgetting {scenario} {part or ''}")
            items.append(_titled(forgetting_plot(chunk, name), scenario))
        for method, runs in streams.items():
            sizes = {run.matrix.shape for run in runs}
            if len(sizes) == 1:
                mean = np.mean([run.matrix for run in runs], axis=0)
                label = ", ".join(part for part in (method, scenario) if part)
                matrices.append((mean, label, slug(f"matrix {label}")))
    items += [matrix_plot(*matrix) for matrix in matrices[:MAX_MAPS]]
    text = ""
    if len(matrices) > MAX_MAPS:
        text = (
            f"The first {MAX_MAPS} of {len(matrices)} matrices; fedsim.load(folder).plot_matrix()"
            " shows any run's."
        )
    return Section(title="Forgetting", text=text, items=items)


def _clients(study: Study) -> Iterator[Plot]:
    """Distribution over clients, by scenario."""
    for scenario, methods in study.scenarios.items():
        series = {m: [run.clients for run in runs] for m, runs in methods.items()}
        series = {m: runs for m, runs in series.items() if any(len(s) > 1 for s in runs)}
        for part, chunk in enumerate(_chunks(series)):
            plot = clients_plot(chunk, slug(f"clients {scenario} {part or ''}"))
            yield _titled(plot, scenario)
    for group in study.groups[:MAX_MAPS]:
        for entry in group.runs[0].pairs:
            name = slug(f"{entry['name']} {group.label}")
            yield _titled(pairs_plot(entry, name), group.label if len(study.groups) > 1 else "")


def _cuts(study: Study) -> Section:
    """How the data is dealt, by scenario; drawn for one seed."""
    items: list[Item] = []
    known = []
    for scenario, methods in study.scenarios.items():
        firsts = [runs[0] for runs in methods.values() if runs[0].cut]
        if firsts:  # with mode=central all data is one client's: that is not how it is dealt
            known.append((scenario, max(firsts, key=lambda run: int(run.cut["num_clients"]))))
    for scenario, run in known[:MAX_CUTS]:
        seed = run.config.get("seed", 0)
        title = f"Facts: {scenario}" if scenario else "Facts"
        columns = [Column(title="of the cut"), Column(title=f"seed {seed}")]
        name = slug(scenario)
        items.append(
            Table(name=f"cut-{name}", title=title, columns=columns, rows=cut_facts(run.cut))
        )
        items += [_titled(plot, scenario) for plot in cut_plots(run.cut, name)]
    text = "How the data is dealt to clients and over time, for the first seed." if items else ""
    if len(known) > MAX_CUTS:
        text += f" The first {MAX_CUTS} of {len(known)} scenarios."
    return Section(title="The scenario", text=text, items=items)


def _faults(study: Study) -> Section:
    """Updates that were refused, jobs that failed, runs that did not end."""
    items: list[Item] = []
    refused = [
        (_run_name(study, run), str(client), reason, len(part), _span(part["round"].tolist()))
        for run in study.runs
        if len(run.rejections)
        for (client, reason), part in run.rejections.groupby(["client", "reason"])
    ]
    if refused:
        titles = ("run", "client", "reason", "times", "rounds")
        columns = [Column(title=t, kind="count" if t == "times" else "text") for t in titles]
        items.append(
            Table(name="rejections", title="Refused updates", columns=columns, rows=refused)
        )
    if study.failures:
        columns = [Column(title="job"), Column(title="error")]
        items.append(
            Table(name="failures", title="Jobs that failed", columns=columns, rows=study.failures)
        )
    if study.unfinished:
        rows = [(run.path.name, f"{len(run.rounds)}") for run in study.unfinished]
        columns = [Column(title="run"), Column(title="rounds")]
        items.append(
            Table(name="unfinished", title="Runs that did not end", columns=columns, rows=rows)
        )
    return Section(title="Faults", items=items)


def _runs(study: Study) -> Table:
    """One line per run."""
    columns = [
        Column(title="run"), Column(title="seed"), Column(title="test accuracy", kind="fraction"),
        Column(title="seconds", kind="count"), Column(title="rounds", kind="count"),
        Column(title="digest of the model"),
    ]  # fmt: skip
    rows = [
        (
            group.label,
            str(run.config.get("seed", "")),
            run.summary.get("test_accuracy"),
            run.summary.get("wall_s"),
            run.summary.get("rounds"),
            str(run.summary.get("digest", ""))[:12],
        )
        for group in study.groups
        for run in group.runs
    ]
    return Table(name="runs", title="", columns=columns, rows=rows)


def _environment(study: Study) -> Table:
    """Versions and machine; several values where runs differ."""
    found: dict[str, list[str]] = {}
    for run in study.runs:
        env = run.environment
        facts = {k: env.get(k) for k in ("python", "platform", "cpus", "commit")}
        facts |= env.get("versions") or {}
        for name, value in facts.items():
            if value is not None and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    rows = [(name, ", ".join(values)) for name, values in found.items() if values]
    columns = [Column(title="what"), Column(title="version")]
    return Table(name="environment", title="Environment", columns=columns, rows=rows)


def _commands(study: Study) -> Table:
    """The command that repeats each run."""
    rows = [(run.command,) for group in study.groups for run in group.runs]
    title = "The commands that repeat each run" if len(rows) > 1 else "The command that repeats it"
    return Table(name="commands", title=title, columns=[Column(title="command")], rows=rows)


def _run_name(study: Study, run: Run) -> str:
    label = next(group.label for group in study.groups if run in group.runs)
    return f"{label}, seed {run.config.get('seed', '')}"


def _is_stream(run: Run) -> bool:
    return run.summary.get("forgetting") is not None


def _chunks(methods: dict[str, V]) -> Iterator[dict[str, V]]:
    """As many methods at a time as there are colours."""
    names = list(methods)
    for i in range(0, len(names), len(COLORS)):
        yield {name: methods[name] for name in names[i : i + len(COLORS)]}


def _titled(plot: Plot, scenario: str) -> Plot:
    """The plot with its scenario in the heading."""
    title = f"{plot.title}: {scenario}" if scenario else plot.title
    return Plot(name=plot.name, title=title, caption=plot.caption, figure=plot.figure)


def _heading(key: str) -> str:
    """A key as one would say it: ``partition.alpha`` is "partition: alpha"."""
    words = key.replace(".", ": ").replace("_target_", "kind").replace("_", " ")
    return words.replace("num clients", "clients")


def _distinct(values: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _span(rounds: list[int]) -> str:
    """Rounds in few characters."""
    low, high = min(rounds), max(rounds)
    if low == high:
        return str(low)
    return f"{low} to {high}" if high - low + 1 == len(set(rounds)) else f"{low}…{high}"
