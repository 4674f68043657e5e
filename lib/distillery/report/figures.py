"""Figures: one style, PNG files named after their notebook's data and claim, written atomically."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

from distillery import store
from distillery.report.records import measured

COLORS = {
    "whole": "#555555",
    "random": "#999999",
    "random at the student's rate": "#cccccc",
    "herding": "#b07aa1",
    "k-means": "#9c755f",
    "random images": "#999999",
    "DC": "#4e79a7",
    "DSA": "#76b7b2",
    "DM": "#e15759",
    "IDM": "#ff9da7",
    "IDC": "#a0cbe8",
    "MTT": "#4e79a7",
    "FTD": "#f28e2b",
    "FTD + EMA": "#ffbe7d",
    "DATM": "#59a14f",
    "TESLA": "#76b7b2",
    "lowest loss": "#4e79a7",
    "middle": "#59a14f",
    "highest loss": "#e15759",
    "FlexRand": "#4e79a7",
    "FlexRand, 1/2": "#76b7b2",
    "hardest": "#e15759",
    "easiest": "#59a14f",
    "forgetting": "#b07aa1",
    "ridge sensitivity": "#4e79a7",
    "leverage": "#76b7b2",
    "k-means sensitivity": "#59a14f",
    "k-means++": "#9c755f",
    "none": "#cccccc",
    "full": "#555555",
    "high loss": "#e15759",
    "KRR-ST": "#b07aa1",
    "MKDT": "#4e79a7",
    "MTT-SSL": "#f28e2b",
    "KIP": "#4e79a7",
    "RFAD": "#f28e2b",
    "FRePo": "#59a14f",
    "EL2N": "#9c755f",
    "entropy": "#ff9da7",
    "k-center": "#f28e2b",
    "Moderate": "#edc948",
    "CCS strata": "#a0cbe8",
}


def style() -> None:
    """House style for every figure of a notebook."""
    matplotlib.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def save(figure, path: str | Path) -> Path:
    """Write a figure as PNG, without a software stamp, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return store.write_bytes(path, buffer.getvalue())


def tile(images: Tensor, columns: int, pad: int = 1) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as one picture (rows, columns, C or none), white lines between."""
    array = images.detach().cpu().clamp(0, 1).numpy().transpose(0, 2, 3, 1)  # (N, H, W, C)
    n, height, width, channels = array.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), array.dtype)
    for i, image in enumerate(array):
        top, left = pad + (i // columns) * (height + pad), pad + (i % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return canvas[..., 0] if channels == 1 else canvas


def show_tiles(axis, images: Tensor, columns: int, title: str, rows: list[str] | None = None) -> None:
    """Draw a tile of images on an axis; `rows` names the rows at the left."""
    picture = tile(images, columns)
    axis.imshow(picture, vmin=0, vmax=1, aspect="equal")
    axis.set_title(title)
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if rows:
        step = picture.shape[0] / len(rows)
        axis.set_yticks([step * (i + 0.5) for i in range(len(rows))], rows)
        axis.tick_params(left=False)


def accuracy_bars(axis, rows: list[dict]) -> None:
    """Accuracy of each row in percent: a bar with the deviation over sets, a dot for every set's mean.

    rows  dicts with 'method' and 'accuracies'[set][network]
    """
    for i, row in enumerate(rows):
        means = [100 * float(np.mean(one)) for one in row["accuracies"]]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0
        axis.barh(
            i,
            np.mean(means),
            xerr=spread or None,
            color=COLORS.get(row["method"].split(",")[0], "#4e79a7"),
            alpha=0.85,
            height=0.7,
        )
        axis.plot(means, [i] * len(means), "k.", markersize=3)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("test accuracy, % (one dot a set)")


def keep_curves(
    axis,
    curves: dict[str, dict[float, list[list[float] | None]]],
    full: list[list[float] | None],
    critical: dict[str, float | None],
) -> None:
    """Test accuracy in percent against the real images kept: a line for each order in which images are dropped.

    curves    order ('lowest loss', 'random', ...) -> part kept -> accuracies[set][network], bars are the deviation over
              sets; parts are fractions, or images of every class where one is above 1
    full      accuracies[set][network] with all images: the horizontal line, its band the deviation over sets
    critical  order -> the critical sample size, marked by a ring, None = none found
    """
    level = measured(full)
    if level:
        mean, spread = 100 * level["value"], 100 * (level["std_sets"] or 0)
        axis.axhspan(mean - spread, mean + spread, color=COLORS["whole"], alpha=0.15, lw=0)
        axis.axhline(mean, color=COLORS["whole"], lw=1, ls="--", label="all images")
    parts = sorted({keep for curve in curves.values() for keep in curve})
    fractions = not parts or parts[-1] <= 1
    for i, (order, curve) in enumerate(curves.items()):
        found = {keep: measured(curve[keep]) for keep in sorted(curve)}
        found = {keep: one for keep, one in found.items() if one}
        # bars of several orders stand side by side, 0.6% of the axis apart
        aside = (parts[-1] / parts[0]) ** (0.006 * (i - (len(curves) - 1) / 2))
        x = [keep * aside for keep in found]
        y = [100 * one["value"] for one in found.values()]
        bars = [100 * (one["std_sets"] or 0) for one in found.values()]
        color = COLORS.get(order, f"C{i}")
        axis.errorbar(x, y, bars, color=color, fmt="o-", lw=1.4, ms=3.5, capsize=2, elinewidth=0.9, label=order)
        size = critical.get(order)
        if size in found:
            at = size * aside, 100 * found[size]["value"]
            axis.plot(*at, "o", ms=11, mfc="none", mec=color, mew=1.4)
    if any(size is not None for size in critical.values()):
        axis.plot([], [], "o", ms=9, mfc="none", mec="#333333", label="critical size")
    axis.set_xscale("log")
    axis.set_xticks(parts, [f"{100 * keep:g}" if fractions else f"{keep:g}" for keep in parts])
    axis.minorticks_off()
    axis.set_xlabel("real images kept, %" if fractions else "real images kept of every class")
    axis.set_ylabel("test accuracy, %")
    if curves:
        axis.legend()
