"""What sets larger than memory cost, on made-up ones of the same shape: python scale.py results/bench (writes scale.json and scale.md).

1,000 classes of 64 x 64 pixels. Files are small JPEGs; images of a store are noise. Every part runs in a process of its own, whose peak memory is told.
"""

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from distillery import data, store
from distillery.data.cache import Building, Shards
from distillery.data.decoding import open_image
from distillery.data.images import ImageSet, LazyImages, Splits, Standardize
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.matching.distribution import DistributionMatching
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.report.provenance import provenance as of_this_machine
from distillery.runs import Runs
from distillery.sampling import RealBatches, Uniform
from distillery.scores.cached import ScoreSettings
from distillery.seeds import generator

CLASSES, SIDE, SHAPE = 1000, 64, (3, 64, 64)
REAL = 1_281_167  # training images of ImageNet-1K


def held() -> float:
    """What this process holds now in GB, mapped pages of files left out; sampled, since the kernel keeps no such peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e9


def apart(work, *arguments) -> dict:
    """What `work` returns in a process of its own, with 'seconds' of the processor, 'wall' and 'memory' in GB above that before it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work, *arguments))


def _measured(work, *arguments) -> dict:
    import threading

    torch.set_num_threads(1)
    peak, before, ended = [held()], held(), threading.Event()

    def look():
        while not ended.wait(0.01):
            peak.append(held())

    watch = threading.Thread(target=look)
    watch.start()
    began, wall = time.process_time(), time.monotonic()
    try:
        found = work(*arguments)
    finally:
        ended.set()
        watch.join()
    spent = {"seconds": time.process_time() - began, "wall": time.monotonic() - wall, "memory": max(peak) - before}
    return spent | (found or {})


def files(folder: Path, of_each: int) -> None:
    stream = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"n{label:08d}"
        place.mkdir(parents=True)
        for i in range(of_each):
            small = stream.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(small).resize((SIDE, SIDE)).save(place / f"{i}.JPEG", quality=90)


def built(folder: Path, cache: Path) -> dict:
    splits = data.load("folder", folder, cache_dir=cache, mapped=True, held_out=0, normalization="published:imagenet-1k")
    return {"images": len(splits.train) + len(splits.test)}


def decoded(folder: Path) -> dict:
    """What no store can do without: open and decode every file, in as many threads."""
    names = sorted(folder.glob("*/*"))
    with ThreadPoolExecutor(2) as pool:
        done = sum(image is not None for image, _ in pool.map(open_image, names))
    return {"images": done}


def noise(folder: Path, of_each: int) -> dict:
    """A store of noise, class after class."""
    building, stream = Building((CLASSES * of_each, *SHAPE), folder), np.random.default_rng(0)
    for array in building.arrays:
        for start in range(0, len(array), 1000):
            array[start : start + 1000] = stream.integers(0, 256, array[start : start + 1000].shape, dtype=np.uint8)
    building.seen[:] = 1
    building.note()
    return {"bytes": CLASSES * of_each * 3 * SIDE * SIDE}


