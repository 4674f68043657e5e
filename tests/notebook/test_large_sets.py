"""The parameter files of sets larger than memory start on trees of the published layout, and end in records with top-1 and top-5."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = 50  # from here on top-5 is told
SHORT = {
    "width": 4,
    "steps_dm": 2,
    "ipc": "[1]",
    "evaluation_epochs": 1,
    "networks": 2,
    "score_epochs": 1,
    "device": "cpu",
    "precision": "float32",
}


def picture(path, stream, mode="RGB", size=(40, 36), kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "CMYK": (4,), "L": ()}[mode]
    Image.fromarray(stream.integers(0, 256, (size[1], size[0], *channels)).astype(np.uint8), mode=mode).save(path, kind)


def imagenet(root):
    """ILSVRC/, with a CMYK image, a PNG named .JPEG and a gray one, and a table of the validation images' labels."""
    stream, lines = np.random.default_rng(0), [["ImageId", "PredictionString"]]
    odd = {(3, 1): {"mode": "CMYK"}, (5, 2): {"mode": "L"}, (7, 0): {"kind": "PNG"}}
    for label in range(CLASSES):
        name = f"n{label:08d}"
        for i in range(6):
            picture(root / f"Data/CLS-LOC/train/{name}/{name}_{i}.JPEG", stream, size=(40 + i, 36), **odd.get((label, i), {}))
        for i in range(2):
            image = f"ILSVRC2012_val_{2 * label + i + 1:08d}"
            picture(root / f"Data/CLS-LOC/val/{image}.JPEG", stream)
            lines.append([image, f"{name} 1 2 3 4 "])
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)


def kinetics(root):
    """Tables and folders of frames, of which one is missing, one has a broken frame, and one lies in replacement/."""
    stream = np.random.default_rng(0)
    for part, n in (("train", 6), ("val", 2)):
        lines = [["label", "youtube_id", "time_start", "time_end", "split"]]
        for label in range(CLASSES):
            for i in range(n):
                name = f"{part}{label:02d}{i:06d}"
                lines.append([f"action {label:02d}", name, i, i + 10, part])
                folder = root / ("replacement" if (part, label, i) == ("train", 1, 1) else part) / f"{name}_{i:06d}_{i + 10:06d}"
                if (part, label, i) == ("train", 2, 0):
                    continue
                for frame in range(8):
                    picture(folder / f"{frame + 1:02d}.jpg", stream, size=(20, 16))
                if (part, label, i) == ("train", 4, 3):
                    (folder / "03.jpg").write_bytes(b"broken")
        root.mkdir(exist_ok=True)
        with open(root / f"{part}.csv", "w", newline="") as file:
            csv.writer(file).writerows(lines)


IMAGENET = {"real_batch": 4, "resize": 16, "held_out": 0.2, "fewest": 2, "flipped": 0.5, "effect_images": 4, "converged_epochs": 1}
KINETICS = {"batch": 4, "resize": 16, "held_out": 0.2, "n_seeds": 1, "epochs_whole": 1}


@pytest.mark.parametrize(
    "notebook, file, tree, changes, notes",
    [
        ("01_bilp", "paper-imagenet1k", imagenet, IMAGENET, ["1 gray image(s)"]),
        ("08_video", "paper-kinetics400", kinetics, KINETICS, ["1 clip(s) that cannot be read", "replacement", "missing"]),
    ],
)
def test_a_miniature_ends_in_a_record(tmp_path, notebook, file, tree, changes, notes):
    tree(tmp_path / "set")
    given = SHORT | changes | {"data_root": tmp_path / "set", "results_dir": tmp_path / "results"}
    params = Path(__file__).parents[2] / "notebooks/params" / f"{notebook}.{file}.yaml"
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    environment = os.environ | {"DISTILLERY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distillery", "run", notebook, "-f", str(params), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tmp_path / "results").glob(f"paper/{notebook}/*/record.json")
    record = json.loads(path.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    for name in [name for name in rows if name.startswith("DM")][:2]:
        assert rows[name]["measured"] and record["missing"] == []
    fives = {name.removesuffix(", top 5"): row for name, row in rows.items() if name.endswith(", top 5")}
    assert len(fives) > 5 and all(rows[name]["measured"]["value"] <= five["measured"]["value"] for name, five in fives.items())
    said = " ".join(record["data"]["notes"])
    assert all(note in said for note in notes), said
