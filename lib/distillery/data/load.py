"""Real images, named or in folders, as disjoint splits: test images serve the final accuracy alone."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_fraction, check_positive_int, local_path
from distillery.data import folders, named
from distillery.data.archives import origin
from distillery.data.cache import cache_folder, known_digest
from distillery.data.clips import SHAPES_PER_CLASS, SIDE, moving_shapes
from distillery.data.images import PUBLISHED, ImageSet, LazyImages, Splits, fit_standardize, fit_zca, published
from distillery.data.video_sets import clips_digest, load_clips, plan_of_clips, same_for_frames
from distillery.seeds import generator

CLIPS = ("clips", "moving-shapes")
NAMES = (*named.NAMES, "folder", *CLIPS)
TEST, VALIDATION = 0.2, 0.1  # shares of the images of each class
NORMALIZATIONS = ("own", "zca", "published", *(f"published:{name}" for name in PUBLISHED))


def load(
    dataset: str,
    data_root: str | Path = "",
    *,
    seed: int = 0,
    max_side: int = 0,
    resize: int = 0,
    per_class: int = 0,
    test_per_class: int = 0,
    held_out: float = VALIDATION,
    normalization: str = "own",
    frames: int = 0,
    rule: str = "middle",
    passes: int = 1,
    split: int = 1,
    cache_dir: str | Path = "",
    mapped: bool | None = None,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> Splits:
    """Load a data set as disjoint splits, standardized by its training images.

    dataset         'digits' (bundled with scikit-learn), a published set such as 'cifar10' (see `named.py`: its files are looked for in
                    data_root, fetched if missing, and used only with the published checksum), or 'folder': class folders at data_root,
                    itself a folder, .zip, .tar.gz, .tgz or .tar, either inside train/ and test/ (or val/) or directly, of which the
                    seed then draws a fifth of each class as test images. 'clips': videos or folders of frames below data_root, in the layouts
                    of `plan_of_clips`, as images of frames * 3 channels; 'moving-shapes': drawn clips
    max_side        shrink larger images so that no side exceeds it, 0 = never
    resize          make every image a square of this side, the short side resized and the centre kept; 0 = images must have equal sizes
    per_class       at most so many training images a class (before the validation split), drawn by the seed, 0 = all
    test_per_class  likewise for test images
    held_out        the share of the training images of each class that is for validation, at least one, and is left out of training, 0 = none
    normalization   'own' (channel mean and std), 'zca' (eps 0.1), 'published' (the constants of the named set) or 'published:NAME' (those
                    of another set, for folders of its images)
    frames          of a clip: 0 for images
    rule            which frames of a video: 'middle' or 'gap', see `videos.clip`; passes = starts of each test clip by the second
    split           which published split of UCF101 and HMDB51
    cache_dir       where decoded pixels are kept, '' = $DISTILLERY_CACHE or ~/.cache/distillery; removable any time
    mapped          leave the pixels on disk and read them as `batch` needs them; None = where they take more than a quarter of the memory
    skip_unreadable pass over files of a folder that are no images or cannot be decoded; they are counted and named in a note
    progress        show a progress bar while decoding and downloading
    raises          InputError on anything that cannot be loaded as asked
    """
    check_choice("dataset", dataset, NAMES)
    check_choice("normalization", normalization, NORMALIZATIONS)
    for name, value in {"resize": resize, "max_side": max_side, "per_class": per_class, "test_per_class": test_per_class}.items():
        if value != 0 or isinstance(value, bool):
            check_positive_int(name, value)
    kept, _, constants = normalization.partition(":")
    if kept == "zca" and frames:
        raise InputError("normalization: 'zca' of clips; accepted: own, published:NAME")
    if kept == "published":
        check_choice("normalization: published constants of", constants or dataset, PUBLISHED)
    if (dataset in CLIPS) != bool(frames):
        raise InputError(f"frames: {frames} of {dataset!r}; accepted: 0 for images, more for {' and '.join(CLIPS)}")
    if dataset == "moving-shapes":
        return moving_shapes(per_class or SHAPES_PER_CLASS, frames, resize or SIDE, seed)
    options = {"cache_dir": cache_dir, "mapped": mapped, "progress": progress}
    if dataset == "clips":
        found = load_clips(data_root, frames, resize, rule=rule, passes=passes, split=split, seed=seed, **options)
    else:
        options |= {"resize": resize, "max_side": max_side}
        files = options | {"skip_unreadable": skip_unreadable}
        found = folders.load_files(data_root, **files) if dataset == "folder" else named.load(dataset, data_root, **options)
    # Until the last step a part is only a list of rows, so that the pixels are copied once and not at every step.
    rows, notes = torch.arange(len(found.targets)), list(found.notes)
    mapped = isinstance(found.pixels, LazyImages)
    pixels = found.pixels if mapped else LazyImages(found.pixels, rows)
    images = ImageSet(pixels, found.targets, tuple(found.classes), None, found.name)
    if found.n_train < len(images):
        train, test = images.subset(rows[: found.n_train]), images.subset(rows[found.n_train :])
    else:
        train, test = split_per_class(images, TEST, generator(seed, "data", "test split"))
        notes.append(f"{TEST:.0%} of each class drawn as test images")
    if per_class:
        train = subset_per_class(train, per_class, generator(seed, "data", "train subset"))
        notes.append(f"at most {per_class} training images a class")
    if test_per_class:
        test = subset_per_class(test, test_per_class, generator(seed, "data", "test subset"))
        notes.append(f"at most {test_per_class} test images a class")
    validation = train.subset(rows[:0])
    if held_out:
        check_fraction("held_out", held_out)
        train, validation = split_per_class(train, held_out, generator(seed, "data", "validation split"))
    parts = [part if mapped else replace(part, pixels=part.pixels[:]) for part in (train, validation, test)]
    if kept == "published":
        transform = published(constants or dataset, images.shape[0], frames or 1)
    else:
        transform = fit_zca(parts[0]) if kept == "zca" else fit_standardize(parts[0])
        transform = same_for_frames(transform, frames) if frames else transform
    return Splits(*(replace(part, transform=transform) for part in parts), tuple(notes))


def source_digest(dataset: str, data_root: str | Path) -> str:
    """What tells whether `load` would read the same images and labels: name and digest of a folder or archive, '' of files that `load` verifies.

    Raises InputError as `load`.
    """
    if dataset == "clips":
        where = origin(data_root)
        return f"{where.name} {clips_digest(where.path, plan_of_clips(where.path))}"
    path = local_path("data_root", data_root) if dataset == "folder" or data_root else None
    if path and dataset == "tiny-imagenet":
        path = named.unpacked(path)
    elif dataset != "folder":
        path = None
    if path is None:
        return ""
    where = origin(path)
    return f"{where.name} {known_digest(where, cache_folder())}"


def split_per_class(images: ImageSet, fraction: float, draw: Generator) -> tuple[ImageSet, ImageSet]:
    """Split every class at random: (rest, `fraction` of it, at least one image). Raises InputError if a class has fewer than two."""
    rest, part = [], []
    for label, name in enumerate(images.classes):
        members = images.of_class(label)
        if len(members) < 2:
            raise InputError(f"class {name!r} of {images.name} has {len(members)} image(s); accepted: at least 2, to split them")
        order = members[torch.randperm(len(members), generator=draw)]
        n = min(max(1, round(fraction * len(members))), len(members) - 1)
        part.append(order[:n].sort().values)
        rest.append(order[n:].sort().values)
    return images.subset(torch.cat(rest)), images.subset(torch.cat(part))


def check_enough(images: ImageSet, n: int) -> None:
    """Raise InputError if a class has fewer than `n` images."""
    for name, count in zip(images.classes, images.counts()):
        if count < n:
            raise InputError(f"ipc: {n}, but class {name!r} has {count} training images; accepted: at most {count}")


def take_classes(splits: Splits, spec: str) -> Splits:
    """The images of some classes, relabelled 0, 1, .. in their order, under the same transform.

    spec    numbers of classes from 0, single or as ranges, joined by commas: '0-4' or '1,3,7-9'; '' = all
    raises  InputError on anything else, classes that are not there, fewer than two, or one named twice
    """
    if not spec:
        return splits
    names, chosen = splits.train.classes, []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch(r" *[0-9]+(-[0-9]+)? *", part) or int(last or first) < int(first):
            raise InputError(f"classes: {spec!r}; accepted: numbers and ranges such as '0-4' or '1,3,7-9'")
        chosen += range(int(first), int(last or first) + 1)
    if len(set(chosen)) != len(chosen) or len(chosen) < 2 or max(chosen) >= len(names):
        raise InputError(f"classes: {spec!r} of {len(names)}; accepted: at least two different ones from 0 to {len(names) - 1}")
    number = torch.full((len(names),), -1)  # of every class among the chosen
    number[chosen] = torch.arange(len(chosen))

    def taken(images: ImageSet) -> ImageSet:
        new = number.to(images.targets.device)[images.targets]
        rows = torch.nonzero(new >= 0)[:, 0]
        return replace(images.subset(rows), targets=new[rows], classes=tuple(names[c] for c in chosen))

    parts = (taken(part) for part in (splits.train, splits.validation, splits.test))
    return Splits(*parts, (*splits.notes, f"classes {spec} of {len(names)}"))


def subset_per_class(images: ImageSet, n: int, draw: Generator) -> ImageSet:
    """At most `n` random images of every class."""
    by_class = map(images.of_class, range(len(images.classes)))
    chosen = [members[torch.randperm(len(members), generator=draw)[:n]].sort().values for members in by_class]
    return images.subset(torch.cat(chosen))


def flip_labels(images: ImageSet, share: float, draw: Generator) -> tuple[ImageSet, Tensor]:
    """The same images, floor(share * n_class) of every class under the label of another class, uniformly among those.

    share    in (0, 1]
    returns  the images, and a mask (N,) bool of those that were flipped, on their device
    raises   InputError on a share outside (0, 1] or that flips nothing, and on images of a single class
    """
    check_fraction("share", share)
    if len(images.classes) < 2:
        raise InputError(f"share: {share} of {len(images.classes)} class; accepted: images of at least 2 classes")
    targets, flipped = images.targets.cpu().clone(), torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.classes)):
        members = images.of_class(label).cpu()
        n = int(share * len(members) + 1e-9)  # what lies a billionth below a whole number is that number
        chosen = members[torch.randperm(len(members), generator=draw)[:n]]
        others = torch.randint(1, len(images.classes), (n,), generator=draw)  # steps to another class
        targets[chosen], flipped[chosen] = (label + others) % len(images.classes), True
    if not flipped.any():
        found = f"{share} flips no label of classes of at most {max(images.counts())} images"
        raise InputError(f"share: {found}; accepted: a share of at least one image")
    return replace(images, targets=targets.to(images.device)), flipped.to(images.device)
