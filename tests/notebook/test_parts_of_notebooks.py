"""A notebook by sections: the first one, those asked for and the record, to which the others are not run."""

from pathlib import Path

import pytest

from distillery.notebook.parameters import part
from distillery.notebook.session import Session
from made_up import namespace

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_bilp.ipynb"


def test_a_part_holds_its_sections_and_the_record():
    made = part(NOTEBOOK, [3])
    heads = [line for cell in made.cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line.startswith("## ")]
    assert [head.split(".")[0] for head in heads] == ["## 1", "## 3"]
    assert made.cells[1].metadata["tags"] == ["parameters"]
    assert "missing.append" in made.cells[-1].source and made.cells[-1].source.endswith("S.record()")


@pytest.mark.parametrize(
    ("notebook", "asked", "left_out"),
    [
        ("00_quickstart", [3], 0),  # rows of standard parameters
        ("01_bilp", [3], 0),  # the first section says how they are run
        ("02_dlc", [7], 2),
        ("02_dlc", [2, 7], 0),
        ("03_ftd", [4], 0),
        ("06_scoreboard", [5], 2),
        ("07_cost", [2], 0),  # the fourth says it, later
        ("08_video", [3], 2),
    ],
)
def test_a_part_knows_of_a_section_that_says_how_rows_are_run(notebook, asked, left_out):
    sources = [cell.source for cell in part(NOTEBOOK.with_name(f"{notebook}.ipynb"), asked).cells]
    told = [source.rsplit("S.left_out = ", 1)[1] for source in sources if "S.left_out" in source]
    assert told == ([str(left_out)] if left_out else [])


def test_rows_are_not_run_by_other_settings_than_a_section_that_is_left_out_says(tmp_path, refused):
    """They would be run as published, whatever the parameters say."""
    session = Session("94_part", namespace(tmp_path))
    session.left_out = 2
    with refused("section 2 says how rows are run"):
        session.row("random", "random", 1, 1)
    session.experiment()
    session.row("random", "random", 1, 1)


def test_a_section_that_is_not_there(refused):
    with refused("section", "99"):
        part(NOTEBOOK, [3, 99])
