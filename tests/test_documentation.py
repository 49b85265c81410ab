"""What the README and the pages of docs/ say to type works: commands compose, Python runs."""

import functools
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILE = re.compile(r"`([\w/]+\.(?:py|yaml))`[^`\n]*:\n\n```\w+\n(.*?)^```", re.S | re.M)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
SHORT = ["num_clients=4", "clock.rounds_per_experience=4", "training.epochs=1"]
FLOWER_APP = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server_app, client_app = ServerApp(), ClientApp()


@server_app.main()
def main(grid, context):
    assert context.run_config["lr"] == 0.1
    start = ArrayRecord([np.zeros(2, dtype=np.float32)])
    strategy = FedAvg(fraction_train=0.01, fraction_evaluate=0.0, min_train_nodes=2)
    done.append(strategy.start(grid, start, num_rounds=1).arrays.to_numpy_ndarrays()[0])


@client_app.train()
def train(message, context):
    arrays = [a + 1 for a in message.content["arrays"].to_numpy_ndarrays()]
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


done = []
"""


def name(page):
    return str(page.relative_to(ROOT))


def commands(page):
    """Every line of the page's shell blocks, as words, without comments and prompts."""
    for language, text in BLOCK.findall(page.read_text()):
        if language not in ("bash", "sh", "console", "shell"):
            continue
        lines = text.replace("\\\n", " ").splitlines()
        if prompts := [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]:
            lines = prompts  # the others are what the commands print
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)  # a variable of the environment
            if words and words[0] not in ("cd", "export"):
                yield words


def all_commands():
    for page in PAGES:
        for words in commands(page):
            yield pytest.param(page, words, id=f"{name(page)}: {' '.join(words)}")


def composed(words):
    """Compose what `fedsim WORDS` would, of a sweep the first job."""
    from fedsim.config import compose, resolve

    words = [w for w in words if w not in ("-m", "--multirun") and not w.startswith("hydra")]
    words = [w for w in words if "interval(" not in w]  # an optimiser's choice
    resolve(compose([re.sub(r"^([^=]+=)([^\[,]+),.*$", r"\1\2", w) for w in words]))


@pytest.mark.parametrize(("page", "words"), all_commands())
def test_a_command_is_one_that_works(page, words):
    program, *rest = words
    if "--config-dir" in rest:
        assert FILE.search(page.read_text()), "the page shows the files that it needs"
    elif program == "fedsim":
        composed([w for w in rest if not w.startswith("--")])
    elif program == "fedsim-preview":
        composed([w for w in rest if "=" in w])
    elif program == "fedsim-pretrain":
        composed(["encoder=fractal", *rest])
    elif program == "fedsim-report":
        from fedsim.report.command import _parser

        _parser().parse_args(rest)
    elif program == "fedsim-reproduce":
        importlib.import_module(f"fedsim.reproductions.{rest[0]}")
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program.startswith("python") and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).exists()
    else:
        beside = Path(sys.executable).parent / program
        assert beside.exists() or shutil.which(program), f"{program} is no program here"


def own_files():
    return [page for page in PAGES if FILE.search(page.read_text())]


@pytest.mark.parametrize("page", own_files(), ids=name)
def test_files_of_ones_own_work_from_a_folder_of_ones_own(page, tmp_path, monkeypatch):
    import fedsim

    for file, text in FILE.findall(page.read_text()):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    tried = 0
    for i, words in enumerate(commands(page)):
        if "--config-dir" in words:
            own = f"hydra.searchpath=[file://{tmp_path / words[words.index('--config-dir') + 1]}]"
            overrides = words[words.index("--config-dir") + 2 :]
            short = [w for w in SHORT if w.split("=")[0] not in str(overrides)]
            run = fedsim.run([own, *overrides, *short], folder=tmp_path / f"run{i}")
            assert run.summary["rounds"] >= 4
            tried += 1
    assert tried, f"{name(page)} shows files and no command that uses them"


def scripts():
    """Pages with Python that is not a file's content."""
    for page in PAGES:
        text = FILE.sub("", page.read_text())
        if blocks := [code for language, code in BLOCK.findall(text) if language == "python"]:
            yield pytest.param("\n".join(blocks), id=name(page))


@pytest.mark.parametrize("code", scripts())
def test_python_runs(code, tmp_path, monkeypatch):
    import fedsim
    from fedsim import api

    @functools.wraps(api.run)
    def shorter(words="", **options):
        return run([*shlex.split(words), *SHORT], **options)

    run = api.run
    monkeypatch.setattr(api, "run", shorter)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_app", raising=False)
    (tmp_path / "my_app.py").write_text(FLOWER_APP)
    if "fedsim.load" in code:
        monkeypatch.setattr(api, "load", lambda path: fedsim.run("client=sgd"))
    exec(compile(code, "page", "exec"), {})
    if "my_app" in code:
        (result,) = sys.modules["my_app"].done
        assert result.tolist() == pytest.approx([1.0, 1.0])
