"""The report as one HTML file that needs nothing else: no scripts, no fonts, no addresses."""

import html
from collections.abc import Sequence

from fedsim.report.plots import Plot, slug
from fedsim.report.sections import Section
from fedsim.report.tables import Table

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: #fff; color: #1c1c1c;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: .3rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #ddd; }
summary { font-size: 1.15rem; font-weight: bold; margin: 2rem 0 .6rem; cursor: pointer; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
a { color: #0059a3; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr));
  gap: 1.2rem; align-items: start; }
.grid > .wide { grid-column: 1 / -1; min-width: 0; }
.grid > figure { min-width: 0; }
figure { margin: 0; border: 1px solid #e4e4e4; border-radius: 6px; padding: .7rem; }
figure h3, caption { font-size: .95rem; font-weight: 600; text-align: left; margin: 0 0 .4rem; }
figcaption, .note { color: #555; font-size: .82rem; margin: .3rem 0 0; }
svg { display: block; width: 100%; height: auto; max-width: 34rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .3rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #444; vertical-align: bottom; }
td { border-bottom: 1px solid #eee; }
td.number, th.number { text-align: right; padding-left: .7rem; }
td.number { white-space: nowrap; }
tr.block td { border-top: 1px solid #888; }
.narrow td:last-child { overflow-wrap: anywhere; }
td:only-child { overflow-wrap: anywhere; font-family: monospace; }
figure h3 { overflow-wrap: anywhere; }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole report.

    Args:
        title: Heading.
        lead: One or two sentences on top.
        sections: What follows.
    """
    links = "".join(f'<a href="#{slug(s.title)}">{html.escape(s.title)}</a>' for s in sections)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',  # or browsers ask for one
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p><nav>{links}</nav></header>",
        "<main>",
        *(_section(section) for section in sections),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> str:
    title, name = html.escape(section.title), slug(section.title)
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    items = "\n".join(_item(item) for item in section.items)
    body = f'{text}<div class="grid">{items}</div>'
    if section.folded:
        return f'<details id="{name}"><summary>{title}</summary>{body}</details>'
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>'


def _item(item: Table | Plot) -> str:
    if isinstance(item, Table):
        wide = len(item.columns) > 2 or len(item.columns) == 1 or len(item.rows) > 40
        return f'<div class="{"wide" if wide else "narrow"}">{item.html()}</div>'
    return (
        f"<figure><h3>{html.escape(item.title)}</h3>{item.svg()}"
        f"<figcaption>{html.escape(item.caption)}</figcaption></figure>"
    )
