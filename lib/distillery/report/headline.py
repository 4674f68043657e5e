"""What stands first: the verdicts of the largest scale, in a few lines that are generated."""

import re
from pathlib import Path

import nbformat

from distillery import store
from distillery.report.records import find

SHOWN = 5  # claims with their numbers
BEGIN, END = "<!-- headline: generated -->", "<!-- headline: end -->"


def headline(record: dict) -> str:
    """A few lines of Markdown: how many claims hold, the first ones with their numbers, and what was not reproduced."""
    claims, data = record["claims"], record["data"]
    counts = {verdict: sum(one["verdict"] == verdict for one in claims) for verdict in ORDER}
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    lines = [
        f"**Found at {record['scale']} scale** on {data['label']} ({data['train']} training images); of {len(claims)} claims: {said}.",
        "",
    ]
    lines += [f"- {_line(one)}" for one in claims[:SHOWN]]
    refuted = [one for one in claims[SHOWN:] if one["verdict"] == "not reproduced"]
    lines += [f"- {_line(one)}" for one in refuted]
    return "\n".join(lines)


def _line(claim: dict) -> str:
    gap, row = claim["difference"], claim["measured"]
    text = f"{claim['statement']}: **{claim['verdict']}**"
    if gap and gap["ci95"]:
        low, high = (100 * bound for bound in gap["ci95"])
        return f"{text}, {100 * gap['mean']:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"{text}, {100 * row['value']:.1f}%" if row and not gap else text


ORDER = ("reproduced", "direction reproduced", "not reproduced", "inconclusive", "not testable at this scale", "not run")


def headlines(root: str | Path) -> dict[str, str]:
    """The headline of the largest scale above smoke of every notebook that has a record there, by notebook.

    Of several data sets, CIFAR-10, else the first.
    """
    chosen: dict[str, dict] = {}
    for record in find(root):  # largest scale first
        name, known = record["notebook"], chosen.get(record["notebook"])
        better = known and record["scale"] == known["scale"] and _folder(record) == "cifar10"
        if record["scale"] != "smoke" and (known is None or better):
            chosen[name] = record
    return {name: headline(record) for name, record in chosen.items()}


def _folder(record: dict) -> str:
    return Path(record["path"]).parent.name


def between(text: str, begin: str, end: str, block: str) -> str:
    """A text with the part between two markers replaced; as it is where the markers are not there."""
    if begin not in text or end not in text:
        return text
    return text[: text.index(begin) + len(begin)] + f"\n{block}\n" + text[text.index(end) :]


def refresh(notebook: str | Path, block: str) -> bool:
    """Put a headline between the markers of a notebook's first cell; returns whether the file changed."""
    content = nbformat.read(notebook, as_version=4)
    fresh = re.sub(r"\n{3,}", "\n\n", between(content.cells[0].source, BEGIN, END, block))
    if fresh == content.cells[0].source:
        return False
    content.cells[0].source = fresh
    store.write_bytes(notebook, (nbformat.writes(content) + "\n").encode())
    return True
