"""Small inputs shared by the tests: class folders on disk, a tiny image set, the digits."""

import hashlib
import os
import tempfile

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from distillery import data, engine
from distillery.encoders import public
from distillery.networks import ConvNet, precision
from distillery.training.losses import centred
from made_up import TINY, blobs, normal, refusal

os.environ.setdefault("DISTILLERY_CACHE", os.path.join(tempfile.gettempdir(), "distillery-tests"))  # not that of who runs them
torch.set_num_threads(1)  # tensors are tiny: more threads only wait for each other where cores are shared


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """On several workers a file runs in one of them, and all that need Ray in the same one, which starts it once."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if "ray" in item.fixturenames else str(item.path)))


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """What bfloat16 gives is tested also where the processor emulates it."""
    monkeypatch.setattr(precision, "check_not_emulated", lambda: None)


@pytest.fixture
def refused():
    """`with refused(value, ...)`: an InputError of one line that names every value and says what is accepted."""
    return refusal


@pytest.fixture
def as_module():
    """(network, stacked params, i) -> network i as the plain nn.Module."""

    def build(network, params, i):
        module = network.module()
        state = {name: value[i].detach().clone() for name, value in params.items()}
        lacking = module.load_state_dict(state, strict=False)
        assert not lacking.unexpected_keys
        assert all(name.endswith("num_batches_tracked") for name in lacking.missing_keys)
        return module

    return build


@pytest.fixture
def regression():
    """4 synthetic and 5 real images of 2 x 3 x 4, 3 classes, unequal weights. One real image is also synthetic."""
    images, real = normal(4, 2, 3, 4, seed=1), normal(5, 2, 3, 4, seed=2)
    real[0] = images[0]
    labels = centred(torch.tensor([0, 1, 2, 0]), 3) + 0.1 * normal(4, 3, seed=3)
    weights = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0], dtype=torch.float64)
    return images, labels, real, centred(torch.tensor([0, 1, 2, 1, 0]), 3), weights


@pytest.fixture
def class_folder(tmp_path):
    """Make a folder of class folders whose images are all different; returns its root."""
    count = iter(range(10**6))

    def make(root="images", classes=("cat", "dog"), n=5, size=(8, 8), mode="L", suffix=".png"):
        for label, name in enumerate(classes):
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for i in range(n):
                rng = np.random.default_rng(next(count))
                channels = () if mode == "L" else (3,)
                pixels = rng.integers(0, 128, (size[1], size[0], *channels)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}{suffix}")
        return tmp_path / root

    return make


PARAMETERS = """
from distillery.notebook.types import Count, Engine, LocalPath, Number, Scale, Whole

scale: Scale = "smoke"  # scale
results_dir: LocalPath = ""  # results
data_root: LocalPath = ""  # data
engine: Engine = "local"  # engine
seed: Whole = 0  # seed
ipc: list[Count] = [1]  # images per class
rate: Number = 0.1  # rate
fail: str = ""  # how to fail
budget_minutes: Number = 0.0  # budget
"""


@pytest.fixture
def tiny_notebook(tmp_path, monkeypatch):
    """Write tiny.ipynb, the parameters above and one more cell, and keep results beside it; returns its path."""
    monkeypatch.setenv("DISTILLERY_RESULTS", str(tmp_path / "results"))

    def write(body):
        path = tmp_path / "tiny.ipynb"
        cells = [new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}), new_code_cell(body)]
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return write


@pytest.fixture
def tiny():
    """24 images of 3 classes, 1 x 8 x 8, standardized."""
    return blobs()


@pytest.fixture
def net(tiny):
    return ConvNet(tiny.shape, 3, width=4)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function: a package on the path that holds some tensors, as the encoder 'tiny'."""

    def make(state, digest=""):
        (tmp_path / "tiny_model").mkdir(exist_ok=True)
        (tmp_path / "tiny_model" / "__init__.py").write_text("raise RuntimeError('it is not to be run')")
        torch.save(state, file := tmp_path / "tiny_model" / "tiny.pth")
        digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setitem(public.PACKAGES, "tiny", public.Package("tiny_model", "tiny.pth", digest, TINY))
        monkeypatch.syspath_prepend(tmp_path)

    return make


@pytest.fixture(scope="session")
def splits():
    """20 digits of each class."""
    return data.load("digits", per_class=20)


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture(scope="session")
def ray():
    """Ray with two workers, started once; skipped where the extra is not installed."""
    pytest.importorskip("ray", reason="the optional extra ray is not installed")
    return engine.start(num_cpus=2)
