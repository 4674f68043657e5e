"""What bad input gets: one line that names the value and what is accepted."""

import math

import pytest
import torch
from PIL import Image

from distillery import engine
from distillery.checks import check_finite, check_fraction, check_positive_int
from distillery.data import ImageSet, load, synthetic
from distillery.data.synthetic import Synthetic
from distillery.notebook import parameters, types
from distillery.recipe import Prune, Recipe
from distillery.selection import check_enough_left, prune, select
from distillery.training import dsa

# Data sets and folders


def test_unknown_data_set(refused):
    with refused("cifar11", "digits", "folder"):
        load("cifar11")


def test_unknown_normalization(refused):
    with refused("whiten", "zca"):
        load("digits", normalization="whiten")


@pytest.mark.parametrize("to", ["nowhere", "link"])
def test_a_broken_link_as_folder(tmp_path, to, refused):
    (tmp_path / "link").symlink_to(to)
    with refused(tmp_path / "link", f"a link to {to!r}, which is not there"):
        load("folder", tmp_path / "link")


def test_a_home_of_nobody(refused):
    home = "~nosuchuser/images"
    for named, call in {
        "data_root": lambda: load("cifar10", home),
        "cache_dir": lambda: load("digits", cache_dir=home, mapped=True),
        "results_dir": lambda: parameters.results_root(home),
    }.items():
        with refused(named, home):
            call()


def test_a_class_folder_that_is_not_utf_8(class_folder):
    root = class_folder(classes=("cat", "caf\udce9"))
    splits = load("folder", root)
    assert splits.train.classes == ("caf\\udce9", "cat")
    made = Synthetic({"images": splits.train.batch(torch.arange(2)), "targets": torch.tensor([0, 1])}, splits.train.classes)
    assert synthetic.load(synthetic.export(made, root / "set", {})).classes == splits.train.classes


def test_a_folder_without_class_folders(tmp_path, refused):
    (tmp_path / "alone").mkdir()
    with refused(tmp_path, 1):
        load("folder", tmp_path)


def test_empty_class(class_folder, refused):
    root = class_folder()
    (root / "bird").mkdir()
    with refused("bird"):
        load("folder", root)


def test_a_class_of_one_image(class_folder, refused):
    root = class_folder()
    for file in sorted((root / "dog").iterdir())[1:]:
        file.unlink()
    with refused("dog", 1):
        load("folder", root)


def test_classes_that_differ_between_train_and_test(class_folder, refused):
    class_folder("set/train", classes=("cat", "dog"))
    class_folder("set/test", classes=("cat", "cow"))
    root = class_folder("set/rest").parent
    with refused("cow", "dog"):
        load("folder", root)


def test_unequal_sizes_without_resize(class_folder, refused):
    root = class_folder(size=(8, 8))
    Image.new("L", (9, 7)).save(root / "dog" / "odd.png")
    with refused("odd.png", "9x7", "8x8", "resize"):
        load("folder", root)
    assert load("folder", root, resize=8).train.shape == (1, 8, 8)


def test_a_text_file_renamed_jpg(class_folder, refused):
    root = class_folder()
    (root / "cat" / "note.jpg").write_text("no image")
    (root / "dog" / "other.jpg").write_text("no image either")
    with refused("note.jpg", "2 of 12"):
        load("folder", root)


def test_a_file_that_does_not_claim_to_be_an_image(class_folder, refused):
    root = class_folder()
    (root / "cat" / "labels.csv").write_text("a,b")
    with refused("labels.csv", 1):
        load("folder", root)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.2, 0.5, 0.8])
def test_a_truncated_image(class_folder, suffix, part, refused):
    root = class_folder(n=2, size=(32, 32), mode="RGB", suffix=suffix)
    file = root / "cat" / f"0{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with refused(file, "1 of 4"):
        load("folder", root)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pixels_that_are_no_numbers(value, refused):
    pixels = torch.rand(4, 1, 2, 2)
    pixels[1, 0, 0, 1] = value
    with refused("1 of 16"):
        ImageSet.of(pixels, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    "pixels, targets, word",
    [
        (torch.rand(4, 2, 2), torch.zeros(4, dtype=torch.long), (4, 2, 2)),
        (torch.rand(4, 1, 2, 2), torch.zeros(3, dtype=torch.long), (3,)),
        (torch.rand(0, 1, 2, 2), torch.zeros(0, dtype=torch.long), (0, 1, 2, 2)),
        (torch.rand(4, 1, 2, 2) * 255, torch.zeros(4, dtype=torch.long), "float pixels"),
        (torch.rand(4, 1, 2, 2), torch.zeros(4), "float32"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.int32), torch.zeros(4, dtype=torch.long), "int32"),
        (torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, -1]), -1),
    ],
)
def test_arrays_that_are_no_labelled_images(pixels, targets, word, refused):
    with refused(word):
        ImageSet.of(pixels, targets)


def test_a_label_without_a_class(refused):
    with refused(2, "0 to 1"):
        ImageSet.of(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]), ("cat", "dog"))


@pytest.mark.parametrize("name", ["per_class", "test_per_class"])
def test_a_subset_of_less_than_nothing(name, refused):
    with refused(name, -3):
        load("digits", **{name: -3})


# Selecting


def test_fewer_images_than_ipc(tiny, refused):
    with refused("ipc", 8, 9):
        select(None, 9, tiny.targets, "random", torch.Generator())
    with refused("keep", 0.25, "at least 3"):
        check_enough_left(0.25, tiny.targets, 3)


