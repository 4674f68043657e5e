"""What is installed: ranges that admit the locks, a wheel that works by itself, no index of packages by its address."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import distillery
from distillery import cli, places
from distillery.checks import InputError
from distillery.notebook import shipped
from distillery.report import provenance

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"requirements": ("notebooks", "completion", "ray", "text", "test"), "requirements-lab": ("notebooks", "lab")}


def pins(name: str) -> set[tuple[str, str]]:
    """(package, version) of a lock."""
    return set(re.findall(r"^([\w.-]+)==([\w.+!]+)", (ROOT / f"{name}.lock").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_ranges_admit_the_lock(name):
    lines = PROJECT["dependencies"] + sum((PROJECT["optional-dependencies"][extra] for extra in LOCKS[name]), [])
    for one in (one for one in map(Requirement, lines) if one.name != "distillery"):
        assert all(str(part).startswith(">=") for part in one.specifier), f"{one} leaves no choice to what is installed already"
        versions = {version for package, version in pins(name) if package == one.name}
        assert versions and all(version in one.specifier for version in versions), f"{one}: {versions}"


def test_locks_agree():
    both, lab = dict(pins("requirements")), pins("requirements-lab")
    assert {"torch", "torchvision", "papermill"} <= {package for package, _ in lab}
    assert not [(package, version) for package, version in lab if package in both and (package, version) not in pins("requirements")]


def test_no_file_names_an_index_of_packages():
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|(index|find)-(url|links)[ =]|tool\.uv\.index"
    found = subprocess.run(["git", "grep", "-nIE", hosts], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert not any("://" in (ROOT / f"{name}.lock").read_text() for name in LOCKS) and not (ROOT / "uv.lock").exists()


def test_versions_are_told_alike():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == distillery.__version__
    told = [one.rpartition(" :: ")[2] for one in PROJECT["classifiers"] if "Python :: 3" in one]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == told == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources and unpacked as if it were installed."""
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("lib", "notebooks", "results/sets"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", call, installed], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = installed.glob("*.whl")
    assert file.stat().st_size < 6e6
    zipfile.ZipFile(file).extractall(installed)
    return installed


def outside(wheel: Path, folder: Path, *words) -> subprocess.CompletedProcess:
    """A command of the unpacked wheel, called in a folder of one's own."""
    variables = {name: value for name, value in os.environ.items() if name != "DISTILLERY_RESULTS"} | {"PYTHONPATH": str(wheel)}
    return subprocess.run([sys.executable, "-m", "distillery", *map(str, words)], cwd=folder, env=variables, capture_output=True, text=True)


def test_the_wheel_holds_the_notebooks_and_the_zoo(wheel, tmp_path):
    for path in ROOT.glob("results/sets/*"):
        assert (wheel / "distillery" / "_sets" / path.name).read_bytes() == path.read_bytes()
    assert "| cifar10-dm-ipc1 |" in outside(wheel, tmp_path, "get").stdout
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/params/*.yaml")]:
        assert (wheel / "distillery" / "_notebooks" / path.relative_to(ROOT / "notebooks")).read_bytes() == path.read_bytes()
    modules = {path.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*.py")}
    assert {path.relative_to(wheel) for path in wheel.rglob("*.py")} == modules and (wheel / "distillery" / "py.typed").is_file()
    assert (wheel / "distillery" / "networks" / "block.cpp").is_file()  # which is built where it is used


def test_the_wheel_works_outside_the_repository(wheel, tmp_path, tiny_notebook):
    """Notebooks lie in the package; results in ./results, which the kernel knows although it runs where the notebook lies."""
    assert "00_quickstart" in outside(wheel, tmp_path, "list").stdout
    notebook = tiny_notebook(
        "from distillery.notebook import parameters\nfrom distillery.report import records\nP = parameters.settings(globals())\n"
        "folder = parameters.results_root(P.results_dir) / P.scale / 'tiny' / 'made-up'\n"
        "records.write(folder / 'record.json', notebook='tiny', key=records.record_key('tiny', vars(P)), scale=P.scale, rows=[],\n"
        "              parameters=vars(P), claims=[], costs={}, data={'label': 'made-up', 'train': 9, 'test': 5}, missing=[])"
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    done = outside(wheel, folder, "run", notebook)
    assert done.returncode == 0, done.stderr
    assert (folder / "results" / "smoke" / "tiny" / "made-up" / "record.json").is_file()
    assert "make lab" not in done.stdout


def test_a_repository_around_an_installed_package_is_not_recorded(monkeypatch):
    assert provenance.provenance()["git"]["commit"]
    monkeypatch.setattr(places, "IN_REPOSITORY", False)
    assert provenance.provenance()["git"] is None


def test_notebooks_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    names = [path.stem for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^(\d\w+)  ", told, re.MULTILINE) == names and "DLC: which samples" in told and "reproduced" in told
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for folder in (Path("."), tmp_path / "deep" / "new"):
        assert cli.main(["notebooks", str(folder)]) == 0
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == names and (folder / "params" / "sweep.example.yaml").is_file()
    (tmp_path / "file").touch()
    for folder in ("empty", "file", "file/below"):
        with pytest.raises(InputError, match="accepted: "):
            shipped.copy(tmp_path / folder)
    assert not [path for path in tmp_path.rglob("*.tmp")]


def test_what_notebooks_need_is_asked_for_in_one_line(tmp_path):
    """Without the extra, everything but notebooks is there."""
    words = [["run", "00_quickstart"], ["row", "01_bilp", "DM", "1"], ["sweep", str(ROOT / "notebooks" / "params" / "sweep.example.yaml")]]
    words += [["report", "--write"], ["report", "--results", str(ROOT / "results")]]
    code = f"""import sys
sys.modules |= dict.fromkeys(("nbformat", "papermill", "ipykernel", "IPython"))  # as if they were not installed
from distillery import api, cli
import distillery.commands.advise
print("codes", *[cli.main(one) for one in {words!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "codes 2 2 2 2 0" in done.stdout and "reproduced" in done.stdout, done.stderr
    assert done.stderr == 4 * 'error: nbformat is not installed; accepted: first `pip install "distillery[notebooks]"`\n'


def test_words_are_completed(tmp_path):
    pytest.importorskip("argcomplete", reason="the optional extra completion is not installed")
    for line, words in {
        "distillery note": {"notebooks"},
        "distillery prune photos --ke": {"--keep"},
        "distillery data ": {"check"},
    }.items():
        asked = {
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "told"),
        }
        call = [sys.executable, "-X", "importtime", "-c", "import sys; sys.argv[0] = 'distillery'; from distillery.cli import main; main()"]
        done = subprocess.run(call, cwd=tmp_path, env=os.environ | asked, capture_output=True, text=True)
        assert words <= {word.strip() for word in (tmp_path / "told").read_text().split("\x0b")}, done.stderr
        assert "torch" not in done.stderr  # a shell does not wait
