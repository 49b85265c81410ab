"""The `fedsim-preview` command: how a scenario is cut, before anything is trained."""

import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from fedsim.checks import ConfigError
from fedsim.interruption import unbroken

if TYPE_CHECKING:
    from fedsim.report.plots import Plot

HELP = """fedsim-preview: how a scenario is cut, before anything is trained.

  fedsim-preview                                    what `fedsim` would run
  fedsim-preview partition=dirichlet num_clients=20 the overrides are fedsim's
  fedsim-preview --config-dir conf scenario=mine    with choices of your own
  fedsim-preview --picture cut.png ...              the drawings too: .png, or .html
"""
SHOWN = 30  # clients on the terminal
LINE = 60  # characters of a time line
COLORS = ("blue", "red", "green", "magenta", "cyan", "yellow", "white", "bright_black")
Cut = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the scenario that the command line's words name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        print(HELP)
        return
    sys.path.append(str(Path.cwd()))  # so that `_target_` may name a module of the user's
    try:
        picture = _option(words, "--picture")
        cut = preview(words)
        show(cut, Console())
        if picture is not None:
            print(save(cut, picture))
    except ConfigError as error:
        sys.exit(f"fedsim-preview: {error}")


def preview(overrides: str | Sequence[str] = ()) -> Cut:
    """How the scenario is cut, see :func:`fedsim.cut.describe`.

    Args:
        overrides: The command line's words, as one string or as a list.

    Raises:
        ConfigError: If the configuration cannot work.
    """
    from fedsim.config import compose, resolve

    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    node = resolve(compose(words))
    with unbroken():
        from fedsim.build import make  # imports torch, so after what may be wrong without it
        from fedsim.cut import describe

    return describe(make(node, "scenario"), make(node, "clock"))


def show(cut: Cut, console: Console) -> None:
    """Print numbers, labels per client and the time line."""
    from fedsim.report.cuts import cut_facts

    facts = TerminalTable(title="The cut", title_justify="left", show_header=False)
    for title, value in cut_facts(cut):
        facts.add_row(title, value)
    console.print(facts)
    console.print(_labels(cut))
    console.print(_timeline(cut))
    left_out = cut["num_clients"] - SHOWN
    if left_out > 0:
        console.print(f"{left_out} more clients are not shown.")


def save(cut: Cut, path: str | Path) -> Path:
    """Write the drawings as one picture (``.png``) or one page (``.html``).

    Raises:
        ConfigError: If the ending is another one.
    """
    from fedsim.report.cuts import cut_plots

    path = Path(path)
    if path.suffix not in (".png", ".html"):
        raise ConfigError(f"--picture must end in .png or .html, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    plots = cut_plots(cut, "preview")
    if path.suffix == ".png":
        path.write_bytes(_stacked(plots))
        return path
    from fedsim.report.cuts import cut_facts
    from fedsim.report.page import page
    from fedsim.report.sections import Section
    from fedsim.report.tables import Column, Table

    columns = [Column(title="of the cut"), Column(title="")]
    table = Table(name="facts", title="Facts", columns=columns, rows=cut_facts(cut))
    section = Section(title="The scenario", items=[table, *plots])
    path.write_text(page("fedsim preview", "Before any training.", [section]), encoding="utf-8")
    return path


def _labels(cut: Cut) -> TerminalTable:
    """Examples of every class at every client, the more the brighter."""
    labels = cut["labels"][:SHOWN]
    shown = range(min(cut["num_classes"], 20))
    title = "Training examples by client and class"
    if len(shown) < cut["num_classes"]:
        title += f" (the first {len(shown)} of {cut['num_classes']} classes)"
    table = TerminalTable(title=title, title_justify="left", padding=(0, 1))
    table.add_column("client", justify="right")
    for k in shown:
        table.add_column(str(k), justify="right")
    table.add_column("all", justify="right")
    most = max(max(row) for row in labels) or 1
    for client, row in enumerate(labels):
        cells = [_cell(row[k], most) for k in shown]
        table.add_row(str(client), *cells, str(sum(row)))
    return table


def _cell(count: int, most: int) -> Text:
    """A number, dim if there is none and bold if there are many."""
    style = "dim" if count == 0 else "bold green" if count > most / 2 else "green"
    return Text("·" if count == 0 else str(count), style=style)


def _timeline(cut: Cut) -> TerminalTable:
    """Which experience every client is in, over the rounds."""
    rounds = cut["num_rounds"]
    title = f"Experience over {rounds} rounds (numbered from 1; a dot: not joined)"
    table = TerminalTable(title=title, title_justify="left")
    table.add_column("client", justify="right")
    table.add_column("time")
    width = min(LINE, rounds)
    for client, stretches in enumerate(cut["timeline"][:SHOWN]):
        line = Text()
        for column in range(width):
            round_ = 1 + column * rounds // width
            at = next((e for first, last, e in stretches if first <= round_ <= last), None)
            if at is None:
                line.append("·", style="dim")
            else:
                line.append(str((at + 1) % 10), style=COLORS[at % len(COLORS)])
        table.add_row(str(client), line)
    return table


def _stacked(plots: Sequence["Plot"]) -> bytes:
    """The pictures one below the other."""
    from PIL import Image

    images = [Image.open(io.BytesIO(plot.png())) for plot in plots]
    width = max(image.width for image in images)
    whole = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = io.BytesIO()
    whole.save(buffer, format="png")
    return buffer.getvalue()


def _option(words: list[str], name: str) -> str | None:
    """Take ``name value`` or ``name=value`` out of the words.

    Raises:
        ConfigError: If the value is missing.
    """
    for i, word in enumerate(words):
        if word.startswith(f"{name}="):
            return words.pop(i).split("=", 1)[1]
        if word == name:
            if i + 1 == len(words):
                raise ConfigError(f"{name} needs a file name")
            del words[i]
            return words.pop(i)
    return None


if __name__ == "__main__":
    main()
