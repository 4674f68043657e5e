"""Pages that are generated from records: result pages, the README's headline claims and scoreboard, first cells of notebooks."""

import re
import tomllib
from pathlib import Path

import nbformat
import yaml

from distillery import store
from distillery.checks import InputError, first_line
from distillery.methods import published, published_probe
from distillery.report import zoo
from distillery.report.records import DECIDED, decided, find, sets, tally
from distillery.report.registered import compatibility, settings_page
from distillery.report.statistics import counted, interval
from distillery.report.tables import features, found, markdown, minutes, percent, plain, rows_by_record, table
from distillery.report.tables import published as published_value

SHOWN = 7  # claims in the first cell of a notebook
FURTHER = "Without verdicts; p-values are by Holm's correction among all comparisons of a kind."
CELL = ("<!-- headline: generated -->", "<!-- headline: end -->")
README = ("<!-- headlines: generated -->", "<!-- headlines: end -->")
PAPER = ("<!-- published settings: generated -->", "<!-- published settings: end -->")


def headline(told: list[tuple[dict, dict]]) -> str:
    """A few lines of Markdown for a notebook's first cell, from what `decided` gives: how many claims hold, and the most telling ones.

    Of the data set whose claims rest on most sets; first all published numbers that were met or missed in their setting, then claims that a published number stands beside, then refuted ones, then those whose direction is reproduced; at
    most two of a family, the first word of an id.
    """
    labels = dict.fromkeys(record["data"]["label"] for record, _ in told)
    by_label = {label: [(record, claim) for record, claim in told if record["data"]["label"] == label] for label in labels}
    label, told = max(by_label.items(), key=lambda item: sets([claim for _, claim in item[1]]))
    order = ["not reproduced", "reproduced", "direction reproduced", "inconclusive", "under-powered", "same as random"]
    shown = [(record, one) for record, one in told if one["verdict"] in order]
    shown.sort(key=lambda pair: (pair[1]["published"] is None, order.index(pair[1]["verdict"])))
    numbers = held(shown)
    shown = [pair for pair in shown if pair not in numbers]
    families = [one["id"].split("-")[0] for _, one in shown]
    chosen = [pair for i, pair in enumerate(shown) if families[:i].count(families[i]) < 2]
    verdicts = tally([claim for _, claim in told])
    lines = [f"**Found** on {plain(label)}; of {len(told)} claims, each at the largest scale that gives it an interval: {verdicts}.", ""]
    for verdict in ("reproduced", "not reproduced", "inconclusive"):
        some = [one for _, one in numbers if one["verdict"] == verdict]
        each = (f"{one['statement'].split(': the')[0]}{' (gain)' * one.get('equal', False)} {' ('.join(both(one))})" for one in some)
        lines += [f"- {len(some)} of {len(numbers)} published numbers **{verdict}**, here in brackets: {'; '.join(each)}"] * bool(some)
    for record, one in chosen[:SHOWN]:
        value, gap = found(one)
        on = f" ({one['data']})" if one["data"] else ""
        lines.append(f"- {one['statement']}{on}: **{one['verdict']}**, {gap or value}, {record['scale']} scale")
    return "\n".join(lines)


def chosen_claims(path: Path) -> list[dict]:
    """The claims that the README shows, from a YAML file: notebook, claim, paper (what it says, with a {} for every number) and numbers.

    numbers  a list of [data set, method, size] or, without labels, [data set, part, part of the labels, task, method], as the methods'
             files hold them
    raises   InputError on a file that is missing or broken, and on numbers that no file holds
    """
    accepted = "a list of {notebook: .., claim: .., paper: .., numbers: [[data set, method, size], ..]}"
    try:
        chosen = yaml.safe_load(path.read_text())
        for one in chosen:
            asked = one.get("numbers", [])
            if not {"notebook", "claim", "paper"} <= set(one) <= {"notebook", "claim", "paper", "numbers"}:
                raise ValueError(f"an entry with {', '.join(one)}")
            numbers = [(published if len(number) == 3 else published_probe)(*number) for number in asked]
            if None in numbers or one["paper"].count("{}") != len(numbers):
                raise ValueError(f"{one['paper']!r} with numbers {asked}, of which the methods hold {len(numbers) - numbers.count(None)}")
            one["paper"] = one["paper"].format(*(f"{100 * number['mean']:.1f}" for number in numbers))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: {first_line(error)}; accepted: {accepted}") from error
    return chosen


