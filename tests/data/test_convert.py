"""Sets of other forms become class folders: the same images under the same classes and parts, or one line that says why not."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from distillery import api, cli
from distillery.data import folders
from distillery.data.convert import convert
from made_up import encoded, to_folder, to_tar

NAMES = ["tabby cat", "dog", "elk"]  # whose order is not that of names
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0])
GRAY = np.random.default_rng(0).integers(0, 256, (9, 6, 5)).astype(np.uint8)  # (N, H, W)
COLOR = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
PARTS = {"train": slice(0, 6), "test": slice(6, 9)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


def held(root):
    """(class, pixels) of every image of class folders, those for training first."""
    found = folders.load_files(root)
    return [(found.classes[label], pixels.numpy().tobytes()) for pixels, label in zip(found.pixels, found.targets)], found.n_train


def expected(pixels, labels, parts):
    """The same of arrays (N, H, W[, C]) and names of their classes."""
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    rows = [(name, image.transpose(2, 0, 1).tobytes()) for name, image in zip(labels, pixels)]
    first, *_ = (rows[part] for part in parts.values())
    return [row for part in parts.values() for row in sorted(rows[part], key=lambda row: row[0])], len(first)


def parquet(path, images, labels, names=None, column="image"):
    arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"bytes": encoded(Image.fromarray(image)), "path": None} for image in images]
    labels = [int(label) for label in labels] if names else [NAMES[label] for label in labels]
    table = arrow.table({column: values, "label": labels})
    if names:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(table, path)
    return path


SHARDS = {"train": [slice(0, 3), slice(3, 6)], "validation": [slice(6, 8), slice(8, 9)]}  # rows


def hugging_face(root, part="test"):
    shards = {"train-00000-of-00002": slice(0, 3), "train-00001-of-00002": slice(3, 6)}
    shards |= {f"{part}-0000{i}-of-00002": rows for i, rows in enumerate(SHARDS["validation"])}
    for name, rows in shards.items():
        parquet(root / "data" / f"{name}.parquet", COLOR[rows], LABELS[rows], NAMES, "img")
    return root, COLOR, NAMES, PARTS


def one_parquet(root):
    return parquet(root / "all.parquet", GRAY, LABELS), GRAY, NAMES, {"all": slice(None)}


def members(rows, form="cls", names=None, image=".jpg"):
    """Content by name, as WebDataset has it: images lossless whatever they are called, keys in folders."""
    content = {}
    for row in range(9)[rows]:
        label = names[LABELS[row]] if names else int(LABELS[row])
        said = str(label) + "\n" if form == "cls" else json.dumps({form: label, "width": 32, "url": "x"})
        content[f"{row // 2}/{row:08d}{image}"] = encoded(Image.fromarray(COLOR[row]), "WEBP" if row % 2 else "PNG", lossless=True)
        content[f"{row // 2}/{row:08d}.{'cls' if form == 'cls' else 'json'}"] = said.encode()
        content |= {f"{row // 2}/{row:08d}.txt": b"a caption", f"{row // 2}/{row:08d}.mask.png": b"no image"}
    return content


def tars(root, place="{part}/{i:06d}.tar", part="val", names=None, **form):
    """Shards of WebDataset, in folders or by names of parts."""
    for one, shards in zip(("train", part), SHARDS.values()):
        for i, rows in enumerate(shards):
            path = root / place.format(part=one, i=i)
            path.parent.mkdir(exist_ok=True)
            to_tar(path, members(rows, names=names, **form))
    return root, COLOR, names or ["0", "1", "2"], PARTS


def one_tar(root):
    content = members(slice(None), names=NAMES)
    last = dict(sorted(content.items(), key=lambda item: item[0].endswith("cls")))  # all classes behind all images
    return to_tar(root / "pets.tgz", last), COLOR, NAMES, {"all": slice(None)}


def shards_alone(root):
    for i in range(3):
        to_tar(root / f"pets-{i:06d}.tar", members(slice(3 * i, 3 * i + 3), "class", NAMES, ".JPEG"))
    return root, COLOR, NAMES, {"all": slice(None)}


def downsampled(root, **arrays):
    """Downsampled ImageNet: classes from 1, flat images channel after channel."""
    for name, rows in {"train_data_batch_1": slice(0, 3), "train_data_batch_2": slice(3, 6), "val_data": slice(6, 9)}.items():
        content = {"data": COLOR[rows].transpose(0, 3, 1, 2).reshape(3, -1), "labels": (LABELS[rows] + 1).tolist(), "mean": np.zeros(3072)}
        np.savez(root / f"{name}.npz", **content | arrays)
    return root, COLOR, ["1", "2", "3"], PARTS


def one_batch(root):
    downsampled(root)
    return root / "train_data_batch_2.npz", COLOR, ["1", "2", "3"], {"all": slice(3, 6)}


def keras(root):
    parts = {f"{key}_{part}": value[rows] for part, rows in PARTS.items() for key, value in (("x", COLOR), ("y", LABELS))}
    np.savez(root / "mnist.npz", **parts)
    return root / "mnist.npz", COLOR, ["0", "1", "2"], PARTS


def medmnist(root):
    parts = {f"{part}_images": GRAY[rows] for part, rows in PARTS.items()} | {
        f"{part}_labels": LABELS[rows, None] for part, rows in PARTS.items()
    }
    np.savez_compressed(root / "a.npz", **parts, val_images=GRAY[:3], val_labels=LABELS[:3, None])
    return root / "a.npz", GRAY, ["0", "1", "2"], PARTS


def plain_npz(root):
    hot = np.eye(3)[LABELS]
    np.savez(root / "a.npz", images=np.moveaxis(COLOR, 3, 1) / np.float32(255), labels=hot, classes=NAMES)
    return root / "a.npz", COLOR, NAMES, {"all": slice(None)}


def idx(root, packed=True):
    for stem, part in (("train", "train"), ("t10k", "test")):
        for kind, values in (("images-idx3", GRAY[PARTS[part]]), ("labels-idx1", LABELS[PARTS[part]].astype(np.uint8))):
            content = struct.pack(f">4B{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
            (root / f"{stem}-{kind}-ubyte{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    return root, GRAY, ["0", "1", "2"], PARTS


def idx_pair(root):
    idx(root, packed=False)
    return root / "t10k-images-idx3-ubyte", GRAY[6:], ["0", "1", "2"], {"all": slice(None)}


def kaggle(root):
    idx(root, packed=False)
    for file in list(root.iterdir()):
        to_folder(root / file.name.replace("-idx", ".idx") / "once more", {file.name: file.read_bytes()})
    return root, GRAY, ["0", "1", "2"], PARTS


def cifar(root):
    top = root / "cifar-10-batches-py"
    top.mkdir()
    rows = COLOR.transpose(0, 3, 1, 2).reshape(9, -1)
    for i in range(6):
        part = slice(i, i + 1) if i < 5 else slice(6, 9)
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        (top / name).write_bytes(pickle.dumps({"data": rows[part], "labels": LABELS[part].tolist()}))
    (top / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    return root, COLOR, NAMES, {"train": slice(0, 5), "test": slice(6, 9)}


def cifar_archive(root):
    cifar(root)
    with tarfile.open(root / "c.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    return root / "c.tar.gz", *cifar_expected()


def cifar_expected():
    return COLOR, NAMES, {"train": slice(0, 5), "test": slice(6, 9)}


def pictures(root):
    (root / "flat").mkdir()
    for i, image in enumerate(COLOR):
        Image.fromarray(image).save(root / "flat" / f"{i}.png")


def table(root, head="file_name,label", name="labels.csv", line="flat/{i}.png,{label}"):
    pictures(root)
    lines = [line.format(i=i, label=NAMES[label], split="train" if i < 6 else "test", kept=int(i != 0)) for i, label in enumerate(LABELS)]
    (root / name).write_text("\n".join([head, *lines] if head else lines) + "\n", encoding="utf-8-sig")
    return root / name


JSON = '{{"file_name": "flat/{i}.png", "label": "{label}"}}'
FORMS = {
    "parquet in two parts": hugging_face,
    "parquet with validation": partial(hugging_face, part="validation"),
    "parquet with texts": one_parquet,
    "tars in folders": tars,
    "tars by names": partial(tars, place="{part}-{i:06d}.tar", part="validation", form="label"),
    "tars by later names": partial(tars, place="imagenet1k-{part}-{i:02d}.tar.gz", form="class_name", names=NAMES),
    "tars alone": shards_alone,
    "one tar": one_tar,
    "downsampled ImageNet": downsampled,
    "a batch of it": one_batch,
    "Keras": keras,
    "MedMNIST": medmnist,
    "npz": plain_npz,
    "idx": idx,
    "idx pair": idx_pair,
    "Kaggle's idx": kaggle,
    "CIFAR": cifar,
    "CIFAR archive": cifar_archive,
    "csv": lambda root: (table(root), COLOR, NAMES, {"all": slice(None)}),
    "semicolons": lambda root: (table(root, "Label;Path", line="{label};flat/{i}.png"), COLOR, NAMES, {"all": slice(None)}),
    "tsv with split": lambda root: (table(root, "path\tclass\tsplit", "a.tsv", "flat/{i}.png\t{label}\t{split}"), COLOR, NAMES, PARTS),
    "kept.csv": lambda root: (table(root, "file,class,kept", line="flat/{i}.png,{label},{kept}"), COLOR, NAMES, {"kept": slice(1, 9)}),
    "imagefolder": lambda root: (table(root, "", "metadata.jsonl", JSON).parent, COLOR, NAMES, {"all": slice(None)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_images_and_classes_are_those_of_the_source(tmp_path, capsys, form):
    (tmp_path / "source").mkdir()
    source, pixels, names, parts = FORMS[form](tmp_path / "source")
    labels = [names[label] for label in LABELS[-len(pixels) :]]
    before = sorted(tmp_path.rglob("source/**/*"))
    assert cli.main(["data", "convert", str(source), str(tmp_path / "out")]) == 0
    assert held(tmp_path / "out") == expected(pixels, labels, parts)
    n = sum(len(labels[part]) for part in parts.values())
    said = capsys.readouterr().out
    assert "of 3 classes" in said and (f"{len(labels[parts['train']])} train and " in said if "train" in parts else f"{n} images" in said)
    assert sorted(tmp_path.rglob("source/**/*")) == before


def test_tables_link_or_copy_and_bytes_stay_as_they_are(tmp_path):
    source = table(tmp_path)
    for copy in (False, True):
        convert(source, tmp_path / f"{copy}", copy)
        made = sorted((tmp_path / f"{copy}").glob("*/*.png"))
        assert [file.is_symlink() for file in made] == [not copy] * 9 and made[0].name == "2.png"
    hugging_face(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "images")
    assert (tmp_path / "images/train/elk/000000.png").read_bytes() == encoded(Image.fromarray(COLOR[0]))


def test_members_of_tars_are_written_as_they_are(tmp_path):
    """Also one whose name says another format than it has."""
    photo = encoded(Image.fromarray(COLOR[0]), "JPEG") + b"more"
    to_tar(tmp_path / "a.tar", ONE | {"a/1.jpg": photo, "a/2.png": photo})
    convert(tmp_path / "a.tar", tmp_path / "out")
    assert [(file.parent.name, file.name, file.read_bytes()) for file in sorted((tmp_path / "out").glob("*/*"))] == [
        ("cat", "000000.jpg", photo), ("dog", "000001.jpg", photo),
    ]  # fmt: skip


class Drawn(torch.utils.data.Dataset):
    """Images as a torch Dataset gives them."""

    def __init__(self, form, classes=None):
        self.form = form
        if classes:
            self.classes = classes

    def __len__(self):
        return len(COLOR)

    def __getitem__(self, row):
        if row >= len(COLOR):
            raise IndexError
        return self.form(torch.from_numpy(COLOR[row]).permute(2, 0, 1)), int(LABELS[row])


@pytest.mark.parametrize(
    "form", [to_pil_image, lambda image: image, lambda image: image / 255, lambda image: image.permute(1, 2, 0).numpy()]
)
def test_a_torch_dataset(tmp_path, form):
    assert api.convert(Drawn(form, NAMES), tmp_path / "out")[0].startswith("9 images of 3 classes")
    assert held(tmp_path / "out") == expected(COLOR, [NAMES[label] for label in LABELS], {"all": slice(None)})


def test_numbers_of_classes_are_in_their_order(tmp_path):
    np.savez(tmp_path / "a.npz", images=GRAY, labels=LABELS * 5)
    convert(tmp_path / "a.npz", tmp_path / "out")
    assert folders.load_files(tmp_path / "out").classes == ["00", "05", "10"]


def test_shards_given_as_data_name_the_command(tmp_path, refused):
    to_tar(tmp_path / "a.tar", {name.rpartition("/")[2]: content for name, content in members(slice(None)).items()})
    for place in (tmp_path, tmp_path / "a.tar"):
        with refused("class folder(s)", "`distillery data convert` makes of it"):
            folders.load_files(place)


def test_a_thousand_numbers_are_in_their_order(tmp_path):
    labels = np.array([1000, 1, 10, 2, 999, 100, 11, 101, 20])
    np.savez(tmp_path / "val_data.npz", data=COLOR.transpose(0, 3, 1, 2).reshape(9, -1), labels=labels)
    convert(tmp_path / "val_data.npz", tmp_path / "out")
    assert held(tmp_path / "out")[0] == [(f"{labels[row]:04d}", COLOR[row].transpose(2, 0, 1).tobytes()) for row in labels.argsort()]


def many_flat(root):
    for i in range(2):
        np.savez(root / f"train_data_batch_{i}.npz", data=np.zeros((500, 3 * 64 * 64), np.uint8), labels=np.arange(500) % 2)


def many_members(root):
    for i in range(2):
        image = encoded(Image.new("L", (32, 32))) + bytes(60_000)  # of which nothing after the image is read, but all is written
        content = {f"{row:04d}.{suffix}": value for row in range(100) for suffix, value in (("png", image), ("cls", b"%d" % (row % 2)))}
        to_tar(root / f"{i:03d}.tar", content)


@pytest.mark.parametrize("write", [many_flat, many_members])
def test_images_are_never_all_in_memory(tmp_path, write):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")  # 12 MB
    tracemalloc.start()
    try:
        convert(tmp_path / "in", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_a_slash_in_the_name_of_a_class(tmp_path):
    """As in Fashion-MNIST."""
    np.savez(tmp_path / "a.npz", images=GRAY, labels=LABELS, classes=["T-shirt/top", "a\\b", "boot"])
    assert convert(tmp_path / "a.npz", tmp_path / "out")[1:] == ["note: class T-shirt/top is in T-shirt-top", "note: class a\\b is in a-b"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["T-shirt-top", "a-b", "boot"]


def npz(**arrays):
    def write(root):
        np.savez(root / "a.npz", **{"images": GRAY, "labels": LABELS} | arrays)
        return root / "a.npz"

    return write


def text(name, content):
    def write(root):
        (root / name).write_text(content)
        (root / "1.png").write_bytes(encoded(Image.new("L", (4, 4))))
        (root / "2.gif").write_bytes(encoded(Image.new("L", (4, 4)), "GIF"))
        return root / name

    return write


def lone_idx(root):
    idx(root)
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    return root


def running_cifar(root):
    cifar(root)
    (root / "cifar-10-batches-py/test_batch").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return root


def odd_parquet(**columns):
    def write(root):
        arrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        tables.write_table(arrow.table({"image": [b"GIF89a"] * 2, "label": [0, 1]} | columns), root / "a.parquet")
        return root / "a.parquet"

    return write


ONE = {
    "a/1.jpg": encoded(Image.new("L", (4, 4))),
    "a/1.cls": b"cat",
    "a/2.png": encoded(Image.new("L", (4, 4))),
    "a/2.json": b'{"label": "dog"}',
}


def tar(content=(), without=(), extra=(), cut=0):
    def write(root):
        kept = {name: value for name, value in (ONE | dict(content)).items() if name not in without}
        path = to_tar(root / "a-000000.tar", kept, extra)
        path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
        return root

    return write


def member(name, kind=tarfile.REGTYPE, size=0):
    found = tarfile.TarInfo(name)
    found.type, found.size, found.linkname = kind, size, "/etc/passwd"
    return found


def batches(**arrays):
    return lambda root: downsampled(root, **arrays)[0]


def cut_batch(root):
    """A row less than is declared."""
    downsampled(root)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (3, 3072)})
    with zipfile.ZipFile(root / "train_data_batch_1.npz", "w") as archive:
        archive.writestr("data.npy", file.getvalue() + bytes(2 * 3072))
        with archive.open("labels.npy", "w") as labels:
            np.save(labels, [1, 2, 3])
    return root


def pickles(root):
    for name in ("train_data_batch_1", "val_data"):
        (root / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(root.parent / "evil").encode())
    return root


NAN = float("nan")
REFUSED = [
    (npz(labels=LABELS[:8]), ["9 images and 8 labels"]),
    (npz(labels=LABELS - 1), ["labels from -1 to 1"]),
    (npz(labels=LABELS + 0.5), ["labels (9,) of float64"]),
    (npz(labels=np.ones((9, 3))), ["labels (9, 3)"]),
    (npz(labels=np.array(["a/b", "a-b", "c"] * 3)), ["'a-b' is that of another class too"]),
    (npz(labels=np.array(["../../a", "c", "d"] * 3)), ["'../../a' is no name of a class folder"]),
    (npz(labels=np.array([".."] * 9)), ["'..' is no name"]),
    (npz(labels=np.array([""] * 9)), ["'' is no name"]),
    (npz(labels=np.array(["train"] * 9)), ["'train' is no name"]),
    (npz(labels=LABELS * 0), ["holds 1 class folder(s)"]),
    (npz(labels=LABELS, classes=["a", "b"]), ["labels from 0 to 2", "0 to 1"]),
    (npz(labels=np.array([{}] * 9)), ["a.npz", "pickle"]),
    (npz(images=GRAY.reshape(9, -1)), ["images (9, 30)"]),
    (npz(images=GRAY * 2.0), ["float64 pixels"]),
    (npz(images=GRAY * NAN), ["pixels from nan"]),
    (npz(images=GRAY[:0], labels=LABELS[:0]), ["images (0, 6, 5)"]),
    (npz(images=np.zeros((9, 3, 5, 3), np.uint8)), ["images (9, 3, 5, 3)"]),
    (text("a.npz", "no zip"), ["cannot read", "a.npz"]),
    (text("a.csv", "file,label\n1.png,cat\n2.png,dog\n3.png,dog\n"), ["2 of 3 files are not there", "2.png"]),
    (text("a.csv", "file,label\n1.png,cat\n2.gif,dog\n"), ["1 of 2 files are no images", "2.gif"]),
    (text("a.csv", "file,label\n1.png,cat\n1.png,\n"), ["'' is no name"]),
    (text("a.csv", "file,label\n1.png,cat\n1.png\n"), ["'' is no name"]),
    (text("a.jsonl", '{"file": "1.png", "label": "cat"}\n{"file": "1.png"}'), ["'' is no name"]),
    (text("a.jsonl", '{"file": "1.png", "label": "cat"}\n7'), ["cannot read", "a.jsonl"]),
    (text("a.csv", "name,score\n1.png,3\n"), ["columns name, score", "file_name", "class_name"]),
    (text("a.csv", ""), ["columns none"]),
    (text("a.csv", "file,label,split\n1.png,cat,dev\n"), ["split 'dev'"]),
    (text("a.jsonl", "{"), ["cannot read", "a.jsonl"]),
    (text("a.txt", "x"), ["a.txt is no form that is known"]),
    (lambda root: root, ["is no form that is known"]),
    (lambda root: root / "gone", ["gone is not there"]),
    (lone_idx, ["no labels t10k-labels-idx1-ubyte"]),
    (running_cifar, ["asks for os.system", "accepted: numeric arrays"]),
    (odd_parquet(), ["a.parquet, row 0", "that is GIF", "JPEG, PNG"]),
    (odd_parquet(image=[None, b""]), ["row 0: no bytes"]),
    (odd_parquet(label=[[1, 2], [2, 3]]), ["labels (1, 2)"]),
    (text("a.parquet", "x"), ["cannot read", "a.parquet"]),
    (tar(without=["a/1.cls"]), ["a-000000.tar: 1 keys with an image or a class alone: a/1", "KEY.cls"]),
    (tar(without=["a/2.png"]), ["an image or a class alone: a/2"]),
    (tar(without=ONE), ["no images"]),
    (tar({"a/1.webp": b"x"}), ["a/1.jpg, a/1.webp have one key"]),
    (tar({"b/1.png": ONE["a/2.png"]}), ["alone: b/1"]),
    (tar({"a/1.jpg": b"GIF89a"}), ["a/1.jpg: an image that is GIF"]),
    (tar({"a/1.cls": b""}), ["'' is no name"]),
    (tar({"a/1.cls": b".."}), ["'..' is no name"]),
    (tar({"a/1.cls": b"-1"}), ["a/1.cls: labels from -1"]),
    (tar({"a/1.cls": b"\xff\xfe"}), ["cannot read", "a/1.cls"]),
    (tar({"a/2.json": b"[" * 100_000}), ["cannot read", "a/2.json"]),
    (tar({"a/2.json": b"{}"}), ["a/2.json: labels (1,) of object"]),
    (tar({"a/2.json": b'{"label": {"a": 1}}'}), ["a/2.json: labels (1,) of object"]),
    (tar({"a/2.json": b'{"label": true}'}), ["a/2.json: labels (1,) of bool"]),
    (tar({"../x.png": b"x"}), ["../x.png", "leads out of the archive"]),
    (tar({"/x.png": b"x"}), ["/x.png", "absolute path"]),
    (tar(extra=[member("a/3.png", tarfile.SYMTYPE)]), ["a/3.png", "is a link"]),
    (tar(extra=[member("a/3.png", size=1 << 42)]), ["declares more than 64 GB"]),
    (tar({"n01.tar": b"x"}), ["n01.tar", "is an archive itself"]),
    (tar(cut=9300), ["a-000000.tar is damaged"]),
    (lambda root: tars(root, place="{part}-{i}.tar")[0] if tar()(root) else "", ["a-000000.tar is of no part", "train"]),
    (batches(labels=[1, 2]), ["data (3, 3072) of uint8 and 2 labels"]),
    (batches(labels=[0.5, 1, 2]), ["labels (3,) of float64"]),
    (batches(labels=np.array([{}] * 3)), ["train_data_batch_1.npz", "pickle"]),
    (batches(data=np.zeros((3, 3071), np.uint8)), ["data (3, 3071)"]),
    (batches(data=np.zeros((3, 0), np.uint8)), ["data (3, 0)"]),
    (batches(data=np.zeros((3, 3072))), ["data (3, 3072) of float64"]),
    (batches(data=np.zeros((3072, 3), np.uint8).T), ["accepted: (N, 3 * S * S) uint8, row after row"]),
    (batches(data=np.array([{}] * 3)), ["train_data_batch_1.npz"]),
    (cut_batch, ["cannot read", "train_data_batch_1.npz"]),
    (pickles, ["train_data_batch_1 is a pickle, which is never run", "train_data_batch_1.npz"]),
    (lambda root: pickles(root) / "val_data", ["val_data is a pickle"]),
]  # fmt: skip


@pytest.mark.parametrize("write, words", REFUSED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_is_no_labelled_set_leaves_nothing(tmp_path, refused, write, words):
    if "parquet" in str(words):
        pytest.importorskip("pyarrow")
    (tmp_path / "source").mkdir()
    with refused(*words):
        convert(write(tmp_path / "source"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_places_that_are_taken_or_lie_in_the_source(tmp_path, refused):
    (tmp_path / "in").mkdir()
    keras(tmp_path / "in")
    (tmp_path / "file").write_text("mine")
    for place, word in (("file", "is there already"), ("in", "lies in"), ("in/out", "lies in")):
        with refused(word):
            convert(tmp_path / "in", tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    with refused("source: a int"):
        convert(3, tmp_path / "out")


def test_parquet_without_pyarrow_names_the_install(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with refused("pip install 'distillery[parquet]'"):
        convert(tmp_path / "a.parquet", tmp_path / "out")


@pytest.mark.parametrize("head", ["file,label", "jsonl"])
def test_whole_numbers_of_a_table_keep_their_order(tmp_path, head):
    to_folder(tmp_path / "flat", {f"{i}.png": encoded(to_pil_image(COLOR[i % 9])) for i in range(12)})
    rows = [{"file": f"flat/{i}.png", "label": i} for i in range(12)]
    if head == "jsonl":
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        (tmp_path / "a.csv").write_text("\n".join([head, *(f"{row['file']},{row['label']}.{'0' * 400}" for row in rows)]))
    convert(next(tmp_path.glob("a.*")), tmp_path / "out")
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [f"{i:02d}" for i in range(12)]
