"""Accuracy and forgetting of several methods, averaged over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from fedsim.api import Run
from fedsim.report.plots import COLORS, Plot, canvas, legend_below, short
from fedsim.statistics import mean_interval

AXES = {
    "rounds": "round",
    "bytes": "megabytes sent, both directions",
    "seconds": "seconds since the first round began",
}
_MARKS = 12  # boundaries of experiences that can be drawn without hiding the curves
Runs = Mapping[str, Sequence[Run]]


def accuracy_plot(methods: Runs, against: str, name: str = "accuracy") -> Plot:
    """Test accuracy against ``rounds``, ``bytes`` or ``seconds``, with its interval over seeds.

    Raises:
        ValueError: If ``against`` is something else.
    """
    if against not in AXES:
        raise ValueError(f"against must be one of {', '.join(AXES)}, got {against!r}")
    figure, axes = canvas(height=2.9)
    for color, (label, runs) in zip(_cycle(len(methods)), methods.items(), strict=True):
        table = accuracy_over(runs, against)
        if table.empty:
            continue
        marker = "o" if len(table) <= 12 else ""
        axes.plot(
            table["x"], table["mean"], color=color, label=short(label), marker=marker, ms=3, lw=1.6
        )
        if table["half"].notna().any():
            low, high = table["mean"] - table["half"], table["mean"] + table["half"]
            axes.fill_between(table["x"], low.clip(0), high.clip(upper=1), color=color, alpha=0.15)
    boundaries = []
    if against == "rounds":
        first = next((run for runs in methods.values() for run in runs), None)
        boundaries = _boundaries(first)
        for end in boundaries:
            axes.axvline(end, color="#999999", lw=0.7, ls=":")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=against == "rounds"))
    axes.set_xlabel(AXES[against])
    axes.set_ylabel("test accuracy")
    legend_below(figure, [label for label in methods if label])
    several = any(len(runs) > 1 for runs in methods.values())
    caption = "Accuracy on all test data." + (
        " Bands: 95 % confidence interval over seeds." if several else ""
    )
    if boundaries:
        caption += " Dotted: the next experience begins."
    title = f"Accuracy against {against}"
    return Plot(name=f"{name}-{against}", title=title, caption=caption, figure=figure)


def accuracy_over(runs: Sequence[Run], against: str) -> pd.DataFrame:
    """Mean accuracy and interval over runs, by round: columns ``x``, ``mean`` and ``half``."""
    series = [run.accuracy for run in runs if not run.accuracy.empty]
    if not series:
        return pd.DataFrame(columns=["x", "mean", "half"])
    wide = pd.concat(series, axis=1)
    intervals = [mean_interval(row) for row in wide.to_numpy()]
    x = pd.concat([costs(run, against) for run in runs], axis=1).mean(axis=1)
    table = pd.DataFrame(
        {"mean": [i.mean for i in intervals], "half": [i.half for i in intervals]}, index=wide.index
    )
    table["x"] = x.reindex(wide.index)
    return table.dropna(subset=["x", "mean"])


def costs(run: Run, against: str) -> "pd.Series[float]":
    """What a run had spent after every round, from round 0 on."""
    rounds = run.rounds
    index = pd.Index([0, *rounds["round"]]) if len(rounds) else pd.Index([0])
    if against == "rounds":
        return pd.Series(index.to_numpy(dtype=float), index=index)
    if not len(rounds):
        return pd.Series([0.0], index=index)
    spent = rounds["wall_s"]
    if against == "bytes":
        spent = (rounds["upload_bytes"] + rounds["download_bytes"]) / 1e6
    return pd.Series(np.concatenate([[0.0], spent.cumsum()]), index=index)


def forgetting_plot(methods: Runs, name: str = "forgetting") -> Plot:
    """What is lost of every experience at the end, by method."""
    figure, axes = canvas(height=2.9)
    width = 0.8 / max(len(methods), 1)
    experiences = 1
    for i, (label, runs) in enumerate(methods.items()):
        lost = np.array([forgotten(run) for run in runs])
        intervals = [mean_interval(column) for column in lost.T]
        experiences = max(experiences, len(intervals))
        x = np.arange(len(intervals)) - 0.4 + (i + 0.5) * width
        halves = np.nan_to_num([interval.half for interval in intervals])
        axes.bar(
            x, [interval.mean for interval in intervals], width=width * 0.9,
            color=COLORS[i % len(COLORS)], label=short(label),
            yerr=halves if halves.any() else None, error_kw={"lw": 0.8, "ecolor": "#333333"},
        )  # fmt: skip
    axes.axhline(0, color="#333333", lw=0.8)
    axes.set_xticks(range(experiences), [str(e + 1) for e in range(experiences)])
    axes.set_xlabel("experience")
    axes.set_ylabel("forgetting")
    legend_below(figure, [label for label in methods if label])
    caption = "Best accuracy ever on an experience minus the accuracy at the end; lower is better."
    return Plot(name=name, title="Forgetting", caption=caption, figure=figure)


def forgotten(run: Run) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """``max_{t<E-1} R[t, e] - R[E-1, e]`` for all but the last experience, shape ``[E-1]``."""
    matrix = run.matrix
    best = np.fmax.reduce(matrix[:-1, :-1], axis=0, initial=np.nan)
    return np.asarray(best - matrix[-1, :-1])


def _boundaries(run: Run | None) -> list[float]:
    """Rounds between which the server enters the next experience."""
    if run is None or run.rounds.empty:
        return []
    firsts = run.rounds.groupby("experience")["round"].min().tolist()[1:]
    return [first - 0.5 for first in firsts] if len(firsts) <= _MARKS else []


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
