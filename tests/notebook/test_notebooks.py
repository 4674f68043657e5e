"""Policy: what a committed notebook must look like, so that it reads well on the web and is compared by nbval."""

import ast
import pkgutil
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from distillery.notebook import display, parameters
from distillery.report import pages, records
from made_up import distilling

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMON = (
    "dataset",
    "data_root",
    "results_dir",
    "scale",
    "seed",
    "first_seed",
    "n_seeds",
    "ipc",
    "keep",
    "max_side",
    "device",
    "engine",
    "budget_minutes",
    "progress",
)
TAGS = {"parameters", "nbval-check-output", "nbval-skip"}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


def test_valid_one_title_and_a_paper(path):
    notebook = read(path)
    nbformat.validate(notebook)
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert sum(bool(re.match(r"# ", line)) for line in lines) == 1 and notebook.cells[0].source.startswith("# ")
    assert "https://arxiv.org/abs/" in notebook.cells[0].source


def test_the_headline_is_that_of_the_committed_records(path):
    first = read(path).cells[0].source
    assert all(marker in first for marker in pages.CELL)
    own = records.decided(records.find(ROOT / "results"), path.stem)
    assert not own or pages.between(first, pages.CELL, pages.headline(own)) == first, "run `distillery report --write`"


def test_executed_top_to_bottom(path):
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))


def test_outputs_are_kept(path):
    """A reader on the web sees figures and tables; nbval compares what is tagged, and nothing where nothing is kept."""
    cells = code(path)
    assert path.stat().st_size < 1_000_000
    assert sum(bool(cell.outputs) for cell in cells) >= 0.6 * len(cells)
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert all(output.output_type == "stream" for cell in checked for output in cell.outputs)  # figures and tables differ by processor
    assert checked and all(cell.outputs for cell in checked)
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    shown = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in data or "|---" in "".join(data.get("text/markdown", "")) for data in shown) >= 4


def test_shown_sources_are_those_of_the_library(path):
    """What a reader sees of the code is the code; `make reference` executes the notebooks again."""
    stale = []
    for output in (output for cell in code(path) for output in cell.outputs):
        shown = output.get("data", {}).get("text/markdown", "")
        if found := re.match(r"`(distillery[\w.]+)`\n```python\n", shown):
            if display.source(pkgutil.resolve_name(found[1])).data != shown:
                stale.append(found[1])
    assert not stale, "run `make reference`"


def test_no_cell_branches_on_the_name_of_a_method(path):
    """What differs between methods, a method says itself (`METHODS[name]`), or a parameter of the notebook."""
    told = []
    for number, cell in enumerate(code(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Compare) and not isinstance(node.left, ast.Tuple):  # a key among keys is no branch
                names = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
                told += [f"cell {number}: {ast.unparse(node)}"] if names & distilling() else []
    assert not told, "\n".join(told)


def test_no_raw_results_are_shown(path):
    """What is shown is a figure, a table or a sentence, not the value that the last line of a cell happens to have."""
    for cell in code(path):
        for output in cell.outputs:
            data = output.get("data", {})
            assert set(data) != {"text/plain"} or not data["text/plain"].startswith(("[", "{", "(")), cell.source


def test_cells_are_short_and_the_notebook_is(path):
    cells = [cell for cell in code(path) if not is_parameters(cell)]
    assert max(len(cell.source.splitlines()) for cell in cells) <= 25
    lines = [line for cell in code(path) for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 400


def test_metadata(path):
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata.get("tags", [])) <= TAGS
        hidden = {"jupyter": {"source_hidden": True}} if is_parameters(cell) else {}
        assert {name: value for name, value in cell.metadata.items() if name != "tags"} == hidden


def test_no_path_of_a_machine(path):
    assert not re.search(r"[\s\"'=:(]/(root|home|Users|tmp|work|mnt|opt)/", path.read_text())


def test_parameters_are_typed_commented_and_valid(path):
    kinds, defaults = parameters.declared(path)
    assert set(COMMON) <= set(kinds)
    assert parameters.check(kinds, defaults) and defaults["scale"] == "smoke"
    cell = next(cell for cell in code(path) if is_parameters(cell))
    assert cell.source.startswith("from distillery.notebook.types import")
    declared = [line for line in cell.source.partition("\n\n")[2].splitlines() if line]
    for line in declared:
        comment = r"[^=]+"  # papermill does not read a line with another '=' in it
        assert re.fullmatch(rf"# {comment}|\w+: [\w\[\]]+ = [^=]+  # {comment}", line), line


def test_parameter_files_fit(path):
    kinds, _ = parameters.declared(path)
    for file in (ROOT / "notebooks" / "params").glob(f"{path.stem}.*.yaml"):
        values = yaml.safe_load(file.read_text())
        checked = parameters.check(kinds, {name: value for name, value in values.items() if name != "device"})
        assert checked["scale"] == file.name.split(".")[1].split("-")[0]


def test_definitions_live_in_the_package(path):
    """A notebook may define short helpers of its own figures and tables, no classes."""
    for cell in code(path):
        assert not re.search(r"^class ", cell.source, re.M)
