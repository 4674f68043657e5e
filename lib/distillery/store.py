"""Files on disk: atomic writes, tensors that carry their own digest, identities of artifacts, and finished runs.

No artifact is a pickle: tensors are safetensors, everything else is JSON. A write goes to a temporary file in the same folder, is flushed
to disk and renamed, so a reader sees the old file or the new one and never a part. An artifact's identity is its producer's name and
version, its typed inputs and the digest of its data.
"""

import hashlib
import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from distillery.checks import InputError, first_line

_META = "distillery"  # the one metadata key: a JSON object with "digest" and "card"


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically. Raises InputError with one line if the disk refuses (full, read-only)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        accepted = "what was finished before is kept, accepted: a writable folder with free space"
        raise InputError(f"cannot write {path}: {error.strerror or error}; {accepted}") from error
    return path


def canonical(value) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: str | Path, value) -> Path:
    """Write a JSON file atomically, one key a line, keys in the given order."""
    return write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | Path):
    """Read a JSON file. Raises InputError if it is missing, truncated or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; accepted: a complete JSON file") from error


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
    return tensor_digest(transform.tensors())[:16] if transform else None


def save_tensors(path: str | Path, tensors: dict[str, Tensor], card: dict) -> str:
    """Save named tensors and a JSON card in one safetensors file, atomically; returns the digest of both."""
    # copies, since safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = _card_digest(tensors, card)
    write_bytes(path, safetensors_bytes(tensors, metadata={_META: canonical({"digest": digest, "card": card})}))
    return digest


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Load what `save_tensors` wrote. Raises InputError if the file is missing, truncated, corrupt or not ours."""
    tensors, card, digest = _open_tensors(path)
    if _card_digest(tensors, card) != digest:
        raise InputError(f"{path} is corrupt: its tensors do not match the digest they were saved with; accepted: the file as saved")
    return tensors, card


def _card_digest(tensors: dict[str, Tensor], card) -> str:
    return hashlib.sha256((tensor_digest(tensors) + canonical(card)).encode()).hexdigest()


def map_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Like `load_tensors`, but the tensors stay on disk until they are used, and their digest is not checked, which would read everything."""
    return _open_tensors(path)[:2]


def load_foreign(path: str | Path):
    """What a file of PyTorch or safetensors holds, never run. Raises InputError if it cannot be read as tensors."""
    path = Path(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not found; accepted: a .safetensors, .pt or .pth file") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors, which is not run; accepted: files that load with weights_only") from error
    except Exception as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: a whole .safetensors, .pt or .pth file") from error


def _open_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict, str]:
    try:
        with safe_open(str(path), framework="pt") as file:  # maps the file: pages are read on use
            meta = json.loads((file.metadata() or {}).get(_META, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; accepted: a complete safetensors file") from error
    if not isinstance(meta, dict) or not {"digest", "card"} <= set(meta):
        raise InputError(f"{path} has no distillery card; accepted: a file exported by distillery")
    return tensors, meta["card"], meta["digest"]


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(producer: str, version: int, inputs: dict, data_digest: str) -> str:
    """The id of an artifact: 16 hex digits of sha256 over producer, version, typed inputs and data digest."""
    key = canonical({"producer": producer, "version": version, "inputs": inputs, "data": data_digest})
    return hashlib.sha256(key.encode()).hexdigest()[:16]
