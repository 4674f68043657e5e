"""What a notebook shows: rows as bars and strips, source of the library, committed figures of the largest scale."""

import inspect
import io
import re
import textwrap
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from PIL import Image as Pictures

from distillery.names import SCALES
from distillery.places import ROOT
from distillery.report import figures, records, tables

WIDTH = 1000  # pixels of an embedded figure at most


def source(function: Callable) -> Markdown:
    """The code of a function of the library, as it is now, under its full name."""
    name = f"{function.__module__}.{function.__qualname__}"
    return Markdown(f"`{name}`\n```python\n{textwrap.dedent(inspect.getsource(function)).rstrip()}\n```")


def embedded(data: bytes) -> Image:
    """A PNG as it is shown in a notebook: in 256 colours, and no wider than WIDTH where that makes it smaller."""
    picture = Pictures.open(io.BytesIO(data)).convert("RGB")
    shown = [picture]
    if picture.width > WIDTH:
        shown.append(picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Pictures.Resampling.LANCZOS))
    files = [io.BytesIO() for _ in shown]
    for one, buffer in zip(shown, files):
        one.quantize(256, dither=Pictures.Dither.NONE).save(buffer, "PNG", optimize=True)
    return Image(min((buffer.getvalue() for buffer in files), key=len), format="png")


def _is_mathematics(text: str) -> bool:
    """Whether it is of ours, which has commands that are known: a '$' of a name has none, but perhaps the '\\' of an escaped byte."""
    with suppress(ValueError):
        return "$" not in text or ("\\" in text and MathTextParser("path").parse(text) is not None)
    return False


def in_words(classes: Iterable[str]) -> list[str]:
    """Names of classes, those of WordNet's numbers (n01443537) in words (goldfish)."""
    classes = list(classes)
    if not any(re.fullmatch(r"n\d{8}", one) for one in classes):
        return classes
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet22k")
    names = set(known.label_names())
    return [known.label_name_to_description(one, detailed=False).split(",")[0] if one in names else one for one in classes]


class Shown:
    """Parts of a session that show something of its rows."""

    def bars(self, names: Iterable[str] = (), axis=None, title: str = "", colors: dict[str, str] | None = None):
        """Accuracies of rows as bars; returns the figure. `colors` by label, None = the next ones of the palette."""
        names = [name for name in names or self.rows if name in self.rows]
        drawn = [one for one in map(self.summary, names) if one["accuracies"]]
        if self.p.scale != "paper":  # no diamonds of another setting
            drawn = [one | {"published": None} for one in drawn]
        axis = axis or plt.figure(figsize=(6.2, 0.7 + 0.34 * max(2, len(drawn)))).subplots()
        figures.accuracy_bars(axis, drawn, colors)
        axis.set_title(title)
        return axis.figure

    def strips(self, names: Iterable[str], subfigure, start_of: str = "") -> None:
        """Draw a strip of images for each row: of its first set one image of each class; first the start of one of them.

        Of sets that still are mostly the noise they started from, what has changed is drawn instead, grey = nothing, stretched alike. Results
        travel without their sets: where none is here, that is written.
        """
        rows = [(name, self.rows[name], self.set_of(name)) for name in names if self.set_of(name)]
        images = [one.tensors["images"][:: row.recipes[0].size][:10] for _, row, one in rows]
        starts = [start if (start := one.card["start"]) is None else start[:: row.recipes[0].size][:10] for _, row, one in rows]
        parts = [(row.label, self.pixels(shown)) for (_, row, _), shown in zip(rows, images)]
        if rows and all(row.experiment.job(row.recipes[0]).start == "noise" for _, row, _ in rows):
            changes = [shown - start for shown, start in zip(images, starts)]
            most = max(float(change.abs().quantile(0.99)) for change in changes)
            if all(change.std() < start.std() / 2 for change, start in zip(changes, starts)):
                parts = [(f"{row.label}, change", 0.5 + change / (2 * most)) for (_, row, _), change in zip(rows, changes)]
        parts = [("start", self.pixels(start)) for (name, *_), start in zip(rows, starts) if name == start_of and start is not None] + parts
        if not parts:
            axis = subfigure.subplots()
            axis.set_axis_off()
            axis.text(0.5, 0.5, "no set is kept here", ha="center", color="#777777")
            return
        for axis, (label, shown) in zip(subfigure.subplots(len(parts), squeeze=False)[:, 0], parts):
            figures.show_tiles(axis, shown, len(shown), "", [label])

    def tiles(self, axis, indices, columns: int, title: str = "", rows: list[str] | None = None) -> None:
        """Draw training images by their indices; `rows` names the rows at the left."""
        images = self.pixels(self.train.batch(indices.to(self.train.device)))
        figures.show_tiles(axis, images, columns, title, rows)

    def sets_and_bars(self, sets: Iterable[str], bars: Iterable[str], titles: tuple[str, str], start_of: str = ""):
        """Images of some rows at the left, accuracies at the right; returns the figure."""
        sets, bars = list(sets), [name for name in bars if any(self.results.get(name, ()))]
        figure = plt.figure(figsize=(10.5, max(3.0, 0.9 + 0.36 * max(len(bars), 1.6 * len(sets)))))
        left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
        self.strips(sets, left, start_of)
        self.bars(bars, right.subplots())
        left.suptitle(titles[0], x=0.02, ha="left")
        right.suptitle(titles[1], x=0.02, ha="left")
        return figure

    def save(self, figure, name: str, committed: bool = False) -> None:
        """Write a figure to `here` and show it; `committed` also shows the one beside a committed record of the largest scale, the one with most sets."""
        for text in getattr(figure, "figure", figure).findobj(Text):
            text.set_parse_math(_is_mathematics(text.get_text()))
        data = figures.save(figure, self.here / f"{name}.png").read_bytes()
        plt.close(getattr(figure, "figure", figure))
        display(embedded(data))
        known = [one for one in records.find(ROOT / "results") if one["notebook"] == self.notebook and one["scale"] != "smoke"]
        known.sort(key=lambda one: (-SCALES.index(one["scale"]), -records.sets(one["claims"])))
        for record in known if committed else ():
            if (path := Path(record["path"]).with_name(f"{name}.png")).exists():
                caption = f"*The same figure at {record['scale']} scale, on {tables.plain(record['data']['label'])}:*"
                return display(Markdown(caption), embedded(path.read_bytes()))

    def show(self, *functions: Callable) -> None:
        """Show the source of functions of the library, such as the plain twin of an equation."""
        for function in functions:
            display(source(function))
