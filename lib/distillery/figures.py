"""Figures: one style, PNG files named after their notebook's data and claim, written atomically."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

from distillery import store

COLORS = {
    "whole": "#555555", "random": "#999999", "random at the student's rate": "#cccccc", "herding": "#b07aa1", "k-means": "#9c755f",
    "DC": "#4e79a7", "DSA": "#76b7b2", "DM": "#e15759",
    "MTT": "#4e79a7", "FTD": "#f28e2b", "FTD + EMA": "#ffbe7d", "DATM": "#59a14f", "TESLA": "#76b7b2",
}  # fmt: skip


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
        }  # fmt: skip
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
