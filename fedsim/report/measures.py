"""The tables that compare methods: means over seeds, paired tests and ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.api import Run
from fedsim.report.study import Group, Study
from fedsim.report.tables import Column, Kind, Table
from fedsim.statistics import Interval, average_ranks, holm, mean_interval, paired_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a run.

    Attributes:
        title: What it is called.
        value: Takes it from a run; None where there is none.
        kind: How it is shown.
        best: Which direction is better.
    """

    title: str
    value: Callable[[Run], float | None]
    kind: Kind = "fraction"
    best: Literal["max", "min"] | None = "max"


def entry(name: str) -> Callable[[Run], float | None]:
    """Takes an entry of ``summary.json``."""
    return lambda run: run.summary.get(name)


def own_accuracy(run: Run) -> float | None:
    """Accuracy of the clients' tests on their own data, weighted by examples."""
    from fedsim.api import accuracy_by

    rows = run.rows
    own = rows[rows["client"].notna()]
    if own.empty:
        return None
    last = run.summary.get("chosen_round", own["round"].max())
    series = accuracy_by(own[own["round"] == last], "round", run.weighting)
    return float(series.iloc[0]) if len(series) else None


ACCURACY = (
    Measure(title="test accuracy", value=entry("test_accuracy")),
    Measure(title="clients' own tests", value=own_accuracy),
    Measure(title="worst tenth of clients", value=entry("worst_decile_accuracy")),
)
CONTINUAL = (
    Measure(title="average accuracy", value=entry("average_accuracy")),
    Measure(title="incremental accuracy", value=entry("average_incremental_accuracy")),
    Measure(title="forgetting", value=entry("forgetting"), best="min"),
    Measure(title="backward transfer", value=entry("backward_transfer")),
    Measure(title="forward transfer", value=entry("forward_transfer")),
)
COSTS = (
    Measure(title="uploaded", value=entry("upload_bytes"), kind="bytes", best="min"),
    Measure(title="downloaded", value=entry("download_bytes"), kind="bytes", best="min"),
    Measure(title="seconds a round", value=entry("seconds_per_round"), kind="seconds", best=None),
    Measure(title="rejected updates", value=entry("rejected_updates"), kind="count", best=None),
)


def interval(group: Group, measure: Measure) -> Interval:
    """Mean and interval of a measure over a group's seeds."""
    values = [measure.value(run) for run in group.runs]
    return mean_interval([math.nan if value is None else value for value in values])


def results_tables(study: Study) -> list[Table]:
    """Every group's measures, mean and interval over seeds, by scenario."""
    tables = [_measured(study, "results", "Accuracy", ACCURACY)]
    if any(run.summary.get("forgetting") is not None for run in study.runs):
        tables.append(_measured(study, "continual", "Over experiences", CONTINUAL))
    refused = any(run.summary.get("rejected_updates") for run in study.runs)
    costs = COSTS if refused else COSTS[:-1]
    return [*tables, _measured(study, "costs", "Costs", costs)]


def _measured(study: Study, name: str, title: str, measures: Sequence[Measure]) -> Table:
    """A line per group; measures that nobody has are left out."""
    cells = {m.title: [interval(group, m) for group in study.groups] for m in measures}
    kept = [m for m in measures if any(cell.count for cell in cells[m.title])]
    several = len(study.scenarios) > 1
    columns = [Column(title="scenario")] if several else []
    columns += [Column(title="method"), Column(title="seeds", kind="count")]
    columns += [Column(title=m.title, kind=m.kind, best=m.best) for m in kept]
    rows = []
    for i, group in enumerate(study.groups):
        row = [group.scenario] if several else []
        rows.append([*row, group.method, len(group.runs), *(cells[m.title][i] for m in kept)])
    notes = []
    if any(len(group.runs) > 1 for group in study.groups):
        notes.append("Mean ± half of the 95 % confidence interval over seeds (Student's t).")
    if len(study.groups) > 1:
        notes.append("Best of a scenario in bold.")
    return Table(
        name=name,
        title=title,
        columns=columns,
        rows=rows,
        blocks=[group.scenario for group in study.groups],
        note=" ".join(notes),
    )


