import pytest
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

from fedsim.checks import CONF, ConfigError
from fedsim.config import choices, compose, resolve

GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra")


def problem(*overrides):
    with pytest.raises(ConfigError) as caught:
        resolve(compose(list(overrides)))
    return str(caught.value)


def test_the_default_configuration_resolves():
    node = resolve(compose([]))
    assert node["scenario"]["dataset"]["_target_"] == "scenarios.datasets.digits"
    assert "hydra" not in node


def test_reserved_lists_do_not_reach_the_targets():
    def words(node):
        if isinstance(node, dict):
            yield from node
            for value in node.values():
                yield from words(value)

    assert not {"needs", "provides", "facts"} & set(words(resolve(compose([]))))


def test_a_wrong_choice_lists_the_choices():
    text = problem("strategy=fedavvg")
    assert "no strategy=fedavvg" in text
    assert "did you mean fedavg" in text
    assert "krum" in text


def test_a_wrong_group_lists_the_groups():
    assert "no key 'strateg'" in problem("strateg=fedavg")
    assert "did you mean strategy" in problem("strateg=fedavg")


def test_a_wrong_key_suggests_the_right_one():
    assert "did you mean training.epochs" in problem("training.epoch=3")
    assert "did you mean seed" in problem("sed=3")


def test_a_key_that_resembles_nothing_lists_what_is_there():
    assert "under training: " in problem("training.qqqqqqq=3")
    assert "batch_size" in problem("training.qqqqqqq=3")


@pytest.mark.parametrize(
    "override", ["num_clients=0", "num_clients=-3", "num_clients=two", "seed=-1", "participation=0",
                 "participation=1.5", "evaluation_participation=-0.1"]
)  # fmt: skip
def test_impossible_numbers_are_refused_by_name(override):
    assert override.split("=")[0] in problem(override)


def test_a_need_that_nothing_provides_names_the_choices_that_would():
    text = problem("partition=natural")
    assert "needs 'groups'" in text
    assert "dataset=omniglot" in text


def test_an_experiment_moves_to_other_data():
    node = resolve(compose(["experiment=fedavg_mnist_dirichlet", "dataset=fashion_mnist"]))
    assert node["scenario"]["dataset"]["_target_"] == "scenarios.datasets.fashion_mnist"
    assert node["scenario"]["partition"]["alpha"] == 0.3


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes_and_names_itself(experiment):
    node = resolve(compose([f"experiment={experiment}"]))
    assert node["name"] == experiment


FILES = [p for g in GROUPS if g != "experiment" for p in sorted((CONF / g).glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_target_exists(path):
    def targets(node):
        if OmegaConf.is_dict(node):
            for key in node:
                if key == "_target_":
                    yield node[key]
                elif not OmegaConf.is_interpolation(node, key):
                    yield from targets(node[key])

    for target in targets(OmegaConf.load(path)):
        if target.startswith(("avalanche", "mlflow", "wandb")):
            continue  # importing takes seconds; the clients' own tests do it
        try:
            get_class(target)
        except ValueError:
            get_method(target)


@pytest.mark.parametrize("dataset", choices("dataset"))
def test_every_data_set_says_what_it_is_without_being_loaded(dataset):
    facts = OmegaConf.to_container(compose([f"dataset={dataset}"]).dataset, resolve=True).get(
        "facts"
    )
    assert all(isinstance(n, int) for n in (facts or {}).get("shape") or ())


def test_a_key_of_another_choice_names_the_choices_that_have_it():
    assert "have it: partition=dirichlet" in problem("partition.alpha=0.1")
    assert "did you mean client.penalty" in problem("client=ewc", "client.penalt=3")


@pytest.mark.parametrize("key", ["server_evaluation", "overwrite", "progress"])
def test_neither_true_nor_false_is_refused(key):
    assert f"{key} must be true or false, got 7" in problem(f"{key}=7")


@pytest.mark.parametrize(("strategy", "most"), [("krum", 7), ("multikrum", 7), ("bulyan", 1)])
def test_attackers_must_leave_enough_clients_in_a_round(strategy, most):
    resolve(compose([f"strategy={strategy}", f"num_malicious={most}"]))
    text = problem(f"strategy={strategy}", f"num_malicious={most + 1}")
    assert "10 take part" in text
    assert "at least 0, got -1" in problem(f"strategy={strategy}", "num_malicious=-1")


@pytest.mark.parametrize("override", ["partition=dirichlet", "order=shuffled"])
def test_a_choice_that_the_scenario_has_no_use_for_is_refused(override):
    resolve(compose(["scenario=class_incremental", override]))
    assert f"no use for a {override.split('=')[0]}" in problem("scenario=missions", override)


@pytest.mark.parametrize("words", [["--config-dir", "{}"], ["--config-dir={}"], ["-cd", "{}"]])
def test_choices_of_ones_own_are_found_outside_the_command_line_too(tmp_path, words):
    folder = tmp_path / "it's mine = yes"
    (folder / "client").mkdir(parents=True)
    (folder / "client" / "mine.yaml").write_text("_target_: clients.sgd.SGD\nsmoothing: 0.1\n")
    node = compose(["client=mine", *(word.format(folder) for word in words), "seed=4"])
    assert (node.client.smoothing, node.seed) == (0.1, 4)
    with pytest.raises(ConfigError, match="there is no folder"):
        compose(["--config-dir", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["strategy.min_train_nodes=50"], "strategy.min_train_nodes is 50, but num_clients is 10"),
        (["gate.min_results=11"], "gate.min_results is 11, but num_clients is 10"),
        (["~client"], "has no client; choose one, client=..."),
        (["dataset=cora", "encoder=random"], "the data set is a graph; leave it out, encoder=none"),
    ],
)
def test_what_would_wait_for_ever_or_fail_later_is_refused_at_once(words, text):
    assert text in problem(*words)


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi", "fedadagrad"])
def test_a_rate_that_flower_only_logs_is_no_option(strategy):
    assert "no key 'strategy.eta_l'" in problem(f"strategy={strategy}", "strategy.eta_l=0.7")
