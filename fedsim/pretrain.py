"""Train an encoder on fractal images, once per configuration: the command ``fedsim-pretrain``.

    fedsim-pretrain                                   the encoder of encoder=fractal
    fedsim-pretrain encoder=fractal_grey              for grey pictures
    fedsim-pretrain encoder.training.epochs=20 encoder.data.num_classes=200
    fedsim-pretrain engine.device=cuda                images drawn and network trained on a GPU
    fedsim-pretrain --help

The weights lie in ``$FEDSIM_CACHE/encoders``, else ``~/.cache/fedsim/encoders``, under a hash of
every value; ``encoder=fractal`` takes them from there and trains them where they are missing.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsim.backbones.adapter import Adapter, Tapped
from fedsim.backbones.encoders import described
from fedsim.data import Batch
from fedsim.features import FrozenEncoder, cache_folder, progress_bar
from fedsim.fractals import Fractals
from fedsim.functional.instances import balanced_bce, mean_average_precision
from fedsim.model import Model
from fedsim.seeding import derive, generator
from fedsim.training import LocalTraining, cosine, fit, seeded

LAST_RATE = 1e-3  # the learning rate ends at this share of its start
HELD_OUT = 2000  # test images at most


def fractal_encoder(
    *,
    input_shape: tuple[int, ...],
    backbone: Callable[..., nn.Module],
    data: Callable[..., Fractals],
    training: LocalTraining,
    seed: int,
    warmup: int = 0,
    layer: str | None = None,
    device: str = "cpu",
) -> FrozenEncoder:
    """The backbone trained on fractal images, as an encoder for images of any size.

    Args:
        input_shape: ``(C, H, W)`` of the images to encode; they are resized to the fractals' size,
            and grey ones are repeated to the fractals' channels.
        backbone: Builds the network.
        data: Builds the fractals, given ``split`` and ``seed``.
        training: Optimiser, epochs, batch size.
        seed: Of weights and images.
        warmup: See :func:`pretrain`.
        layer: Part of the backbone that gives the features, or None for the backbone's own.
        device: Where it is trained, if it must be; not part of its name.

    Raises:
        ValueError: If colour images meet an encoder of grey fractals, or there is no such layer or
            device.
    """
    train = data(split="train", seed=seed, device=device)
    path = weights_path(backbone, data, training, seed, warmup)
    model = untrained(backbone, train, seed)
    if not path.exists():
        from fedsim.engine import check_device

        check_device(device)
        measures = pretrain(model.to(device), train, training, seed, warmup)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in measures.items())
        print(f"trained {path.name}: {shown}", file=sys.stderr)
        _save(model.backbone, path)
    model.backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net, side = model.backbone.cpu(), train.rendering.image_size
    adapter = Adapter(
        net=Tapped(net, layer, input_shape=(train.channels, side, side)) if layer else net,
        label="the fractal encoder",
        input_shape=input_shape,
        net_channels=train.channels,
        resize=side,
        frozen=True,
    )
    return FrozenEncoder(adapter, label=f"fractal resize={side}{f' {layer}' if layer else ''}")


def weights_path(
    backbone: Callable[..., nn.Module],
    data: Callable[..., Fractals],
    training: LocalTraining,
    seed: int,
    warmup: int = 0,
) -> Path:
    """Where the weights of this configuration lie, by a hash of all its values."""
    values = [
        described(backbone),
        described(data),
        described(training.optimizer),
        f"{training.epochs} {training.batch_size} {training.clip_norm} {seed}",
        *([f"warmup {warmup}"] if warmup else []),
    ]
    name = hashlib.sha256("|".join(values).encode()).hexdigest()[:24]
    return cache_folder() / "encoders" / f"fractal-{name}.pt"


def pretrain(
    model: Model, data: Fractals, training: LocalTraining, seed: int, warmup: int = 0
) -> dict[str, float]:
    """Train a model on fractal images, in place.

    The learning rate falls by half a cosine to a thousandth; every pass has new colours, places and
    backgrounds. From random weights, several small coloured fractals in a picture teach next to
    nothing for tens of thousands of images: the loss stays that of a constant. ``warmup`` passes
    over the same systems, one to a picture, shorten that; then a new head is trained on.

    Args:
        model: As many outputs as the data has classes.
        data: The images.
        training: Optimiser, epochs, batch size and clipping; its schedule is not used.
        seed: Draws the order of the images, and the head after the warm-up.
        warmup: Passes with one fractal in a picture beforehand, for ``multi_instance`` only.

    Returns:
        ``loss`` over the passes after the warm-up, and ``images_per_s`` of all, with rendering.

    Raises:
        ValueError: If ``warmup`` is negative, or not 0 where pictures show one fractal anyway.
    """
    _check_warmup(data, warmup)
    begun = time.perf_counter()
    model.train()
    # convolutions are up to twice as fast in this format
    model.to(memory_format=torch.channels_last)
    with progress_bar("training on fractals", (warmup + training.epochs) * len(data)) as advance:
        if warmup:
            _passes(model, data.singles(), replace(training, epochs=warmup), seed, advance)
            with seeded(derive(seed, "fractal head")):
                model.head.reset_parameters()  # type: ignore[operator]  # a linear layer
        mean = _passes(model, data, training, seed, advance)
    images = (warmup + training.epochs) * len(data)
    return {"loss": mean, "images_per_s": images / (time.perf_counter() - begun)}


def _passes(
    model: Model,
    data: Fractals,
    training: LocalTraining,
    seed: int,
    advance: Callable[[int], None],
) -> float:
    """The passes of one task; the mean loss."""
    parameters = list(model.parameters())
    optimizer = training.optimizer(parameters)
    start = [group["lr"] for group in optimizer.param_groups]
    size = training.batch_size or len(data)
    total = training.epochs * len(data)
    loss = nn.functional.cross_entropy if data.mode == "multiclass" else balanced_bce

    def batches() -> Iterator[Batch]:
        done = 0
        for epoch in range(training.epochs):
            order = torch.randperm(len(data), generator=generator(seed, "fractal order", epoch))
            for i in range(0, len(order), size):
                part = order[i : i + size]
                for group, rate in zip(optimizer.param_groups, start, strict=True):
                    group["lr"] = rate * cosine(done / total, LAST_RATE)
                images, targets = data.batch(part, epoch)
                yield Batch(images.contiguous(memory_format=torch.channels_last), targets)
                done += len(part)
                advance(len(part))

    return fit(
        lambda batch: loss(model(batch.inputs), batch.targets),
        batches(),
        optimizer,
        parameters,
        training.clip_norm,
    )


@torch.no_grad()
def held_out(model: Model, data: Fractals) -> dict[str, float]:
    """How well a model does on other renderings of the systems it was trained on.

    Args:
        model: Trained.
        data: The same systems, ``split="test"``.

    Returns:
        ``accuracy``, or ``mean_average_precision`` and that of a random order, ``chance``.
    """
    model.eval()
    picks = torch.linspace(0, len(data) - 1, min(len(data), HELD_OUT)).long()
    scores: list[Tensor] = []
    targets: list[Tensor] = []
    for i in range(0, len(picks), 256):
        images, wanted = data.batch(picks[i : i + 256])
        scores.append(model(images))
        targets.append(wanted)
    score, target = torch.cat(scores), torch.cat(targets)
    if data.mode == "multiclass":
        return {"accuracy": float((score.argmax(dim=1) == target).float().mean())}
    return {
        "mean_average_precision": mean_average_precision(score, target),
        "chance": float(target.mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train the encoder that the given overrides name and say where it is."""
    from fedsim.build import make
    from fedsim.checks import ConfigError
    from fedsim.config import compose, resolve
    from fedsim.engine import check_device

    overrides = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        print((Path(__file__).parents[1] / "conf" / "encoder" / "fractal.yaml").read_text())
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() or 1))
    try:
        chosen = any(word.startswith("encoder=") for word in overrides)
        node = resolve(compose([*([] if chosen else ["encoder=fractal"]), *overrides]))
        if node["encoder"].get("_target_") != "fedsim.pretrain.fractal_encoder":
            raise ConfigError("only encoders that are trained on fractals are trained here")
        parts = make(node, "encoder").keywords
        check_device(parts["device"])
        warmup, settings = parts["warmup"], (parts["training"], parts["seed"])
        data = partial(parts["data"], seed=parts["seed"], device=parts["device"])
        train = data(split="train")
        _check_warmup(train, warmup)
    except (ConfigError, ValueError) as error:
        sys.exit(f"fedsim-pretrain: {error}")
    path = weights_path(parts["backbone"], parts["data"], *settings, warmup)
    if path.exists():
        print(f"already trained: {path}")
        return
    model = untrained(parts["backbone"], train, parts["seed"]).to(parts["device"])
    measures = pretrain(model, train, *settings, warmup)
    measures |= held_out(model, data(split="test"))
    _save(model.backbone, path)
    for name, value in measures.items():
        print(f"{name.replace('_', ' ')}: {value:.4g}")
    print(f"weights: {path}")


def untrained(backbone: Callable[..., nn.Module], data: Fractals, seed: int) -> Model:
    """The backbone with one output per fractal class.

    Args:
        backbone: Builds it from ``input_shape``.
        data: The fractals.
        seed: Draws the weights.
    """
    side = data.rendering.image_size
    with seeded(derive(seed, "fractal weights")):
        return Model(backbone(input_shape=(data.channels, side, side)), data.num_classes)


def _check_warmup(data: Fractals, warmup: int) -> None:
    if warmup < 0 or (warmup and data.mode == "multiclass"):
        raise ValueError(
            "encoder.warmup must be 0, or above with encoder.data.mode=multi_instance, got"
            f" {warmup} with {data.mode}"
        )


def _save(net: nn.Module, path: Path) -> None:
    """Write the weights whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(net.state_dict(), beside)
    beside.replace(path)


if __name__ == "__main__":
    main()
