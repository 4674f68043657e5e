"""What the tests make up: easy images, in memory and on disk; an objective and two samplers that the package does not know."""

import gc
import io
import json
import re
import tarfile
import weakref
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillery import data
from distillery.checks import InputError
from distillery.data.synthetic import Synthetic
from distillery.methods import METHODS
from distillery.notebook.types import Count, Dataset, LocalPath, Number, Scale, Whole
from distillery.sampling import Batch, Uniform
from distillery.seeds import generator

TINY = "test_efficientnet"  # timm's smallest model with depthwise convolutions and batch normalization


def blobs(per_class=8, classes=3, shape=(1, 8, 8), seed=0):
    """Noisy images around one pattern a class: easy to learn, all different."""
    stream = generator(seed, "test images")
    patterns = torch.rand(classes, 1, *shape, generator=stream)
    noise = torch.rand(classes, per_class, *shape, generator=stream)
    pixels = (0.6 * patterns + 0.4 * noise).flatten(0, 1)
    images = data.ImageSet.of(pixels, torch.arange(classes).repeat_interleave(per_class))
    return replace(images, transform=data.fit_standardize(images))


def first(images, k=1):
    """The first `k` images of each of three classes, as a set."""
    chosen = torch.cat([images.of_class(c)[:k] for c in range(3)])
    return Synthetic({"images": images.batch(chosen), "targets": images.targets[chosen]}, images.classes)


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def refusal(*words):
    """An InputError of one line that names every word and says what is accepted."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and "accepted" in message, message
    for word in words:
        assert str(word) in message, message


def flat(images):
    """Pixels as features."""
    return images.flatten(1)


def smooth_features(seed, features=12):
    """A smooth random map of images of 2 x 3 x 4 to features, so that finite differences are exact enough."""
    matrix = normal(24, features, seed=seed)
    return lambda images: torch.tanh(images.flatten(1) @ matrix / 24**0.5)


class _Mark(torch.autograd.Function):
    """The identity, whose node in the graph is a Python object."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def most_graphs(sweep, loss, name, start, target, tensors, draws):
    """Graphs of earlier steps that are alive when a step of a sweep begins, at most; a graph is known by tensor `name`."""
    alive, counts = [], []

    def watched(params, tensors, drawn):
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        marked = _Mark.apply(tensors[name])
        if marked.grad_fn:  # lives as long as the graph it is part of; the first pass has none
            alive.append(weakref.ref(marked.grad_fn))
        return loss(params, tensors | {name: marked}, drawn)

    sweep(watched, start, target, tensors, draws)
    return max(counts)


def distilling() -> set[str]:
    """Names of the methods that distil, train or hide; 'none' and 'whole' are also English words."""
    return {one.name for one in METHODS.values() if one.objective is not None or not one.makes_set} - {"none", "whole"}


def class_folders(root, mode, size, seed=0):
    """Three classes of noisy stripes that a network can tell apart."""
    rng = np.random.default_rng(seed)
    width, height = size
    for label in range(3):
        (root / f"class {label}").mkdir(parents=True)
        for i in range(14):
            wave = 127 + 90 * np.sin(np.arange(width) * (label + 1) * 6.28 / width + rng.uniform(0, 1))
            pixels = np.broadcast_to(wave, (height, width))[..., None] + rng.normal(0, 20, (height, width, len(mode)))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8).squeeze(), mode=None).save(root / f"class {label}" / f"{i}.png")


def picture(seed=0, mode="RGB", size=(8, 8)):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels))
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files(classes=("cat", "dog"), n=4, parts=("train", "test"), mode="RGB", size=(8, 8), suffix=".png", kind="PNG"):
    """Content by path: images that are all different."""
    names = [f"{part}/{name}/{i}{suffix}".lstrip("/") for part in parts for name in classes for i in range(n)]
    return {name: encoded(picture(seed, mode, size), kind) for seed, name in enumerate(names)}


def to_folder(root: Path, content: dict[str, bytes]) -> Path:
    for name, value in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value)
    return root


def to_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def to_tar(path: Path, content: dict[str, bytes], extra=()) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, value in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
        for member in extra:
            archive.addfile(member)
    return path


WRITERS = {"folder": to_folder, "zip": to_zip, "tar.gz": to_tar, "tgz": to_tar, "tar": to_tar}


PARAMETERS = {
    "dataset": (Dataset, "digits"), "data_root": (LocalPath, ""), "label": (str, ""), "max_side": (Whole, 8), "per_class": (Whole, 12),
    "flip": (bool, False), "ipc": (list[Count], [1]), "width": (Count, 4), "networks": (Count, 2), "evaluation_epochs": (Whole, 2),
    "score_trials": (Count, 1), "score_epochs": (Count, 1), "seed": (Whole, 0), "scale": (Scale, "smoke"), "results_dir": (LocalPath, ""),
    "device": (str, "cpu"), "budget_minutes": (Number, 0.0),
}  # fmt: skip


