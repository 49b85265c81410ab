"""The preview, in the terminal and as a picture."""

import pytest

from fedsim.preview import main, preview, save

WORDS = ["dataset=toy", "num_clients=3", "partition=dirichlet", "clock=staggered"]


def test_it_shows_labels_and_the_time_line(capsys):
    main(WORDS)
    text = capsys.readouterr().out
    cut = preview(WORDS)
    assert f"{cut['facts']['smallest_client']} (examples)" in text
    for client, row in enumerate(cut["labels"]):
        line = next(t for t in text.splitlines() if t.startswith(f"│{client:>7} │"))
        shown = [cell.strip() for cell in line.strip("│").split("│")]
        assert shown[1:-1] == [str(n) if n else "·" for n in row]
        assert shown[-1] == str(sum(row))
    assert "1111" in text


@pytest.mark.parametrize("ending", ["png", "html"])
def test_it_draws(tmp_path, capsys, ending):
    path = tmp_path / f"cut.{ending}"
    main([*WORDS, "--picture", str(path)])
    assert path.stat().st_size > 10_000
    assert path.name in capsys.readouterr().out


def test_mistakes_end_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="choices: "):
        main(["partition=foo"])
    with pytest.raises(SystemExit, match="needs a file name"):
        main(["--picture"])
    with pytest.raises(SystemExit, match="must end in"):
        main([*WORDS, f"--picture={tmp_path / 'cut.gif'}"])


def test_one_experience_has_no_time_line(tmp_path):
    cut = preview(["dataset=toy", "scenario=single", "client=sgd", "num_clients=2"])
    assert "Time line" not in save(cut, tmp_path / "a.html").read_text()
    late = preview(["dataset=toy", "scenario=single", "client=sgd", "num_clients=9", "clock=late"])
    assert "Time line" in save(late, tmp_path / "b.html").read_text()
