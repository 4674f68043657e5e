"""A notebook by sections: the first one, those asked for and the record, to which the others are not run."""

from pathlib import Path

from distillery.notebook.parameters import part

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_bilp.ipynb"


def test_a_part_holds_its_sections_and_the_record():
    made = part(NOTEBOOK, [3])
    heads = [line for cell in made.cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line.startswith("## ")]
    assert [head.split(".")[0] for head in heads] == ["## 1", "## 3"]
    assert made.cells[1].metadata["tags"] == ["parameters"]
    assert "missing.append" in made.cells[-1].source and made.cells[-1].source.endswith("S.record()")


def test_a_section_that_is_not_there(refused):
    with refused("section", "99"):
        part(NOTEBOOK, [3, 99])
