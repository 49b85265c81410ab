"""Pictures: what they all share, and the ones of a single run."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from fedsim.metrics import Matrix

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WIDTH = 4.6  # inches: a phone shows it nearly at full size
# Okabe and Ito's colours, which most people can tell apart; yellow is too faint for lines
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#7B3294")
WORST = "#C1121F"
MAX_CELLS = 12  # heat maps up to this size have numbers in their cells
STYLE = {
    "font.size": 9,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fedsim",  # the same picture is the same file
}
_NOISE = (r"<\?xml.*?\?>", r"<!DOCTYPE.*?>", r"<metadata>.*?</metadata>", r'\sxmlns(:\w+)?="[^"]*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture with its words; a notebook shows it.

    Attributes:
        name: File name without ending.
        title: Heading.
        caption: How to read it.
        figure: The picture.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """The picture as an ``svg`` element for a page, without anything that names an address."""
        text = self._drawn("svg").decode()
        for pattern in _NOISE:
            text = re.sub(pattern, "", text, flags=re.DOTALL)
        label = f'<svg role="img" aria-label="{_plain(self.title)}"'
        return text.strip().replace("<svg", label, 1)

    def save(self, path: str | Path) -> None:
        """Write the picture; the file's ending chooses the format, e.g. ``.png`` or ``.svg``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._drawn(path.suffix.lstrip(".")))

    def png(self) -> bytes:
        """The picture as a PNG file's content."""
        return self._drawn("png")

    def _repr_png_(self) -> bytes:
        return self.png()  # notebooks ask for it by this name

    def _drawn(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        stamp = {"Date": None} if kind == "svg" else None
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format=kind, dpi=200, metadata=stamp)
        return buffer.getvalue()


def canvas(height: float, width: float = WIDTH) -> tuple[Figure, "Axes"]:
    """An empty picture in the common style; sizes in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def slug(text: str) -> str:
    """The text as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "all"


def short(text: str, length: int = 34) -> str:
    """The text, cut in the middle where it is too long for a label."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def legend_below(figure: Figure, labels: Sequence[str]) -> None:
    """A legend under the picture, where it covers nothing."""
    if len(labels) > 1:
        longest = max(len(short(label)) for label in labels)
        columns = 3 if longest < 12 else 2 if longest < 22 else 1
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)


def matrix_plot(matrix: Matrix, title: str, name: str = "matrix") -> Plot:
    """The accuracy matrix ``R[t, e]`` as a heat map."""
    size = len(matrix)
    figure, axes = canvas(height=min(0.9 + 0.42 * size, 4.4), width=min(1.7 + 0.5 * size, WIDTH))
    heat_map(axes, matrix, top=1.0, digits=2 if size <= MAX_CELLS else None)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after experience")
    caption = (
        "Test accuracy on each experience (columns) after each experience was learned (rows);"
        " forgetting is a column that gets paler downwards."
    )
    return Plot(name=name, title=title, caption=caption, figure=figure)


def heat_map(
    axes: "Axes", values: Matrix, *, top: float | None, digits: int | None, first: int = 1
) -> None:
    """Cells shaded from 0 to ``top``, numbered from ``first``, with values where they fit."""
    axes.grid(visible=False)
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    for axis, count in ((axes.xaxis, values.shape[1]), (axes.yaxis, values.shape[0])):
        step = max(1, math.ceil(count / 12))
        axis.set_ticks(range(0, count, step), [str(i + first) for i in range(0, count, step)])
    if digits is None:
        return
    limit = 0.55 * (float(np.nanmax(values, initial=0.0)) if top is None else top)
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            color = "white" if value > limit else "#222222"
            text = f"{value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def clients_plot(methods: Mapping[str, Sequence["pd.Series"]], name: str = "clients") -> Plot:
    """Every client's accuracy on its own test data, one line of dots per method.

    Args:
        methods: Per method, for every run its clients' accuracies.
        name: File name.
    """
    figure, axes = canvas(height=0.9 + 0.5 * max(len(methods), 2))
    for row, runs in enumerate(methods.values()):
        for values in runs:
            _dots(axes, row, np.sort(values.dropna().to_numpy()))
    axes.set_yticks(range(len(methods)), [short(label, 22) for label in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy on the client's own test data")
    caption = (
        "Each dot is a client of a run; red: the worst tenth of a run's clients (at least one);"
        " the bar is a run's median."
    )
    return Plot(name=name, title="Clients", caption=caption, figure=figure)


def pairs_plot(entry: Mapping[str, Any], name: str = "pairs") -> Plot:
    """Numbers between pairs of clients as a heat map.

    Args:
        entry: ``name``, ``round``, ``clients`` and ``values`` ``[C, C]``.
        name: File name.
    """
    values = np.asarray(entry["values"], dtype=float)
    clients = [str(client) for client in entry["clients"]]
    figure, axes = canvas(height=3.7)
    axes.grid(visible=False)
    image = axes.imshow(values, cmap="viridis")
    step = max(1, math.ceil(len(clients) / 12))
    axes.set_xticks(range(0, len(clients), step), clients[::step])
    axes.set_yticks(range(0, len(clients), step), clients[::step])
    axes.set_xlabel("client")
    axes.set_ylabel("client")
    figure.colorbar(image, ax=axes, shrink=0.85)
    kind = str(entry["name"]).replace("_", " ")
    caption = f"Between the clients of round {entry['round']}, the last one with these numbers."
    return Plot(name=name, title=kind.capitalize(), caption=caption, figure=figure)


def _dots(axes: "Axes", row: int, values: Any) -> None:
    """One run's clients, the worst decile in red."""
    if not len(values):
        return
    worst = -(-len(values) // 10)
    lift = np.resize([0.0, -0.16, 0.16, -0.08, 0.08], len(values))  # so that dots do not hide
    colors = [WORST] * worst + [COLORS[0]] * (len(values) - worst)
    axes.scatter(values, row + lift, s=11, c=colors, alpha=0.6, linewidths=0)
    axes.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color="#222222", lw=1.2)


def _plain(text: str) -> str:
    return re.sub(r'[<>"&]', " ", text)
