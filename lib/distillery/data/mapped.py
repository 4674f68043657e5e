"""Pixels written to a file image by image and mapped from disk."""

import math
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.store import _META, _card_digest, canonical


class MappedPixels:
    """Write 'pixels' (N, C, H, W) uint8, which may be larger than memory, and 'targets' (N,) int64 into a file for `load_tensors`.

        with MappedPixels(path) as file:
            pixels = file.allocate(shape, targets, card)  # a numpy array on disk, to be filled
            ...
            file.finish()

    The file appears under its name only by `finish`. Disk space is reserved first: a full disk is an InputError before any work is done.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.pixels: np.ndarray | None = None

    def __enter__(self) -> "MappedPixels":
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def allocate(self, shape: tuple[int, ...], targets: Tensor, card: dict) -> np.ndarray:
        """The array to fill; a second call starts over. `card` may still be added to until `finish`."""
        assert targets.dtype == torch.int64
        self.targets, self.card = targets, card
        self.head = len(self._header(shape, "")) + (1 << 16)
        self.head += -self.head % 8
        start = 8 + self.head + targets.nbytes
        with self._writing(), open(self.temporary, "wb") as file:
            file.truncate(start + math.prod(shape))
            if hasattr(os, "posix_fallocate"):  # reserve the space: writing to a mapped full disk kills the process
                os.posix_fallocate(file.fileno(), 0, start + math.prod(shape))
        self.pixels = np.memmap(self.temporary, np.uint8, "r+", start, shape)
        return self.pixels

    def finish(self) -> None:
        """Put the header and the targets before the filled array, flush, and give the file its name."""
        digest = _card_digest({"pixels": torch.from_numpy(self.pixels), "targets": self.targets}, self.card)
        header = self._header(self.pixels.shape, digest).ljust(self.head)
        with self._writing():
            self.pixels.flush()
            with open(self.temporary, "r+b") as file:
                file.write(self.head.to_bytes(8, "little") + header + self.targets.contiguous().numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)

    @contextmanager
    def _writing(self):
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}; accepted: a writable folder with free space") from error

    def _header(self, shape: tuple[int, ...], digest: str) -> bytes:
        """Of a safetensors file: first the targets, which must be aligned, then the pixels."""
        n, end = self.targets.nbytes, self.targets.nbytes + math.prod(shape)
        header = {
            "__metadata__": {_META: canonical({"digest": digest.ljust(64), "card": self.card})},
            "targets": {"dtype": "I64", "shape": list(self.targets.shape), "data_offsets": [0, n]},
            "pixels": {"dtype": "U8", "shape": list(shape), "data_offsets": [n, end]},
        }
        return canonical(header).encode()
