"""Figures draw what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from distillery.report import figures


@pytest.fixture
def axis():
    return Figure().subplots()


def sets(*means):
    """Two networks a set, around its mean."""
    return [[mean - 0.01, mean + 0.01] for mean in means]


CURVES = {
    "lowest loss": {0.5: sets(0.6, 0.62), 0.01: sets(0.5, 0.54), 0.1: sets(0.58, 0.6)},
    "random": {0.1: sets(0.5, 0.5), 0.01: [None, *sets(0.4)], 0.5: None},
}


def test_keep_curves(axis, tmp_path):
    figures.keep_curves(axis, CURVES, sets(0.61, 0.63), {"lowest loss": 0.1, "random": None})
    lines = {bars.get_label(): bars.lines[0].get_xydata() for bars in axis.containers}
    assert lines["lowest loss"][:, 1] == pytest.approx([52, 59, 61])  # by the part kept, ascending
    assert lines["random"][:, 1] == pytest.approx([40, 50])  # what has not run is left out
    assert lines["lowest loss"][:, 0] == pytest.approx([0.01, 0.1, 0.5], rel=0.02)
    low, high = axis.containers[0].lines[2][0].get_segments()[0][:, 1]  # of the first bar
    assert (high - low) / 2 == pytest.approx(100 * np.std([0.5, 0.54], ddof=1))
    ring = next(line for line in axis.lines if line.get_markersize() == 11)
    assert ring.get_xydata()[0] == pytest.approx(lines["lowest loss"][1])
    assert axis.get_xscale() == "log" and "%" in axis.get_xlabel()
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "10", "50"]
    shown = {text.get_text() for text in axis.get_legend().get_texts()}
    assert shown == {"lowest loss", "random", "all images", "critical size"}
    assert figures.save(axis.figure, tmp_path / "keep.png").stat().st_size > 1000


def test_keep_curves_of_numbers_of_images_without_all_data(axis):
    figures.keep_curves(axis, {"made up": {50: sets(0.5), 2: sets(0.4)}}, [None], {})
    assert "every class" in axis.get_xlabel()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["made up"]


@pytest.mark.parametrize("curves", [{"random": {0.5: None}}, {}])
def test_keep_curves_before_anything_has_run(axis, curves):
    figures.keep_curves(axis, curves, [], {})
    axis.figure.canvas.draw()
