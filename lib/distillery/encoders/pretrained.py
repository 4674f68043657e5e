"""Pre-trained encoders, networks without their classifiers: torchvision's by name, of a local file, or trained on other images."""

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

from torch import Generator

from distillery import store
from distillery.checks import InputError, check_choice, check_finite, first_line
from distillery.data import ImageSet, Splits
from distillery.networks import ModuleNetwork, Params
from distillery.networks.encoder import Encoder, head_names
from distillery.runs import Runs
from distillery.seeds import generator as stream
from distillery.training import train
from distillery.training.optimizers import SGD


def pretrain(
    network, images: ImageSet, epochs: int, generator: Generator, *, lr: float = 0.05, batch: int = 128, augmentation: str = ""
) -> Params:
    """Train one network on labelled images by SGD with momentum; the rate falls to a tenth at 1/2 and 3/4 of the steps.

    network  with the classes of these images
    returns  its weights without the classifier, leading axis 1
    """
    steps = epochs * -(-len(images) // batch)
    params = {name: value.to(images.device) for name, value in network.init(generator, 1).items()}
    sgd = SGD(lr, 0.9, 5e-4, drops=(steps // 2, 3 * steps // 4))
    params, _ = train(network, params, images, optimizer=sgd, generator=generator, epochs=epochs, batch=batch, augmentation=augmentation)
    return {name: value for name, value in params.items() if name not in head_names(network)}


def trained(teacher, source: Splits, network, runs: Runs, seed: int, **how) -> Encoder:
    """The encoder for a task's network that `pretrain` makes on other images; made once and kept beside the runs.

    teacher  as it runs (`MixedPrecision`), with the classes of these images
    network  of the same architecture, with the classes of the task
    how      epochs, lr, batch and augmentation of `pretrain`
    raises   InputError on images of another shape than the network takes
    """
    images = source.train
    if images.shape != network.shape:
        raise InputError(f"encoder_dataset: images of {images.shape}; accepted: {network.shape}, those of the task")
    inputs = how | {"network": teacher.spec(), "seed": seed, "transform": store.transform_digest(images.transform)}
    path = runs.artifact("encoder-" + store.identity("encoder", 1, inputs, source.digest))
    if not path.exists():
        weights = pretrain(teacher, images, generator=stream(seed, "encoder"), **how)
        save(path, getattr(teacher, "network", teacher), weights, how | {"data": source.digest})
    return replace(load(path, network), name=f"{teacher.name}, {how['epochs']} epochs on {images.name}")


def save(path: str | Path, network, weights: Params, card: dict) -> str:
    """Save an encoder's weights with a card of what they are; returns the digest of the file's content."""
    return store.save_tensors(path, weights, card | {"kind": "encoder", "network": network.spec()})


def load(path: str | Path, network) -> Encoder:
    """The encoder in a file for a network: one saved by `save`, or a state dict of PyTorch (.pt, .pth).

    raises  InputError on a file that is missing, corrupt or holds more than tensors, and weights that lack or do not fit
            tensors of the network
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        stacked, card = store.load_tensors(path)
        if card.get("kind") != "encoder":
            raise InputError(f"{path} holds no encoder; accepted: a file saved by encoders.save")
        found = {name: value.squeeze(0) for name, value in stacked.items()}
    else:
        content = store.load_foreign(path)
        content = content.get("state_dict", content) if isinstance(content, dict) else content
        if not isinstance(content, dict):
            raise InputError(f"{path} holds a {type(content).__name__}; accepted: a state dict")
        found = {str(name).removeprefix("module."): value for name, value in content.items()}
    return Encoder(network, _fitting(found, network, str(path)), path.name)


def _fitting(found: dict, network, where: str) -> Params:
    """The tensors of a network's encoder among those found, of one network, with a leading axis 1."""
    heads, weights = head_names(network), {}
    wanted = {name: value[0] for name, value in network.init(Generator(), 1).items() if name not in heads}
    lacking = [name for name in wanted if name not in found]
    if lacking:
        missing = f"{len(lacking)} of {len(wanted)} tensors of {network.name} are missing, the first {lacking[0]!r}"
        raise InputError(f"{where}: {missing}; accepted: weights of the same architecture")
    for name, value in wanted.items():
        store.check_plain(f"{where}: {name!r}", found[name])
        if found[name].shape != value.shape:
            raise InputError(f"{where}: {name!r} is {tuple(found[name].shape)}; accepted: {tuple(value.shape)}, that of {network.name}")
        weights[name] = found[name].detach().to(value.dtype)[None]
        check_finite(f"{where}: {name!r}", weights[name])
    return weights


def torchvision(name: str, classes: int, weights: str = "DEFAULT") -> Encoder:
    """A model of torchvision with its published ImageNet weights and a fresh classifier of `classes`.

    name     of `torchvision.models.list_models`, 'resnet18' for example; images should be 224 x 224, standardized by
             'published:tiny-imagenet', which are ImageNet's constants
    weights  'DEFAULT', or one of the model's, 'IMAGENET1K_V1' for example
    raises   InputError on an unknown model or weights, and where they cannot be fetched
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise InputError(f"encoder: {name!r} is no model of torchvision; accepted: resnet18, resnet50, vit_b_16, ..")
    options = models.get_model_weights(name)
    check_choice(f"weights of {name}", weights, options.__members__)
    network = ModuleNetwork(lambda: models.get_model(name, num_classes=classes), f"torchvision {name}")
    try:
        state = options[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        accepted = "a network, or a local file of weights"
        raise InputError(f"encoder: weights of {name} cannot be fetched: {first_line(error)}; accepted: {accepted}") from error
    return Encoder(network, _fitting(state, network, name), f"{name} {weights}")


def of(source: str, network) -> Encoder:
    """The encoder that a parameter names: 'torchvision:NAME', 'torchvision:NAME:WEIGHTS', or a local file for `network`."""
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        name, _, weights = rest.partition(":")
        return torchvision(name, network.classes, weights or "DEFAULT")
    return load(source, network)
