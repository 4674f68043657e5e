"""Sets of clips: decoded once, as images of T * C channels, by layout and rule, with what cannot be read named."""

import numpy as np
import pytest
import torch
from PIL import Image

from distillery import data
from distillery.data import Standardize
from distillery.data.video_sets import load_clips, same_for_frames
from distillery.data.videos import clip, start_of
from made_up import refusal

FRAMES, SIDE = 4, 6


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


def folder_of_frames(path, n, value=0, size=(8, 6)):
    path.mkdir(parents=True)
    for i in range(n):
        pixels = np.full((size[1], size[0], 3), value + i, np.uint8)
        Image.fromarray(pixels).save(path / f"frame_{i}.png")
    return path


@pytest.fixture
def root(tmp_path):
    for part, clips in {"train": 5, "test": 3}.items():
        for label, name in enumerate(("jump", "run")):
            for i in range(clips):
                folder_of_frames(tmp_path / "set" / part / name / f"clip{i}", 20 + i, 100 * label + 10 * i)
    return tmp_path / "set"


def load(root, **options):
    return data.load("clips", root, **{"frames": FRAMES, "resize": SIDE, "held_out": 0} | options)


@pytest.mark.parametrize("mapped", [False, True])
def test_clips_are_images_of_many_channels(root, mapped):
    splits = load(root, mapped=mapped)
    assert splits.train.shape == (FRAMES * 3, SIDE, SIDE) and splits.train.classes == ("jump", "run")
    assert (len(splits.train), len(splits.test)) == (10, 6) and splits.train.targets.tolist() == [0] * 5 + [1] * 5
    for row, (name, i) in enumerate((name, i) for name in ("jump", "run") for i in range(5)):
        assert np.array_equal(splits.train.pixels[torch.tensor(row)], clip(root / "train" / name / f"clip{i}", FRAMES, SIDE)[0])
    assert any("squeezed" in note for note in splits.notes)
    again = load(root, mapped=mapped)
    assert again.digest == splits.digest and again.notes == splits.notes
    transform = splits.train.transform
    assert all(torch.equal(value, value[:3].repeat(FRAMES)) for value in (transform.mean, transform.std))
    published = load(root, normalization="published:kinetics-400").train.transform
    assert published.mean.tolist() == pytest.approx([0.485, 0.456, 0.406] * FRAMES)


def test_statistics_of_all_frames_are_those_of_each_together():
    pixels = torch.randn(50, 4, 2, 9, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 5).view(1, 4, 1, 1, 1) + 0.3
    of_each = Standardize(pixels.mean((0, 3, 4)).flatten(), pixels.var((0, 3, 4), correction=0).sqrt().flatten())
    both = same_for_frames(of_each, 4)
    assert torch.allclose(both.mean, pixels.mean((0, 1, 3, 4)).repeat(4), atol=1e-5)
    assert torch.allclose(both.std, pixels.var((0, 1, 3, 4), correction=0).sqrt().repeat(4), atol=1e-4)


def test_test_clips_are_there_once_a_pass(root):
    one, three = (load(root, rule="gap", passes=passes) for passes in (1, 3))
    assert len(three.test) == 3 * len(one.test) and torch.equal(three.train.pixels, one.train.pixels)
    assert torch.equal(three.test.pixels[::3], one.test.pixels) and not torch.equal(three.test.pixels[1::3], one.test.pixels)
    for number in range(3):
        name = "test/run/clip2"
        wanted, _ = clip(root / name, FRAMES, SIDE, rule="gap", start=start_of(0, name, number))
        assert np.array_equal(three.test.pixels[15 + number], wanted)
    assert three.digest == load(root, rule="gap", passes=3).digest != load(root, rule="gap", passes=3, seed=1).digest


def test_clips_that_cannot_be_read_are_named_and_passed_over(root):
    broken = root / "train/jump/clip1"
    (broken / "frame_0.png").write_bytes(b"no image")
    folder_of_frames(root / "test/run/short", 2)
    for frame in sorted(broken.iterdir())[1:]:
        frame.write_bytes(b"no image")
    splits = load(root)
    [note] = [note for note in splits.notes if "cannot be read" in note]
    assert note.startswith("2 clip(s)") and "test/run/short" in note and "train/jump/clip1" in note
    assert splits.train.targets.tolist() == [0] * 4 + [1] * 5 and len(splits.test) == 6
    for i in (0, 2, 3, 4):
        for frame in (root / f"train/jump/clip{i}").iterdir():
            frame.write_bytes(b"no image")
    with refusal("class 'jump'"):
        load(root)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"frames": 0}, ["frames", "clips"]),
        ({"resize": 0}, ["resize"]),
        ({"rule": "last"}, ["rule", "middle, gap"]),
        ({"passes": 3}, ["passes", "middle"]),
        ({"normalization": "zca"}, ["zca", "clips"]),
        ({"normalization": "published:mnist"}, ["mnist", "12"]),
    ],
)
def test_bad_options(root, options, words):
    with refusal(*words):
        load(root, **options)


def test_bad_places(tmp_path):
    with refusal("frames", "8", "'digits'"):
        data.load("digits", frames=8)
    for name in ("jump", "run"):
        for i in range(4):
            folder_of_frames(tmp_path / "plain" / name / f"{i}", 8)
    assert len(load(tmp_path / "plain").test) == 2
    with refusal("passes", "test part"):
        load(tmp_path / "plain", rule="gap", passes=3)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with refusal("archive"):
        load_clips(tmp_path / "a.zip", 4, 6)


def test_drawn_clips_are_a_named_set():
    splits = data.load("moving-shapes", frames=5, resize=12, per_class=4)
    assert splits.train.shape == (5, 12, 12) and len(splits.train) == 48
