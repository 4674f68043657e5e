"""docs/own_images.md: its commands run in their order on drawn photographs, and then each script trains for an epoch."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from distillery import cli
from distillery.commands import trial
from made_up import class_folders

PAGE = (Path(__file__).resolve().parents[1] / "docs/own_images.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
SCRIPTS = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reader's folder after all commands of the page."""
    root = tmp_path_factory.mktemp("reader")
    class_folders(root / "photos", "RGB", (18, 16))
    arrays = {"x": np.arange(8 * 16).reshape(8, 4, 4).astype(np.uint8), "y": np.arange(8) % 2}
    np.savez(root / "mnist.npz", **{f"{key}_{part}": value for part in ("train", "test") for key, value in arrays.items()})
    rows = [f"photos/{file.parent.name}/{file.name},{file.parent.name}" for file in sorted((root / "photos").glob("*/*"))]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DISTILLERY_CACHE", str(root / "cache"))
        patch.setattr(trial, "VISITS", {"cpu": 100})
        for line in COMMANDS:
            program, *words = shlex.split(line, comments=True)
            assert program == ".venv/bin/distillery"
            words += {"distill": ["--set", "steps", "2"], "score": ["--networks", "1", "--looks", "0"]}.get(words[0], [])
            assert cli.main(words) == 0, line
    return root


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda code: re.search(r"ImageFolder\(\"\w+|\w+Dataset\(|np.load", code)[0])
def test_a_script_trains(folder, script, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = re.sub(r"range\(\d+\)", "range(1)", script)
    assert code != script and len(script.splitlines()) <= 22
    space = {"__name__": "page"}
    exec(compile(code, "own_images.md", "exec"), space)
    assert space["loss"].isfinite() and space["network"].fc.out_features == 3 and capsys.readouterr().out
    if "test" in space:
        parts = {name: {file for file, _ in space[name].samples} for name in ("train", "test")}
        assert (len(parts["train"]), len(parts["test"])) == (18, 9) and parts["train"].isdisjoint(parts["test"])


def test_the_page_has_a_script_for_each_way_out():
    assert len(SCRIPTS) == 5 and all(re.match(r"\.venv/bin/distillery (data|prune|distill|score|export) ", line) for line in COMMANDS)
