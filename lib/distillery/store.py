"""Files on disk: atomic writes, tensors that carry their own digest, identities of artifacts. Nothing is a pickle.

A write goes to a temporary file beside and is renamed, so a reader sees the old file or the new one and never a part.
"""

import hashlib
import json
import math
import os
import pickle
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from distillery.checks import InputError, first_line

_META = "distillery"  # the one metadata key: a JSON object with "digest" and "card"
_REMOVE = "; if distillery made it here, remove it to have it made again"


@contextmanager
def writing(path: str | Path):
    """Make the folder of a file that is about to be written; if the disk refuses (full, read-only), an InputError of one line."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        accepted = "what was finished before is kept, accepted: a writable folder with free space"
        raise InputError(f"cannot write {path}: {error.strerror or error}; {accepted}") from error


def _unfinished(path: Path) -> Path:
    """What a file or folder is called while it is written: of no two processes the same, also where machines share a disk."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def replacing(path: Path):
    """An open file that becomes `path` when all of it is written. Raises InputError as `writing` does."""
    temporary = _unfinished(path)
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically. Raises InputError as `writing` does."""
    path = Path(path)
    with replacing(path) as file:
        file.write(content)
    return path


def copy_file(source: str | Path, path: str | Path) -> Path:
    """Copy a file atomically. Raises InputError as `writing` does."""
    path = Path(path)
    with open(source, "rb") as content, replacing(path) as file:
        shutil.copyfileobj(content, file, 2**20)
    return path


@contextmanager
def new_folder(path: str | Path):
    """A folder that appears whole or not at all: gives one beside it, which takes its name at the end. Raises InputError as `writing` does."""
    path = Path(path)
    temporary = _unfinished(path)
    with writing(path):
        try:
            temporary.mkdir()
            yield temporary
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def canonical(value) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: str | Path, value) -> Path:
    """Write a JSON file atomically, one key a line, keys in the given order."""
    return write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | Path):
    """Read a JSON file. Raises InputError if it is missing, truncated, not JSON, nested too deeply, or holds NaN or numbers beyond 64 bits."""
    try:
        return _parsed(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: a complete JSON file{_REMOVE}") from error


def _parsed(text: str | bytes):
    """JSON of finite numbers, whole ones of 64 bits. Raises ValueError or RecursionError."""
    return json.loads(text, parse_float=_number, parse_constant=_number, parse_int=_number)


def _number(digits: str) -> int | float:
    whole = digits.lstrip("-").isdigit()
    if not math.isfinite(float(digits)) or (whole and len(digits) > 20):
        raise ValueError(f"{digits[:20]} is no finite number of 64 bits")
    return int(digits) if whole else float(digits)


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def transform_digest(transform) -> str | None:
    """What identifies a standardization in an id, 16 hex digits; None = there is none."""
    return tensor_digest(vars(transform))[:16] if transform else None


def save_tensors(path: str | Path, tensors: dict[str, Tensor], card: dict) -> str:
    """Save named tensors and a JSON card in one safetensors file, atomically; returns the digest of both."""
    # copies, since safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = _card_digest(tensors, card)
    write_bytes(path, safetensors_bytes(tensors, metadata={_META: canonical({"digest": digest, "card": card})}))
    return digest


def load_tensors(path: str | Path, verify: bool = True) -> tuple[dict[str, Tensor], dict]:
    """The tensors, mapped from disk, and the card that `save_tensors` wrote.

    verify  compare the digest, which reads everything
    raises  InputError if the file is missing, truncated, corrupt or not ours
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = _parsed((file.metadata() or {}).get(_META, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: a complete safetensors file{_REMOVE}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("card"), dict) or "digest" not in meta:
        raise InputError(f"{path} has no distillery card; accepted: a file exported by distillery")
    if verify and _card_digest(tensors, meta["card"]) != meta["digest"]:
        raise InputError(f"{path} is corrupt: its tensors do not match their digest; accepted: the file as saved{_REMOVE}")
    return tensors, meta["card"]


def _card_digest(tensors: dict[str, Tensor], card) -> str:
    return hashlib.sha256((tensor_digest(tensors) + canonical(card)).encode()).hexdigest()


def has_card(path: str | Path) -> bool:
    """Whether a safetensors file is one of `save_tensors`, or broken, as `load_tensors` then says."""
    with suppress(OSError, SafetensorError), safe_open(str(path), framework="pt") as file:
        return _META in (file.metadata() or {})
    return True


class _Number:
    """Stands for a number of NumPy in a file of PyTorch: the public codes save accuracies beside their sets. Nothing is kept of it."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


_NUMBERS = [(_Number, f"numpy.{name}") for name in ("core.multiarray.scalar", "_core.multiarray.scalar", "dtype")]


def load_foreign(path: str | Path):
    """What a file of PyTorch, safetensors or NumPy (.npz) holds, never run. Raises InputError if it cannot be read as tensors."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: one.tolist() if one.dtype.kind == "U" else torch.from_numpy(one) for name, one in arrays.items()}
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        start = path.read_bytes()[:200]
        if start.isascii() and b"\0" not in start:
            raise InputError(f"{path} is text ({start[:30]!r}..): a web page or a pointer of git-lfs; accepted: the file itself") from error
        raise InputError(f"{path} holds more than tensors, which is not run; accepted: files that load with weights_only") from error
    except Exception as error:
        accepted = "a whole .safetensors, .pt, .pth or .npz file"
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: {accepted}") from error


def check_plain(name: str, value) -> None:
    """Raise InputError unless a value of a foreign file is a tensor of plain numbers: dense, real, not quantized."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: a {type(value).__name__}; accepted: a tensor")
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_nested or value.is_meta:
        raise InputError(f"{name}: {value.layout}, {value.dtype}, on {value.device}; accepted: dense real numbers")


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(name: str) -> str:
    """A name, perhaps of 'KIND:NAME:PATH', in which the absolute path of a file or folder is replaced by its last part and its content's digest."""
    kind, colon, place = name.rpartition(":")
    if not os.path.isabs(place) or not os.path.exists(place):
        return name
    path = Path(place)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    try:
        digests = [[str(one.relative_to(path)), file_digest(one)] for one in files]
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}; accepted: a readable file or folder") from error
    return f"{kind}{colon}{path.name} {identity('content', 1, {}, canonical(digests))}"


def identity(producer: str, version: int, inputs: dict, data_digest: str) -> str:
    """The id of an artifact: 16 hex digits of sha256 over producer, version, typed inputs and data digest."""
    key = canonical({"producer": producer, "version": version, "inputs": inputs, "data": data_digest})
    return hashlib.sha256(key.encode()).hexdigest()[:16]
