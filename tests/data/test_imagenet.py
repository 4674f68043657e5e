"""ImageNet-1K in the layouts it comes in, made up: 20 classes, validation images in one folder with a table or sorted, odd files included."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from distillery import cli, data
from distillery.data.archives import origin
from distillery.data.check import check
from distillery.data.decoding import open_image
from distillery.data.folders import plan_of
from made_up import WRITERS, encoded, picture, to_folder

WNIDS = [f"n{i:08d}" for i in range(1440764, 1440784)]
IMAGES = "ILSVRC/Data/CLS-LOC"
CSV = "LOC_val_solution.csv"
LABELS = np.random.default_rng(0).permutation(WNIDS * 2)  # of the validation images
FIRST, OTHER = f"ILSVRC2012_val_00000001,{LABELS[0]}", next(name for name in WNIDS if name != LABELS[0])
ORDER = np.random.default_rng(1).permutation(40)  # of the lines in the table


def jpeg(seed, size=(24, 20)):
    return encoded(picture(seed, size=size), "JPEG")


def kaggle():
    """Content by path, as Kaggle gives it."""
    lines = [f"ILSVRC2012_val_{i + 1:08d},{LABELS[i]} 1 2 19 17 {LABELS[i]} 3 3 9 9 " for i in ORDER]
    content = {
        "LOC_synset_mapping.txt": "\n".join(f"{name} a, b" for name in WNIDS).encode(),
        "LOC_train_solution.csv": b"ImageId,PredictionString\n",
        "LOC_sample_submission.csv": b"ImageId,PredictionString\n",
        CSV: "\n".join(["ImageId,PredictionString", *lines, ""]).encode(),
        "ILSVRC/ImageSets/CLS-LOC/val.txt": b"ILSVRC2012_val_00000001 1\n",
    }
    for i, name in enumerate(WNIDS):
        for j in range(4):
            content[f"{IMAGES}/train/{name}/{name}_{j}.JPEG"] = jpeg(9 * i + j)
            content[f"ILSVRC/Annotations/CLS-LOC/train/{name}/{name}_{j}.xml"] = b"<annotation/>"
    for i in range(40):
        content[f"{IMAGES}/val/ILSVRC2012_val_{i + 1:08d}.JPEG"] = jpeg(300 + i)
        content[f"{IMAGES}/test/ILSVRC2012_test_{i + 1:08d}.JPEG"] = jpeg(400 + i)
    return content


def moved(content, start, to):
    return {to + name.removeprefix(start) if name.startswith(start) else name: value for name, value in content.items()}


def by_class(content):
    """Validation images as the usual script sorts them."""
    to = {
        f"{IMAGES}/val/ILSVRC2012_val_{i + 1:08d}.JPEG": f"{IMAGES}/val/{name}/ILSVRC2012_val_{i + 1:08d}.JPEG"
        for i, name in enumerate(LABELS)
    }
    return {to.get(name, name): value for name, value in content.items()}


def annotations(content, gap="\t"):
    """A table like Tiny-ImageNet's in place of Kaggle's."""
    text = "".join(f"ILSVRC2012_val_{i + 1:08d}.JPEG{gap}{LABELS[i]}\n" for i in ORDER)
    return {name: value for name, value in content.items() if name != CSV} | {f"{IMAGES}/val/val_annotations.txt": text.encode()}


def plain(content):
    """train/ and val/ at the top, as torchvision wants them."""
    return {name.removeprefix(f"{IMAGES}/"): value for name, value in content.items() if name.startswith(f"{IMAGES}/t") or "/val/" in name}


WHOLE = kaggle()
LAYOUTS = {  # content, and where in it the data root is
    "Kaggle": (WHOLE, ["", "ILSVRC", "ILSVRC/Data", IMAGES]),
    "in a folder": ({f"imagenet/{name}": value for name, value in WHOLE.items()}, [""]),
    "table in ILSVRC": (moved(WHOLE, CSV, f"ILSVRC/{CSV}"), ["", "ILSVRC"]),
    "table beside train": (moved(WHOLE, CSV, f"{IMAGES}/{CSV}"), ["", "ILSVRC", IMAGES]),
    "val_annotations": (annotations(WHOLE), ["", IMAGES]),
    "val_annotations by spaces": (annotations(WHOLE, " "), [IMAGES]),
    "sorted, the table left": (by_class(WHOLE), ["", "ILSVRC", IMAGES]),
    "torchvision": (plain(by_class(WHOLE)), [""]),
    "torchvision with the table": (plain(WHOLE) | {CSV: WHOLE[CSV]}, [""]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The same images as class folders, which need no table."""
    content = {f"train/{name.split('/')[-2]}/{name.split('/')[-1]}": value for name, value in WHOLE.items() if f"{IMAGES}/train/" in name}
    content |= {f"test/{name}/{i:02d}.JPEG": WHOLE[f"{IMAGES}/val/ILSVRC2012_val_{i + 1:08d}.JPEG"] for i, name in enumerate(LABELS)}
    folder = tmp_path_factory.mktemp("plain")
    return data.load("folder", to_folder(folder / "a", content), resize=16, cache_dir=folder)


