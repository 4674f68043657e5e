"""The published data sets by name: fetched if missing, verified before anything in them is read, converted once.

The sha256 of every file are those of public loaders: torchvision (prototype) and TensorFlow Datasets, which agree, for mnist, fashion-mnist
and svhn; torchvision (prototype) and Keras for cifar10 and cifar100; several independent repositories for tiny-imagenet. Nothing is unpacked
to disk, and no pickle is run.
"""

import gzip
import http.client
import pickle
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from distillery import store
from distillery.checks import InputError, first_line, local_path
from distillery.data import folders
from distillery.data.archives import Folder, Tar, readable, shown
from distillery.data.cache import Decoded, cache_folder, cached
from distillery.data.decoding import fit

VERSION = 2  # of the readers: a change makes older cache files stale
FILES: dict[str, dict[str, str]] = {  # sha256 by file name
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "svhn": {
        "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    },
    "cifar10": {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    "cifar100": {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
    "tiny-imagenet": {"tiny-imagenet-200.zip": "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"},
}
NAMES = ("digits", *FILES)
_ADDRESSES = {  # of the folders where the files lie
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "tiny-imagenet": "http://cs231n.stanford.edu/",
}
CIFAR = {  # training batches and the test batch, key of their labels, file and key of the class names
    "cifar10": ([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels", "batches.meta", "label_names"),
    "cifar100": (["train", "test"], "fine_labels", "meta", "fine_label_names"),
}
_TIMEOUT = 30  # seconds without an answer

Arrays = tuple[np.ndarray, np.ndarray, int, list[str]]  # pixels and labels, first those for training; how many these are; classes


def load(name, data_root="", *, resize=0, max_side=0, cache_dir="", mapped=False, progress=False) -> Decoded:
    """A data set of `NAMES`, options as in `data.load`. Its files are looked for in `data_root` ('' = a folder of the cache), else fetched.

    raises  InputError if a file is not there and cannot be fetched, or is not the published one
    """
    sides, folder = {"resize": resize, "max_side": max_side}, cache_folder(cache_dir)
    root = local_path("data_root", data_root) if data_root else folder / "downloads"
    if name == "tiny-imagenet":
        return _tiny(root, progress, **sides, cache_dir=cache_dir, mapped=mapped)
    published = store.canonical(FILES[name]) if name in FILES else "scikit-learn"
    key = store.identity("named images", VERSION, sides | {"name": name}, published)

    def produce(allocate):
        pixels, labels, n_train, classes = _READERS[name](name, root, progress)
        pixels, notes = fit(pixels, resize, max_side)
        return (
            allocate(pixels.shape).fill(pixels),
            torch.from_numpy(labels.astype(np.int64)),
            {"classes": list(classes), "n_train": n_train, "notes": notes},
        )

    worth = mapped is True or name != "digits"  # which are bundled, and read in no time
    return cached(folder if worth else None, key, name, produce, mapped)


def fetch(name: str, file: str, root: Path, progress: bool = False) -> Path:
    """The verified file of a data set in `root` (or in torchvision's folder there), downloaded if it is not there.

    raises  InputError if the file is not the published one, or is missing and cannot be fetched
    """
    expected = FILES[name][file]
    for path in (root, root / file, root / {"mnist": "MNIST"}.get(name, "FashionMNIST") / "raw" / file):
        if path.name == file and path.is_file():
            with readable(path):
                found = store.file_digest(path)
            if found == expected:
                return path
            wrong = f"{path.stat().st_size} bytes with sha256 {found[:12]}... are not the published file, perhaps an interrupted download"
            raise InputError(f"{shown(path)}: {wrong}; remove it to fetch it anew; accepted: sha256 {expected}")
    if root.is_file():
        raise InputError(f"data_root: {str(root)!r} is a file; accepted: {file}, or a folder that holds it")
    address, before = _ADDRESSES[name] + file, socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        root.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(root / file), expected, progress)  # under its name only when complete and verified
    except (OSError, ValueError, RuntimeError, http.client.HTTPException) as error:
        accepted = f"a network connection, or {file} with sha256 {expected} in data_root"
        raise InputError(f"cannot fetch {address} into {shown(root)}: {first_line(error)}; accepted: {accepted}") from error
    finally:
        socket.setdefaulttimeout(before)
    return root / file


def _digits(name: str, root: Path, progress: bool) -> Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    return pixels, bunch.target, len(pixels), [str(name) for name in bunch.target_names]


def _mnist(name: str, root: Path, progress: bool) -> Arrays:
    from torchvision.datasets import FashionMNIST  # a second, needed once in a set's life

    images, labels, test_images, test_labels = (idx(fetch(name, file, root, progress)) for file in FILES[name])
    classes = [str(i) for i in range(10)] if name == "mnist" else FashionMNIST.classes
    return np.concatenate([images, test_images])[:, None], np.concatenate([labels, test_labels]), len(images), classes


def idx(path: Path) -> np.ndarray:
    """MNIST's format, packed or not: two zero bytes, type 8 (uint8), number of axes, their lengths in 4 bytes each, the values.

    Raises ValueError on another file, and what gzip raises on a broken one.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if content[:3] != b"\0\0\x08":
        raise ValueError("no idx file of bytes")
    axes = content[3]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(content, ">i4", axes, 4))


def _svhn(name: str, root: Path, progress: bool) -> Arrays:
    from scipy.io import loadmat

    train, test = (loadmat(fetch(name, file, root, progress)) for file in FILES[name])
    pixels = np.concatenate([part["X"].transpose(3, 2, 0, 1) for part in (train, test)])
    labels = np.concatenate([train["y"], test["y"]]).ravel() % 10  # the label of digit 0 is 10
    return pixels, labels, len(train["y"]), [str(i) for i in range(10)]


def _cifar(name: str, root: Path, progress: bool) -> Arrays:
    (archive,) = FILES[name]
    return read_cifar(Tar(fetch(name, archive, root, progress)), name)


def is_cifar(where: Folder | Tar, name: str) -> bool:
    """Whether a folder or archive holds the Python files of CIFAR-10 or CIFAR-100, by their names."""
    return {*CIFAR[name][0], CIFAR[name][2]} <= {file.rpartition("/")[2] for file in where.listing.files}


def read_cifar(where: Folder | Tar, name: str) -> Arrays:
    """The Python files of CIFAR-10 or CIFAR-100 in an archive or a folder, at any depth. Raises InputError where they hold more than arrays."""
    batches, key, meta, names = CIFAR[name]
    files = {path.rpartition("/")[2]: path for path in where.listing.files}
    raw = where.read(files[file] for file in [*batches, meta])
    read = ((path.rpartition("/")[2], value.read_bytes() if isinstance(value, Path) else value) for path, value in raw)
    content = {file: unpickle(value, file) for file, value in read}
    pixels, labels = (np.concatenate([content[file][one] for file in batches]) for one in ("data", key))
    n_test = len(content[batches[-1]][key])
    return pixels.reshape(-1, 3, 32, 32), labels, len(labels) - n_test, content[meta][names]


class _ArraysOnly(pickle.Unpickler):
    """Knows numeric numpy arrays and built-in containers, strings and numbers; anything else is refused."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: np.ndarray((0,), np.uint8)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return np.ndarray if name == "ndarray" else _number_type
        raise InputError(f"a pickle asks for {module}.{name}; accepted: numeric arrays, lists and dicts")


def _number_type(code, *_) -> np.dtype:
    if np.dtype(code).kind not in "uif":
        raise InputError(f"a pickle holds an array of type {code!r}; accepted: numeric arrays")
    return np.dtype(code)


def unpickle(content: bytes, label: str) -> dict:
    """A foreign pickle of arrays, lists and dicts. Raises InputError, running nothing, if it holds anything else."""
    try:
        return _ArraysOnly(BytesIO(content), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    except Exception as error:  # a broken pickle raises almost anything
        raise InputError(f"{label} is a broken pickle ({type(error).__name__}); accepted: a whole one") from error


def unpacked(root: Path) -> Path | None:
    """Tiny-ImageNet as a folder in `root`, where its archive is not there."""
    (archive,) = FILES["tiny-imagenet"]
    found = [folder for folder in (root, root / "tiny-imagenet-200") if (folder / "val" / "images").is_dir()]
    return found[0] if found and not (root / archive).exists() else None


def _tiny(root: Path, progress: bool, **options) -> Decoded:
    path = unpacked(root) or fetch("tiny-imagenet", *FILES["tiny-imagenet"], root, progress)
    found = folders.load_files(path, progress=progress, **options)
    found.name = "tiny-imagenet"
    if path.is_dir():
        found.notes.append("read from an unpacked folder, for which there is no published checksum")
    return found


_READERS = {"digits": _digits, "mnist": _mnist, "fashion-mnist": _mnist, "svhn": _svhn, "cifar10": _cifar, "cifar100": _cifar}
