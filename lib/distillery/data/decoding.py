"""Encoded images to one uint8 array, decoded in threads: turned as their EXIF orientation says, of an animation the first frame."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from distillery.checks import InputError, first_line
from distillery.data.archives import first_names, shown, threads
from distillery.data.cache import DONE, NOTED

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 1 << 26  # of one image; more is taken for a decompression bomb
FACTS = {"gray": 2, "alpha": 4, "16-bit": 8, "turned": 16, "cropped": 32}  # bits of what was met in an image
_CHUNK = 256  # files read at a time
_OTHERS = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"ftyphe": "HEIC", b"ftypmif1": "HEIC", b"ftypavif": "AVIF"}
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # bytes: prompts and color profiles of more than 1 MB are no bombs
# by EXIF orientation, from 2; ImageOps.exif_transpose would write the EXIF anew, and fail where some of it is odd
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


def decode(where, plan, resize: int, max_side: int, progress: bool, allocate: Callable, skip=False, color=False) -> tuple:
    """Decode the files of a plan: the pixels (N, C, H, W), the plan of what was decoded, and notes; C is 1 where all images are gray, else 3.

    allocate  gives what a shape is decoded into, `data.cache.Building`, where rows that it holds already are not decoded again
    skip      pass over what cannot be decoded
    color     set on the second pass, which a color image after gray ones makes necessary
    raises    InputError on unreadable files (with their number) and on images of unequal size without `resize`
    """
    rows = {name: row for row, name in enumerate(plan.files)}
    unreadable: dict[str, str] = {}
    with closing(where.read(plan.files)) as files:
        for name, payload in files:  # the first image that can be decoded fixes shape and mode
            image, met = open_image(payload)
            if image is not None:
                break
            unreadable[name] = met[0]
    if len(unreadable) == len(rows):
        _refuse(unreadable, rows, where)
    source = image.size
    size, notes = target_size(source, resize, max_side)
    out = allocate((len(rows), 3 if color else len(image.mode), size[1], size[0]))
    mode = "L" if out.shape[1] == 1 else "RGB"
    left = [name for name, row in rows.items() if not out.seen[row]]
    sizes, first = Counter({source: len(rows) - len(left)}), {source: name}  # of images, and an image of each

    def work(name: str, payload) -> tuple:
        image, met = open_image(payload)
        if image is None:
            return name, None, met
        if mode in ("RGB", image.mode) and (resize or image.size == source):
            _put(image, mode, size, out[rows[name]], crop=resize > 0)
        return name, image.size, met + ["cropped"] * (resize > 0 and image.width != image.height)

    with closing(scan(where.read(left), len(rows), work, "decoding", progress)) as scanned:
        for name, seen, met in scanned:
            if seen is None:
                unreadable[name] = met[0]
                continue
            sizes[seen] += 1
            first.setdefault(seen, name)
            if mode == "L" and "gray" not in met:
                color = True
                break
            if resize or seen == source:
                out.seen[rows[name]] = DONE + sum(bit for fact, bit in FACTS.items() if fact in met)
                out.note(NOTED)
    if color and mode == "L":
        return decode(where, plan, resize, max_side, progress, allocate, skip, True)
    if unreadable and not skip:
        _refuse(unreadable, rows, where)
    if len(+sizes) > 1 and not resize:
        (usual, _), *_, (odd, _) = sizes.most_common()
        example = f"{shown(first[odd].rpartition('/')[2])} is {odd[0]}x{odd[1]} and most are {usual[0]}x{usual[1]}"
        raise InputError(f"images of {len(sizes)} sizes, e.g. {example}; accepted: equal sizes, or resize=SIDE")
    facts = Counter({fact: int((out.seen & bit > 0).sum()) for fact, bit in FACTS.items()})
    notes += said(facts, len(rows) - len(unreadable), mode)
    if unreadable:
        return out, plan.without(unreadable), [passed_over(unreadable), *notes]
    return out, plan, notes


def _refuse(unreadable: dict[str, str], rows: dict[str, int], where) -> None:
    name = min(unreadable, key=rows.get)
    found = f"{len(unreadable)} of {len(rows)} images cannot be read, first {shown(where.path / name)} ({unreadable[name]})"
    raise InputError(f"{found}; accepted: whole files of {', '.join(FORMATS)}")


def passed_over(unreadable: dict[str, str]) -> str:
    """The note on images that cannot be decoded, by name and why."""
    names = [f"{name} ({why})" for name, why in sorted(unreadable.items())]
    return f"{len(names)} image(s) that cannot be read passed over: {first_names(names)}"


def said(facts: Counter, n: int, mode: str) -> list[str]:
    """What was met in `n` images that are kept in this mode, in words."""
    found = {
        f"gray image(s) of {n} made RGB": facts["gray"] if mode == "RGB" else 0,
        "image(s) with an alpha channel laid on white": facts["alpha"],
        "image(s) of 16 bits scaled to 8": facts["16-bit"],
        "image(s) turned upright, as their EXIF orientation says": facts["turned"],
        "image(s) that are not square cut to their centre": facts["cropped"],
    }
    return [f"{count} {what}" for what, count in found.items() if count]


def target_size(size: tuple[int, int], resize: int, max_side: int) -> tuple[tuple[int, int], list[str]]:
    """(width, height) after `resize` and `max_side`, and notes on what that does."""
    notes = []
    if resize:
        size, notes = (resize, resize), [f"resized to {resize}x{resize}"]
    if max_side and max(size) > max_side:
        small = tuple(max(1, round(side * max_side / max(size))) for side in size)
        if min(small) < 2 <= min(size):
            raise InputError(f"max_side: {max_side} makes {size[0]}x{size[1]} {small[0]}x{small[1]}; accepted: 0, or resize=SIDE")
        notes.append(f"shrunk from {size[0]}x{size[1]} to {small[0]}x{small[1]} (max_side {max_side})")
        size = small
    return size, notes


def _put(image: Image.Image, mode: str, size: tuple[int, int], out: np.ndarray, crop: bool) -> None:
    """Write an image as (C, H, W) into `out`; `crop`: the short side is resized and the centre kept, as the public codes of MTT and FTD do."""
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size:
        shape = ImageOps.fit if crop else Image.Image.resize
        image = shape(image, size, Image.Resampling.BILINEAR)  # averages over the shrunk area
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
        _put(image, image.mode, size, slot, crop=resize > 0)
    return out, notes + said(Counter(cropped=n * (resize > 0 and height != width)), n, "")


def open_image(payload: bytes | Path) -> tuple[Image.Image | None, list[str]]:
    """One decoded image as L or RGB, and facts: 'gray', 'alpha' (laid on white), '16-bit', 'turned', 'mode ...'; None and why if unreadable."""
    try:
        file = BytesIO(payload) if isinstance(payload, bytes) else payload
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
            mode, facts = image.mode, []
            rawmode = str(image.tile[0].args) if image.format == "PNG" and image.tile else ""
            if mode.startswith("I") or ";16" in rawmode:
                facts.append("16-bit")
            image.load()
            turn = 1
            with suppress(Exception):  # EXIF that cannot be read says nothing
                turn = int(image.getexif().get(ExifTags.Base.Orientation, 1))
            gray = mode in ("1", "L", "LA", "La") or mode.startswith("I")
            if mode.startswith("I"):  # Pillow would clip at 255; for color it keeps the high byte, as here
                image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
            elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
                facts.append("alpha")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if gray else "RGB")
            if turn in range(2, 9):
                image = image.transpose(Image.Transpose[_TURNS[turn - 2]])
                facts.append("turned")
            facts += [f"mode {mode}{' 16 bits' if '16-bit' in facts else ''}", *(["gray"] if gray else [])]
            return image, facts
    except Exception as error:  # Pillow's decoders raise a dozen kinds on broken files: all mean the same here
        return None, [why_not(payload, error)]


def why_not(payload: bytes | Path, error: Exception) -> str:
    """Why a file cannot be decoded: what else it is, or what its decoder says."""
    if not isinstance(error, UnidentifiedImageError):
        return shown(getattr(error, "strerror", None) or first_line(error))
    if isinstance(payload, Path):
        with payload.open("rb") as file:
            payload = file.read(256)
    known = [kind for magic, kind in _OTHERS.items() if payload.find(magic) in (0, 4)]
    text = b"".join(payload[:256].split()).decode("latin1")
    return known[0] if known else "an empty file" if not payload else "text" if text.isprintable() and text.isascii() else "no image"


def scan(files: Iterator[tuple], n: int, work: Callable, title: str, progress: bool) -> Iterator:
    """work(name, payload) of each of `n` files, in order: done in threads, with only a few files in memory."""
    with ThreadPoolExecutor(threads()) as pool, tqdm(total=n, desc=title, unit="image", disable=not progress, leave=False) as bar:
        while chunk := list(islice(files, _CHUNK)):
            for found in pool.map(lambda file: work(*file), chunk):
                bar.update()
                yield found
