"""Every generated table has as many cells in each line as in its head."""

import re

import pytest

from distillery.report import pages, records, registered, tables

ROW = records.row("DM | pruned", 1, [{"accuracies": [0.5, 0.6], "steps": 3, "seconds": 1.0, "samples": 4, "stored_numbers": 5}])
CLAIM = records.claim("a", "a | b", "nobody", [[0.5], [0.6]], [[0.4], [0.4]], against="random")
MORE = records.corrected([records.claim("a-2", "a | c", "nobody", [[0.5], [0.6]], [[0.4], [0.4]], against="random", further=True)])
RECORD = {"rows": [ROW, records.row("DC", 1, [None])], "claims": [CLAIM, *MORE], "data": {"label": "x", "train": 1, "test": 1}, "scale": "small",
          "notebook": "90_tiny", "costs": {"seconds_all_runs": 60, "samples_all_runs": 7, "runs_computed": 1, "runs_reused": 2},
          "provenance": {"gpu": None, "cpu_count": 2}}  # fmt: skip
PAGES = {
    "rows": lambda: tables.rows_by_record([RECORD]), "costs": lambda: tables.cost_table([RECORD]), "claims": lambda: tables.table([RECORD]), "verdicts": lambda: tables.verdicts([CLAIM, *MORE]),
    "further": lambda: tables.table([RECORD], further=True),
    "compatibility": registered.compatibility, "settings": registered.settings_page,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_lines_have_as_many_cells_as_heads(page):
    cells = 0
    for line in PAGES[page]().splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        n = len(re.findall(r"(?<!\\)\|", line)) - 1
        cells = cells or n
        assert n == cells > 1, line


def test_what_an_interval_is_made_of_and_could_show_stands_beside_it():
    known = {"published": {"mean": 0.468, "std": None}, "published_baseline": {"mean": 0.462, "std": None}, "against": "MTT"}
    ours, theirs = [[0.5], [0.52], [0.51]], [[0.4], [0.43], [0.4]]
    paired, rest = (records.claim("a", "s", "p", ours, theirs[:n], **known) for n in (3, 1))
    assert "+10.0 [+7.5, +12.5] points to MTT (3 pairs; published +0.6, detectable 2.5)" in tables.verdicts([paired])
    assert "| - | **inconclusive** | no interval from 3 against 1 sets" in tables.verdicts([rest])
    results = [
        [one and {"accuracies": one, "steps": 3, "seconds": 1.0, "samples": 4, "stored_numbers": 5} for one in side]
        for side in (ours, theirs)
    ]
    for n, told in ((3, "+10.0 [+7.5, +12.5] (3 pairs)"), (2, "(3 against 2 sets)"), (1, "(3 against 1 sets)")):
        assert told in tables.rows_table([records.row("DM", 1, results[0], results[1][:n])])


def test_markdown_in_a_name_is_escaped():
    name = "my_pets *new* [x](y) `z` <b> US$ _v_ a|b\\"
    record = RECORD | {"data": RECORD["data"] | {"label": name}, "missing": [], "path": "a/b/c/d/record.json", "notebook": "n"}
    escaped = "my_pets \\*new\\* \\[x\\](y) \\`z\\` \\<b\\> US\\$ \\_v\\_ a"
    texts = [tables.table([record]), tables.rows_by_record([record]), tables.cost_table([record]), pages.headline([(record, CLAIM)])]
    texts.append(pages.headline_table([record], [{"notebook": "n", "claim": "a", "paper": "p"}]))
    assert all(escaped in text and name not in text for text in texts), texts


def test_further_comparisons_stand_apart_with_their_p_and_no_verdict():
    assert tables.verdicts(MORE).startswith("Further comparisons")  # and no empty table of claims
    for shown in (tables.table([RECORD], further=True), tables.verdicts(MORE).split("no verdict:")[1]):
        assert f"| {MORE[0]['p_holm']:.2g} |" in shown and "a \\| c" in shown and "**" not in shown
    assert "a \\| c" not in tables.table([RECORD]) and "Further" not in tables.verdicts([CLAIM])


def test_a_row_again_shows_its_difference():
    again = records.row("random, again", 1, *[[{"accuracies": [x], "steps": 0, "seconds": 1.0, "samples": 0, "stored_numbers": 1} for x in side]
                                              for side in ((0.1, 0.3, 0.2), (0.2, 0.2, 0.2))])  # fmt: skip
    assert "0.0 [-24.8, +24.8] (3 pairs)" in tables.rows_table([again])


def test_every_method_is_in_the_compatibility_table():
    from distillery.methods import METHODS

    page = registered.compatibility()
    assert all(f"| {name} |" in page for name in METHODS)
    assert pages.headline([(RECORD, claim) for claim in RECORD["claims"]])


def test_a_section_of_further_comparisons_alone_has_no_table_of_claims():
    assert "| verdict |" in tables.verdicts([CLAIM, *MORE]) and "| verdict |" not in tables.verdicts(MORE)
    assert tables.verdicts([]) == ""


def test_published_numbers_beside_another_setting_say_so():
    known = {"mean": 0.286, "std": 0.002}
    row = records.row("DC", 1, [{"accuracies": [0.2], "steps": 3, "seconds": 1.0, "samples": 4, "stored_numbers": 5}], published=known)
    claim = records.claim("b", "DC", "nobody", [[0.2]], published=known)
    for scale, told in (("small", 2), ("paper", 0)):
        record = RECORD | {"rows": [row], "claims": [claim], "scale": scale}
        shown = tables.rows_by_record([record]) + tables.table([record])
        assert shown.count("another setting") + shown.count("28.6 ± 0.2 (other setting)") == told
