import pytest

from fedsim.build import build
from fedsim.checks import ConfigError
from fedsim.config import compose, resolve

SMALL = ["dataset=toy", "num_clients=2", "scenario.num_experiences=2"]


def test_without_an_encoder_the_data_set_is_left_alone():
    node = resolve(compose(SMALL))
    assert node["dataset"]["_target_"] == "scenarios.toy.toy"
    assert node["scenario"]["dataset"] == node["dataset"]


def test_an_encoder_stands_between_data_set_and_scenario():
    node = resolve(compose([*SMALL, "encoder=identity", "dataset.noise=0.25"]))
    assert node["scenario"]["dataset"] == node["dataset"]
    assert node["dataset"]["_target_"] == "fedsim.features.encoded"
    assert node["dataset"]["dataset"]["noise"] == 0.25
    simulation = build(node)
    assert simulation.setting.scenario.input_shape == (64,)


def test_what_needs_images_is_refused_behind_an_encoder():
    with pytest.raises(ConfigError, match="needs 'images'"):
        resolve(compose([*SMALL, "encoder=identity", "backbone=conv4"]))


@pytest.mark.parametrize("name", ["omniglot", "omniglot_classwise", "tinyimagenet", "graphs"])
def test_an_experiment_takes_another_encoder(name):
    experiment = f"experiment=fedrecon_{name}"
    own, other = (resolve(compose([experiment, *more])) for more in ([], ["encoder=identity"]))
    assert own["dataset"]["encoder"]["_target_"] == "fedsim.episodes.prototypical"
    assert other["dataset"]["encoder"]["_target_"] == "fedsim.backbones.encoders.identity"


def test_the_head_is_chosen_by_name():
    overrides = ["head=keyvalue", "head.lookup.codebooks=4", "head.lookup.pairs=8"]
    model = build(resolve(compose([*SMALL, "backbone=linear", *overrides]))).setting.model()
    assert type(model.head).__name__ == "KeyValueHead"
    assert model.head.values.shape == (32, 10)
    mlp = build(resolve(compose([*SMALL, "head=mlp", "head.hidden=7"]))).setting.model()
    assert mlp.head[0].out_features == 7
