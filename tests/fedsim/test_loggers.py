import csv
import inspect
import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedsim import loggers
from fedsim.loggers import CsvLogger, MlflowLogger, TensorBoardLogger, WandbLogger, flatten

CONF = Path(__file__).parents[2] / "conf"
NAMES = ["csv", "mlflow", "tensorboard", "wandb"]
CONFIG = {"seed": 1, "clock": {"rounds_per_experience": [2, 3]}}
SUMMARY = {"average_accuracy": 0.7, "forgetting": None, "digest": "abc"}


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_line_per_round_and_keeps_every_digit(tmp_path):
    logger = CsvLogger(file_name="figures.csv")
    logger.start(tmp_path, CONFIG)
    logger.log(1, {"loss": 0.1 + 0.2, "accuracy": 0.5})
    logger.log(2, {"accuracy": math.nan, "loss": 1e-20})
    logger.close(SUMMARY)
    text = (tmp_path / "figures.csv").read_text()
    assert text == "round,loss,accuracy\n1,0.30000000000000004,0.5\n2,1e-20,nan\n"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.csv"]


def test_csv_header_grows_and_earlier_lines_get_empty_cells(tmp_path):
    logger = CsvLogger()
    logger.start(tmp_path, CONFIG)
    logger.log(1, {"loss": 3.0})
    logger.log(2, {"accuracy": 0.5})
    logger.log(3, {"loss": 1.0, "forgetting, mean": 0.1})
    assert lines(tmp_path / "metrics.csv") == [
        {"round": "1", "loss": "3.0", "accuracy": "", "forgetting, mean": ""},
        {"round": "2", "loss": "", "accuracy": "0.5", "forgetting, mean": ""},
        {"round": "3", "loss": "1.0", "accuracy": "", "forgetting, mean": "0.1"},
    ]


def test_csv_calls_of_one_round_share_its_line(tmp_path):
    logger = CsvLogger()
    logger.start(tmp_path, CONFIG)
    for round_ in (1, 2):
        logger.log(round_, {"loss": 3.0})
        logger.log(round_, {"accuracy": 0.25})
        logger.log(round_, {"loss": 2.0})
    rows = lines(tmp_path / "metrics.csv")
    assert rows == [{"round": str(r), "loss": "2.0", "accuracy": "0.25"} for r in (1, 2)]


def test_csv_is_complete_after_every_call(tmp_path):
    logger = CsvLogger()
    logger.start(tmp_path, CONFIG)
    for round_ in range(4):
        logger.log(round_, {f"figure {round_}": 1.0})
        assert len(lines(tmp_path / "metrics.csv")) == round_ + 1


def test_csv_of_a_run_that_starts_over_has_no_columns_of_the_earlier_one(tmp_path):
    for figure in ("loss", "accuracy"):
        logger = CsvLogger()
        logger.start(tmp_path, CONFIG)
        logger.log(1, {figure: 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "round,accuracy\n1,1.0\n"


def test_csv_continues_after_an_interruption_before_the_first_line(tmp_path):
    (tmp_path / "metrics.csv").touch()
    logger = CsvLogger()
    logger.start(tmp_path, CONFIG)
    logger.log(1, {"loss": 1.0})
    assert lines(tmp_path / "metrics.csv") == [{"round": "1", "loss": "1.0"}]


@pytest.mark.parametrize(("resumed_at", "kept"), [(3, 2), (2, 1), (1, 0)])
def test_csv_of_a_resumed_run_replaces_what_came_after(tmp_path, resumed_at, kept):
    for first, loss in ((1, 1.0), (resumed_at, 2.0)):
        logger = CsvLogger()
        logger.start(tmp_path, CONFIG)
        for round_ in range(first, 4):
            logger.log(round_, {"loss": loss})
    rows = lines(tmp_path / "metrics.csv")
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["1.0"] * kept + ["2.0"] * (3 - kept)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_events_can_be_read_back(tmp_path):
    logger = TensorBoardLogger()
    logger.start(tmp_path, CONFIG)
    logger.log(0, {"accuracy": 0.25})
    logger.log(1, {"accuracy": 0.5, "train/loss": 2.0})
    logger.close(SUMMARY)
    read = events(tmp_path / "tensorboard")
    assert [(e.step, e.value) for e in read.Scalars("accuracy")] == [(0, 0.25), (1, 0.5)]
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 2.0)]
    assert [e.value for e in read.Scalars("summary/average_accuracy")] == [pytest.approx(0.7)]
    assert sorted(tag for tag in read.Tags()["scalars"] if tag.startswith("summary")) == [
        "summary/average_accuracy"
    ]
    for tag, content in (("config", CONFIG), ("summary", SUMMARY)):
        (event,) = read.Tensors(f"{tag}/text_summary")
        assert json.loads(event.tensor_proto.string_val[0].decode().strip("`")) == content


