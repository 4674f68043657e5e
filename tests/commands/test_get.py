"""The zoo: a set enters with its evaluation, is listed, exported, evaluated again to its record bit by bit; what is broken or incomplete is refused."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery import places, store
from distillery.checks import InputError
from distillery.cli import main
from distillery.data import synthetic
from distillery.report import pages, zoo
from distillery.runs import Runs

ROOT = Path(__file__).resolve().parents[2]
BILP = ROOT / "notebooks" / "01_bilp.ipynb"
TINY = {"per_class": 12, "width": 4, "networks": 2, "evaluation_epochs": 2, "score_trials": 1, "score_epochs": 1}
SOURCE = ("--method", "Mine", "--source", "https://example.org/mine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A zoo of two: a row of a notebook at smoke scale, and somebody's .pt file."""
    root = tmp_path_factory.mktemp("zoo")
    given = TINY | {"results_dir": str(root / "results")}
    options = [word for name, value in given.items() for word in ("-p", name, str(value))]
    row = [
        "row",
        str(BILP),
        "DM",
        "1",
        "--keep",
        "lowest 0.5",
        "--set",
        "steps",
        "3",
        "--out",
        str(root / "zoo" / "digits-dm-ipc1.safetensors"),
    ]
    assert main([*row, *options]) == 0
    stream = torch.Generator().manual_seed(0)
    torch.save({"images": torch.rand(20, 1, 8, 8, generator=stream), "labels": torch.arange(10).repeat(2)}, root / "mine.pt")
    assert main(evaluate(root / "mine.pt", *SOURCE, "--seeds", "2", "--out", str(root / "zoo" / "digits-mine-ipc2.safetensors"))) == 0
    return root / "zoo"


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of it in the place of the repository's."""
    for path in folder.iterdir():
        store.copy_file(path, tmp_path / "sets" / path.name)
    monkeypatch.setattr(places, "SETS", tmp_path / "sets")
    return tmp_path / "sets"


def evaluate(file, *more):
    return ["evaluate", str(file), "--data", "digits", "--no-flip", "--width", "4", "--networks", "2", "--epochs", "2", *more]


def test_sets_are_listed_told_and_exported(here, tmp_path, capsys):
    assert main(["get"]) == 0
    told = capsys.readouterr().out
    assert told.index("digits-dm-ipc1 | digits | DM, lowest 0.5 | 1 | 10 |") < told.index("digits-mine-ipc2 | digits | Mine | 2 | 20 |")
    assert main(["get", "digits-dm-ipc1"]) == 0
    [command] = re.findall(r"distillery (get .* --check --data) DATA", capsys.readouterr().out)
    assert main([*shlex.split(command), "digits"]) == 0
    entry = zoo.find("digits-dm-ipc1")
    for kind, place in (("", "one.safetensors"), ("npz", "one.npz"), ("imagefolder", "one"), ("pt", "pair")):
        assert main(["get", "digits-dm-ipc1", *(["--to", kind] if kind else []), "--out", str(tmp_path / place)]) == 0
    assert (tmp_path / "one.safetensors").read_bytes() == entry.path.read_bytes()
    with np.load(tmp_path / "one.npz") as arrays:
        assert np.array_equal(arrays["images"], synthetic.unit_pixels(entry.made).numpy())
    assert len(list((tmp_path / "one").glob("*/*.png"))) == 10 and (tmp_path / "pair" / "images_best.pt").is_file()


@pytest.mark.parametrize("name, seeds", [("digits-dm-ipc1", 1), ("digits-mine-ipc2", 2)])
def test_a_set_evaluates_to_its_record(here, capsys, name, seeds):
    """Of a notebook and of `evaluate`: bit by bit on one machine. Another record is told, by the exit code too."""
    entry = zoo.find(name)
    assert np.shape(entry.card.evaluation.accuracies) == (seeds, 2) and len(entry.card.evaluation.random) == (5 if seeds == 1 else 2)
    assert main(["get", name, "--check", "--data", "digits"]) == 0
    out = capsys.readouterr().out
    assert "the same bit by bit" in out and "note: the test" not in out and "it agrees" in out
    made, card = store.load_tensors(entry.path)
    card["evaluation"]["accuracies"] = [[1.0, 0.99]] * seeds
    store.save_tensors(here / "better.safetensors", made, card | {"evaluation": card["evaluation"] | {"test": "0"}})
    assert main(["get", str(here / "better.safetensors"), "--check", "--data", "digits"]) == 1
    out = capsys.readouterr().out
    assert "does not agree" in out and f"tolerance {2.1 if seeds == 1 else 1.5}" in out  # by as many more networks as seeds
    assert "note: the test images are not those of the record" in out


