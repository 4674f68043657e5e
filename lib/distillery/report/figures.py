"""Figures: one style on seaborn, names beside what they name, colours that colour-blind readers tell apart, PNG files written atomically."""

import io
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
import seaborn
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from scipy.optimize import isotonic_regression
from torch import Tensor
from torchvision.utils import make_grid

from distillery import store
from distillery.report.statistics import counted, measured

BASELINES = {"random": "#9a9a9a", "all|whole|full": "#555555", "none|no|start": "#c8c8c8"}  # first words of names
ALL = BASELINES["all|whole|full"]
INK = "#333333"


def style() -> None:
    """Set the house style for every figure of a notebook."""
    rc = {
        "figure.dpi": 100, "savefig.dpi": 110, "figure.constrained_layout.use": True, "font.size": 10, "axes.labelsize": 10,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
        "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "grid.color": "#e6e6e6",
        "axes.linewidth": 0.8, "image.cmap": "gray", "image.interpolation": "nearest", "figure.titlesize": 11,
    }  # fmt: skip
    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind", font="DejaVu Sans", rc=rc)


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: greys for baselines ('random ..', 'all ..', 'none' ..), else the next one of the palette.

    What follows a comma is a variant and shares the colour of what stands before it.
    """
    colors = cycle(one for one in seaborn.color_palette("colorblind").as_hex() if one != "#949494")  # grey is for baselines
    taken = {}
    for name in names:
        base = name.split(",")[0]
        grey = next((one for words, one in BASELINES.items() if base.split(" ")[0] in words.split("|")), None)
        if base not in taken:
            taken[base] = grey or next(colors)
        taken[name] = taken[base]
    return taken


def brightness(color: str) -> float:
    """How bright a colour is to the eye, 0 = black to 1 = white."""
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


def a_class(n: int) -> str:
    """'1 image a class', '4 images a class'."""
    return f"{n} image{'s' * (n != 1)} a class"


def save(figure, path: str | Path) -> Path:
    """Write a figure as PNG without a software stamp, atomically; it grows where a text would be cut off."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight")
    return store.write_bytes(path, buffer.getvalue())


def show_tiles(axis, images: Tensor, columns: int, title: str = "", rows: list[str] | None = None) -> None:
    """Draw images (N, C, H, W) in [0, 1] side by side, white lines between; `rows` names the rows at the left."""
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])  # fills the last row
    shown = torch.cat([images, blank]).detach().cpu().clamp(0, 1)
    picture = make_grid(shown, columns, padding=1, pad_value=1.0).permute(1, 2, 0).numpy()
    axis.imshow(picture, aspect="equal")
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    if rows:
        step = picture.shape[0] / len(rows)
        axis.set_yticks([step * (i + 0.5) for i in range(len(rows))], rows)
        axis.tick_params(left=False)


def accuracy_bars(axis, rows: list[dict], colors: dict[str, str] | None = None) -> None:
    """Draw the accuracy of each row in percent: a bar with its value, a line for the deviation over sets, a dot for each.

    rows  dicts with 'method', 'accuracies'[set][network] and, for a diamond, 'published'
    """
    colors = colors or palette(row["method"] for row in rows)
    values = [[100 * float(np.mean(one)) for one in row["accuracies"]] for row in rows]
    longest = max((np.mean(means) for means in values), default=1)
    for i, (row, means) in enumerate(zip(rows, values)):
        mean, spread = float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0
        axis.barh(i, mean, color=colors[row["method"]], alpha=0.85, height=0.68, lw=0)
        axis.plot([mean - spread, mean + spread], [i, i], color=INK, lw=1.2)
        axis.plot(means, [i] * len(means), ".", color=INK, markersize=4)
        if row.get("published"):
            axis.plot(100 * row["published"]["mean"], i, "D", color="white", markeredgecolor=INK, markersize=5)
        how = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        if mean > 0.25 * longest:  # the value stands in its bar
            inside = "white" if brightness(colors[row["method"]]) < 0.5 else INK
            axis.annotate(f"{mean:.1f}", (0, i), color=inside, weight="bold", **how)
        else:
            axis.annotate(f"{mean:.1f}", (max(*means, mean + spread), i), color=INK, **how)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1.04 * axis.get_xlim()[1])
    line = "; line: ± deviation over sets" * any(len(means) > 1 for means in values)
    diamond = "; diamond: published" * any(bool(row.get("published")) for row in rows)
    axis.set_xlabel(f"test accuracy, %\n(dot: a set{line}{diamond})", loc="right")  # longer than a narrow axis


