"""Files on disk: atomic writes, tensors that carry their own digest, identities of artifacts, and finished runs.

No artifact is a pickle: tensors are safetensors, everything else is JSON. A write goes to a temporary file in the same
folder, is flushed to disk and renamed, so a reader sees the old file or the new one and never a part. An artifact's
identity is its producer's name and version, its typed inputs and the digest of its data.
"""

import hashlib
import json
import math
import os
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from distillery.checks import InputError, Stopped

BEAT, SILENCE = 10.0, 120.0  # seconds: the owner of a lock touches it; it is taken for dead
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
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; what was finished before is kept, "
            "accepted: a writable folder with free space"
        ) from error
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


def save_tensors(path: str | Path, tensors: dict[str, Tensor], card: dict) -> str:
    """Save named tensors and a JSON card in one safetensors file, atomically; returns the digest of both."""
    # copies, since safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = _card_digest(tensors, card)
    meta = {_META: canonical({"digest": digest, "card": card})}
    write_bytes(path, safetensors_bytes(tensors, metadata=meta))
    return digest


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Load what `save_tensors` wrote. Raises InputError if the file is missing, truncated, corrupt or not ours."""
    tensors, meta = _open_tensors(path)
    if _card_digest(tensors, meta["card"]) != meta["digest"]:
        raise InputError(
            f"{path} is corrupt: its tensors do not match the digest they were saved with; accepted: the file as saved"
        )
    return tensors, meta["card"]


def _card_digest(tensors: dict[str, Tensor], card) -> str:
    return hashlib.sha256((tensor_digest(tensors) + canonical(card)).encode()).hexdigest()


def map_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Like `load_tensors`, but the tensors stay on disk and are read page by page as they are used.

    The digest is not checked, which would read everything; a missing or truncated file is refused all the same.
    """
    tensors, meta = _open_tensors(path)
    return tensors, meta["card"]


def load_foreign(path: str | Path):
    """What a file of PyTorch or safetensors holds, never run. Raises InputError if it cannot be read as tensors."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not found; accepted: a .safetensors, .pt or .pth file") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, which is not run; accepted: files that load with weights_only"
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot read {path}: {reason}; accepted: a whole .safetensors, .pt or .pth file"
        ) from error


def _open_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(str(path), framework="pt") as file:  # maps the file: pages are read on use
            meta = json.loads((file.metadata() or {}).get(_META, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {path}: {reason}; accepted: a complete safetensors file") from error
    if not isinstance(meta, dict) or not {"digest", "card"} <= set(meta):
        raise InputError(f"{path} has no distillery card; accepted: a file exported by distillery")
    return tensors, meta


class PixelFile:
    """Write 'pixels' (N, C, H, W) uint8, which may be larger than memory, into a file for `load_tensors`.

        with PixelFile(path) as file:
            pixels = file.allocate(shape, {"targets": targets}, card)  # a numpy array on disk, to be filled
            ...
            file.finish()

    The file appears under its name only by `finish`. Disk space is reserved first, so that a full disk is an
    InputError before any work is done.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.pixels: np.ndarray | None = None

    def __enter__(self) -> "PixelFile":
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def allocate(self, shape: tuple[int, ...], tensors: dict[str, Tensor], card: dict) -> np.ndarray:
        """The array to fill; a second call starts over. `card` may still be added to until `finish`."""
        self.tensors, self.card = tensors, card
        self.head = len(self._header(shape, "")) + (1 << 16)
        self.head += -self.head % 8
        start = 8 + self.head + sum(8 * tensor.numel() for tensor in tensors.values())
        size = start + math.prod(shape)
        with self._writing(), open(self.temporary, "wb") as file:
            file.truncate(size)
            if hasattr(
                os, "posix_fallocate"
            ):  # reserve the space: writing to a mapped full disk kills the process
                os.posix_fallocate(file.fileno(), 0, size)
        self.pixels = np.memmap(self.temporary, np.uint8, "r+", start, shape)
        return self.pixels

    def finish(self) -> None:
        """Put the header and the small tensors before the filled array, flush, and give the file its name."""
        digest = _card_digest({"pixels": torch.from_numpy(self.pixels), **self.tensors}, self.card)
        small = b"".join(tensor.contiguous().numpy().tobytes() for tensor in self.tensors.values())
        with self._writing():
            self.pixels.flush()
            with open(self.temporary, "r+b") as file:
                header = self._header(self.pixels.shape, digest).ljust(self.head)
                file.write(self.head.to_bytes(8, "little") + header + small)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)

    @contextmanager
    def _writing(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror or error}; accepted: a writable folder with free space"
            ) from error

    def _header(self, shape: tuple[int, ...], digest: str) -> bytes:
        """Of a safetensors file: first the small tensors, int64 and so aligned, then the pixels."""
        header = {"__metadata__": {_META: canonical({"digest": digest.ljust(64), "card": self.card})}}
        offset = 0
        for name, tensor in self.tensors.items():
            assert tensor.dtype == torch.int64
            header[name] = _entry("I64", tensor.shape, offset, 8 * tensor.numel())
            offset += 8 * tensor.numel()
        header["pixels"] = _entry("U8", shape, offset, math.prod(shape))
        return canonical(header).encode()