def test_what_the_card_of_a_row_says_is_what_is_stored(folder):
    entry = zoo.read(folder / "digits-dm-ipc1.safetensors")
    card, run = entry.made.card, entry.card.evaluation.source.rpartition(" ")[2]
    stored = Runs(folder.parent / "results" / "smoke" / "01_bilp").read(run)
    assert entry.card.evaluation.accuracies == [stored["accuracies"]] and entry.card.evaluation.scale == "smoke"
    assert (card["method"], card["size"], card["prune"], card["data"]) == ("DM", 1, {"keep": 0.5}, "digits")
    assert card["start"] is not None  # the images that it started from


def test_a_set_of_ours_enters_with_what_its_card_says(here, capsys):
    """Judged anew by other settings; nothing is written twice."""
    out = here / "again.safetensors"
    command = evaluate(here / "digits-dm-ipc1.safetensors", "--source", "elsewhere", "--no-augmentation", "--out", str(out))
    assert main(command) == 0 and "again.safetensors" in capsys.readouterr().out
    assert zoo.find("again").made.card["method"] == "DM" and zoo.find("again").card.evaluation.source == "elsewhere"
    assert main(command) == 2 and "is there already" in capsys.readouterr().err


def altered(path, **changes):
    """The file with another evaluation, None = without; its own digest is right."""
    made, card = store.load_tensors(path)
    found = {name: value for name, value in (card["evaluation"] | changes).items() if value is not None}
    store.save_tensors(path, made, card | {"evaluation": found})
    path.with_name(path.name + ".sha256").write_text(store.file_digest(path))
    path.with_suffix(".json").unlink()


