"""What README, CONTRIBUTING and CHALLENGE show works: every block of code runs, every line of a shell is one, every link leads somewhere."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch

from distillery import api, cli, data
from distillery.commands import trial
from distillery.data.synthetic import Synthetic, export
from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.notebook import sweep
from distillery.recipe import Recipe
from distillery.runs import Runs
from made_up import TINY, class_folders

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHALLENGE.md")}
NOT_RUN = {"text", "bibtex"}  # diagrams; a citation


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of fenced blocks."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.S | re.M)


def lines(block: str) -> list[str]:
    """Commands of a shell block, without comments."""
    return [line for line in (line.partition("#")[0].strip() for line in block.splitlines()) if line]


PYTHON = [code for language, code in blocks(PAGES["README.md"]) if language == "python"]
SHELL = [line for language, block in blocks(PAGES["README.md"]) if language == "sh" for line in lines(block)]
MAKE = [line for line in SHELL if line.startswith("make ")] + re.findall(r"`(make \w+)`", "".join(PAGES.values()))
COMMANDS = [line for line in SHELL if not line.startswith("make ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a reader: drawn photographs of three classes, a set on disk, a results folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLERY_RESULTS", str(tmp_path / "results"))
    class_folders(tmp_path / "photos", "RGB", (48, 40))
    photos = data.load("folder", "photos", max_side=8).train
    first = {"images": photos.batch(torch.tensor([0, 12, 24])), "targets": photos.targets[[0, 12, 24]]}
    export(Synthetic(first, photos.classes), tmp_path / "set.safetensors", {}, photos.transform)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language(page):
    fences = [line for line in PAGES[page].splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(blocks(PAGES[page])) and fences[1::2] == ["```"] * (len(fences) // 2)
    assert {language for language, _ in blocks(PAGES[page])} <= NOT_RUN | {"python", "sh"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", PAGES[page])
    gone = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not gone


def test_links_to_lines_lead_to_equations():
    """The five that a reader looks for; `distillery report --write` renews the numbers."""
    links = re.findall(r'\((lib/[\w./]+)#L(\d+) "([^"]+)"\)', PAGES["README.md"])
    for path, line, words in links:
        found = (ROOT / path).read_text().splitlines()[int(line) - 1]
        assert found.startswith("$$") and words in found, f"{path}#L{line}: {found}"
    files = ("matching/effects", "selection", "training/optimizers", "methods/mkdt", "scores/sensitivity")
    assert [path for path, *_ in links] == [f"lib/distillery/{file}.py" for file in files]


def test_pictures_are_those_of_the_committed_record():
    pictures = re.findall(r"!\[[^]]*\]\(((?!https:)[^)]+)\)", PAGES["README.md"])  # badges apart
    folders = {(ROOT / picture).parent for picture in pictures}
    assert pictures and {folder.parent.name for folder in folders} == {"01_bilp"}
    assert all((folder / "record.json").is_file() for folder in folders) and all((ROOT / one).is_file() for one in pictures)


def test_the_readme_is_a_page():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("line", MAKE)
def test_targets_of_make(line):
    done = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split("\n", 1)[0])
def test_python(folder, code, capsys, request):
    before = set(METHODS)
    request.addfinalizer(lambda: [METHODS.pop(name) for name in set(METHODS) - before])
    space = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), space)
    for name in set(METHODS) - before:  # a method of one's own: it runs with the rest
        splits = data.load("digits", per_class=5)
        here = Experiment(splits, ConvNet(splits.train.shape, 10, width=4), Protocol(1, 1), Runs(folder / "own"))
        assert here.run(Recipe(name, 1, 0, settings={"steps": 1, "batch": 4}))["steps"] == 1
    if "experiment" in space:
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3 and space["experiment"].runs.computed == 6
        assert all(0 <= value <= 1 for value in space["result"]["accuracies"]) and len(space["result"]["accuracies"]) == 2


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(folder, line, monkeypatch, capfd, package):
    program, *words = shlex.split(line)
    assert program == ".venv/bin/distillery"
    planned = []
    if words[0] == "sweep":  # planned, not run
        words[1] = str(ROOT / words[1])
        monkeypatch.setattr(sweep, "run", lambda _, cells, *more, **how: planned.extend(cells) or [one.state() for one in cells])
    if words[0] == "report":
        monkeypatch.delenv("DISTILLERY_RESULTS")  # the committed records
    if "-f" in words:  # its data are not here: others lie in their place
        shutil.make_archive("cifar10", "gztar", "photos")
        words[words.index("-f") + 1] = str(ROOT / words[words.index("-f") + 1])
    if "-f" in words or "--section" in words:
        monkeypatch.setattr("distillery.notebook.execution.execute", lambda notebook, content, given, *_: planned.append(given) or 1)
    monkeypatch.setattr(trial, "VISITS", {"cpu": 100})
    monkeypatch.setattr(
        "distillery.commands.distill.SHORT", {"steps": 2, "batch": 4, "experts": 1, "max_start_epoch": 1, "student_steps": 1}
    )
    if "--encoder" in words:  # a small one stands in
        package(timm.create_model(TINY, num_classes=1000).state_dict())
        words[words.index("--encoder") + 1] = "tiny"
    if words[0] in ("evaluate", "score"):
        api.prune("photos", 0.3, rule="random", hold_out=0.2).write("kept.csv")
    short = {"distill": ["--force"], "advise": ["--sizes", "1,50%", "--seeds", "2"], "evaluate": ["--networks", "1", "--epochs", "1"]}
    short["score"] = [*short["evaluate"], "--seeds", "1", "--rates", "0.01", "--real-epochs", "1"]
    words += short.get(words[0], [])
    code = cli.main(words)
    out, err = capfd.readouterr()
    assert code == (1 if planned and words[0] == "run" else 0), (out, err)
    if words[0] == "sweep":
        assert len(planned) == 2 and "2 not run" in out  # of 4 cells, every second one
    if words[0] == "report":
        assert out.count("reproduced") > 20
    told = {
        "prune": "kept ",
        "distill": "| start |",
        "advise": "advice: ",
        "evaluate": "| random |",
        "score": "LRS",
        "export": "set_folder",
    }
    assert told.get(words[0], "") in out
    if words[0] == "data":
        assert "class 2" in out and "48x40" in out.replace(" ", "")
    if "-f" in words:
        [given] = planned
        assert given["budget_minutes"] == 120 and given["data_root"] == str(folder / "cifar10.tar.gz")
        assert len(data.load(given["dataset"], given["data_root"]).train.classes) == 3


def test_a_set_from_elsewhere(folder, capsys):
    """`distillery evaluate`, as README spells it, on data that are here."""
    [line] = re.findall(r"`(distillery evaluate [^`]+)`", PAGES["README.md"])
    stand_ins = {"set.pt": "set.safetensors", "cifar10": "photos"}
    words = [stand_ins.get(word, word) for word in line.split()[1:]]
    assert cli.main([*words, "--width", "4", "--networks", "1", "--epochs", "1"]) == 0
    assert "random" in capsys.readouterr().out


def test_the_speed_that_the_readme_tells_is_that_of_the_table():
    """A third of the time for steps of DM, DC and training, two thirds for evaluations."""
    assert "DC and training steps take about a third of its processor time, evaluations two thirds" in " ".join(
        PAGES["README.md"].split("\n")
    )
    works = {one["work"]: one["faster"].get("fast") for one in json.loads((ROOT / "results/bench/cpu.json").read_text())["works"]}
    thirds = {"DM step, ipc 1": 3, "DM step, ipc 10": 3, "DC step, ipc 1": 3, "DC step, ipc 10": 3, "training step of 256": 3}
    thirds |= {"evaluation of 10 networks, ipc 1": 1.5, "evaluation of 10 networks, ipc 10": 1.5}
    assert all(works[name] == pytest.approx(times, rel=0.3) for name, times in thirds.items())


def test_the_board_of_the_site_shows_evaluated_sets_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    board = importlib.import_module("board")
    for place in ("sets", "smoke/00_quickstart/digits", "small/00_quickstart/artifacts"):
        (tmp_path / "results" / place).mkdir(parents=True)
        shutil.copyfile(ROOT / "results/sets/cifar10-dm-ipc1.safetensors", tmp_path / "results" / place / "some.safetensors")
    (tmp_path / "results/sets/scores.safetensors").write_bytes(b"no set")
    assert board.sets(tmp_path, tmp_path / "out").count("grid-item-card") == 1
