"""What is in a folder or archive of images: classes, sizes, duplicates, unreadable files."""

import hashlib
from collections import Counter
from pathlib import Path

from distillery.data.archives import origin, shown
from distillery.data.decoding import open_image, said, scan
from distillery.data.folders import Plan, plan_of


def check(path: str | Path, progress: bool = False, skip_unreadable: bool = False) -> tuple[list[str], bool]:
    """Look at every image: lines to print, and whether all can be loaded, those that cannot be read passed over if that is asked for.

    Raises InputError where the folders are no data set.
    """
    where = origin(path)
    plan = plan_of(where, skip_unreadable)
    rows = {name: row for row, name in enumerate(plan.files)}
    sizes, facts, unreadable = Counter(), Counter(), {}
    pixels: dict[bytes, list[int]] = {}  # rows by what identifies the decoded pixels

    def work(name: str, payload) -> tuple:
        image, met = open_image(payload)
        if image is None:
            return rows[name], None, met, b""
        return rows[name], image.size, met, hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()

    for row, size, met, digest in scan(where.read(plan.files), len(rows), work, "checking", progress):
        if size is None:
            unreadable[row] = met[0]
            continue
        sizes[size] += 1
        facts.update(met)
        pixels.setdefault(digest, []).append(row)
    broken = [f"  {shown(plan.files[row])}: {why}" for row, why in sorted(unreadable.items())]
    if skip_unreadable and unreadable:
        kept = plan.without(plan.files[row] for row in unreadable)
        new = {name: row for row, name in enumerate(kept.files)}
        groups = [[new[plan.files[row]] for row in rows] for rows in pixels.values()]
        lines, usable = _report(where, kept, sizes, facts, [], groups)
        return [*lines[:-1], f"passed over:       {len(broken)}", *broken, lines[-1]], usable
    return _report(where, plan, sizes, facts, broken, list(pixels.values()))


def _report(where, plan: Plan, sizes, facts, unreadable: list[str], groups: list[list[int]]) -> tuple[list[str], bool]:
    n, n_train = len(plan.files), plan.n_train
    train, test = (Counter(part) for part in (plan.labels[:n_train], plan.labels[n_train:]))
    parts = f"{n_train} training and {n - n_train} test images" if test else f"{n} images, no test part"
    lines = [f"{shown(where.path)}: {len(plan.classes)} classes, {parts}"]
    width = min(30, max(len(shown(name)) for name in plan.classes))
    for label, name in enumerate(plan.classes[:20]):
        lines.append(f"  {shown(name):<{width}}  {train[label]:>6}" + (f" {test[label]:>6}" if test else ""))
    if len(plan.classes) > 20:
        lines.append(f"  ... and {len(plan.classes) - 20} more classes")
    for title, counts in (("a class, training", train.values()), ("a class, test", test.values())):
        if counts:
            low, high = min(counts), max(counts)
            lines.append(f"{title + ':':<19}{low if low == high else f'{low} to {high}'} images")
    shape = [f"{w}x{h} ({k})" for (w, h), k in sizes.most_common(5)]
    modes = [f"{fact[5:]} ({k})" for fact, k in facts.most_common() if fact.startswith("mode ")]
    lines.append(f"{'sizes:':<19}{', '.join(shape) or 'none'}" + (" ..." if len(sizes) > 5 else ""))
    lines.append(f"{'modes:':<19}{', '.join(modes) or 'none'}")
    lines += [*_duplicates(plan, groups), f"{'unreadable:':<19}{len(unreadable)}"]
    lines += unreadable
    gray = facts["gray"] == n - len(unreadable)
    lines += [f"note: {note}" for note in plan.notes + said(facts, n, "L" if gray else "RGB")]
    least, split = (2, "training and validation") if test else (3, "training, validation and test")
    small = [name for label, name in enumerate(plan.classes) if train[label] < least]
    why = [f"{len(unreadable)} of {n} images cannot be read"] if unreadable else []
    if small:
        why.append(f"{len(small)} class(es) with fewer than {least} images, first {shown(small[0])} (to be split in {split})")
    if why:
        return [*lines, f"not usable: {'; '.join(why)}"], False
    if len(sizes) > 1:
        return [*lines, "usable with resize=SIDE: the sizes differ"], True
    thin = any(max(size) > 8 * min(size) for size in sizes)
    return [*lines, "usable with resize=SIDE or max_side 0: long and thin images" if thin else "usable"], True


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