@pytest.mark.parametrize("keep", [0, -0.5, -2, 1.0001, 1.5, 2.5, math.nan, math.inf, "half", True, None])
def test_keep_is_a_fraction_or_a_number_of_images(tiny, keep, refused):
    with refused("keep", repr(keep)):
        prune(torch.rand(24), keep, tiny.targets, "lowest")


@pytest.mark.parametrize("keep", [9, 1e9])
def test_keep_of_more_images_than_a_class_has(tiny, keep, refused):
    with refused("keep", keep, "at most 8"):
        prune(torch.rand(24), keep, tiny.targets, "lowest")


@pytest.mark.parametrize("keep", [0, 2.5, -0.5, 1.0001, math.nan, math.inf, "half", True, None])
def test_keep_of_a_recipe_is_a_fraction_or_a_number_of_images(keep, refused):
    with refused("keep", repr(keep)):
        Prune(keep)


@pytest.mark.parametrize("ipc", [0, 1.5, -1, "1", True, None])
def test_ipc_is_a_positive_whole_number(ipc, refused):
    with refused("size", repr(ipc)):
        Recipe("DM", ipc, 0)


def test_scores_that_are_no_numbers(tiny, refused):
    scores = torch.rand(24)
    scores[3] = math.nan
    for call in (lambda: select(scores, 1, tiny.targets), lambda: prune(scores, 0.5, tiny.targets, "lowest")):
        with refused("scores", "1 of 24"):
            call()


@pytest.mark.parametrize(
    "options, word",
    [
        ({"method": "MAGIC"}, "MAGIC"),
        ({"start": "zeros"}, "zeros"),
        ({"method": "random", "start": "noise"}, "noise"),
        ({"seed": -1}, "-1"),
    ],
)
def test_recipes_that_make_no_sense(options, word, refused):
    with refused(word):
        Recipe(**{"method": "DM", "size": 1, "seed": 0} | options)


def test_a_rule_that_is_none(refused):
    with refused("best"):
        Prune(0.5, "best")


# Parameters of notebooks

TYPES = {
    "dataset": types.Dataset, "ipc": list[types.Count], "keep": list[types.Keep], "n_seeds": types.Count, "device": types.Device,
    "scale": types.Scale, "max_side": types.Whole, "budget_minutes": types.Number, "progress": bool, "engine": types.Engine, "seed": types.Whole,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, value",
    [
        ("ipcs", 1),
        ("Ipc", 1),
        ("ipc", 0),
        ("ipc", 1.5),
        ("ipc", [1, 0]),
        ("ipc", []),
        ("ipc", "ten"),
        ("keep", 0),
        ("keep", 2.5),
        ("keep", [0.5, 1.5]),
        ("n_seeds", 0),
        ("n_seeds", "five"),
        ("n_seeds", True),
        ("seed", -1),
        ("seed", 1.0),
        ("dataset", 3),
        ("device", "tpu"),
        ("engine", "slurm"),
        ("scale", "huge"),
        ("max_side", -1),
        ("budget_minutes", -5),
        ("progress", 1),
    ],
)
def test_parameters(name, value, refused):
    with refused(name):
        parameters.check(TYPES, {name: value})


def test_good_parameters_pass():
    given = {"ipc": 1, "keep": [1, 0.5], "budget_minutes": 2, "device": "cpu", "progress": False}
    assert parameters.check(TYPES, given) == {"ipc": [1], "keep": [1.0, 0.5], "budget_minutes": 2.0, "device": "cpu", "progress": False}


def test_unknown_device(refused):
    with refused("tpu", "cuda"):
        parameters.device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(refused):
    with refused("cuda", "cpu"):
        parameters.device("cuda")


def test_unknown_engine(refused):
    with refused("slurm", "local"):
        engine.map(print, [], engine="slurm")


def test_unknown_augmentation(refused):
    with refused("mixup", "cutout"):
        dsa.parse("flip_mixup")


# Artifacts


@pytest.fixture
def artifact(tmp_path):
    made = Synthetic({"images": torch.rand(2, 1, 4, 4), "targets": torch.tensor([0, 1])}, ("a", "b"))
    return synthetic.export(made, tmp_path / "set", {})


def test_a_truncated_artifact(artifact, refused):
    artifact.write_bytes(artifact.read_bytes()[:-5])
    with refused(artifact):
        synthetic.load(artifact)


def test_a_corrupt_artifact(artifact, refused):
    content = bytearray(artifact.read_bytes())
    content[-5] ^= 1
    artifact.write_bytes(content)
    with refused(artifact, "corrupt"):
        synthetic.load(artifact)


def test_an_artifact_that_is_no_synthetic_set(tmp_path, refused):
    from distillery.store import save_tensors

    save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)}, {"format": "scores"})
    with refused("scores", "synthetic set"):
        synthetic.load(tmp_path / "x.safetensors")


def test_a_pickle_is_never_opened(tmp_path, refused):
    torch.save({"images": torch.zeros(2)}, tmp_path / "set.safetensors")
    with refused(tmp_path / "set.safetensors"):
        synthetic.load(tmp_path / "set.safetensors")


# The checks themselves


@pytest.mark.parametrize("value", [1, 0.3, 1.0, 1e-9])
def test_good_fractions(value):
    check_fraction("keep", value)


def test_checks_count(refused):
    check_finite("x", torch.arange(3.0))
    check_positive_int("n", 1)
    with refused("x", "2 of 3"):
        check_finite("x", torch.tensor([1.0, math.nan, -math.inf]))
