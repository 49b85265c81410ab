from functools import partial

import pytest
import torch

from fedsim.backbones.vision import Conv4
from fedsim.fractals import Fractals, Rendering
from fedsim.model import Model
from fedsim.pretrain import fractal_encoder, held_out, main, pretrain, weights_path
from fedsim.training import LocalTraining

BACKBONE = partial(Conv4, width=8)
DATA = partial(
    Fractals,
    num_classes=3,
    per_class=8,
    mode="multiclass",
    rendering=Rendering(image_size=16, points=500),
)
TRAINING = LocalTraining(optimizer=partial(torch.optim.Adam, lr=1e-3), epochs=1, batch_size=8)


def encoder(**more):
    settings = {"backbone": BACKBONE, "data": DATA, "training": TRAINING, "seed": 0, **more}
    return fractal_encoder(input_shape=(1, 8, 8), **settings)


def test_it_is_trained_once_and_then_read(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    first = encoder()
    (file,) = (tmp_path / "encoders").iterdir()
    written = file.stat().st_mtime_ns
    again = encoder()
    assert file.stat().st_mtime_ns == written
    assert first.digest() == again.digest()
    assert first(torch.rand(2, 1, 8, 8)).shape == (2, 8)
    assert not any(p.requires_grad for p in first.parameters())


def test_every_value_is_part_of_the_name():
    paths = {
        weights_path(backbone, data, training, seed)
        for backbone in (BACKBONE, partial(Conv4, width=9))
        for data in (DATA, partial(DATA, mode="multi_instance"))
        for training in (
            TRAINING,
            LocalTraining(optimizer=TRAINING.optimizer, epochs=2, batch_size=8),
        )
        for seed in (0, 1)
    }
    assert len(paths) == 16


def test_features_may_come_from_an_earlier_layer(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    last, third = encoder(), encoder(layer="blocks.2")
    images = torch.rand(2, 1, 8, 8)
    assert third(images).shape == (2, 8 * 2 * 2)
    net = last.net.net  # the same weights
    grown = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    maps = net.blocks[:3](grown.repeat(1, 3, 1, 1))
    assert torch.allclose(third(images), maps.flatten(1), atol=1e-6)
    assert torch.allclose(last(images), net.blocks[3](maps).flatten(1), atol=1e-6)
    assert len({last.digest(), third.digest()}) == 2
    with pytest.raises(ValueError, match=r"did you mean blocks\.\d"):
        encoder(layer="block.2")


def test_training_is_reproducible_and_moves_the_weights(monkeypatch, tmp_path):
    digests = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / run))
        digests.append(encoder(seed=seed).digest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("mode", "classes"), [("multiclass", 3), ("multi_instance", 8)])
def test_a_few_passes_learn_systems_that_are_rendered_anew(mode, classes):
    rendering = Rendering(image_size=32, points=2000, coloured=False)
    data = partial(Fractals, seed=0, num_classes=classes, mode=mode, rendering=rendering)
    train, test = data(per_class=240 // classes), data(per_class=200 // classes, split="test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(Conv4(input_shape=(1, 32, 32), width=16), classes)
    before = held_out(model, test)
    training = LocalTraining(optimizer=partial(torch.optim.Adam, lr=3e-3), epochs=8, batch_size=16)
    assert pretrain(model, train, training, seed=0)["images_per_s"] > 0
    after = held_out(model, test)
    if mode == "multiclass":
        assert after["accuracy"] >= 0.6 > before["accuracy"]
    else:
        assert after["mean_average_precision"] > before["mean_average_precision"] + 0.02


def test_a_warm_up_is_training_on_the_same_systems_one_to_a_picture():
    several = DATA(seed=0, mode="multi_instance")

    def trained(data, epochs, warmup):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model(BACKBONE(input_shape=(3, 16, 16)), 3)
        settings = LocalTraining(optimizer=TRAINING.optimizer, epochs=epochs, batch_size=8)
        pretrain(model, data, settings, seed=0, warmup=warmup)
        return model

    warm = trained(several, epochs=0, warmup=2)
    single = trained(several.singles(), epochs=2, warmup=0)
    after = single.backbone.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in warm.backbone.state_dict().items())
    assert not torch.equal(warm.head.weight, single.head.weight)  # the head begins anew
    on = trained(several, epochs=1, warmup=2)
    assert not torch.equal(on.backbone.blocks[0][0].weight, after["blocks.0.0.weight"])


def test_a_warm_up_belongs_to_several_fractals_in_a_picture(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"encoder\.warmup must be 0.*1 with multiclass"):
        encoder(warmup=1)
    with pytest.raises(SystemExit, match=r"encoder\.warmup must be 0"):
        main(["encoder.warmup=1"])
    several = partial(DATA, mode="multi_instance")
    names = {weights_path(BACKBONE, several, TRAINING, 0, warmup) for warmup in (0, 1, 2)}
    assert len(names) == 3
    assert weights_path(BACKBONE, several, TRAINING, 0, 0) in names
    assert encoder(data=several, warmup=1).digest() != encoder(data=several).digest()


def test_the_command_trains_reports_and_keeps(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    small = [
        "encoder.data.num_classes=3",
        "encoder.data.per_class=8",
        "encoder.data.rendering.image_size=16",
        "encoder.data.rendering.points=500",
        "encoder.backbone.width=8",
        "encoder.training.epochs=1",
    ]
    main(small)
    first = capsys.readouterr().out
    assert "images per s" in first
    assert "accuracy" in first
    main(small)
    assert capsys.readouterr().out.startswith("already trained")
    with pytest.raises(SystemExit, match="zzz"):
        main(["encoder.zzz=1"])
    with pytest.raises(SystemExit, match="trained on fractals"):
        main(["encoder=identity"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            main([*small, "engine.device=cuda"])
    main([*small, "encoder=fractal_grey", "encoder.data.mode=multi_instance"])
    assert "mean average precision" in capsys.readouterr().out