def test_tensorboard_of_a_resumed_run_hides_what_came_after(tmp_path):
    for first, loss in ((1, 1.0), (2, 2.0)):
        logger = TensorBoardLogger()
        logger.start(tmp_path, CONFIG)
        for round_ in range(first, 4):
            logger.log(round_, {"loss": loss})
        logger.close({})
    read = events(tmp_path / "tensorboard").Scalars("loss")
    assert [(e.step, e.value) for e in read] == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_tensorboard_run_without_rounds_still_has_its_summary(tmp_path):
    logger = TensorBoardLogger()
    logger.start(tmp_path, CONFIG)
    logger.close(SUMMARY)
    assert "summary/average_accuracy" in events(tmp_path / "tensorboard").Tags()["scalars"]


@pytest.mark.parametrize(
    ("logger", "name"),
    [(TensorBoardLogger(), "tensorboard"), (MlflowLogger(), "mlflow"), (WandbLogger(), "wandb")],
)
def test_missing_package_names_the_extra(logger, name, tmp_path, monkeypatch):
    def missing(module: str):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(loggers.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=rf"logger={name}.*fedsim-lab\[{name}\]"):
        logger.start(tmp_path, CONFIG)


def test_broken_package_is_not_reported_as_missing(tmp_path, monkeypatch):
    def broken(_: str):
        raise ModuleNotFoundError("No module named 'part'", name="part")

    monkeypatch.setattr(loggers.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="No module named 'part'"):
        WandbLogger().start(tmp_path, CONFIG)


class RecordingMlflow:
    """Stands in for the package, which is an optional dependency, and keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_mlflow_gets_parameters_figures_and_summary(tmp_path, monkeypatch):
    mlflow = RecordingMlflow()
    monkeypatch.setattr(loggers.importlib, "import_module", {"mlflow": mlflow}.__getitem__)
    logger = MlflowLogger(experiment="digits", tracking_uri="file:store")
    logger.start(tmp_path / "seed1", CONFIG)
    logger.log(3, {"loss": 0.5})
    logger.close(SUMMARY)
    assert mlflow.calls == [
        ("set_tracking_uri", ("file:store",), {}),
        ("set_experiment", ("digits",), {}),
        ("start_run", (), {"run_name": "seed1"}),
        ("log_params", ({"seed": 1, "clock.rounds_per_experience": [2, 3]},), {}),
        ("log_dict", (CONFIG, "config.json"), {}),
        ("log_metrics", ({"loss": 0.5},), {"step": 3}),
        ("log_metrics", ({"summary/average_accuracy": 0.7},), {}),
        ("log_dict", (SUMMARY, "summary.json"), {}),
        ("end_run", (), {}),
    ]


def test_mlflow_gets_many_parameters_in_requests_of_a_hundred(tmp_path, monkeypatch):
    mlflow = RecordingMlflow()
    monkeypatch.setattr(loggers.importlib, "import_module", {"mlflow": mlflow}.__getitem__)
    config = {f"name{i}": i for i in range(230)}
    MlflowLogger().start(tmp_path, config)
    requests = [args[0] for name, args, _ in mlflow.calls if name == "log_params"]
    assert [len(request) for request in requests] == [100, 100, 30]
    assert {name: value for request in requests for name, value in request.items()} == config


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", mode="offline", run_name="one")
    logger.start(tmp_path, CONFIG)
    logger.log(1, {"loss": 2.0})
    logger.log(2, {"loss": 1.0})
    logger.close(SUMMARY)
    wandb.teardown()  # its own process writes the file; this waits, as the end of a run does
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for expected in (b"rounds_per_experience", b"loss", b"average_accuracy", b"one"):
        assert expected in content


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_keyed_by_its_name_and_lists_every_argument(name):
    config = OmegaConf.load(CONF / "logger" / f"{name}.yaml")
    assert list(config) == [name]
    entry = config[name]
    arguments = set(inspect.signature(get_class(entry._target_)).parameters)
    assert set(entry) - {"_target_"} == arguments
    instantiate(entry)


@pytest.mark.parametrize(
    ("choice", "expected"), [("[csv,tensorboard]", ["csv", "tensorboard"]), ("none", [])]
)
def test_several_loggers_can_be_chosen_at_once(choice, expected):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+logger={choice}"])
    assert list(config.get("logger", {})) == expected


def test_flatten_names_nested_values_by_their_path():
    assert flatten({"a": 1, "b": {"c": {"d": None}, "e": [1]}, "f": {}}) == {
        "a": 1,
        "b.c.d": None,
        "b.e": [1],
    }