@pytest.mark.parametrize("layout, root", [(name, root) for name, (_, roots) in LAYOUTS.items() for root in roots])
def test_every_layout_gives_the_same_set(tmp_path, capsys, expected, layout, root):
    place = to_folder(tmp_path / "a", LAYOUTS[layout][0]) / root
    splits = data.load("folder", place, resize=16)
    assert splits.digest == expected.digest and splits.train.classes == tuple(WNIDS) and len(splits.test) == 40
    assert cli.main(["data", "check", str(place)]) == 0
    out = capsys.readouterr().out
    assert "20 classes, 80 training and 40 test images" in out and "note: " in out


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_in_an_archive(tmp_path, expected, kind):
    assert data.load("folder", WRITERS[kind](tmp_path / f"a.{kind}", WHOLE), resize=16).digest == expected.digest


def test_annotations_are_not_listed(tmp_path):
    where = origin(to_folder(tmp_path / "a", WHOLE))
    assert not any("Annotations/" in name for name in where.listing.files)


@pytest.mark.parametrize("root", ["", "ILSVRC", IMAGES])
def test_the_cache_follows_the_table(tmp_path, monkeypatch, root):
    monkeypatch.setattr("distillery.data.cache.SETTLED", -60.0)  # files are looked at once and then known by their times
    place, counts = to_folder(tmp_path / "a", WHOLE) / root, []
    for old, new in (("", ""), (FIRST, f"ILSVRC2012_val_00000001,{OTHER}")):
        to_folder(tmp_path / "a", {CSV: WHOLE[CSV].replace(old.encode(), new.encode())})  # of equal length
        counts.append(data.load("folder", place, resize=4).test.counts()[WNIDS.index(OTHER)])
    assert counts == [2, 3]


def changed(old, new):
    return lambda content: content | {CSV: content[CSV].replace(old.encode(), new.encode())}


def without(name):
    return lambda content: {file: value for file, value in content.items() if file != name}


