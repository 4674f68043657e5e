"""Generated pages: the most telling verdicts of the largest scale, numbers of papers from the methods, all or nothing written."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from distillery import cli
from distillery.checks import InputError
from distillery.report import pages, records

ROOT = Path(__file__).resolve().parents[2]
UP, DOWN, AMID = [[0.5], [0.52]], [[0.1], [0.11]], [[0.1], [0.9]]


def one(id, ours=UP, theirs=DOWN, **how):
    return records.claim(id, f"{id} is better", "nobody", ours, theirs, against="random", **how)


def write(root, scale, data, claims, notebook="90_tiny", **more):
    path = root / scale / notebook / data / "record.json"
    parts = {"parameters": {}, "rows": [], "costs": {}, "data": {"label": data, "train": 9, "test": 5}, "missing": []} | more
    return records.write(path, notebook=notebook, key="k", scale=scale, claims=claims, **parts)


def chosen(claims, tmp_path):
    record = records.load(write(tmp_path, "small", "x", claims))
    return [
        line.split(" is better")[0].removeprefix("- ")
        for line in pages.headline([(record, claim) for claim in record["claims"]]).splitlines()[2:]
    ]


def test_a_headline_tells_published_then_refuted_then_reproduced_and_no_three_of_a_kind(tmp_path):
    number = {"mean": 0.5, "std": 0.01}
    claims = [
        *(one(f"same-{i}") for i in range(9)),
        one("open", AMID),
        one("lost", DOWN, UP),
        one("not run", []),
        one("known", published=number),
    ]
    assert chosen(claims, tmp_path) == ["known", "lost", "same-0", "same-1", "open"]
    claims = [one("won", published=number), one("failed", DOWN, UP, published=number), *(one(f"x{i}-1") for i in range(9))]
    assert chosen(claims, tmp_path)[:2] == ["failed", "won"] and len(chosen(claims, tmp_path)) == pages.SHOWN


def test_a_claim_is_told_at_the_largest_scale_that_decides_it_and_of_cifar10_first(tmp_path):
    for scale, data in (("smoke", "x"), ("small", "b"), ("small", "cifar10")):
        write(tmp_path, scale, data, [one("a"), one("b")])
    write(tmp_path, "paper", "cifar10", [one("a"), one("b", UP[:1], AMID[:1]), one("c", []), one("d", UP[:1], AMID[:1])])
    found = records.decided(records.find(tmp_path), "90_tiny")
    told = [(record["scale"], record["data"]["label"], claim["id"]) for record, claim in found]
    assert told == [("paper", "cifar10", "a"), ("small", "cifar10", "b"), ("paper", "cifar10", "c"), ("paper", "cifar10", "d"),
                    ("small", "b", "a"), ("small", "b", "b")]  # fmt: skip
    assert pages.headline(found).startswith("**Found** on cifar10; of 4 claims") and ", paper scale" in pages.headline(found)
    assert pages.headline(found[4:] + found[:4]).startswith("**Found** on cifar10; of 4 claims")  # its claims rest on most sets
    assert records.decided(records.find(tmp_path), "another") == []


def test_every_published_number_that_was_held_against_ours_is_in_one_table_and_one_line(tmp_path):
    def value(id, ours, number, comparable=True):
        claimed = f"{id} at ipc 1: the published accuracy"
        return records.claim(id, claimed, "a paper", ours, None, {"mean": number, "std": 0.01}, comparable)

    claims = [
        value("met", [[0.50], [0.52]], 0.52),
        value("missed", [[0.1, 0.2]], 0.9),
        value("other", UP, 0.5, comparable=False),
        one("gap"),
    ]
    record = records.load(write(tmp_path, "small", "x", claims))
    head, _, *lines = pages.published_rows([record]).splitlines()
    assert head == "| what | published, % | here (sets x networks) | 95% interval of the mean | verdict | data |"
    assert lines == [
        "| met at ipc 1 | 52.0 ± 1.0 | 51.0 ± 1.4 (2 x 1) | 38.3 to 63.7 | **reproduced** | [x](results/90_tiny.md) |",
        "| missed at ipc 1 | 90.0 ± 1.0 | 15.0 (1 x 2) | -48.5 to 78.5, of networks | **not reproduced** | [x](results/90_tiny.md) |",
    ]
    told = pages.headline([(record, claim) for claim in record["claims"]]).splitlines()
    assert told[2] == "- 1 of 2 published numbers **reproduced**, here in brackets: met at ipc 1 52.0 ± 1.0 (51.0 ± 1.4 (2 x 1))"
    assert told[3].startswith("- 1 of 2 published numbers **not reproduced**") and "gap is better" in told[4]
    page = pages.page([record], "90_tiny")
    assert "| 52.0 ± 1.0 |" in page and "| 50.0 ± 1.0 (other setting) |" in page


def test_further_comparisons_are_counted_nowhere_and_have_a_table(tmp_path):
    record = records.load(write(tmp_path, "small", "x", records.corrected([one("a"), one("b", further=True)])))
    assert [claim["id"] for _, claim in records.decided([record], "90_tiny")] == ["a"]
    text = pages.page([record], "90_tiny")
    assert text.index("a is better") < text.index("## Further comparisons") < text.index("b is better") < text.index("## Rows")
    assert "## Further" not in pages.page([record | {"claims": record["claims"][:1]}], "90_tiny")


def test_numbers_stand_in_the_unit_of_their_claim_on_its_data(tmp_path):
    claims = [one("rank", unit="correlation", digits=3, data="clips"), one("better")]
    record = records.load(write(tmp_path, "small", "x", claims, costs={"seconds_all_runs": 60.0, "seconds_scoring": 120.0}))
    text = pages.page([record], "90_tiny")
    assert (
        "| clips, small |" in text
        and "0.510 ± 0.014 correlation (2 x 1) | +0.405 [+0.336, +0.474] correlation to random (2 against 2 sets)" in text
    )
    assert "| x, small |" in text and "51.0 ± 1.4 % (2 x 1) | +40.5 [+33.6, +47.4] points to random (2 against 2 sets)" in text
    assert "rank is better (clips): **direction reproduced**, +0.405 [+0.336, +0.474] correlation" in pages.headline(
        [(record, claim) for claim in record["claims"]]
    )
    assert pages.scoreboard([record], "90_tiny") == "[2 direction reproduced](results/90_tiny.md), 3 min"


def test_a_first_cell_changes_only_between_its_markers(tmp_path):
    path = tmp_path / "n.ipynb"
    begin, end = pages.CELL
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# Title\n\n{begin}\nstale\n{end}\n\nafter")]), path)
    path.write_text(pages.first_cell(path, "fresh"))
    assert pages.first_cell(path, "fresh") == path.read_text()
    assert nbformat.read(path, 4).cells[0].source == f"# Title\n\n{begin}\nfresh\n{end}\n\nafter"


BROKEN = {
    "missing": None,
    "no list": "much",
    "no YAML": "[",
    "empty": "",
    "no claim": "[{notebook: a, paper: b}]",
    "unknown field": "[{notebook: a, claim: b, paper: c, note: d}]",
    "unknown number": "[{notebook: a, claim: b, paper: '{}', numbers: [[cifar10, DM, 7]]}]",
    "no number": "[{notebook: a, claim: b, paper: '{} and {}', numbers: [[cifar10, DM, 1]]}]",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_headlines_that_are_missing_or_broken(tmp_path, fault):
    path = tmp_path / "headlines.yaml"
    if BROKEN[fault] is not None:
        path.write_text(BROKEN[fault])
    with pytest.raises(InputError, match=r"headlines\.yaml: .*accepted: a list of") as caught:
        pages.chosen_claims(path)
    assert "\n" not in str(caught.value)


def test_headlines_of_the_repository():
    """Every one is a claim of a record, and no number of a paper is typed."""
    known = {(record["notebook"], one["id"]) for record in records.find(ROOT / "results") for one in record["claims"]}
    claims = pages.chosen_claims(ROOT / "results" / "headlines.yaml")
    assert {(one["notebook"], one["claim"]) for one in claims} <= known
    assert {"ftd-ema-beats-mtt-ipc-1", "validated"} <= {one["claim"] for one in claims}
    told = {one["claim"]: one["paper"] for one in claims}
    assert told["ftd-ema-beats-mtt-ipc-1"].startswith("FTD 46.8, MTT 46.2 at")
    assert told["mkdt-random-CIFAR-10 (JPEG folders, 16 px)-0.05"].startswith("MKDT 53.1, random 46.6 with")


def test_badges_lead_to_the_address_of_the_repository(tmp_path):
    project = tmp_path / "pyproject.toml"
    for urls in ("", '[project.urls]\nHomepage = "https://example.org"', '[project.urls]\nRepository = "https://example.org/a/b"'):
        project.write_text(f"[project]\n{urls}")
        assert pages.badges(tmp_path) == ""
    project.write_text('[project]\n[project.urls]\nRepository = "https://github.com/some/one.git"')
    links = re.findall(r"\]\((https://[^)]+)\)(?!\])", pages.badges(tmp_path))
    assert len(links) == 3 and all("/some/one/" in link for link in links)
    for link in links[1:]:
        assert (ROOT / re.search(r"notebooks/.*", link)[0]).is_file()
    assert (ROOT / ".github" / re.search(r"workflows/.*", links[0])[0]).is_file()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    write(tmp_path / "results", "small", "x", [one("a")])
    (tmp_path / "results" / "headlines.yaml").write_text("[{notebook: 90_tiny, claim: a, paper: much}]")
    (tmp_path / "README.md").write_text("before\n{}\nstale\n{}\nafter\n".format(*pages.README))
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    return tmp_path


def test_report_renews_what_is_generated(checkout, capsys):
    assert cli.main(["report", "--write"]) == 0
    text = (checkout / "README.md").read_text()
    assert "a is better" in text and "much" in text and "stale" not in text
    assert text.startswith("before") and text.endswith("after\n")
    assert "a is better" in (checkout / "results" / "90_tiny.md").read_text()
    assert "README.md" in capsys.readouterr().out
    assert cli.main(["report", "--write"]) == 0 and "nothing changed" in capsys.readouterr().out


def test_report_writes_where_it_is_told(checkout, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other") / "mine"
    write(other, "small", "y", [one("b")])
    before = (checkout / "README.md").read_text()
    assert cli.main(["report", "--write", "--results", str(other)]) == 0
    assert "b is better" in (other / "90_tiny.md").read_text()
    assert (checkout / "README.md").read_text() == before and not (checkout / "results" / "90_tiny.md").exists()
    assert cli.main(["report", "--write", "--scale", "small"]) == 2 and "--scale" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["record", "headlines"])
def test_report_writes_nothing_beside_a_broken_file(checkout, capsys, fault):
    write(checkout / "results", "small", "y", [one("b")])
    path = checkout / "results" / ("small/90_tiny/y/record.json" if fault == "record" else "headlines.yaml")
    path.write_text(path.read_text()[:30])
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    assert cli.main(["report", "--write"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and path.name in line
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before
    assert cli.main(["report", "--results", str(checkout / "results")]) == 0
    out, err = capsys.readouterr()
    assert "a is better" in out and err.startswith("warning: ") == (fault == "record") and ("b is better" in out) == (fault != "record")
