"""The `fedsim-report` command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsim.report.page import page
from fedsim.report.plots import Plot
from fedsim.report.sections import Section, sections
from fedsim.report.study import Study, study
from fedsim.report.tables import Table


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a report from the command line's words."""
    options = _parser().parse_args(arguments)
    try:
        written = report(
            options.path, options.output, figures=options.figures, tables=options.tables
        )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"fedsim-report: {error}")
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")


def report(
    paths: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    tables: str | Path | None = None,
) -> Path:
    """Write one HTML file about the runs at or below the paths, and return where it is.

    Args:
        paths: Run directories, sweep folders, or folders with several of them.
        output: The file; by default ``report.html`` in the first path.
        figures: Folder for every picture as PNG and SVG, or None.
        tables: Folder for every table as CSV and LaTeX, or None.

    Raises:
        FileNotFoundError: If there is no finished run.
    """
    found = study(paths)
    made = sections(found)
    written = Path(output) if output is not None else Path(paths[0]) / "report.html"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(page("fedsim report", lead(found), made), encoding="utf-8")
    save(made, figures, tables)
    return written


def lead(found: Study) -> str:
    """What was run, and what came out, in a sentence or two."""
    names = ", ".join(dict.fromkeys(str(run.config.get("name", "")) for run in found.runs))
    seeds = len({run.config.get("seed") for run in found.runs})
    text = f"{names}: {_count(len(found.runs), 'run')}"
    if len(found.runs) > 1:
        text += (
            f" of {_count(len(found.methods), 'method')} in"
            f" {_count(len(found.scenarios), 'scenario')} with {_count(seeds, 'seed')}"
        )
    else:
        accuracy = found.runs[0].summary.get("test_accuracy")
        text += "" if accuracy is None else f", test accuracy {accuracy:.3f}"
    bad = len(found.failures) + len(found.unfinished)
    return f"{text}." if not bad else f"{text}. {_count(bad, 'job')} did not finish, see Faults."


def save(made: Sequence[Section], figures: str | Path | None, tables: str | Path | None) -> None:
    """Write pictures as PNG and SVG and tables as CSV and LaTeX, where folders are given."""
    for item in (item for section in made for item in section.items):
        if isinstance(item, Plot) and figures is not None:
            for ending in ("png", "svg"):
                item.save(Path(figures) / f"{item.name}.{ending}")
        if isinstance(item, Table) and tables is not None:
            folder = Path(tables)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{item.name}.csv").write_text(item.csv(), encoding="utf-8")
            (folder / f"{item.name}.tex").write_text(item.latex(), encoding="utf-8")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedsim-report",
        description="One self-contained HTML file about one run, several runs, or a sweep.",
    )
    parser.add_argument("path", nargs="+", help="run directory, sweep folder, or a folder of them")
    parser.add_argument("-o", "--output", help="the file; default: report.html in the first path")
    parser.add_argument("--figures", metavar="DIR", help="write every picture as PNG and SVG too")
    parser.add_argument("--tables", metavar="DIR", help="write every table as CSV and LaTeX too")
    return parser


if __name__ == "__main__":
    main()