def headline_table(records: list[dict], chosen: list[dict]) -> str:
    """The headline claims as Markdown: what the paper says, what was found, where, and the verdict."""
    rows = []
    for one in chosen:
        known = [(record, claim) for record, claim in decided(records, one["notebook"]) if claim["id"] == one["claim"]]
        if not known:
            rows.append([one["claim"], one["paper"], "not run", "-", "**not run**"])
            continue
        (record, claim), *others = known
        value, gap = found(claim)
        where = f"[{plain(claim['data'] or record['data']['label'])}{features(record)}, {record['scale']}](results/{record['notebook']}.md)"
        shown = f"{gap} ({counted(claim['difference'])})" if gap else value
        also = "".join(
            f"; {plain(other['data']['label'])}{features(other)}: {found_['verdict']}"
            for other, found_ in others
            if found_["verdict"] != claim["verdict"]
        )
        rows.append([claim["statement"], one["paper"], shown, where, f"**{claim['verdict']}**{also}"])
    return markdown(["claim", "the paper says", "we found, 95% interval", "data, scale", "verdict"], rows)


def both(claim: dict) -> tuple[str, str]:
    """The published number behind a claim, value or gain, and ours."""
    if claim.get("equal"):
        gap = claim["difference"]
        return f"{100 * claim['published']['difference']:+.1f}", f"{100 * gap['mean']:+.1f} ({counted(gap)})"
    return published_value(claim["published"]), percent(claim["measured"])


def held(told: list[tuple[dict, dict]]) -> list[tuple[dict, dict]]:
    """(record, claim) of the claims, of what `decided` gives, that a value or gain in the published setting is the published one."""
    return [
        (record, one)
        for record, one in told
        if one["published"] and (one["verdict"] in DECIDED and not one["against"] or one.get("equal") and one["verdict"] != "not run")
    ]


def published_rows(records: list[dict]) -> str:
    """Every published number that was held against a measured one in its setting: both, the interval of the mean, and the verdict."""
    rows = []
    for name in dict.fromkeys(one["notebook"] for one in records):
        for record, one in held(decided(records, name)):
            where = f"[{plain(record['data']['label'])}](results/{name}.md)"
            low, high, over = interval(one["measured"])
            if one.get("equal"):
                low, high, over = (*one["difference"]["ci95"], "pairs") if one["difference"]["ci95"] else (0, 0, "")
            shown = f"{100 * low:.1f} to {100 * high:.1f}{', of networks' * (over == 'networks')}" if over else "-"
            setting = one["statement"].removesuffix(": the published accuracy").replace(": the published gain", ": gain")
            number, here = both(one)
            rows.append([setting, number, here, shown, f"**{one['verdict']}**", where])
    return markdown(["what", "published, %", "here (sets x networks)", "95% interval of the mean", "verdict", "data"], rows)


def scoreboard(records: list[dict], notebook: str) -> str:
    """A notebook's verdicts in a few words, with a link to its page, and the minutes they took."""
    own = decided(records, notebook)
    spent = sum(minutes(record) for record in {record["path"]: record for record, _ in own}.values())
    return f"[{tally([claim for _, claim in own])}](results/{notebook}.md), {spent:.0f} min" if own else "not run"