WRONG = {
    "accuracies": [None, [], [[0.5]], [[0.5, 1.5]], [["a", "b"]], 3],
    "random": [None, [], [[2.0, 0.1]]],
    "seed": [None, "0"],
    "protocol": [None, {"kind": "probe"}, {"kind": "scratch", "epochz": 1}, {"networks": 2}],
    "network": [None, {}, {"network": "LeNets"}, {"network": "LeNet", "shape": [1, 8, 8]}, "ConvNet"],
    "test": [None],
    "scale": [None, 1],
    "source": [None],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_a_card_without_its_whole_evaluation_is_refused(here, refused, name, value):
    altered(path := here / "digits-dm-ipc1.safetensors", **{name: value})
    with refused(path, "no whole evaluation"):
        zoo.read(path)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


FAULTS = {
    "a flipped byte": (lambda path: flip(path, -5), "corrupt"),
    "no digest": (lambda path: path.with_name(path.name + ".sha256").unlink(), "no digits-dm-ipc1.safetensors.sha256 beside it"),
    "another digest": (lambda path: path.with_name(path.name + ".sha256").write_text("0" * 64), ".sha256 is of another file"),
    "another card": (lambda path: path.with_suffix(".json").write_text('{"evaluation": {}}'), ".json is of another file"),
    "1 MB": (lambda path: path.write_bytes(bytes(zoo.LARGEST)), "1,000,000 bytes; accepted: a set below 1,000,000 bytes"),
    "no set": (lambda path: store.save_tensors(path, {"x": torch.zeros(1)}, {}), "exported synthetic set"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_set_is_refused_everywhere(here, tmp_path, refused, fault):
    """In the list, in the board, and before anything is exported or trained."""
    break_, words = FAULTS[fault]
    break_(here / "digits-dm-ipc1.safetensors")
    with refused(words):
        zoo.page(here)
    for more in ([], ["digits-dm-ipc1", "--out", str(tmp_path / "out")], ["digits-dm-ipc1", "--check", "--data", "digits"]):
        assert main(["get", *more]) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (["digits-dn-ipc1"], "did you mean digits-dm-ipc1?"),
        (["gone.safetensors"], "gone.safetensors"),
        (["--to", "pt"], "NAME --to KIND --out PLACE"),
        (["digits-dm-ipc1", "--check"], "NAME --check --data DATA"),
        (["digits-dm-ipc1", "--data", "digits"], "NAME --check --data DATA"),
        (["digits-dm-ipc1", "--to", "pt"], "NAME --to KIND --out PLACE"),
        (["digits-dm-ipc1", "--to", "zip", "--out", "x"], "imagefolder, pt, npz"),
        (["digits-dm-ipc1", "--out", "."], "is there already"),
        (["digits-dm-ipc1", "--check", "--data", "no/folder"], "no/folder"),
    ],
)
def test_what_get_refuses(here, capsys, monkeypatch, words, told):
    monkeypatch.chdir(here)
    assert main(["get", *words]) == 2
    assert told in capsys.readouterr().err and not (here / "x").exists()


def test_without_a_zoo_it_is_said_where_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(places, "SETS", tmp_path / "none")
    assert main(["get"]) == 2 and "results/sets of the repository" in capsys.readouterr().err


@pytest.mark.parametrize("more, told", [([], "--method: none"), (["--method", "Mine"], "--source: none"), (SOURCE, "ends in")])
def test_an_entry_says_what_it_is(folder, tmp_path, capsys, more, told):
    name = "out.npz" if more == SOURCE else "out.safetensors"
    assert main(evaluate(folder.parent / "mine.pt", "--out", str(tmp_path / name), *more)) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nothing_too_large_or_by_a_network_that_no_card_gives_enters(folder, tmp_path, monkeypatch, capsys):
    """Before anything is trained; what its card adds, afterwards."""
    out = tmp_path / "out.safetensors"
    for largest, told in ((5000, "set: 5,120 bytes of numbers"), (6000, f"{out}: ")):
        monkeypatch.setattr(zoo, "LARGEST", largest)
        assert main(evaluate(folder.parent / "mine.pt", *SOURCE, "--out", str(out))) == 2
        said = capsys.readouterr()
        assert told in said.err and "| set |" not in said.out and not list(tmp_path.iterdir())
    assert main(evaluate(folder.parent / "mine.pt", *SOURCE, "--network", "torchvision:resnet18", "--out", str(out))) == 2
    assert "accepted: ConvNet, MLP" in capsys.readouterr().err


def test_a_row_without_its_set_is_refused(folder, tmp_path, capsys):
    """What was made anew may have other bits than what was judged."""
    results = tmp_path / "results"
    for path in (folder.parent / "results").rglob("runs/*.json"):
        store.copy_file(path, results / path.relative_to(folder.parent / "results"))
    options = [word for name, value in (TINY | {"results_dir": str(results)}).items() for word in ("-p", name, str(value))]
    row = ["row", str(BILP), "DM", "1", "--keep", "lowest 0.5", "--set", "steps", "3", "--out", str(tmp_path / "out.safetensors")]
    assert main([*row, *options]) == 2 and "was not kept" in capsys.readouterr().err
    (tmp_path / "out.safetensors").touch()
    assert main([*row, *options]) == 2 and "is there already" in capsys.readouterr().err


def test_the_repositorys_sets_are_accepted_and_the_board_is_theirs():
    """`distillery report --write` writes it; what the cards of paper scale say is what the stored runs say."""
    sets = ROOT / "results" / "sets"
    assert zoo.page(sets) == (ROOT / "results" / "sets.md").read_text()
    for entry in map(zoo.read, zoo.files(sets)):
        assert entry.path.stat().st_size < 1e6
        assert json.loads(entry.path.with_suffix(".json").read_text())["sha256"] == store.file_digest(entry.path)
        if entry.card.evaluation.scale == "paper":
            notebook, run = re.fullmatch(r"notebook (\w+), seed \d+, run (\w+)", entry.card.evaluation.source).groups()
            assert Runs(ROOT / "results" / "paper" / notebook).read(run)["accuracies"] == entry.card.evaluation.accuracies[0]


def test_the_board_is_written_with_the_other_pages(here, tmp_path):
    assert tmp_path / "sets.md" in pages.write(tmp_path)
    assert (tmp_path / "sets.md").read_text() == zoo.page(here) and tmp_path / "sets.md" not in pages.write(tmp_path)


def test_the_commands_of_the_challenge(here, tmp_path, monkeypatch, capsys):
    """From somebody's file to the renewed board, as CHALLENGE.md spells it, on digits and short."""
    text = (ROOT / "CHALLENGE.md").read_text()
    commands = [shlex.split(line) for block in re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M) for line in block.splitlines()]
    assert [words[1] for words in commands] == ["score", "evaluate", "get", "report"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distillery.cli.ROOT", tmp_path)
    monkeypatch.setattr(places, "SETS", tmp_path / "results" / "sets")
    here.rename(store.write_bytes(tmp_path / "results" / "x", b"").with_name("sets"))
    stream = torch.Generator().manual_seed(1)
    torch.save({"images": torch.rand(10, 1, 8, 8, generator=stream), "labels": torch.arange(10)}, "mine.pt")
    short = evaluate("")[4:]  # the options behind the data
    more = {"score": [*short, "--seeds", "1", "--rates", ".01", "--real-epochs", "1"], "evaluate": short}
    for _, *words in commands:
        words = ["digits" if word == "cifar10" else word for word in words if word not in ("--data-root", "PATH")]
        assert main([*words, *more.get(words[0], [])]) == 0, (words, capsys.readouterr())
    assert "| cifar10-mine-ipc1 | digits | Mine | 1 | 10 |" in (tmp_path / "results" / "sets.md").read_text()


def test_a_number_of_a_set_that_is_no_fraction_is_refused(folder):
    entry = zoo.read(folder / "digits-mine-ipc2.safetensors")
    with pytest.raises(InputError, match="no whole evaluation"):
        zoo.Entry(entry.path, synthetic.Synthetic(entry.made.tensors, card=entry.made.card | {"size": None}))
