"""The headline block: verdicts of the largest scale, with numbers, between markers."""

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

from distillery.report import headline, records


def write(root, scale, data, value, notebook="90_tiny"):
    better = records.claim("a", "ours is better", "nobody", [[value], [value + 0.02]], [[0.1], [0.11]], against="random")
    worse = records.claim("b", "worse is better", "nobody", [[0.1], [0.11]], [[0.5], [0.52]], against="random")
    records.write(root / scale / notebook / data / "record.json", notebook=notebook, key="k", scale=scale, parameters={}, rows=[], costs={},
                  claims=[better, *[better] * 6, worse], data={"label": data, "train": 9}, missing=[])  # fmt: skip


def test_largest_scale_and_what_was_not_reproduced(tmp_path):
    write(tmp_path, "smoke", "x", 0.9)
    assert headline.headlines(tmp_path) == {}
    write(tmp_path, "small", "b", 0.5)
    write(tmp_path, "small", "cifar10", 0.6)
    text = headline.headlines(tmp_path)["90_tiny"]
    assert text.startswith("**Found at small scale** on cifar10") and "7 direction reproduced, 1 not reproduced" in text
    assert text.count("ours is better") == headline.SHOWN and "worse is better: **not reproduced**, -40.5 points [" in text
    write(tmp_path, "paper", "a", 0.7)
    assert headline.headlines(tmp_path)["90_tiny"].startswith("**Found at paper scale** on a")


def test_refresh_changes_only_what_is_between_the_markers(tmp_path):
    path = tmp_path / "n.ipynb"
    cell = new_markdown_cell(f"# Title\n\n{headline.BEGIN}\nstale\n{headline.END}\n\nafter")
    nbformat.write(new_notebook(cells=[cell]), path)
    assert headline.refresh(path, "fresh") and not headline.refresh(path, "fresh")
    assert nbformat.read(path, 4).cells[0].source == f"# Title\n\n{headline.BEGIN}\nfresh\n{headline.END}\n\nafter"
