"""The board: every stored set as a picture beside random images, and every row of every record in one table."""

import shutil
from pathlib import Path

from torch import Tensor
from torchvision.utils import make_grid, save_image

from distillery.checks import InputError
from distillery.data import synthetic
from distillery.report import records
from distillery.report.statistics import measured
from distillery.report.tables import markdown, percent, plain, points, published

HEAD = """# Scoreboard

Every set and every row that was measured, under one protocol for all rows of a record, beside random images of the same size. Press a head of a
table to sort by it; ± is the deviation over sets, and (5 x 5) five sets, each by five networks; scales are explained in the [README](README.md).

## Stored sets

By `distillery get` with their [evaluations](results/sets.md); [how a set of yours gets here](CHALLENGE.md).

"""
ROWS = """
## All rows

"""
COLUMNS = [
    "method",
    "images a class",
    "accuracy, %",
    "± sets",
    "random, %",
    "difference to random, points",
    "data",
    "scale",
    "sets x networks",
    "published, %",
]
COLUMNS += ["steps", "seconds a set", "notebook"]
MOST = 10  # images of a class that a picture shows


def board(root: Path, out: Path) -> str:
    """The page in Markdown; pictures of sets are written under `out`/sets."""
    found = [one for one in records.find(root / "results") if one["scale"] != "smoke"]
    lines = [line for record in found for line in rows(record)]
    return HEAD + sets(root, out) + ROWS + markdown(COLUMNS, sorted(lines, key=lambda line: (*line[6:8], str(line[1]), -float(line[2]))))


def rows(record: dict) -> list[list]:
    """The measured rows of a record."""
    against, lines = record.get("against", "random"), []
    other = "" if against.startswith("random") else f" to {against}"
    same = {one["ipc"]: one for one in record["rows"] if one["method"] in ("random", against) and one["measured"]} if not other else {}
    for one in (row for row in record["rows"] if row["measured"]):
        value, gap, random = one["measured"], one["difference"], same.get(one["ipc"])
        lines.append([
            one["method"], "-" if one["ipc"] is None else one["ipc"], f"{100 * value['value']:.1f}",
            "-" if value["std_sets"] is None else f"{100 * value['std_sets']:.1f}",
            f"{100 * random['measured']['value']:.1f}" if random else "-", f"{points(gap)}{other}" if gap else "-",
            plain(record["data"]["label"]), record["scale"], f"{value['n_sets']} x {value['n_networks']}",
            published(one["published"]) if record["scale"] == "paper" else "-",
            one["steps"] or "-", f"{one['seconds'] / value['n_sets']:.1f}", f"[{record['notebook']}](results/{record['notebook']}.md)",
        ])  # fmt: skip
    return lines


def sets(root: Path, out: Path) -> str:
    """A card for every stored set under results/: its picture, and its accuracy beside random images. The same images are shown once."""
    cards, seen = [], set()
    (out / "sets").mkdir(parents=True, exist_ok=True)
    files = [path for path in root.glob("results/**/*.safetensors") if not {"artifacts", "smoke"} & set(path.relative_to(root).parts)]
    for path in sorted(files, key=lambda one: (one.parent.name != "sets", one)):  # first those that carry their evaluation
        try:
            made = synthetic.load(path)
            found, images = judged(path, made.card), made.tensors["images"].numpy().tobytes()
        except (InputError, KeyError):  # no set, as a file of scores, or one that no row of the record beside it is of
            continue
        if images not in seen:
            seen.add(images)
            cards += card(path, made, *found, out)
    return "\n".join(["::::{grid} 1 2 3 3", ":gutter: 3", "", *cards, "::::", ""])


def card(path: Path, made: synthetic.Synthetic, value: dict, random: dict, scale: str, out: Path) -> list[str]:
    """The lines of a set's card, whose picture and file are written."""
    name = path.stem if path.parent.name == "sets" else f"{path.parent.name}-{path.stem}"
    save_image(picture(made), out / f"sets/{name}.png")
    shutil.copyfile(path, out / f"sets/{name}.safetensors")
    size = f"{made.card['size']} image{'s' * (made.card['size'] > 1)} a class"
    told = f"{made.card['method']}, {size}, {plain(made.card['data'])}: **{percent(value, '%')}**, random images {percent(random, '%')},"
    return [
        *(f":::{{grid-item-card}} {name}", f":img-top: sets/{name}.png", ":class-card: set", "", told, f"{scale} scale." if scale else ""),
        *(f"[{path.stat().st_size / 1000:.0f} KB](sets/{name}.safetensors)", ":::", ""),
    ]


def judged(path: Path, card: dict) -> tuple[dict, dict, str]:
    """What a set and random images came to, as `measured`, and the scale: by its card, or by the record beside it."""
    if told := card.get("evaluation"):
        return measured(told["accuracies"]), measured(told["random"]), told["scale"]
    record = records.load(path.with_name("record.json"))
    found = {(row["method"], row["ipc"]): row["measured"] for row in record["rows"]}
    return found[card["method"], card["size"]], found["random", card["size"]], record["scale"]


def picture(made: synthetic.Synthetic) -> Tensor:
    """Images of a set side by side, a class a row, or five in a row where there is one of each class; (C, H, W) in [0, 1]."""
    images, targets = synthetic.unit_pixels(made), made.decode()[1]
    labels = targets.argmax(1) if targets.is_floating_point() else targets
    order = labels.argsort(stable=True)
    each = len(images) // len(labels.unique())
    kept = [i for n, i in enumerate(order.tolist()) if n % each < MOST]
    return make_grid(images[kept], nrow=min(each, MOST) if each > 1 else 5, padding=1, pad_value=1.0)