def namespace(tmp_path, **changes):
    """`globals()` of a small notebook after its parameters cell."""
    values = {name: value for name, (_, value) in PARAMETERS.items()} | {"results_dir": str(tmp_path)} | changes
    return {"__annotations__": {name: kind for name, (kind, _) in PARAMETERS.items()}, **values}


SHORTENED = [
    *("-p", "n_seeds", "2", "-p", "networks", "2", "-p", "evaluation_epochs", "3", "-p", "steps_dm", "3", "-p", "steps_dc", "2"),
    *("-p", "ipc", "1", "-p", "epochs_whole", "2", "-p", "width", "8", "-p", "updates", "[0]"),
]  # of 00_quickstart


def found_in_quickstart(folder: Path, name: str) -> dict:
    """The record that 00_quickstart left for a folder of images, complete and without a path of this machine."""
    text = (folder / name / "record.json").read_text()
    record = json.loads(text)
    assert record["data"]["train"] > 0 and not record["missing"] and "random images" in record["claims"][0]["statement"]
    assert str(folder.parents[2]) not in text
    assert list((folder / "artifacts").iterdir())
    return record


class PixelsAndLabels:
    """Two learned tensors ('images' and 'scale'), a network trained along the way as inner state, skipped updates."""

    name = "made up"

    def __init__(self, network):
        self.network, self.steps = network, 0

    def start(self, synthetic, generator):
        weights = self.network.init(generator, 1)
        return {f"inner.{name}": value for name, value in weights.items()} | {"count": torch.tensor(0)}

    def step(self, synthetic, state, draw, generator):
        self.steps += 1
        params = {name.removeprefix("inner."): v for name, v in state.items() if name.startswith("inner.")}
        kernel = params["conv0.weight"].requires_grad_()
        images = synthetic.tensors["images"].requires_grad_()
        scale = synthetic.tensors["scale"].requires_grad_()
        real, _, weights = draw(None, 6)
        noise = torch.randn(real.shape, generator=generator)
        gap = (self.network.embed(params, real + 0.1 * noise)[0] * weights[:, None]).sum(0)
        loss = (gap - scale * self.network.embed(params, images)[0].mean(0)).square().sum()
        pixels, size, inner = torch.autograd.grad(loss, [images, scale, kernel])
        count = int(state["count"])
        state = state | {"inner.conv0.weight": (kernel - 0.01 * inner).detach()}
        skip = count % 3 == 2
        log = {"loss": loss.detach(), "skip": float(skip)} | ({"rare": 1.0} if count % 4 == 0 else {})
        grads = None if skip else {"images": pixels, "scale": size}
        return grads, state | {"count": torch.tensor(count + 1)}, log


class Dropping(Uniform):
    """Some samples are dropped inside the batch: their weight is zero."""

    def __init__(self, targets):
        super().__init__(targets)
        self.state = {"refreshed": torch.tensor(0)}
        self.dropped = torch.arange(0, len(targets), 3)

    def draw(self, label, n, generator):
        indices, weights = super().draw(label, n, generator)
        return Batch(indices, weights * ~torch.isin(indices, self.dropped))

    def refresh(self, step, objective, state, synthetic):
        self.state["refreshed"] = torch.tensor(step + 1)
        return 0


class Weighted(Uniform):
    """Weights that the sampler learns along the way: they follow the synthetic images."""

    def __init__(self, targets):
        super().__init__(targets)
        self.state = {"weights": torch.ones(len(targets)), "refreshed": torch.tensor(0)}

    def draw(self, label, n, generator):
        indices, _ = super().draw(label, n, generator)
        return Batch(indices, self.state["weights"][indices])

    def refresh(self, step, objective, state, synthetic):
        signal = synthetic.tensors["images"].mean() + torch.arange(len(self.state["weights"]))
        self.state["weights"] = 0.9 * self.state["weights"] + 0.5 * (1 + signal.sin())
        self.state["refreshed"] = torch.tensor(step + 1)
        return 0


class Counting:
    """A network that counts how often it is drawn."""

    def __init__(self, inner):
        self.inner, self.drawn = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def init(self, generator, k=1):
        self.drawn += k
        return self.inner.init(generator, k)


def most_memory() -> int:
    """KiB that this process has held at most (Linux); `ru_maxrss` also counts what its parent held when it was started."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def small_language_model(n: int, steps: int):
    """(model, tokenizer, entries, encoded): a small model of n made-up instructions, trained on half of them for a second or two."""
    from distillery.data.instructions import encode, make_instructions
    from distillery.encoders.language import tiny_model
    from distillery.seeds import generator
    from distillery.training.language import finetune

    entries = make_instructions(n, generator(0, "entries"))
    model, tokenizer = tiny_model(entries, generator(1, "model"))
    encoded = encode(tokenizer, entries)
    return finetune(model, encoded, range(n // 2), steps, generator(2, "order"), lr=3e-3, batch=16, rank=0), tokenizer, entries, encoded
