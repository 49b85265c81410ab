"""What the site needs besides its pages: the README's parts, formulas, and the reference.

* A line ``{{ README.md: Two minutes }}`` becomes that section of the file, ``{{ docs/fedpub.md }}``
  its beginning, so nothing is said twice.
* A line ``{{ choices: client }}`` becomes a table of that folder of ``conf/``.
* TeX between ``$`` becomes MathML, which browsers show without a script.
* Every public module gets a page, by layer, from its docstrings, and every page of ``docs/`` that
  the menu forgets is listed under "How to".
* The search index is a script too, which browsers load from the file system.
* After the build, a page that would make a browser ask another address is an error.
"""

import ast
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = (
    "api", "clock", "scenario", "data", "model", "wire", "client", "training", "strategy",
    "sampling", "state", "seeding", "evaluation", "metrics", "sweep", "statistics",
)  # fmt: skip
LAYERS = {
    "Contracts": "What an extension implements or is given, and the Python interface.",
    "Strategies": "Server sides, one method per file.",
    "Clients": "Client sides, one method per file.",
    "Scenarios": "Data set x partition over clients x order over time.",
    "Backbones": "Modules that map inputs to features.",
    "Mathematics": "The methods' formulas as pure functions of tensors.",
    "Reports": "Tables and pictures of finished runs.",
    "Inside": "The engine, the configuration and the commands; may change between versions.",
}
GUIDE = """\
* [Quickstart](quickstart.md): two commands and two minutes.
* [Concepts](concepts.md): one picture, seven words.
* [How to](howto/index.md): own data, own method, streams, sweeps, reports, engines.
* [Methods](methods/index.md): formulas, sources, what was reproduced.
* [Performance](performance.md): against a plain loop.
* [Reference](reference/contracts/index.md): every public module.
"""
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|input)\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*\brel\s*=\s*[\"']?(?:stylesheet|icon|preload|preconnect|modulepreload))"
    r"[^>]*\bhref\s*=\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page and the reference."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    title, about = "# fedsim", _section(readme, None, "README.md")
    front = f"{title}\n\n{about}\n\n## Where to go\n\n{GUIDE}"
    files.append(
        File.generated(config, "index.md", content=_relative(front, "index.md", "README.md"))
    )
    menu: list[object] = []
    for layer, about in LAYERS.items():
        modules = [name for name in _modules() if _layer(name) == layer]
        folder = f"reference/{layer.lower()}"
        lines = [f"# {layer}", "", about, "", "| module | |", "| --- | --- |"]
        entries: list[object] = [f"{folder}/index.md"]
        for name in modules:
            page = f"{name}.md"
            text = f"---\ntitle: {name}\n---\n\n::: {name}\n"
            files.append(File.generated(config, f"{folder}/{page}", content=text))
            lines.append(f"| [{name}]({page}) | {_first_line(name)} |")
            entries.append({name.removeprefix("fedsim."): f"{folder}/{page}"})
        files.append(File.generated(config, entries[0], content="\n".join(lines) + "\n"))
        menu.append({layer: entries})
    config.nav.append({"Reference": menu})
    guides = next(part["How to"] for part in config.nav if "How to" in part)
    listed = str(config.nav)
    guides += [uri for uri in sorted(files.src_uris) if _is_guide(uri) and uri not in listed]
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put in other files' sections and the tables of choices."""
    here = page.file.src_uri

    def written(found: re.Match[str]) -> str:
        name, title = found[1], found[2]
        if name == "choices":
            return _choices(title)
        text = (ROOT / name).read_text(encoding="utf-8")
        return _relative(_section(text, title, name), here, name)

    markdown = re.sub(r"^\{\{ ([\w./]+)(?:: (.+))? \}\}$", written, markdown, flags=re.MULTILINE)
    return markdown.replace("](examples)", "](howto/python.md)")


def on_page_content(html: str, **_: object) -> str:
    """Turn formulas into MathML."""
    html = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda found: _formula(found[1]),
        html,
        flags=re.DOTALL,
    )
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>',
        lambda found: f'<div class="formula">{_formula(found[1], "block")}</div>',
        html,
        flags=re.DOTALL,
    )


@event_priority(-100)  # once the search index is there
def on_post_build(config: MkDocsConfig) -> None:
    """Make the search work from the file system, and look for addresses that a page loads from.

    Raises:
        PluginError: If there is one.
    """
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')};")
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := LOADED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.name} loads from outside: {found[0]}")


def _formula(tex: str, display: str = "inline") -> str:
    """The formula as MathML; an error where a command is not known."""
    written = convert(unescape(tex), display=display)
    if "\\" in written:
        raise PluginError(f"no MathML for all of {tex}: {written}")
    return written


def _is_guide(uri: str) -> bool:
    """Whether it is a page that is listed under "How to" where the menu does not name it."""
    return uri.endswith(".md") and "/" not in uri


def _section(text: str, title: str | None, name: str) -> str:
    """The text under a heading of the second level; None: what comes before the first one."""
    head, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    if title is None:
        return re.sub(r"^# .+$", "", head, count=1, flags=re.MULTILINE).strip()
    named = dict(zip(parts[0::2], parts[1::2], strict=True))
    if title not in named:
        raise PluginError(f"{name} has no section {title!r}, only {', '.join(named)}")
    return named[title].strip()


def _relative(text: str, page: str, source: str) -> str:
    """Links from the source's place as links from a page's."""
    up = "../" * page.count("/")
    text = re.sub(r"\]\((?:docs/)?examples\)", f"]({up}howto/python.md)", text)
    if source.startswith("docs/"):
        return re.sub(r"\]\((?=[\w.]+\.md)", f"]({up}", text)
    text = re.sub(r"\[docs/(\w+)\.md\]", r"[\1]", text)
    return text.replace("](docs/", f"]({up}")


def _choices(group: str) -> str:
    """Every choice of a configuration group with the comment of its file."""
    lines = [f"| `{group}=` | |", "| --- | --- |"]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        first = re.search(r"(?:^|\s)# (.+)$", text, flags=re.MULTILINE)
        if first is None:
            raise PluginError(f"{path} does not say what it is")
        about = first[1].replace("|", r"\|")
        lines.append(f"| `{path.stem}` | {about[0].upper()}{about[1:]} |")
    return "\n".join(lines)


def _modules() -> Iterator[str]:
    """All modules of the packages that hold something public."""
    for package in ("fedsim", "strategies", "clients", "scenarios"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] in ("__main__", "__init__"):
                continue
            yield ".".join(parts)


def _layer(module: str) -> str:
    """Where a module belongs."""
    package, rest = module.split(".", 1)
    if package != "fedsim":
        return package.capitalize()
    folder = rest.split(".")[0]
    inner = {"functional": "Mathematics", "backbones": "Backbones", "report": "Reports"}
    return inner.get(folder, "Contracts" if rest in CONTRACTS else "Inside")


def _first_line(module: str) -> str:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = text.split("\n")[0].replace("|", r"\|")
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", line)