def intervals(axis, gaps: dict[str, dict | None], against: str, color: str | None = None, factor: float = 100) -> None:
    """Draw differences (`records.difference`) in points, or by another factor: a dot with its 95% interval for each name, a line at none.

    gaps     None or without an interval where too few have run: no line, or nothing at all
    against  what the differences are to
    """
    color = color or seaborn.color_palette("colorblind").as_hex()[0]
    for i, gap in enumerate(gaps.values()):
        if gap and gap["ci95"]:
            axis.plot([factor * bound for bound in gap["ci95"]], [i, i], color=color, lw=2.5, alpha=0.5)
        if gap:
            axis.plot(factor * gap["mean"], i, "o", color=color, ms=6)
    axis.axvline(0, color=INK, lw=0.8)
    axis.set_yticks(range(len(gaps)), list(gaps))
    axis.set_ylim(len(gaps) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    made_of = sorted({counted(gap) for gap in gaps.values() if gap})
    axis.set_xlabel(f"points above {against}\n(95% interval{''.join(f', {one}' for one in made_of)})")


def differences(axis, gaps: dict[str, dict[str, dict | None]], xlabel: str, deepest: float = 0.0) -> None:
    """Draw differences (`records.difference`) in points as a coloured table, bold where the 95% interval leaves out 0.

    gaps     row -> column -> difference, None or without an interval where too few have run; all rows have the same columns
    deepest  points from which on a colour is as deep as it gets, and halves of intervals are written beside; 0 = by the differences
    """
    columns = list(next(iter(gaps.values())))
    found = [[one[column] for column in columns] for one in gaps.values()]
    values = np.array([[100 * gap["mean"] if gap else np.nan for gap in row] for row in found])
    beside = bool(deepest)
    deepest = deepest or (max(1.0, float(np.nanquantile(np.abs(values), 0.85))) if np.isfinite(values).any() else 1.0)
    axis.pcolormesh(np.clip(values, -deepest, deepest), cmap="vlag_r", vmin=-deepest, vmax=deepest, edgecolors="white")
    for (i, j), value in np.ndenumerate(values):
        gap = found[i][j]
        if gap:
            sure = gap["ci95"] is not None and not gap["ci95"][0] <= 0 <= gap["ci95"][1]
            color = "white" if abs(value) > 0.75 * deepest else INK
            how = {"ha": "center", "va": "center", "fontsize": 9, "color": color, "weight": "bold" if sure else "normal"}
            half = f" ± {50 * (gap['ci95'][1] - gap['ci95'][0]):.1f}" if beside and gap["ci95"] else ""
            axis.text(j + 0.5, i + 0.5, f"{value:+.1f}{half}", **how)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axis.set_yticks(np.arange(len(gaps)) + 0.5, list(gaps))
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(xlabel)


def stacked(tables: dict[str, dict[str, dict[str, dict | None]]], xlabel: str, deepest: float):
    """A figure of tables as `differences` draws them, of the same columns, by their titles one below the other."""
    high, wide = [len(table) for table in tables.values()], max(len(row) for table in tables.values() for row in table.values())
    size = max(7.5, 3 + 0.85 * wide), 2 + 0.27 * sum(high)  # room for titles
    figure, axes = plt.subplots(len(tables), 1, figsize=size, height_ratios=high, layout="constrained", squeeze=False)
    for axis, (title, table) in zip(axes[:, 0], tables.items()):
        differences(axis, table, "", deepest)
        axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel)
    return figure


def lines(axis, curves: dict[str, tuple], colors: dict[str, str] | None = None, **options) -> None:
    """Draw curves name -> (x, y) or (x, y, deviation), each with its name at its right end.

    Scales of the axis are to be set before: the names go by them.
    """
    colors = colors or palette(curves)
    for name, (x, y, *spread) in curves.items():
        how = {"color": colors[name], "lw": 1.6, "marker": "o", "ms": 4, "mew": 0} | options
        axis.errorbar(x, y, *spread, capsize=0, elinewidth=1, **how)
    name_ends(axis, {name: (x[-1], y[-1]) for name, (x, y, *_) in curves.items() if len(x)}, colors)


