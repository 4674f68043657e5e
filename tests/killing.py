"""Distill with a checkpoint after every step, kill it with SIGKILL over and over, start it again until it ends.

Run by test_distill.py as `killing.py FOLDER`; prints a JSON report. Every attempt is a forked child of this process, so
that the imports are paid once; this process itself computes nothing before it forks.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo

from distillery import store
from distillery.data import ImageSet, fit_standardize
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.matching.distribution import DistributionMatching
from distillery.networks import ConvNet
from distillery.sampling import Uniform
from distillery.seeds import generator
from distillery.training.dsa import DSA
from made_up import PixelsAndLabels, Weighted

STEPS = 16
OBJECTIVES = {"made up": PixelsAndLabels, "DM": lambda net: DistributionMatching(net, batch=8, augmentation=DSA)}
WAYS = {
    "made up": {"at random": 8, "while writing": 3, "before renaming": 3, "after renaming": 3},
    "DM": {"at random": 2},
}  # how, and how often at most, each is killed


def run(name: str, folder: Path) -> None:
    """Distill, and write the digest of the result as the last thing."""
    stream = generator(0, "images")
    pixels = torch.randint(0, 256, (24, 1, 8, 8), generator=stream, dtype=torch.uint8)
    targets = torch.arange(3).repeat_interleave(8)
    images = ImageSet(pixels, targets, ("a", "b", "c"))
    images = ImageSet(pixels, targets, images.classes, fit_standardize(images))
    chosen = torch.tensor([0, 1, 8, 9, 16, 17])
    synthetic = Synthetic({"images": images.batch(chosen), "targets": targets[chosen], "scale": torch.tensor(1.0)})
    optimizers, sampler = {"images": Optimizer(0.1, 0.5)}, Uniform(targets)
    if name == "made up":
        optimizers["scale"] = Optimizer(0.05, kind="adam", schedule="linear")
        sampler = Weighted(targets)
    done = distill(
        synthetic,
        OBJECTIVES[name](ConvNet((1, 8, 8), 3, width=4, depth=1)),
        images,
        sampler,
        optimizers,
        STEPS,
        generator(0, "distill"),
        ema=0.9,
        checkpoint=folder / "run.safetensors",
        checkpoint_seconds=0,
        identity=name,
        validate=lambda s, step: -float(s.tensors["images"].square().mean()),
        validate_every=5,
    )
    groups = {"last": done.last.tensors, "ema": done.ema.tensors, "best": done.best.tensors, "log": done.log}
    numbers = {f"{group}.{key}": value for group, members in groups.items() for key, value in members.items()}
    counts = {key: done.cost[key] for key in ("steps", "samples", "skipped")} | {"best": done.best_step}
    store.write_json(folder / "done.json", [store.tensor_digest(numbers), counts])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(way: str, writes: int) -> None:
    """Let this process kill itself inside its write number `writes`."""
    fsync, replace, left = os.fsync, os.replace, [writes]

    def half_written(handle):
        left[0] -= 1
        if left[0] == 0:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    def around_renaming(source, target):
        left[0] -= 1
        if left[0] == 0:
            if way == "after renaming":
                replace(source, target)
            die()
        replace(source, target)

    if way == "while writing":
        os.fsync = half_written
    else:
        os.replace = around_renaming


def attempt(name: str, folder: Path, way: str = "", delay: float = 0.0, writes: int = 0) -> bool:
    """One child; True if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            if writes:
                arm(way, writes)
            run(name, folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if delay:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"{name}: the child failed")
    return os.WIFSIGNALED(status)


def until_done(name: str, folder: Path, way: str, seconds: float) -> dict:
    folder.mkdir()
    chance, kills = random.Random(f"{name}/{way}"), 0
    while not (folder / "done.json").exists():
        left = WAYS[name][way] - kills
        if way == "at random" and left > 0:
            killed = attempt(name, folder, delay=chance.uniform(0.05, 0.35) * seconds)
        elif left > 0:
            # a checkpoint is two fsyncs (file, folder) and one renaming
            writes = chance.randint(2, 5) * (2 if way == "while writing" else 1) - (way == "while writing")
            killed = attempt(name, folder, way, writes=writes)
        else:
            killed = attempt(name, folder)
        kills += killed
    digest = json.loads((folder / "done.json").read_text())
    return {"kills": kills, "digest": digest, "leftovers": len(list(folder.glob(".*.tmp")))}


def main(root: Path) -> None:
    report = {}
    for name in OBJECTIVES:
        folder = root / name
        folder.mkdir()
        began = time.monotonic()
        attempt(name, folder)
        seconds = time.monotonic() - began
        report[name] = {"unbroken": json.loads((folder / "done.json").read_text())}
        for way in WAYS[name]:
            report[name][way] = until_done(name, folder / way, way, seconds)
    print(json.dumps(report))


main(Path(sys.argv[1]))
