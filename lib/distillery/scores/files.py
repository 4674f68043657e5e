"""Scores on disk: one file that says what they are and of which images, so that they cannot be used for others."""

from pathlib import Path

from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_finite
from distillery.data import ImageSet


def save(path: str | Path, scores: Tensor, images: ImageSet, card: dict) -> str:
    """Save the scores (N,) of images (N) with their card; returns the digest of the file's content.

    card    what the score is; `data`, the digest of images and labels, and `n` are added
    raises  InputError on scores of another length, and scores that are not finite
    """
    _check("scores", scores, images)
    return store.save_tensors(path, {"scores": scores}, card | {"kind": "scores", "data": images.digest, "n": len(images)})


def load(path: str | Path, images: ImageSet) -> tuple[Tensor, dict]:
    """The scores (N,) of these images, on the CPU, and their card.

    raises  InputError on a file that is missing, truncated, corrupt or holds no scores, scores of another number of
            images or of other images or labels, and scores that are not finite
    """
    tensors, card = store.load_tensors(path)
    if card.get("kind") != "scores" or set(tensors) != {"scores"}:
        raise InputError(f"{path} holds no scores; accepted: a file saved by scores.files.save")
    _check(str(path), tensors["scores"], images)
    made, own = str(card.get("data"))[:12], images.digest[:12]
    if card.get("data") != images.digest:
        raise InputError(f"{path}: scores of images with digest {made}, these have {own}; accepted: the same images, order and labels")
    return tensors["scores"], card


def _check(name: str, scores: Tensor, images: ImageSet) -> None:
    if not scores.is_floating_point() or scores.shape != (len(images),):
        raise InputError(f"{name}: scores {tuple(scores.shape)} {scores.dtype}; accepted: one float an image, ({len(images)},)")
    check_finite(name, scores)
