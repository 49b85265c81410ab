"""Numbers between pairs of clients, kept round by round, saved and drawn at the end."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MATRICES = "matrices.jsonl"
_DIGITS = 6  # in the lines of text
_PANELS = 3  # rounds in a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A number for every pair of clients of a round.

    Attributes:
        clients: Who the rows and columns are.
        values: ``[C, C]``.
    """

    clients: Sequence[int]
    values: Tensor


class Matrices:
    """Writes ``matrices.jsonl`` as rounds end, and from it ``<name>.npz`` and ``<name>.png``.

    Args:
        run_dir: The run directory; nothing is written for methods without matrices.
        resumed_at: Where the lines of a resumed run go on, in bytes; None begins anew.
    """

    def __init__(self, run_dir: Path, *, resumed_at: int | None = None) -> None:
        self._run_dir = run_dir
        self._lines = run_dir / MATRICES
        self._file: IO[str] | None = None
        if resumed_at is None:
            self._lines.unlink(missing_ok=True)
        else:
            os.truncate(self._lines, resumed_at)
            self._file = self._lines.open("a", encoding="utf-8")

    def files(self) -> list[IO[str]]:
        """The open file, if there is one."""
        return [] if self._file is None else [self._file]

    def record(self, round_: int, matrices: Mapping[str, Matrix]) -> None:
        """Write the matrices of a round, one line each."""
        for name, matrix in matrices.items():
            if self._file is None:
                self._file = self._lines.open("w", encoding="utf-8")
            values = [[round(v, _DIGITS) for v in row] for row in matrix.values.tolist()]
            line = {"name": name, "round": round_, "clients": list(matrix.clients)}
            self._file.write(json.dumps({**line, "values": values}) + "\n")
            self._file.flush()

    def finish(self) -> None:
        """Save and draw what was recorded."""
        if self._file is None:
            return
        self._file.close()
        with self._lines.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        for name in sorted({line["name"] for line in lines}):
            arrays = stacked([line for line in lines if line["name"] == name])
            rounds, clients, values = (arrays[key] for key in ("rounds", "clients", "values"))
            path = self._run_dir / f"{name}.npz"
            np.savez_compressed(path, rounds=rounds, clients=clients, values=values)
            draw(name, arrays, self._run_dir / f"{name}.png")


def stacked(lines: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """One array over rounds.

    Returns:
        ``rounds`` ``[R]``; ``clients`` ``[R, C]``, -1 where a round had fewer; ``values``
        ``[R, C, C]``, NaN there.
    """
    most = max(len(line["clients"]) for line in lines)
    clients = np.full((len(lines), most), -1, dtype=np.int64)
    values = np.full((len(lines), most, most), np.nan)
    for i, line in enumerate(lines):
        size = len(line["clients"])
        clients[i, :size] = line["clients"]
        values[i, :size, :size] = line["values"]
    rounds = np.array([line["round"] for line in lines], dtype=np.int64)
    return {"rounds": rounds, "clients": clients, "values": values}


def draw(name: str, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Heat maps of the first, the middle and the last round on one colour scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rounds, values = arrays["rounds"], arrays["values"]
    shown = sorted({0, (len(rounds) - 1) // 2, len(rounds) - 1})[:_PANELS]
    chosen = np.stack([values[i] for i in shown])
    low, high = float(np.nanmin(chosen)), float(np.nanmax(chosen))
    figure = Figure(figsize=(3.6 * len(shown) + 0.9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, i in zip(axes, shown, strict=True):
        clients = arrays["clients"][i][arrays["clients"][i] >= 0]
        size = len(clients)
        image = axis.imshow(values[i, :size, :size], vmin=low, vmax=high, cmap="viridis")
        step = -(-size // 10)
        axis.set_xticks(range(0, size, step), clients[::step])
        axis.set_yticks(range(0, size, step), clients[::step])
        axis.set_title(f"round {rounds[i]}")
        axis.set_xlabel("client")
    axes[0].set_ylabel("client")
    figure.colorbar(image, ax=list(axes), label=name)
    figure.savefig(path, dpi=120)
