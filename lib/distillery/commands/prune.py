"""`distillery prune`: which images of one's own to keep, with a score and a rank for every file."""

from dataclasses import replace
from pathlib import Path

import torch

from distillery.checks import InputError, check_choice, check_fraction, check_keep, check_seed
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.own import Own, Tell, quiet
from distillery.commands.trial import EARLY, Trial
from distillery.data.folders import cache_folder
from distillery.data.images import ImageSet
from distillery.data.kept import Kept
from distillery.encoders import public
from distillery.evaluation import embed
from distillery.networks.precision import MixedPrecision
from distillery.notebook import parameters
from distillery.runs import Runs
from distillery.scores import SCORES
from distillery.scores.cached import CachedScores, ScoreSettings
from distillery.seeds import generator
from distillery.selection import RULES, check_enough_left, check_gamma
from distillery.selection import prune as chosen
from distillery.training import train
from distillery.training.optimizers import SGD


def prune(
    data: str | Path, keep: float, *, score: str = "", rule: str = "lowest", gamma: float = 0.5, encoder: str = "", side: int = 0,
    hold_out: float = 0.0, seed: int = 0, device: str = "auto", skip_unreadable: bool = False, tell: Tell = quiet, progress: bool = False,
) -> Kept:  # fmt: skip
    """Rank every training image of a folder or archive of class folders, and keep a part of each class.

    keep     a fraction in (0, 1], or so many images of every class, above 1
    score    one of `distillery.SCORES`: 'loss' early in training (BiLP), 'complexity' through an encoder (DLC), ...; '' = the latter where
             there is an encoder, else the former
    rule     of `distillery.selection`: 'lowest', 'flexrand' (DLC), 'random', ...
    gamma    of 'flexrand': the share of a class that is its easy part
    encoder  'efficientnet-lite0', 'torchvision:NAME', 'timm:NAME[:FILE]' or a file of weights, for scores that look through one
    side     pixels a side at which images are scored, 0 = that of a published encoder, or one that suits them; what is kept stays as it is
             on disk
    hold_out the share of each class that is set aside to judge by, listed as such, and neither ranked nor kept
    skip_unreadable  pass over files that are no images or cannot be decoded; they are counted and named
    tell     is told what was chosen and what it will cost
    raises   InputError on images that cannot be read, and on a part, score, rule or encoder that does not fit, before anything is computed
    """
    check_keep("keep", keep)
    check_seed(seed)
    score = score or ("complexity" if encoder else "loss")
    check_choice("score", score, SCORES)
    check_choice("rule", rule, RULES)
    if rule == "flexrand" and keep <= 1:
        check_gamma(gamma, keep)
    if hold_out:
        check_fraction("hold_out", hold_out)
    if SCORES[score].needs and not encoder and rule != "random":
        raise InputError(f"score: {score!r} without an encoder; accepted: --encoder, or a score without: loss")
    where = parameters.device(device)
    own = owns.read(data, side or (public.side_of(encoder) if encoder else 0), where, tell, progress, skip_unreadable)
    for note in own.notes:
        tell(f"note: {note}")
    rest, held = owns.held_out(own, hold_out, seed)
    check_left(keep, rest.images)
    found = keep_of(rest, keep, score, rule, gamma, encoder, seed, tell)
    return with_held(found, own, held.files) if hold_out else found


def with_held(found: Kept, own: Own, files: list[str]) -> Kept:
    """What is kept of some images as a part of all of them, of which `files` are held out."""
    place = {name: i for i, name in enumerate(own.files)}
    rows, held = torch.tensor([place[name] for name in found.files]), torch.zeros(len(own.files), dtype=torch.bool)
    held[[place[name] for name in files]] = True
    scores, kept = torch.full((len(held),), torch.nan), torch.zeros_like(held)
    scores[rows], kept[rows] = found.scores, found.kept
    return replace(found, files=own.files, labels=own.images.targets.cpu(), scores=scores, kept=kept, held=held)