def badges(root: Path) -> str:
    """Links to the tests, to Binder and to Colab, where [project.urls] of a pyproject.toml names a Repository on GitHub; else ''."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    if not (name := re.match(r"https://github\.com/([\w.-]+/[\w-]+)", project.get("urls", {}).get("Repository", ""))):
        return ""
    tests, notebook = f"https://github.com/{name[1]}/actions/workflows/ci.yml", "notebooks/00_quickstart.ipynb"
    links = {
        f"![tests]({tests}/badge.svg)": tests,
        "![Binder](https://mybinder.org/badge_logo.svg)": f"https://mybinder.org/v2/gh/{name[1]}/HEAD?urlpath=lab/tree/{notebook}",
        "![Colab](https://colab.research.google.com/assets/colab-badge.svg)": f"https://colab.research.google.com/github/{name[1]}/blob/HEAD/{notebook}",
    }
    return " ".join(f"[{picture}]({link})" for picture, link in links.items())


def page(records: list[dict], notebook: str) -> str:
    """All claims and rows of a notebook, largest scale first; smoke is left out."""
    own = [one for one in records if one["notebook"] == notebook and one["scale"] != "smoke"]
    told = f"Generated by `distillery report --write` from the records of [the notebook](../notebooks/{notebook}.ipynb)."
    parts = [told, "## Claims", table(own), "## Further comparisons", FURTHER, table(own, further=True), "## Rows", rows_by_record(own)]
    if not any(claim["further"] for record in own for claim in record["claims"]):
        del parts[3:6]
    return "\n\n".join([f"# {notebook}", *parts, ""]).rstrip("\n") + "\n"


def between(text: str, markers: tuple[str, str], block: str) -> str:
    """A text with the part between two markers replaced; as it is where the markers are not there."""
    begin, end = markers
    if begin not in text or end not in text:
        return text
    return text[: text.index(begin) + len(begin)] + f"\n{block}\n" + text[text.index(end) :]


def anchored(text: str, root: Path) -> str:
    """A page whose links to lines, `[..](file#L1 "words")`, lead to the first line of the file that holds the words."""

    def renewed(link: re.Match) -> str:
        lines = (root / link[1]).read_text().splitlines()
        if not (at := [i for i, line in enumerate(lines, 1) if link[2] in line]):
            raise InputError(f"README.md: no line of {link[1]} holds {link[2]!r}; accepted: words of a line")
        return f'({link[1]}#L{at[0]} "{link[2]}")'

    return re.sub(r'\(([\w./]+)#L\d+ "([^"]+)"\)', renewed, text)


def first_cell(notebook: Path, block: str) -> str:
    """The text of a notebook's file with a headline between the markers of its first cell."""
    text = notebook.read_text()
    content = nbformat.reads(text, as_version=4)
    fresh = re.sub(r"\n{3,}", "\n\n", between(content.cells[0].source, CELL, block))
    if fresh == content.cells[0].source:
        return text
    content.cells[0].source = fresh
    return nbformat.writes(content) + "\n"


def write(results: str | Path) -> list[Path]:
    """Renew every page that is generated from the records of a results folder; the files that changed.

    Those are *.md within it, and beside it README.md and the first cells of notebooks/. Raises InputError, before anything is written, on a
    file that is no record and on headlines.yaml as `chosen_claims`.
    """

    def refuse(error: InputError) -> None:
        raise error

    results = Path(results)
    records, root = find(results, refuse), results.resolve().parent
    names = list(dict.fromkeys(one["notebook"] for one in records))
    texts = {results / f"{name}.md": page(records, name) for name in names}
    texts[results / "methods.md"] = f"# What combines with what\n\nGenerated from the registered methods.\n\n{compatibility()}\n"
    texts[results / "settings.md"] = settings_page()
    if (results / "sets").is_dir():
        texts[results / "sets.md"] = zoo.page(results / "sets")
    readme = root / "README.md"
    if readme.is_file() and README[0] in (text := readme.read_text()):
        text = between(text, README, headline_table(records, chosen_claims(results / "headlines.yaml")))
        text = between(text, PAPER, published_rows(records))
        cell = r"<!-- scoreboard (\w+) -->[^|\n]*"
        text = re.sub(cell, lambda m: f"<!-- scoreboard {m[1]} --> {scoreboard(records, m[1])} ", text)
        text = re.sub("<!-- badges -->.*", lambda m: f"<!-- badges -->{badges(root)}", text)
        texts[readme] = anchored(text, root)
    for name in names:
        notebook = root / "notebooks" / f"{name}.ipynb"
        if notebook.is_file() and (own := decided(records, name)):
            texts[notebook] = first_cell(notebook, headline(own))
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in changed:
        store.write_bytes(path, texts[path].encode())
    return changed
