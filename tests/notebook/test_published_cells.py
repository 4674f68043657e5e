"""For every published cell a committed file of parameters under which `distillery row` runs it as published, or the reason why not."""

from functools import cache
from pathlib import Path

import pytest
import torch

from distillery.data import ImageSet, Splits
from distillery.methods import ANY, METHODS
from distillery.methods.base import SUBSETS
from distillery.notebook import parameters, rows
from distillery.notebook.published import as_published
from distillery.recipe import Evaluate, Recipe

ROOT = Path(__file__).resolve().parents[2] / "notebooks"
SHAPES = {"mnist": (10, 1, 28), "fashion-mnist": (10, 1, 28), "svhn": (10, 3, 32), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32),
          "tiny-imagenet": (200, 3, 64)} | dict.fromkeys(SUBSETS, (10, 3, 128))  # fmt: skip
WHOLE = {"held_out": 0.0}  # what loops over epochs ask for; then nothing is validated
CHANGES = {  # beside a file alone, as its first lines say
    "01_bilp.paper-cifar100.yaml": [{"normalization": "published:cifar10"}],
    "03_ftd.paper-tiny-imagenet.yaml": [{"normalization": "zca"}],
    "03_ftd.paper-imagenette.yaml": [{"published_for": name} for name in SUBSETS[1:]],
}
BY_METHOD = {
    **dict.fromkeys(("KIP", "FRePo", "RFAD"), "judged by the kernel regression of the method"),
    **dict.fromkeys(("MKDT", "MTT-SSL", "KRR-ST"), "judged by linear probes, whose numbers stand in `published_probe`"),
    "RDED": "judged with labels for every batch by a teacher whose training is not known, and chosen on test images",
}
NO_SETTINGS = "no settings are published for this size"
LIMITS = {
    **{("TESLA", *cell): NO_SETTINGS for cell in (("cifar10", 10), ("cifar10", 50), ("cifar100", 1), ("cifar100", 10))},
    **{("TESLA", "imagenet-1k", size): "its labels are assigned anew by the expert in every step" for size in (1, 10, 50)},
    **{("IDM", "imagenet-100", size): "which classes and which constants is not known" for size in (1, 10)},
    ("IDM", "imagenet-100", 50): "starts from released networks",
}


def cells():
    """(method, data set, size, network) of every published number and of all published settings, '' = the ConvNet."""
    found = set()
    for name, method in METHODS.items():
        for data, sizes in [*method.numbers.items(), *method.published.items()]:
            dataset, _, network = data.partition(" on ")
            named = SUBSETS if dataset == "imagenet-subset" else [dataset]
            each = [one for size in sizes for one in ((1, 10, 50) if size == ANY else (size,))]
            found |= {(name, one, size, network) for one in named for size in each}
    return sorted(found)


@cache
def images(dataset: str, held_out: float) -> Splits:
    """Made-up images of the shape of a published set, as many of each class as parts of ImageNet have."""
    classes, channels, side = SHAPES[dataset]

    def of(n):
        pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(classes * n, channels, side, side)
        return ImageSet(pixels, torch.arange(classes).repeat(n), tuple(map(str, range(classes))))

    return Splits(of(1000), of(round(100 * held_out)), of(50))


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """cell -> a file, with changes of it, under which the cell is run as published."""
    folder, found = tmp_path_factory.mktemp("nothing"), {}
    for path in sorted(ROOT.glob("params/*.paper-*.yaml")):
        notebook = ROOT / f"{path.name.split('.')[0]}.ipynb"
        given = parameters.typed(parameters.read_values(path), parameters.declared(notebook)[0])
        both = ({}, *CHANGES.get(path.name, ()))
        for changes in (*both, *(one | WHOLE for one in both if path.name.startswith(("01", "03")))):
            values = given | changes | {"device": "cpu", "results_dir": str(folder)}
            session = rows.session(notebook, values)
            if not hasattr(session.p, "evaluation_epochs") or session.published_set not in SHAPES:  # labels, of a published set
                continue
            session.data = images(session.published_set, getattr(session.p, "held_out", 0.1))
            for cell in (
                one for one in cells() if one[1] == session.published_set and (METHODS[one[0]].judged or METHODS[one[0]].numbers_by)
            ):
                name, dataset, size, network = cell
                recipe = Recipe(name, size, 0, evaluate=Evaluate(network=network))
                if as_published(session.judging(name, size), recipe, session.p, dataset):
                    found.setdefault(cell, (path.name, changes))
    return found


def why_not(name, dataset, size, network):
    return BY_METHOD.get(name) or LIMITS.get((name, dataset, size))


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(map(str, cell)))
def test_a_published_cell_can_be_run_as_published(cell, reached):
    assert (cell in reached) != bool(why_not(*cell)), reached.get(cell, "no file reaches it")


def test_every_reason_is_of_a_cell():
    named = {(name, data, size) for name, data, size, _ in cells()}
    assert set(LIMITS) <= named and set(BY_METHOD) <= {name for name, *_ in named}


@pytest.mark.parametrize("cell, file, changes", [
    (("DM", "cifar10", 50, ""), "00_quickstart.paper-cifar10.yaml", {}), (("IDC", "cifar10", 50, ""), "01_bilp.paper-cifar10.yaml", {}),
    (("DC", "mnist", 10, ""), "01_bilp.paper-mnist.yaml", {}), (("DATM", "cifar10", 50, ""), "03_ftd.paper-cifar10-ipc50.yaml", WHOLE),
    (("FTD", "cifar100", 50, ""), "03_ftd.paper-cifar100-ipc50.yaml", WHOLE), (("MTT", "cifar10", 50, ""), "01_bilp.paper-cifar10.yaml", WHOLE),
    (("FTD", "cifar10", 50, "ResNet18"), "03_ftd.paper-cifar10-ipc50.yaml", WHOLE),
])  # fmt: skip
def test_where_a_cell_is_run(cell, file, changes, reached):
    assert reached[cell] == (file, changes)