def told_apart(names: Iterable[str], plain: Iterable[str]) -> dict[str, dict]:
    """A style of lines and dots for each name: greys and squares for plain ones, else colours, dashes and diamonds where they come again."""
    colors, plain, styles = seaborn.color_palette("colorblind").as_hex(), set(plain), {}
    colors = [one for one in colors if brightness(one) < 0.7 and one != "#949494"]  # grey is for plain ones
    for name in names:
        rank = sum((one in plain) == (name in plain) for one in styles)
        if name in plain:
            styles[name] = {"color": ("#333333", "#8a8a8a")[rank % 2], "ls": (":", (0, (4, 1.5)))[rank // 2 % 2], "marker": "s"}
        else:
            again = rank // len(colors) % 2
            styles[name] = {"color": colors[rank % len(colors)], "ls": ("-", (0, (6, 1)))[again], "marker": "oD"[again]}
    return styles


def bump(axis, orders: dict[str, dict[str, int]], level: dict[str, set[str]], styles: dict[str, dict]) -> None:
    """Draw how an order changes from one axis to the next: a line a method, the first at the top, names at both ends.

    orders  axis -> name -> place, 1 = first
    level   axis -> names that are not told from the first: hollow
    styles  by name, of `told_apart`
    """
    last = max((place for one in orders.values() for place in one.values()), default=1)
    for name, style in styles.items():
        at = [(x, order[name]) for x, order in enumerate(orders.values()) if name in order]
        if not at:
            continue
        axis.plot(*zip(*at), color=style["color"], ls=style["ls"], lw=1.8, zorder=2)
        for x, place in at:
            hollow = name in list(level.values())[x]
            how = {"mfc": "white" if hollow else style["color"], "mec": style["color"], "mew": 1.6}
            axis.plot(x, place, style["marker"], ms=7, zorder=3, **how)
        for (x, place), side, align in ((at[0], -0.12, "right"), (at[-1], 0.12, "left")):
            axis.text(x + side, place, name, ha=align, va="center", fontsize=9, color=style["color"])
    axis.set_xticks(range(len(orders)), list(orders))
    axis.xaxis.tick_top()
    axis.set(xlim=(-1, len(orders)), ylim=(last + 0.6, 0.4), yticks=[])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def named_dots(axis, dots: dict[str, tuple[float, float]], styles: dict[str, dict]) -> None:
    """Draw a dot for each name, and the name right of the axis, led to by a thin line; scales of the axis are to be set before."""
    for name, (x, y) in dots.items():
        axis.plot(x, y, styles[name]["marker"], color=styles[name]["color"], ms=7, zorder=3)
    axis.autoscale_view()
    right = axis.get_xlim()[1]
    for name, (x, y) in dots.items():
        axis.plot([x, right], [y, y], color=styles[name]["color"], lw=0.5, alpha=0.5, zorder=1)
    axis.set_xlim(right=right)
    name_ends(axis, dots, {name: styles[name]["color"] for name in dots})


def on_the_way(axis, rows: dict[str, list[dict | None]]) -> None:
    """Draw the accuracy in percent of the regression on a set against its steps: mean and standard error over sets.

    rows  name -> results by seed of a kernel method that is validated: 'curve', on validation images, is the line; 'at_start' and
          'regression', on test images, are rings at its ends, which no line joins to it
    """
    found, tested = {}, {}
    for name, results in rows.items():
        if done := [one for one in results if one and one.get("curve")]:
            on_test = [[np.mean(one[key]) for key in ("at_start", "regression")] for one in done]
            for which, scores in ((found, [[score for _, score in one["curve"]] for one in done]), (tested, on_test)):
                y = 100 * np.array(scores)
                which[name] = y.mean(0), y.std(0, ddof=int(len(done) > 1)) / len(done) ** 0.5
            steps = [step for step, _ in done[0]["curve"]]
            found[name], tested[name] = (steps, *found[name]), ([0, steps[-1]], *tested[name])
    colors = palette(found)
    for name, (x, y, error) in tested.items():
        axis.errorbar(x, y, error, fmt="o", ms=6, mfc="none", color=colors[name], elinewidth=1)
    bar = "\n(bar: ± standard error over sets)" * any(sum(map(bool, results)) > 1 for results in rows.values())
    axis.set(xlabel="steps (ring: test images, line: validation)", ylabel=f"accuracy of the regression, %{bar}")
    lines(axis, found, colors)


def name_ends(axis, ends: dict[str, tuple[float, float]], colors: dict[str, str]) -> None:
    """Write names right of the axis at the heights of their last points, moved apart where they would meet."""
    if not ends:
        return
    axis.margins(x=0.03)
    low, high = axis.get_ylim()
    log = axis.get_yscale() == "log"
    place = (lambda v: np.log(v / low) / np.log(high / low)) if log else (lambda v: (v - low) / (high - low))
    points = axis.figure.bbox.height / axis.figure.dpi * 72 * 0.72  # of a part of a figure too
    names = sorted(ends, key=lambda one: ends[one][1])
    apart = 11.5 / points * np.arange(len(names))
    heights = isotonic_regression([float(place(ends[name][1])) for name in names] - apart).x  # least squares, in order
    for name, height in zip(names, np.minimum(heights, 1 - apart[-1]) + apart):
        dark = min(1.0, 0.5 / max(brightness(colors[name]), 1e-9)) * np.array(to_rgb(colors[name]))  # enough for text on white
        axis.text(1.02, height, name, transform=axis.transAxes, va="center", fontsize=9, color=dark)
    axis.set_ylim(low, high)


def keep_curves(
    axis,
    curves: dict[str, dict[float, list[list[float] | None]]],
    full: list[list[float] | None],
    critical: dict[str, float | None],
    level: str = "all images",
    xlabel: str = "",
) -> None:
    """Draw test accuracy in percent against the real images kept: a line for each order in which images are dropped.

    curves    order ('lowest loss', 'random', ...) -> part kept -> accuracies[set][network], bars are the deviation over
              sets; parts are fractions, or images of every class where one is above 1
    full      accuracies[set][network] with all images: the horizontal line named `level`, its band the deviation over sets
    critical  order -> the critical sample size, marked by a ring, None = none found
    xlabel    of curves over something else than images kept
    """
    colors, ends = palette(curves), {}
    axis.set_xscale("log")
    if found := measured(full):
        mean, spread = 100 * found["value"], 100 * (found["std_sets"] or 0)
        axis.axhspan(mean - spread, mean + spread, color=ALL, alpha=0.12, lw=0)
        axis.axhline(mean, color=ALL, lw=1, ls="--")
        ends[level], colors[level] = (0, mean), ALL
    parts = sorted({keep for curve in curves.values() for keep in curve})
    fractions = not parts or parts[-1] <= 1
    for i, (order, curve) in enumerate(curves.items()):
        found = {keep: measured(curve[keep]) for keep in sorted(curve)}
        found = {keep: one for keep, one in found.items() if one}
        if not found:
            continue
        # bars of several orders stand side by side, 0.6% of the axis apart
        aside = (parts[-1] / parts[0]) ** (0.006 * (i - (len(curves) - 1) / 2))
        x = [keep * aside for keep in found]
        y = [100 * one["value"] for one in found.values()]
        bars = [100 * (one["std_sets"] or 0) for one in found.values()]
        axis.errorbar(x, y, bars, color=colors[order], fmt="o-", lw=1.6, ms=4, elinewidth=1, label=order)
        ends[order] = x[-1], y[-1]
        if critical.get(order) in found:
            at = critical[order] * aside, 100 * found[critical[order]]["value"]
            axis.plot(*at, "o", ms=11, mfc="none", mec=colors[order], mew=1.4)
    axis.set_xticks(parts, [f"{100 * keep:g}" if fractions else f"{keep:g}" for keep in parts])
    axis.minorticks_off()
    notes = ["bar, band: ± deviation over sets"] * any(len(sets) > 1 for curve in curves.values() for sets in curve.values() if sets)
    notes += ["ring: fewest that serve as well as all"] * any(size is not None for size in critical.values())
    xlabel = xlabel or ("real images kept, %" if fractions else "real images kept of every class")
    axis.set_xlabel(xlabel + f"\n({'; '.join(notes)})" * bool(notes))
    axis.set_ylabel("test accuracy, %")
    name_ends(axis, ends, colors)
