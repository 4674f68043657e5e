"""Lay out the pages of the site as they lie in the repository: texts, notebooks, result pages; and those made here: board, sets, API.

    python docs/site/pages.py build/pages

A link that leads nowhere in the repository is an error.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import reference
from board import board

ROOT = Path(__file__).resolve().parents[2]
SCALES = ("paper", "night", "small")
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CHALLENGE.md", "docs/*.md", "results/*.md", "results/bench/**/*.md")
TEXTS += ("results/paper/*.md", "results/night/*.md")
FOLDERS = {"results/sets": "board.md", "results": "results/index.md", "notebooks": "notebooks/index.md", "lib/distillery": "api/index.md"}
LINK = re.compile(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?: "[^"]*")?\)')
FENCE = re.compile(r"(```.*?```|`[^`\n]+`)", re.S)


class Pages:
    """Pages in a folder that mirrors the repository."""

    def __init__(self, out: Path):
        self.out = out
        self.texts = sorted(path for pattern in TEXTS for path in ROOT.glob(pattern))
        self.notebooks = sorted(ROOT.glob("notebooks/*.ipynb"))
        self.own = {ROOT / path.relative_to(ROOT / "docs/site/pages") for path in (ROOT / "docs/site/pages").rglob("*.md")}

    def write(self, path: Path, text: str) -> None:
        target = self.out / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def lay_out(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        for path in self.texts:
            text = path.read_text()
            title = (
                "" if text.startswith("# ") else f"# Times: {', '.join(path.relative_to(ROOT / 'results/bench').with_suffix('').parts)}\n\n"
            )
            self.write(path, title + self.linked(text, path) + self.figures(path))
        for path in self.notebooks:
            self.write(path, self.notebook(path))
        readme = (ROOT / "README.md").read_text()
        for path in self.own:
            text = (ROOT / "docs/site/pages" / path.relative_to(ROOT)).read_text()
            text = text.replace("<!-- cards -->", self.cards(readme)).replace("<!-- names -->", reference.names())
            text = re.sub(
                r"<!-- of the README: (.*?) -->", lambda m: between(readme, f"<!-- {m[1]}: generated -->", f"<!-- {m[1]}: end -->"), text
            )
            self.write(path, self.linked(text, path))
        self.write(ROOT / "board.md", board(ROOT, self.out))
        reference.write(self.out / "api")

    def linked(self, text: str, page: Path) -> str:
        """A text whose links to modules lead to the API; files that it links or shows, and that are no pages, are copied."""

        def renewed(link: re.Match) -> str:
            words, target = link[1], link[2]
            path = (page.parent / target).resolve()
            if path.is_relative_to(ROOT / "lib") and path.suffix == ".py":
                return f"{{py:mod}}`{words} <{'.'.join(path.relative_to(ROOT / 'lib').with_suffix('').parts)}>`"
            if folder := FOLDERS.get(os.path.relpath(path, ROOT)):
                return f"[{words}](/{folder})"
            if path not in {*self.texts, *self.notebooks, *self.own, ROOT / "board.md"}:
                if not path.is_file():
                    raise SystemExit(f"{page.relative_to(ROOT)}: [{words}]({target}) leads nowhere; accepted: a file of the repository")
                self.copy(path)
            return link[0]

        parts = FENCE.split(text)
        return "".join(part if i % 2 else LINK.sub(renewed, part) for i, part in enumerate(parts))

    def copy(self, path: Path) -> None:
        target = self.out / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def figures(self, page: Path) -> str:
        """All committed figures of a notebook, below its result page."""
        parts = []
        for scale in SCALES:
            for path in sorted(ROOT.glob(f"results/{scale}/{page.stem}/*/*.png")) if page.parent == ROOT / "results" else ():
                self.copy(path)
                record = json.loads((path.parent / "record.json").read_text())
                head = f"\n**{record['data']['label']}**, {scale} scale\n"
                parts += [] if head in parts else [head]
                parts.append(f"\n![{path.stem}, {scale} scale]({path.relative_to(page.parent)})\n")
        return "".join(["\n## Figures\n", *parts]) if parts else ""

    def notebook(self, path: Path) -> str:
        """A notebook with its outputs, which show each figure at smoke scale and at the largest one; parameters are folded."""
        committed = nbformat.read(path, as_version=4)
        for cell in committed.cells:
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, path)
            elif cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        committed.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        return nbformat.writes(committed)

    def cards(self, readme: str) -> str:
        """A card for each notebook of the README's first table: its question, its first figure, what was found."""
        cards = []
        for line in re.findall(r"^\| (\[[^\]]+\]\(notebooks/.*) \|$", readme, re.M):
            link, paper, question, verdicts = (cell.strip() for cell in line.split(" |"))
            name, path = re.fullmatch(r"\[(.*)\]\((.*)\.ipynb\)", link).groups()
            verdicts, paper = (re.sub(r"<!--.*?-->|\[|\]\(.*?\)|, \d+ min$", "", cell).strip() for cell in (verdicts, paper))
            cards += [f":::{{grid-item-card}} {question}", f":link: /{path}", ":link-type: doc"]
            shown = [one for scale in SCALES for one in sorted(ROOT.glob(f"results/{scale}/{Path(path).name}/*/headline.png"))]
            if shown:
                self.copy(shown[0])
                cards.append(f":img-top: /{shown[0].relative_to(ROOT)}")
            cards += ["", f"**{name}**{paper and f': {paper}'}", "", verdicts, ":::", ""]
        return "\n".join(["::::{grid} 1 1 2 2", ":gutter: 3", "", *cards, "::::"])


def between(text: str, begin: str, end: str) -> str:
    return text[text.index(begin) + len(begin) : text.index(end)]


if __name__ == "__main__":
    Pages(Path(sys.argv[1]).resolve()).lay_out()
