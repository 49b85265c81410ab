"""The report as a file."""

import csv
import re
from html.parser import HTMLParser

import pytest

from fedsim.report.command import main, report
from tests.fedsim.report.run_dirs import write_run

VOID = {"meta", "link", "br"}


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects what names an address."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def runs(tmp_path):
    refused = [{"round": 2, "client": 1, "reason": "not finite <w>"}]
    for strategy, accuracy in (("fedavg", 0.7), ("fedprox", 0.8)):
        for seed in (0, 1):
            write_run(
                tmp_path / "sweep" / f"{strategy}{seed}", strategy=strategy, seed=seed,
                accuracy=accuracy + 0.02 * seed, rejections=refused if seed else (),
            )  # fmt: skip
    return tmp_path / "sweep"


def test_the_file_needs_nothing_else(runs):
    text = report([runs]).read_text()
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert parser.scripts == 0
    assert all(a.startswith(("#", "data:")) for a in parser.addresses), parser.addresses
    assert not re.search(r"https?://|url\((?!#)|@import", text)


def test_it_says_what_differs_first_and_shows_every_part(runs):
    text = report([runs]).read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "What was run", "Results", "Over time", "Forgetting", "Clients", "The scenario", "Faults",
        "Every run", "Environment and commands",
    ]  # fmt: skip
    assert "made: 4 runs of 2 methods in 1 scenario with 2 seeds." in text
    assert "not finite &lt;w&gt;" in text
    assert "fedsim strategy=fedprox partition.alpha=0.5 seed=1" in text
    assert "0.710 ± 0.127" in text  # t(1) = 12.706, times 0.01


def test_a_single_run_has_a_report_too(runs, tmp_path):
    text = report([runs / "fedavg0"], tmp_path / "one.html").read_text()
    assert "made: 1 run, test accuracy 0.700." in text
    assert "Paired tests" not in text
    assert "What differs" not in text


def test_figures_and_tables_are_written(runs, tmp_path, capsys):
    main([str(runs), "--figures", str(tmp_path / "f"), "--tables", str(tmp_path / "t")])
    figures = {p.name for p in (tmp_path / "f").iterdir()}
    assert {"accuracy-rounds.png", "accuracy-rounds.svg", "clients.png"} <= figures
    assert (tmp_path / "f" / "accuracy-rounds.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "t" / "results.csv").open()))
    assert [row["test accuracy"] for row in rows] == ["0.71", "0.81"]
    assert r"\toprule" in (tmp_path / "t" / "results.tex").read_text()
    assert "report.html" in capsys.readouterr().out


def test_pictures_are_the_same_every_time(runs, tmp_path):
    first = report([runs], tmp_path / "a.html").read_text()
    assert report([runs], tmp_path / "b.html").read_text() == first


def test_a_wrong_path_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"fedsim-report: .*no finished run"):
        main([str(tmp_path)])
