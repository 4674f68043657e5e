"""Policy: what a committed notebook must look like, so that it reads well on the web and is compared by nbval."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from distillery.notebook import parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMON = (
    "dataset",
    "data_root",
    "results_dir",
    "scale",
    "seed",
    "n_seeds",
    "ipc",
    "keep",
    "max_side",
    "device",
    "engine",
    "budget_minutes",
    "progress",
)
TAGS = {"parameters", "keep_output", "nbval-check-output", "nbval-skip"}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_valid_and_one_title(path):
    notebook = read(path)
    nbformat.validate(notebook)
    titles = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"# ", line)
    ]
    assert len(titles) == 1 and notebook.cells[0].source.startswith("# ")


def test_executed_top_to_bottom(path):
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))


def test_reference_outputs(path):
    """nbval compares nothing where nothing is kept; kept outputs are text, and at most one picture below 100 kB."""
    checked = [cell for cell in code(path) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked and all(cell.outputs for cell in checked)
    pictures = [
        output.data["image/png"]
        for cell in code(path)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) <= 1 and all(len(picture) * 3 / 4 < 100_000 for picture in pictures)
    for cell in code(path):
        assert not cell.outputs or "keep_output" in cell.metadata.get("tags", [])
        assert all(output.output_type != "error" for output in cell.outputs)


def test_metadata(path):
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert set(cell.metadata.get("tags", [])) <= TAGS


def test_no_path_of_a_machine(path):
    assert not re.search(r"[\s\"'=:(]/(root|home|Users|tmp|work|mnt|opt)/", path.read_text())


def test_parameters_are_typed_commented_and_valid(path):
    types, defaults = parameters.declared(path)
    assert set(COMMON) <= set(types)
    assert parameters.check(types, defaults) and defaults["scale"] == "smoke"
    cell = next(cell for cell in code(path) if "parameters" in cell.metadata.get("tags", []))
    for line in cell.source.splitlines():
        assert line.startswith("#") or re.match(r"\w+: [\w\[\]]+ = .+  # .+", line), line


def test_parameter_files_fit(path):
    types, _ = parameters.declared(path)
    for file in (ROOT / "notebooks" / "params").glob(f"{path.stem}.*.yaml"):
        values = yaml.safe_load(file.read_text())
        checked = parameters.check(types, {name: value for name, value in values.items() if name != "device"})
        assert checked["scale"] == file.name.split(".")[1].split("-")[0]


def test_definitions_live_in_the_package(path):
    """A notebook may define short helpers of its own figures and tables, no classes."""
    for cell in code(path):
        assert not re.search(r"^class ", cell.source, re.M)