REFUSED = {
    "a missing image": (without(f"{IMAGES}/val/ILSVRC2012_val_00000001.JPEG"), ["'ILSVRC2012_val_00000001'", "not there", CSV]),
    "an image without label": (changed(FIRST + " 1", "\n#"), ["'#'"]),
    "a missing line": (lambda content: content | {f"{IMAGES}/val/more.JPEG": jpeg(1)}, ["1 image(s)", "no line in", CSV, "more.JPEG"]),
    "a line twice": (changed("ILSVRC2012_val_00000001,", "ILSVRC2012_val_00000002,"), ["ILSVRC2012_val_00000002", "named before"]),
    "another class": (changed(FIRST, "ILSVRC2012_val_00000001,n09999999"), ["n09999999", "not in train/"]),
    "no class": (changed(FIRST + " 1 2", "ILSVRC2012_val_00000001,\n,,, 1 2"), ["['ILSVRC2012_val_00000001']", "not in train/"]),
    "an empty line": (changed("ImageId,PredictionString", " , "), ["' , '", "not there"]),
    "no table": (without(CSV), ["CLS-LOC/val holds 0 class folder(s) and 40 images in none", CSV, "val_annotations.txt"]),
    "a class without images": (lambda content: content | {f"{IMAGES}/train/n1/a.JPEG": jpeg(1)}, ["n1", "no image in val/"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("root", ["", IMAGES])
def test_a_table_that_does_not_fit(tmp_path, refused, case, root):
    harm, words = REFUSED[case]
    place = to_folder(tmp_path / "a", harm(WHOLE)) / root
    for call in (lambda: data.load("folder", place, resize=16), lambda: check(place)):
        with refused(*words):
            call()


# ---------------------------------------------------------------- odd files

DRAWN = np.zeros((32, 32, 3), np.uint8)  # red, green, blue and near white, in quarters
DRAWN[:16, :16], DRAWN[:16, 16:], DRAWN[16:, :16], DRAWN[16:, 16:] = (230, 20, 30), (30, 200, 40), (20, 40, 210), (240, 235, 230)


def inks():
    """(32, 32, 4) cyan, magenta, yellow and black of DRAWN, 255 = all ink."""
    black = 255 - DRAWN.max(2, keepdims=True).astype(float)
    return np.concatenate([(255 - DRAWN - black) / np.maximum(255 - black, 1) * 255, black], 2).round().astype(np.uint8)


def adobe(ycck=False):
    """A JPEG of four inks as Photoshop writes them: inverted, and `ycck`: the colored ones as YCbCr, which the Adobe marker says."""
    values = inks()
    if ycck:
        values[..., :3] = 255 - np.asarray(Image.fromarray(values[..., :3]).convert("YCbCr"))
    content = encoded(Image.fromarray(values, "CMYK"), "JPEG", quality=98)
    at = content.index(b"Adobe\0")
    assert content[at + 11] == 0
    return content[: at + 11] + bytes([2 * ycck]) + content[at + 12 :]


def exif(entries: bytes) -> bytes:
    return encoded(Image.fromarray(DRAWN), "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0II*\0\x08\0\0\0" + entries)


GRAY = np.asarray(Image.fromarray(DRAWN).convert("L"))
ODD = {  # content, and the pixels it stands for
    "CMYK": (adobe(), DRAWN),
    "YCCK": (adobe(ycck=True), DRAWN),
    "a PNG": (encoded(Image.fromarray(DRAWN)), DRAWN),
    "gray": (encoded(Image.fromarray(GRAY), "JPEG", quality=98), GRAY),
    "EXIF cut off": (exif(b"\x09\0\x12\x01\x03\0"), DRAWN),
    "EXIF with an offset beyond its end": (exif(b"\x01\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0"), DRAWN),
    "EXIF with an orientation that is none": (exif(b"\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"), DRAWN),
    "EXIF with an orientation in words": (exif(b"\x01\0\x12\x01\x02\0\x04\0\0\0top\0\0\0\0\0"), DRAWN),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_decoded_right(kind):
    content, pixels = ODD[kind]
    image, facts = open_image(content)
    assert image.mode == ("L" if kind == "gray" else "RGB") and "turned" not in facts
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 3  # inverted, it is off by more than 80
    assert ("gray" in facts) == (kind == "gray") and any("CMYK" in fact for fact in facts) == ("C" in kind and "K" in kind)


@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_inks_are_as_another_reader_has_them(kind):
    image = open_image(ODD[kind][0])[0]
    other = decode_jpeg(torch.frombuffer(bytearray(ODD[kind][0]), dtype=torch.uint8), ImageReadMode.RGB)
    assert np.abs(np.asarray(image).astype(int) - other.permute(1, 2, 0).numpy()).max() < 4


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_set_with_odd_files(tmp_path):
    odd = {f"{IMAGES}/train/{name}/{name}_0.JPEG": content for name, (content, _) in zip(WNIDS, ODD.values())}
    root = to_folder(tmp_path / "a", WHOLE | odd)
    splits = data.load("folder", root, resize=16, held_out=0)
    rows = [i for i, name in enumerate(plan_of(origin(root)).files) if name in odd]
    for row, (_, pixels) in zip(rows, ODD.values()):
        wanted = np.asarray(Image.fromarray(pixels).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
        assert np.abs(splits.train.pixels[row].permute(1, 2, 0).numpy().astype(int) - wanted).mean() < 5
    lines, usable = check(root)
    assert usable and any(line.startswith("modes:") and "CMYK (2)" in line and "L (1)" in line for line in lines)
    assert "1 gray image(s) of 120 made RGB" in splits.notes and Image.open(io.BytesIO(ODD["CMYK"][0])).mode == "CMYK"