def check_left(keep: float, images: ImageSet) -> None:
    """Raise InputError, by class, where a part leaves none of a class or asks for more than it has."""
    for name, size in zip(images.classes, images.counts()):
        if keep * size < 1:
            raise InputError(f"keep: {keep:g} is less than one of the {size} images of class {name!r}; accepted: at least {1 / size:.3g}")
        try:
            check_enough_left(keep, torch.zeros(size, dtype=torch.int64))
        except InputError as error:
            raise InputError(str(error).replace("a class", f"class {name!r}", 1)) from error


def keep_of(own: Own, keep: float, score: str, rule: str, gamma: float, encoder: str, seed: int, tell: Tell = quiet) -> Kept:
    """What `prune` keeps of images that are read."""
    images, targets = own.images, own.images.targets.cpu()
    how = {"keep": keep, "rule": rule, "seed": seed, "side": images.shape[1], "images": images.digest}
    how |= {"gamma": gamma} if rule == "flexrand" else {}
    scores = torch.full((len(images),), torch.nan)
    if rule != "random":
        cached, why = scoring(images, encoder)
        tell(f"scored by {score!r}, {why}")
        tell(f"this takes {owns.cost(seconds(cached, score, images), images)}")
        scores = cached.get(score, seed).float()
        how |= {"score": score, "network": cached.network.spec(), "encoder": encoder or None}
    stream = generator(seed, "prune")
    rows = chosen(None if rule == "random" else scores, keep, targets, rule, stream, gamma if rule == "flexrand" else 0.5)
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[rows] = True
    return Kept(own.root, own.files, targets, images.classes, scores, kept, how)


def scoring(images: ImageSet, encoder: str = "") -> tuple[CachedScores, str]:
    """What scores images of one's own, and why by that network; passes are kept in the cache folder."""
    network, why = owns.network_for(images)
    found = public.of(encoder, network, images, images.shape[-1]) if encoder else None
    fast = MixedPrecision(found.network if found else network)
    runs = Runs(cache_folder() / "scores")
    cached = CachedScores(images, images.digest, fast, runs, ScoreSettings(early=EARLY), found, None)
    return cached, f"encoder {found.name}" if found else f"{EARLY[0]} networks of {EARLY[1]} epochs, {why}"


def seconds(cached: CachedScores, score: str, images: ImageSet) -> float:
    """About how long a score takes, by one measured batch."""
    some = images.subset(torch.arange(min(64, len(images))))
    batches, network = len(images) / len(some), cached.network
    params = network.init(generator(0, "probe"), 1)
    params = {name: value.to(images.device) for name, value in params.items()}
    if SCORES[score].needs in ("encoder", "masks"):
        return cached.path["steps"] * batches * owns.seconds_of(lambda: embed(network, params, some))
    trials, epochs = (cached.tunings, cached.tuning.epochs * 4 / 3) if cached.tuning else cached.lengths.get(score, EARLY)
    one = owns.seconds_of(lambda: train(network, params, some, optimizer=SGD(0.0), generator=generator(0, "probe"), epochs=1, batch=64))
    return trials * epochs * batches * one


def check(
    data: str | Path, keep: float, *, score: str = "", rule: str = "lowest", gamma: float = 0.5, encoder: str = "", side: int = 0,
    seed: int = 0, seeds: int = 3, flip: bool = True, device: str = "auto", skip_unreadable: bool = False, tell: Tell = quiet, progress: bool = False,
) -> list[dict]:  # fmt: skip
    """How networks compare that are trained on all images, on a random part and on the part that `prune` would keep (`records.row`).

    A fifth of each class is held out first and judges; the rest is scored anew. Raises InputError as `prune`, and with an encoder, which
    would have to be fine-tuned.
    """
    if encoder:
        raise InputError("encoder: with --check, which trains networks from scratch; accepted: a score without an encoder")
    where = parameters.device(device)
    own = owns.read(data, side, where, quiet, progress, skip_unreadable)
    trial = Trial(trials.split(own, seed, tell=tell), flip=flip, progress=progress)
    tell(f"check: {len(trial.splits.train)} images to learn from, {len(trial.splits.test)} to judge by; {trial.why}")
    check_left(keep, trial.splits.train)
    return trials.compare(trial, keep, score or "loss", rule, gamma, seeds)