def _entry(dtype: str, shape, offset: int, nbytes: int) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(producer: str, version: int, inputs: dict, data_digest: str) -> str:
    """The id of an artifact: 16 hex digits of sha256 over producer, version, typed inputs and data digest."""
    key = canonical({"producer": producer, "version": version, "inputs": inputs, "data": data_digest})
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@contextmanager
def lock(path: str | Path, wait: bool = False):
    """Own `path` for a while, so that two workers never produce one id. A lock left by a dead process is taken over.

    The owner touches the file every BEAT seconds. wait: wait for a living owner, and take over when the file has not
    been touched for SILENCE seconds, which also frees the lock of a machine that is gone. Should the owner only have
    slept, both produce the same file, which is written atomically.

    Raises InputError if `wait` is false and a living process of this host, or any process of another host, holds it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {path.parent}: {error.strerror}; accepted: a writable folder"
        ) from error
    me = canonical({"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()})
    seen, since = None, 0.0
    while not _create(path, me):
        try:
            found = path.read_text(errors="replace"), path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # just let go
        if found != seen:  # watched by our own clock: those of other machines may differ
            seen, since = found, time.monotonic()
        owner = _owner(found[0])
        held = owner and (owner["host"] != socket.gethostname() or _alive(owner["pid"]))
        if held and not wait:
            raise InputError(
                f"{path.stem} is being produced by process {owner['pid']} on {owner['host']}; accepted: wait, or remove {path}"
            )
        # an unreadable one may be in the making
        if time.monotonic() - since >= (SILENCE if held else 0 if owner else 1):
            _remove(path, found[0])
        else:
            time.sleep(0.1)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        _remove(path, me)


def _create(path: Path, content: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with suppress(OSError):  # a full disk leaves an empty lock
        os.write(handle, content.encode())
    os.close(handle)
    return True


def _owner(content: str) -> dict | None:
    try:
        owner = json.loads(content)
        return {"pid": owner["pid"], "host": owner["host"]}
    except (ValueError, KeyError, TypeError):
        return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _remove(path: Path, content: str) -> None:
    """Remove a lock if it still has this content: of several workers one succeeds, and none removes a newer lock."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.read_text(errors="replace") != content:  # another worker was faster: put its lock back
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _alive(pid) -> bool:
    if not pid or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Unfinished(Exception):
    """A run that another one stands on has not run within the budget, or its set was not kept on this machine."""


class Runs:
    """The finished runs of one notebook: `<folder>/runs/<id>.json`, tensors beside them in `<folder>/artifacts/`.

    A run is computed once and read ever after. When the budget is spent, what is missing is listed as not run.
    A pickled copy works beside others on the same folder: it waits for runs that they are computing, keeps the moment
    at which the budget is spent by the wall clock, and counts for itself.
    """

    def __init__(
        self, folder: str | Path, budget_minutes: float = 0.0, clock: Callable[[], float] = time.monotonic
    ):
        """budget_minutes: start no new run after so many minutes, 0 = no limit."""
        self.folder = Path(folder)
        self.clock = clock
        self.deadline = clock() + 60 * budget_minutes if budget_minutes > 0 else float("inf")
        self.wait = False  # for runs that another process is computing, instead of an InputError
        self.computed = self.reused = 0
        self.missing: list[dict] = []

    def __getstate__(self) -> dict:
        until = time.time() + self.deadline - self.clock()
        own = {"clock": time.time, "deadline": until, "wait": True, "computed": 0, "reused": 0, "missing": []}
        return self.__dict__ | own

    def spent(self) -> bool:
        """Whether the budget is."""
        return self.clock() >= self.deadline

    def path(self, key: str) -> Path:
        return self.folder / "runs" / f"{key}.json"

    def artifact(self, key: str, suffix: str = ".safetensors") -> Path:
        return self.folder / "artifacts" / f"{key}{suffix}"

    def get(
        self, producer: str, version: int, inputs: dict, data_digest: str, compute: Callable[[str], dict]
    ):
        """The result of a run: read if it is there, else computed within the budget and stored, else None.

        compute  called with the run's id; returns a JSON-able dict
        """
        key = identity(producer, version, inputs, data_digest)
        path = self.path(key)
        if path.exists():
            self.reused += 1
            return self._read(path, key)
        if self.spent():
            self.missing.append(inputs)
            return None
        with lock(path.with_suffix(".lock"), self.wait):
            if path.exists():  # another worker finished it meanwhile
                self.reused += 1
                return self._read(path, key)
            if self.wait and self.spent():  # spent by waiting
                self.missing.append(inputs)
                return None
            result = compute(key)
            run = {"id": key, "producer": producer, "version": version, "inputs": inputs, "data": data_digest}
            write_json(path, run | {"digest": _digest(result), "result": result})
        self.computed += 1
        return result

    def attempt(
        self, producer: str, version: int, inputs: dict, data_digest: str, compute: Callable[[str], dict]
    ):
        """`get`, where a run that cannot be finished is listed as missing, with the reason, and stops no other."""
        try:
            return self.get(producer, version, inputs, data_digest, compute)
        except Unfinished:
            self.missing.append(inputs)
        except Stopped as error:
            self.missing.append(inputs | {"stopped": str(error).split(";")[0]})
        return None

    def _read(self, path: Path, key: str) -> dict:
        run = read_json(path)
        if (
            not isinstance(run, dict)
            or run.get("id") != key
            or run.get("digest") != _digest(run.get("result"))
        ):
            raise InputError(
                f"{path} is corrupt: it does not match its digest; accepted: the file as saved, or none to compute it again"
            )
        return run["result"]


def _digest(result) -> str:
    return hashlib.sha256(canonical(result).encode()).hexdigest()


def thin(log: Tensor, n: int = 100) -> list[float]:
    """At most n evenly spaced values of a log, rounded to 6 significant digits, NaN left out."""
    values = log[~log.isnan()]
    chosen = values[torch.linspace(0, len(values) - 1, min(n, len(values))).long()] if len(values) else values
    return [float(f"{value:.6g}") for value in chosen.tolist()]
