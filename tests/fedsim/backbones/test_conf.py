import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[3] / "conf" / "backbone"
VISION = ["conv4", "lenet", "linear", "mlp", "pytorchcv", "slim_resnet18", "timm", "torchvision"]


@pytest.mark.parametrize("name", VISION)
def test_yaml_lists_every_argument_and_builds_the_backbone(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    needs = config.pop("needs")
    config.pop("facts", None)
    arguments = set(inspect.signature(get_class(config._target_)).parameters) - {"input_shape"}
    assert set(config) - {"_target_", "_partial_"} == arguments
    module = instantiate(config)(input_shape=(3, 32, 32))
    assert isinstance(module.num_features, int)
    assert needs == ([] if name in ("linear", "mlp") else ["images"])


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_backbones_without_needs_take_vectors(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    config.pop("needs")
    assert instantiate(config)(input_shape=(64,)).num_features > 0
