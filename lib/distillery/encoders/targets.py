"""Targets of a teacher: its embeddings of real images, made once and stored; a gate against collapsed ones."""

from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_finite
from distillery.data import ImageSet
from distillery.encoders.teacher import _preprocessing, check_encoder
from distillery.evaluation import embed
from distillery.networks.encoder import Encoder
from distillery.networks.precision import float32_matmul, images_at_once
from distillery.training.losses import check_targets

COLLAPSED = 1e-2  # relative deviation of features below which an encoder tells images hardly apart


def teacher_targets(teacher: Encoder, images: ImageSet, path: str | Path | None = None) -> Tensor:
    """The teacher's embeddings of un-augmented images in evaluation mode, as they are: (N, D) float32 on the images' device.

    path    where they are stored with the digests of images and teacher; read from there if the file exists
    raises  InputError if the file holds targets of other images, preprocessing or teacher, and if a target is NaN or infinite or the
            teacher collapsed
    """
    check_encoder(teacher.network)
    card = {"kind": "targets", "data set": images.digest, "preprocessing": _preprocessing(images), "teacher": teacher.digest}
    if path is not None and Path(path).exists():
        tensors, found = store.load_tensors(path)
        for key, value in card.items():
            theirs = found.get(key) if isinstance(found, dict) else None
            if theirs != value:
                raise InputError(f"{path}: targets of another {key}, {str(theirs)[:12]}; accepted: those of {str(value)[:12]}, or no file")
        return check_targets(tensors["targets"], images).to(images.device)
    found = _embedded(teacher, images)
    check_collapse(found, teacher.name)
    if path is not None:
        store.save_tensors(path, {"targets": found}, card)
    return found


def _embedded(encoder: Encoder, images: ImageSet) -> Tensor:
    """(N, D) float32, in full float32 on a GPU too."""
    encoder, chunk = encoder.to(images.device), images_at_once(encoder.network, images.shape, images.device)
    with float32_matmul("float32"):
        found = embed(encoder.network, encoder.params, images, chunk)[0].float()
    check_finite(f"embeddings of {encoder.name}", found)
    return found


def deviation(features: Tensor) -> float:
    """Share of the mean squared length of features (N, D) that is not that of their mean, as a root: 0 to 1, without unit."""
    features = features.double()
    spread = (features - features.mean(0)).square().sum()
    return float((spread / features.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).sqrt())


def check_collapse(features: Tensor, name: str) -> float:
    """Their `deviation`; raises InputError where it is below COLLAPSED: the encoder maps all images to nearly one point."""
    found = deviation(features)
    if not found >= COLLAPSED:
        raise InputError(f"{name}: relative deviation of features {found:.2g}, collapsed; accepted: {COLLAPSED:g} or more")
    return found
