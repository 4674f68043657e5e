"""Sets of clips, from videos or folders of frames to images of T * C channels, decoded once and cached as images are."""

import hashlib
from collections import Counter
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data.archives import Folder, first_names, origin, shown
from distillery.data.cache import DONE, NOTED, Decoded, cache_folder, cached
from distillery.data.decoding import scan
from distillery.data.folders import Plan
from distillery.data.images import Standardize
from distillery.data.video_layouts import plan_of_clips
from distillery.data.videos import FACTS, RULES, clip, frames_in, start_of

VERSION = 1  # of the decoding: a change makes older cache files stale


def load_clips(
    path, frames: int, side: int, *, rule: str = "middle", passes: int = 1, split: int = 1, seed: int = 0, cache_dir="", mapped=None, progress=False
) -> Decoded:  # fmt: skip
    """Decode the clips below a folder, or read them from the cache: (N, frames * 3, side, side).

    rule, split  of `clip` and `plan_of_clips`
    passes       how often each test clip is there, each time from another start under the rule 'gap': accuracy is the mean over them
    seed         of the starts
    returns      clips that can be read; those that cannot are counted and named in the notes. The cache knows clips by `clips_digest`
    raises       InputError as `plan_of_clips`, on a place that is no folder, and where a class has no clip that can be read
    """
    check_choice("rule", rule, RULES)
    for name, value in {"frames": frames, "resize": side, "passes": passes}.items():
        check_positive_int(name, value)
    where = origin(path)
    if not isinstance(where, Folder):
        raise InputError(f"data_root: {shown(path)} is an archive; accepted: a folder of clips")
    plan, gap = plan_of_clips(where.path, split), rule == "gap"
    if passes > 1 and not gap:
        raise InputError(f"passes: {passes} of the rule {rule!r}, which always starts alike; accepted: 1, or rule=gap")
    if passes > 1 and plan.n_train == len(plan.files):
        raise InputError(f"passes: {passes} of clips without a test part; accepted: 1, or train/ and test/")
    # row by row: file, pass, label
    rows = [(name, 0, label) for name, label in zip(plan.files, plan.labels)]
    tests = rows[plan.n_train :]
    rows = rows[: plan.n_train] + [(name, number, label) for name, _, label in tests for number in range(passes)]

    def produce(allocate):
        unreadable, bits = {}, {fact: 2 << i for i, fact in enumerate(FACTS)}
        out = allocate((len(rows), 3 * frames, side, side))
        left = {f"{row}": row for row in range(len(rows)) if not out.seen[row]}

        def work(at: str, file: Path) -> tuple:
            name, number, _ = rows[left[at]]
            found, met = clip(file, frames, side, rule=rule, start=start_of(seed, name, number) if gap else None)
            if found is not None:
                out[left[at]][:] = found
            return at, found is not None, met

        files = ((at, where.path / rows[row][0]) for at, row in left.items())
        with closing(scan(files, len(rows), work, "decoding", progress)) as scanned:
            for at, readable, met in scanned:
                if readable:
                    out.seen[left[at]] = DONE + sum(bits[fact] for fact in met)
                    out.note(NOTED)
                else:
                    unreadable[rows[left[at]][0]] = met[0]
        kept = plan.without(unreadable)
        there = [row for row in rows if row[0] not in unreadable]
        facts = Counter({fact: int((out.seen & bit > 0).sum()) for fact, bit in bits.items()})
        notes = [f"{count} {FACTS[fact]}" for fact, count in facts.items() if count]
        if unreadable:
            named = [f"{name} ({why})" for name, why in sorted(unreadable.items())]
            notes.insert(0, f"{len(unreadable)} clip(s) that cannot be read passed over: {first_names(named)}")
        notes += [f"{passes} starts of each test clip"] if passes > 1 else []
        card = {"classes": kept.classes, "n_train": kept.n_train, "notes": plan.notes + notes, "files": [name for name, *_ in rows]}
        return out, torch.tensor([label for *_, label in there]), card | {"skipped": sorted(unreadable)}

    options = {"frames": frames, "side": side, "rule": rule, "passes": passes} | ({"seed": seed} if gap else {})
    key = store.identity("decoded clips", VERSION, options, clips_digest(where.path, plan))
    return cached(cache_folder(cache_dir), key, shown(where.name), produce, mapped)


def clips_digest(root: Path, plan: Plan) -> str:
    """What the clips of a plan are known by: sha256 over their order, labels, names and sizes; their content is many times that of what is kept."""
    sizes = [
        sum(file.stat().st_size for file in frames_in(path)) if path.is_dir() else path.stat().st_size
        for path in map(root.joinpath, plan.files)
    ]
    told = [[shown(name) for name in plan.files], sizes, plan.labels, plan.n_train, plan.classes]
    return hashlib.sha256(store.canonical(told).encode()).hexdigest()


def same_for_frames(transform: Standardize, frames: int) -> Standardize:
    """One mean and deviation a color over all frames, from those (T * C,) of each frame."""
    mean, square = (value.double().view(frames, -1) for value in (transform.mean, transform.std.square() + transform.mean.square()))
    mean, square = mean.mean(0), square.mean(0)
    spread: Tensor = (square - mean.square()).clamp(min=0).sqrt()
    return Standardize(mean.float().repeat(frames), torch.where(spread > 1e-4, spread, 1.0).float().repeat(frames))
