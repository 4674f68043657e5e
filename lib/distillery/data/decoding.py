"""Encoded images to one uint8 array: JPEG, PNG, WebP and BMP, decoded in threads.

Images are taken as they are stored (EXIF rotation is not applied; of an animation, the first frame). Gray stays gray
only where all images are gray; palettes become RGB. Images with an alpha channel are laid on white, 16-bit images keep
their high byte; both are counted, so that it can be said.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from distillery.checks import InputError, check_positive_int
from distillery.data.archives import shown, threads

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 1 << 26  # of one image; more is taken for a decompression bomb
_CHUNK = 64  # images a task


def check_sides(resize: int, max_side: int) -> None:
    """Raise InputError unless both are whole numbers of at least 0 (0 = as the images are)."""
    for name, value in (("resize", resize), ("max_side", max_side)):
        if value != 0 or isinstance(value, bool):
            check_positive_int(name, value)


@dataclass
class _Tally:
    """What was met while decoding a part of the files."""

    sizes: Counter = field(default_factory=Counter)  # (width, height) -> images
    first: dict = field(default_factory=dict)  # (width, height) -> (row, name)
    facts: Counter = field(default_factory=Counter)  # 'alpha', '16-bit', 'gray' -> images
    unreadable: list = field(default_factory=list)  # (row, name)
    color: bool = False  # a color image was met where gray ones were expected

    def add(self, other: "_Tally") -> None:
        self.sizes += other.sizes
        self.facts += other.facts
        self.unreadable += other.unreadable
        self.color |= other.color
        for size, seen in other.first.items():
            self.first[size] = min(self.first.get(size, seen), seen)


def decode(where, plan, resize: int, max_side: int, progress: bool, allocate: Callable) -> tuple[np.ndarray, list[str]]:
    """Decode the files of a plan: uint8 (N, C, H, W) and notes; C is 1 where all images are gray, else 3.

    allocate  gives an array of a shape to decode into, in memory or on disk
    raises    InputError on unreadable files (with their number) and on images of unequal size without `resize`
    """
    result = _decode(where, plan, resize, max_side, progress, False, allocate)
    return result or _decode(where, plan, resize, max_side, progress, True, allocate)


def _decode(where, plan, resize, max_side, progress, color, allocate):
    """One pass over the files; None if color is needed and was not asked for."""
    rows = {name: row for row, name in enumerate(plan.files)}
    tally, out, source, size, mode = _Tally(), None, None, None, ""

    def work(chunk) -> _Tally:
        met = _Tally()
        for name, payload in chunk:
            image, facts = open_image(payload)
            if image is None:
                met.unreadable.append((rows[name], name))
                continue
            met.sizes[image.size] += 1
            met.first.setdefault(image.size, (rows[name], name))
            met.facts.update(facts)
            if mode == "L" != image.mode:
                met.color = True
            elif resize or image.size == source:
                _put(image, mode, size, out[rows[name]])
        return met

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads()))
        bar = stack.enter_context(tqdm(total=len(rows), desc="decoding", unit="image", disable=not progress, leave=False))
        chunks = chunked(where.read(plan.files))
        for chunk in chunks:  # the first image that can be decoded fixes shape and mode
            image = next((image for image, _ in map(open_image, (p for _, p in chunk)) if image), None)
            if image is not None:
                source, mode = image.size, "RGB" if color else image.mode
                size, notes = target_size(source, resize, max_side)
                out = allocate((len(rows), len(mode), size[1], size[0]))
                chunks = _then(chunk, chunks)
                break
            tally.unreadable += [(rows[name], name) for name, _ in chunk]
        for met, n in over_chunks(pool, work, chunks):
            tally.add(met)
            bar.update(n)
            if tally.color:
                return None
    if tally.unreadable:
        first = shown(where.root / min(tally.unreadable)[1])
        raise InputError(f"{len(tally.unreadable)} of {len(rows)} images cannot be read, first {first}; accepted: whole image files")
    if len(tally.sizes) > 1 and not resize:
        (usual, _), odd = tally.sizes.most_common(1)[0], tally.sizes.most_common()[-1][0]
        name = shown(tally.first[odd][1].rpartition("/")[2])
        raise InputError(
            f"images of {len(tally.sizes)} sizes, e.g. {name} is {odd[0]}x{odd[1]} and most are "
            f"{usual[0]}x{usual[1]}; accepted: equal sizes, or resize=SIDE"
        )
    return out, notes + said(tally.facts, len(rows), mode)


def said(facts: Counter, n: int, mode: str) -> list[str]:
    notes = []
    if mode == "RGB" and facts["gray"]:
        notes.append(f"{facts['gray']} gray image(s) of {n} made RGB")
    if facts["alpha"]:
        notes.append(f"{facts['alpha']} image(s) with an alpha channel laid on white")
    if facts["16-bit"]:
        notes.append(f"{facts['16-bit']} image(s) of 16 bits scaled to 8")
    return notes


def target_size(size: tuple[int, int], resize: int, max_side: int) -> tuple[tuple[int, int], list[str]]:
    """(width, height) after `resize` and `max_side`, and notes on what that does."""
    notes = []
    if resize:
        size = (resize, resize)
        notes.append(f"resized to {resize}x{resize}")
    if max_side and max(size) > max_side:
        small = tuple(max(1, round(side * max_side / max(size))) for side in size)
        notes.append(f"shrunk from {size[0]}x{size[1]} to {small[0]}x{small[1]} (max_side {max_side})")
        size = small
    return size, notes


def _put(image: Image.Image, mode: str, size: tuple[int, int], out: np.ndarray) -> None:
    """Write an image as (C, H, W) into `out`."""
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)  # averages over the shrunk area
    out[:] = np.asarray(image).reshape(size[1], size[0], -1).transpose(2, 0, 1)


def fit(pixels: np.ndarray, resize: int, max_side: int) -> tuple[np.ndarray, list[str]]:
    """Resize decoded images (N, C, H, W) uint8 as `decode` would; and notes."""
    n, channels, height, width = pixels.shape
    size, notes = target_size((width, height), resize, max_side)
    if size == (width, height):
        return pixels, notes
    out = np.empty((n, channels, size[1], size[0]), np.uint8)
    for image, slot in zip(pixels.transpose(0, 2, 3, 1), out):
        image = Image.fromarray(np.ascontiguousarray(image if channels == 3 else image[..., 0]))
        _put(image, image.mode, size, slot)
    return out, notes


def open_image(payload: bytes | Path) -> tuple[Image.Image | None, list[str]]:
    """One decoded image as L or RGB, None if it cannot be read; and facts: 'gray', 'alpha', '16-bit', 'mode ...'."""
    try:
        file = BytesIO(payload) if isinstance(payload, bytes) else payload
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None, []
            mode, facts = image.mode, []
            rawmode = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
            if mode.startswith("I") or ";16" in rawmode:
                facts.append("16-bit")
            image.load()
            gray = mode in ("1", "L", "LA", "La") or mode.startswith("I")
            if mode.startswith("I"):  # Pillow would clip at 255; for color it keeps the high byte, as here
                image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
            elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
                facts.append("alpha")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if gray else "RGB")
            facts += [f"mode {mode}{' 16 bits' if '16-bit' in facts else ''}", *(["gray"] if gray else [])]
            return image, facts
    except Exception:  # Pillow's decoders raise a dozen kinds on broken files: all mean the same here
        return None, []


def chunked(files: Iterator) -> Iterator[list]:
    while chunk := list(islice(files, _CHUNK)):
        yield chunk


def _then(first, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def over_chunks(pool: ThreadPoolExecutor, work: Callable, chunks: Iterable[list]) -> Iterator[tuple]:
    """(work(chunk), length) in order, with only a few chunks in memory."""
    waiting: deque = deque()
    for chunk in chunks:
        waiting.append((pool.submit(work, chunk), len(chunk)))
        if len(waiting) > 2 * threads():
            future, n = waiting.popleft()
            yield future.result(), n
    for future, n in waiting:
        yield future.result(), n