def paired_table(study: Study) -> Table | None:
    """In every scenario, the best method against each other one on the same seeds."""
    rows: list[Sequence[object]] = []
    for scenario, methods in study.scenarios.items():
        means = {m: mean_interval(list(_accuracies(runs).values())) for m, runs in methods.items()}
        ordered = sorted(means, key=lambda m: -means[m].mean)
        compared = []
        for other in ordered[1:]:
            a, b = _accuracies(methods[ordered[0]]), _accuracies(methods[other])
            common = sorted(a.keys() & b.keys())
            if len(common) >= 2:
                test = paired_test([a[s] for s in common], [b[s] for s in common])
                compared.append((other, test, len(common)))
        adjusted = holm([test.t_p for _, test, _ in compared])
        rows += [
            (
                scenario or "all",
                ordered[0],
                other,
                count,
                test.difference,
                test.t_p,
                p,
                test.wilcoxon_p,
            )
            for (other, test, count), p in zip(compared, adjusted, strict=True)
        ]
    if not rows:
        return None
    titles: list[tuple[str, Kind]] = [
        ("scenario", "text"), ("best method", "text"), ("against", "text"), ("seeds", "count"),
        ("difference in test accuracy", "fraction"), ("p, paired t", "p"), ("p, Holm", "p"),
        ("p, Wilcoxon", "p"),
    ]  # fmt: skip
    return Table(
        name="tests",
        title="Paired tests on the same seeds",
        columns=[Column(title=title, kind=kind) for title, kind in titles],
        rows=rows,
        blocks=[str(row[0]) for row in rows],
        note="Two-sided. Holm: adjusted for the number of comparisons in the scenario."
        " Wilcoxon's p cannot get below 0.06 with five seeds.",
    )


def ranks_table(study: Study) -> Table | None:
    """Average ranks of the methods over the scenarios, or over the seeds of a single one."""
    if len(study.methods) < 2:
        return None
    scenarios = study.scenarios
    if len(scenarios) > 1:
        blocks = [
            [_mean(methods.get(method, ())) for method in study.methods]
            for methods in scenarios.values()
        ]
        over = "scenarios"
    else:
        by_method = [_accuracies(runs) for runs in next(iter(scenarios.values())).values()]
        seeds = sorted({seed for accuracies in by_method for seed in accuracies})
        blocks = [[accuracies.get(seed, math.nan) for accuracies in by_method] for seed in seeds]
        over = "seeds"
    ranks = average_ranks(blocks)
    if ranks.blocks < 2:
        return None
    ordered = sorted(zip(study.methods, ranks.ranks, strict=True), key=lambda pair: pair[1])
    note = f"Rank 1 is the highest test accuracy; over {ranks.blocks} {over} with all methods."
    if not math.isnan(ranks.friedman_p):
        p = f"{ranks.friedman_p:.3f}" if ranks.friedman_p >= 0.001 else "below 0.001"
        note += f" Friedman's test that all methods are alike: p = {p}."
    return Table(
        name="ranks",
        title="Average ranks",
        columns=[Column(title="method"), Column(title="average rank", kind="rank", best="min")],
        rows=ordered,
        note=note,
    )


def _accuracies(runs: Sequence[Run]) -> dict[int, float]:
    """Test accuracy by seed; of several runs with one seed the mean."""
    found: dict[int, list[float]] = {}
    for run in runs:
        value = run.summary.get("test_accuracy")
        if value is not None:
            found.setdefault(int(run.config.get("seed", 0)), []).append(value)
    return {seed: sum(values) / len(values) for seed, values in found.items()}


def _mean(runs: Sequence[Run]) -> float:
    return mean_interval(list(_accuracies(runs).values())).mean