def images(folder: Path, of_each: int, classes: int = CLASSES) -> ImageSet:
    shards = Shards(folder)
    rows = torch.arange(classes * of_each)
    transform = Standardize(torch.full((3,), 0.5), torch.full((3,), 0.3))
    return ImageSet(LazyImages(shards, rows), rows // of_each, tuple(map(str, range(classes))), transform, "made up")


def read(folder: Path, of_each: int) -> dict:
    pixels, stream = images(folder, of_each).pixels, torch.Generator().manual_seed(0)
    batches = [torch.randint(len(pixels), (256,), generator=stream) for _ in range(200)]
    for batch in batches:  # warm
        pixels[batch]
    began = time.process_time()
    for batch in batches:
        pixels[batch]
    return {"rate": 200 * 256 * 3 * SIDE * SIDE / (time.process_time() - began) / 1e9}


def step(folder: Path, of_each: int, classes: int, batch: int, width: int, times: int = 1, limit: int = 0) -> dict:
    """Steps of DM at one image a class."""
    real, network = images(folder, of_each, classes), ConvNet(SHAPE, classes, width)
    first = torch.arange(classes) * of_each
    start = Synthetic({"images": real.batch(first), "targets": real.targets[first]}, real.classes)
    objective, losses = DistributionMatching(network, batch), []
    if limit:
        objective.map_limit = limit
    for i in range(times):
        draw = RealBatches(real, Uniform(real.targets), generator(0, "draw", i))
        _, _, log = objective.step(start, {}, draw, generator(0, "step", i))
        losses.append(float(log["loss"]))
    return {"losses": losses}


def pipeline(folder: Path, of_each: int, results: Path, width: int) -> dict:
    """Scores, DM from all and from half of the images, evaluation: end to end."""
    whole = images(folder, of_each)
    rows = torch.arange(len(whole))
    parts = [whole.subset(rows[rows % of_each == i]) for i in (0, 1)]  # validation, test
    splits = Splits(whole.subset(rows[rows % of_each > 1]), *parts)
    presets = Presets("cifar10", {"DM": {"steps": 3, "batch": 16}})
    scores = ScoreSettings(early=(1, 1))
    here = Experiment(splits, ConvNet(SHAPE, CLASSES, width), Protocol(1, 20), Runs(results), presets=presets, scores=scores)
    found, spent = {}, time.process_time()
    for name, recipe in {"random": Recipe("random", 1, 0), "DM": Recipe("DM", 1, 0), "level 1": Recipe("DM", 1, 0, Prune(0.5))}.items():
        result = here.run(recipe)
        found[name] = {"seconds": time.process_time() - spent, "top1": result["accuracies"][0], "top5": result["top5"][0]}
        spent = time.process_time()
    return {"rows": found}


def measured(of_files: int = 12, of_each: int = 260, width: int = 8, batch: int = 256) -> dict:
    with tempfile.TemporaryDirectory() as place:
        here, found = Path(place), {}
        files(here / "files", of_files)
        found["decoding alone, 2 threads"] = apart(decoded, here / "files")
        found["building the store, 2 threads"] = apart(built, here / "files", here / "cache")
        found["reading it again"] = apart(built, here / "files", here / "cache")
        found[f"a store of {CLASSES * of_each:,} images"] = apart(noise, here / "store", of_each)
        found["random batches of 256, warm"] = apart(read, here / "store", of_each)
        many, few = f"DM step, 1,000 classes x {batch}", f"100 DM steps, 10 classes x {batch}"
        found[many] = apart(step, here / "store", of_each, CLASSES, batch, width)
        found[few] = apart(step, here / "store", of_each, 10, batch, width, 100)
        found["the same, half of the images there"] = apart(step, here / "store", of_each // 2, CLASSES, batch // 2, width)
        for name, limit in (("DM step, 100 classes x 32, in chunks", 2**22), ("DM step, 100 classes x 32, unchunked", 2**34)):
            found[name] = apart(step, here / "store", of_each, 100, 32, width, 1, limit)
        for many in (50, 12):
            found[f"end to end, 1,000 classes x {many}"] = apart(pipeline, here / "store", many, here / f"results {many}", width)
    return {"provenance": of_this_machine(), "width": width, "works": found, "hours": hours()}


def hours(steps: int = 5000, stored: str = "results/paper/00_quickstart/runs/5235c1eb83e9112b.json") -> dict:
    """DM on ImageNet-1K on one GPU, from the stored run on CIFAR-10 on an H200: as many operations a second, 1,000 classes of 64 px for 10 of 32 px.

    Other rows shared that GPU, and its steps are too small to fill it, so this is an upper estimate.
    """
    run = store.read_json(Path(__file__).parents[2] / stored)["result"]
    operations = []
    for shape in ((3, 32, 32), SHAPE):
        network = ConvNet(shape, 10)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.apply(network.init(generator(0, "operations"), 1), torch.zeros(1, *shape))
        operations.append(counter.get_total_flops())
    one = run["seconds"] / run["steps"] * operations[1] / operations[0] * CLASSES / 10 * steps / 3600
    return {"steps": steps, "operations of an image": operations, "one GPU": one, "eight GPUs": one / 8}


def markdown(found: dict) -> str:
    works, processor = found["works"], found["provenance"]["processor"]
    lines = [
        f"Made-up sets of the shape of ImageNet-1K at 64 x 64 pixels, ConvNet of width {found['width']} (published: 128), one thread but for decoding, on one core of {processor}.",
        "Seconds are those of the processor, memory is what a process takes above what it had, mapped pages of files left out. One run.",
        "",
        "| work | s | memory, GB | |",
        "|---|---|---|---|",
    ]
    for name, one in works.items():
        more = []
        if "images" in one:
            more.append(f"{one['images'] / one['seconds'] * 60:,.0f} images a minute of one core")
        if "bytes" in one:
            more.append(f"{one['bytes'] / 1e9:.1f} GB on disk")
        if "rate" in one:
            more.append(f"{one['rate']:.1f} GB/s")
        if len(one.get("losses", [])) == 1:
            more.append(f"loss {one['losses'][0]:.6g}")
        if "rows" in one:
            more += [
                f"{row}: {part['seconds']:.0f} s, top-1 {100 * part['top1']:.1f}%, top-5 {100 * part['top5']:.1f}%"
                for row, part in one["rows"].items()
            ]
        lines.append(f"| {name} | {one['seconds']:.1f} | {one['memory']:.2f} | {'; '.join(more)} |")
    many, few = ([one["seconds"] for name, one in works.items() if key in name][0] for key in ("DM step, 1,000", "100 DM steps"))
    lines += ["", f"A DM step over 1,000 classes takes {many / few:.2f} times as long as 100 steps over 10."]
    told = found["hours"]
    lines += [
        "",
        f"ImageNet-1K ({REAL:,} images) is 16 GB of such a store. DM for {told['steps']:,} updates on it at the published width: about {told['one GPU']:.0f} hours on one H200, or {told['eight GPUs']:.1f} on eight,",
        "estimated by operations from the stored run on CIFAR-10, whose GPU was shared by other rows: an upper bound.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = measured()
    store.write_json(folder / "scale.json", result)
    store.write_bytes(folder / "scale.md", markdown(result).encode())
    print(markdown(result))
