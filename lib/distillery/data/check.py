"""What is in a folder or archive of images: classes, sizes, duplicates, unreadable files."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from distillery.data.archives import origin, shown, threads
from distillery.data.decoding import chunked, open_image, over_chunks, said
from distillery.data.folders import Plan, _plan


@dataclass
class Report:
    """What `check` found: lines to print, and whether the images can be loaded."""

    lines: list[str]
    usable: bool


def check(path: str | Path, progress: bool = False, max_unpacked_gb: float = 64.0) -> Report:
    """Look at every image of a folder or archive: classes, counts, sizes, modes, duplicates, unreadable files.

    Duplicates are images with the same decoded pixels. raises  InputError where the folders themselves are no data set
    """
    where = origin(path, max_unpacked_gb)
    plan = _plan(where)
    rows = {name: row for row, name in enumerate(plan.files)}
    sizes, facts, unreadable = Counter(), Counter(), []
    pixels: dict[bytes, list[int]] = {}

    def work(chunk) -> list[tuple]:
        seen = [(rows[name], *open_image(payload)) for name, payload in chunk]
        return [(row, image and image.size, facts, image and _fingerprint(image)) for row, image, facts in seen]

    with (
        ThreadPoolExecutor(threads()) as pool,
        tqdm(total=len(rows), desc="checking", unit="image", disable=not progress, leave=False) as bar,
    ):
        for found, n in over_chunks(pool, work, chunked(where.read(plan.files))):
            bar.update(n)
            for row, size, seen, digest in found:
                if size is None:
                    unreadable.append(row)
                    continue
                sizes[size] += 1
                facts.update(seen)
                pixels.setdefault(digest, []).append(row)
    return _report(where, plan, sizes, facts, sorted(unreadable), list(pixels.values()))


def _fingerprint(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()


def _report(where, plan: Plan, sizes, facts, unreadable: list[int], groups: list[list[int]]) -> Report:
    n, n_train = len(plan.files), plan.n_train
    train, test = (Counter(part) for part in (plan.labels[:n_train], plan.labels[n_train:]))
    parts = f"{n_train} training and {n - n_train} test images" if test else f"{n} images, no test part"
    lines = [f"{shown(where.path)}: {len(plan.classes)} classes, {parts}"]
    width = min(30, max(len(shown(name)) for name in plan.classes))
    for label, name in list(enumerate(plan.classes))[:20]:
        lines.append(f"  {shown(name):<{width}}  {train[label]:>6}" + (f" {test[label]:>6}" if test else ""))
    if len(plan.classes) > 20:
        lines.append(f"  ... and {len(plan.classes) - 20} more classes")
    for title, counts in (("a class, training", train), ("a class, test", test)):
        if counts:
            lines.append(f"{title + ':':<19}{_range(counts.values())}")
    shape = [f"{w}x{h} ({k})" for (w, h), k in sizes.most_common(5)]
    lines.append(f"{'sizes:':<19}{', '.join(shape) or 'none'}" + (" ..." if len(sizes) > 5 else ""))
    modes = [f"{fact[5:]} ({k})" for fact, k in facts.most_common() if fact.startswith("mode ")]
    lines.append(f"{'modes:':<19}{', '.join(modes) or 'none'}")
    lines += _duplicates(plan, groups)
    lines.append(f"{'unreadable:':<19}{len(unreadable)}")
    lines += [f"  {shown(plan.files[row])}" for row in unreadable[:10]]
    lines += [f"  ... and {len(unreadable) - 10} more"] * (len(unreadable) > 10)
    gray = facts["gray"] == n - len(unreadable)
    notes = plan.notes + said(facts, n, "L" if gray else "RGB")
    lines += [f"note: {note}" for note in notes]
    least = 2 if test else 3
    small = [name for label, name in enumerate(plan.classes) if train[label] < least]
    why = []
    if unreadable:
        why.append(f"{len(unreadable)} of {n} images cannot be read")
    if small:
        why.append(
            f"{len(small)} class(es) with fewer than {least} images, first {shown(small[0])} (to be split in "
            + ("training and validation)" if test else "training, validation and test)")
        )
    if why:
        return Report([*lines, f"not usable: {'; '.join(why)}"], False)
    return Report([*lines, "usable" if len(sizes) == 1 else "usable with resize=SIDE: the sizes differ"], True)


def _duplicates(plan: Plan, groups: list[list[int]]) -> list[str]:
    several = [sorted(rows) for rows in groups if len(rows) > 1]
    lines = []
    if plan.n_train < len(plan.files):
        across = sorted(rows for rows in several if rows[0] < plan.n_train <= rows[-1])
        n = sum(row >= plan.n_train for rows in across for row in rows)
        lines.append(f"{'train and test:':<19}{n} test image(s) are also training images")
        lines += [f"  {shown(plan.files[rows[0]])} = {shown(plan.files[rows[-1]])}" for rows in across[:5]]
    extra = sum(len(rows) - 1 for rows in several)
    mixed = sum(len({plan.labels[row] for row in rows}) > 1 for rows in several)
    lines.append(f"{'duplicates:':<19}{extra} image(s) repeat another, {mixed} of them under two labels")
    return lines


def _range(counts) -> str:
    low, high = min(counts), max(counts)
    return f"{low} images" if low == high else f"{low} to {high} images"
