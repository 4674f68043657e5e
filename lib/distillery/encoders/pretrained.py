"""Pre-trained encoders, networks without their classifiers: of a local file, or trained on other images."""

import re
from dataclasses import replace
from pathlib import Path

from torch import Generator, Tensor

from distillery import store
from distillery.checks import InputError, check_finite
from distillery.data import ImageSet, Splits
from distillery.networks import Params
from distillery.networks.encoder import Encoder, head_names
from distillery.networks.precision import unwrapped
from distillery.runs import Runs
from distillery.seeds import generator as stream
from distillery.training import train
from distillery.training.optimizers import SGD

# of sha256, as torchvision and timm name files (resnet18-f37072fd.pth); a date is none
_HASH = re.compile(r"-(?!20[0-9]{6}\.)([0-9a-f]{8})\.\w+$")
_PART = re.compile("[^.0-9]*")  # of a network, without numbers: 'layer' of 'layer1.0.conv2.weight'


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
        save(path, unwrapped(teacher), weights, how | {"data": source.digest})
    return replace(load(path, network), name=f"{teacher.name}, {how['epochs']} epochs on {images.name}")


def save(path: str | Path, network, weights: Params, card: dict) -> str:
    """Save an encoder's weights with a card of what they are; returns the digest of the file's content."""
    return store.save_tensors(path, weights, card | {"kind": "encoder", "network": network.spec()})


def load(path: str | Path, network) -> Encoder:
    """The encoder in a file for a network: one saved by `save`, or a state dict of PyTorch (.pt, .pth, .safetensors).

    raises  InputError on a file that is missing, corrupt, holds more than tensors, or is not the published one by the hash in its name;
            and on weights of another network
    """
    path = Path(path)
    if path.suffix == ".safetensors" and store.has_card(path):
        stacked, card = store.load_tensors(path)
        if card.get("kind") != "encoder":
            raise InputError(f"{path} holds no encoder; accepted: a file saved by encoders.save")
        found = {name: value.squeeze(0) for name, value in stacked.items()}
    else:
        content = store.load_foreign(path)
        published = _HASH.search(path.name)
        if published and not (digest := store.file_digest(path)).startswith(published[1]):
            raise InputError(f"{path}: sha256 {digest[:8]}.. is not that of its name; accepted: the published file, or another name")
        if isinstance(content, dict):
            content = content.get("state_dict", content.get("model", content))
        if not isinstance(content, dict):
            raise InputError(f"{path} holds a {type(content).__name__}; accepted: a state dict")
        found = {str(name).removeprefix("module."): value for name, value in content.items()}
    return Encoder(network, fitting(found, network, str(path)), path.name)


def fitting(found: dict, network, where: str) -> Params:
    """The tensors of a network's encoder among those found, of one network, with a leading axis 1.

    Tensors of other parts (a projector, another classifier) are passed over; more layers of the same parts are another network's.
    """
    heads, drawn, weights = head_names(network), network.init(Generator(), 1), {}
    wanted = {name: value[0] for name, value in drawn.items() if name not in heads}
    # older files have no counts of batches; PyTorch too starts them at 0
    found = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")} | found
    lacking = [name for name in wanted if name not in found]
    parts = {_PART.match(name)[0] for name in wanted}
    more = [name for name, value in found.items() if isinstance(value, Tensor) and name not in drawn and _PART.match(name)[0] in parts]
    if odd := lacking or more:
        what = f"{len(lacking)} of {len(wanted)} tensors of {network.name} are missing, {len(more)} are too many, the first {odd[0]!r}"
        raise InputError(f"{where}: {what}; accepted: weights of the same architecture")
    for name, value in wanted.items():
        store.check_plain(f"{where}: {name!r}", found[name])
        if found[name].shape != value.shape:
            raise InputError(f"{where}: {name!r} is {tuple(found[name].shape)}; accepted: {tuple(value.shape)}, that of {network.name}")
        weights[name] = found[name].detach().to(value.dtype)[None]
        check_finite(f"{where}: {name!r}", weights[name])
    return weights
