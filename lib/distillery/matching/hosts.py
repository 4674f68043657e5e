"""IDM, IDC, KIP, FRePo and RFAD by their published settings: `hosts.yaml`, where they are explained, and the objectives made of them."""

from functools import cache
from importlib import resources

import yaml

from distillery.checks import check_choice, check_positive_int
from distillery.data import Standardize
from distillery.matching.idc import MultiFormation
from distillery.matching.idm import QueueMatching
from distillery.matching.kernel import FeatureRegression, KernelInducingPoints, KernelRegression, RandomFeatures
from distillery.matching.step import effective_rate

OBJECTIVES = {
    "queue": QueueMatching,
    "multiformation": MultiFormation,
    "KIP": KernelInducingPoints,
    "FRePo": FeatureRegression,
    "RFAD": RandomFeatures,
}
KERNELS = ("KIP", "FRePo", "RFAD")
OPTIONS = {
    "KIP": ("rho", "labels", "layers"),
    "FRePo": ("rho", "labels", "width", "pool", "age", "flip"),
    "RFAD": ("rho", "labels", "width", "networks", "judged", "platt"),
    "queue": ("ce_weight", "interval", "capacity", "trained", "train_steps", "train_batch"),
    "multiformation": ("formation", "metric", "inner", "n_data", "train_batch", "cutmix"),
}


@cache
def presets() -> dict[str, dict]:
    """Method -> 'common' and data set -> settings, as in `hosts.yaml`."""
    return yaml.safe_load(resources.files("distillery.matching").joinpath("hosts.yaml").read_text())


def preset(method: str, dataset: str, ipc: int) -> dict:
    """The published settings of a method on a data set, with `lr` and `source`. Raises InputError where nothing is published."""
    check_choice("method", method, presets())
    table = presets()[method]
    check_choice(f"{method} data set", dataset, [name for name in table if name != "common"])
    check_positive_int("ipc", ipc)
    found = table["common"] | table[dataset]
    if "ipc" in found:
        cells = found.pop("ipc")
        check_choice(f"{method} on {dataset}, ipc", ipc, cells)
        found |= cells[ipc]
    if "lr_ipc" in found:
        found["lr"] = found.pop("lr_ipc") * ipc
    return found


def rate(settings: dict, classes: int) -> float:
    """The rate of our one step for all classes, to be taken without momentum."""
    return effective_rate(settings["lr"], settings["momentum"], classes)


def steps(settings: dict) -> int:
    """Pixel updates in all."""
    return settings["iterations"] * settings.get("inner", 1)


def objective_of(settings: dict) -> str:
    """The name of the objective, one of OBJECTIVES."""
    return settings.get("kernel", settings["objective"])


def build(
    settings: dict, network, augmentation: str = "", real_network=None, transform: Standardize | None = None, **options
) -> QueueMatching | MultiFormation | KernelRegression:
    """The objective of a preset.

    augmentation  DSA families of methods whose preset names none (IDM)
    transform     how the images are standardized, for methods whose rates are those of pixels (IDC)
    options       of the objective, before those of the preset
    """
    objective = objective_of(settings)
    chosen = {name: settings[name] for name in OPTIONS[objective]}
    if objective in KERNELS:
        given = {"batch": settings["batch"], "real_network": real_network}
        return OBJECTIVES[objective](network, **given | chosen | options)
    if objective == "multiformation":
        chosen["transform"] = transform
    augmentation = augmentation if settings["augmented"] else settings["augmentation"]
    given = {"batch": settings["batch"], "augmentation": augmentation, "real_network": real_network}
    return OBJECTIVES[objective](network, **given | chosen | options)
