"""Figures draw what they are given."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
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
    assert {text.get_text() for text in axis.texts} == {"lowest loss", "random", "all images"} and "ring" in axis.get_xlabel()
    assert "bar, band: ± deviation over sets" in axis.get_xlabel()
    assert figures.save(axis.figure, tmp_path / "keep.png").stat().st_size > 1000


def test_keep_curves_of_numbers_of_images_without_all_data(axis):
    figures.keep_curves(axis, {"made up": {50: sets(0.5), 2: sets(0.4)}}, [None], {})
    assert "every class" in axis.get_xlabel()
    assert [text.get_text() for text in axis.texts] == ["made up"] and "ring" not in axis.get_xlabel()


def test_curves_over_updates(axis):
    figures.keep_curves(axis, {"DM": {20: sets(0.5), 100: sets(0.6)}}, sets(0.3), {}, "random images", "updates")
    assert axis.get_xlabel().startswith("updates") and {text.get_text() for text in axis.texts} == {"DM", "random images"}


@pytest.mark.parametrize("curves", [{"random": {0.5: None}}, {}])
def test_keep_curves_before_anything_has_run(axis, curves):
    figures.keep_curves(axis, curves, [], {})
    axis.figure.canvas.draw()


def test_colours_tell_methods_apart_and_grey_is_for_baselines():
    found = figures.palette(["random images", "DC", "DC, level 1", "DM", "all images"])
    assert found["DC"] == found["DC, level 1"] and len({found[name] for name in ("DC", "DM", "random images", "all images")}) == 4
    assert found["random images"] == figures.BASELINES["random"]
    assert list(figures.palette(["DC", "DC, level 1", "DC, both levels", "DM"]).values())[-1] == figures.palette(["DC", "DM"])["DM"]


def test_sizes_are_counted():
    assert [figures.a_class(n) for n in (1, 4)] == ["1 image a class", "4 images a class"]


def test_text_can_be_read_on_and_beside_every_colour(axis):
    names = [f"method {i}" for i in range(9)]
    colors = figures.palette(names)
    assert not set(colors.values()) & {*figures.BASELINES.values(), "#949494"} and len(set(colors.values())) == 9
    figures.name_ends(axis, dict.fromkeys([*names, "white"], (0, 0)), colors | {"white": "#ffffff"})
    assert all(figures.brightness(text.get_color()) <= 0.5 + 1e-6 for text in axis.texts)
    axis.clear()
    figures.accuracy_bars(axis, [{"method": name, "accuracies": sets(0.5)} for name in names])
    for name, text in zip(names, axis.texts):
        assert abs(figures.brightness(text.get_color()) - figures.brightness(colors[name])) > 0.25


def test_bars_hold_value_sets_and_published_number(axis):
    rows = [
        {"method": "DM", "accuracies": sets(0.5, 0.6), "published": {"mean": 0.7, "std": 0.0}},
        {"method": "random", "accuracies": sets(0.05)},
    ]
    figures.accuracy_bars(axis, rows)
    assert [text.get_text() for text in axis.texts] == ["55.0", "5.0"]
    assert any(line.get_marker() == "D" and line.get_xdata()[0] == pytest.approx(70) for line in axis.lines)
    assert axis.get_xlim()[1] > 70 and "published" in axis.get_xlabel() and "line: ± deviation" in axis.get_xlabel()


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_stand_side_by_side_on_white(axis, channels):
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, channels, 4, 6) / 5
    figures.show_tiles(axis, images, 3, "title", ["a", "b"])
    picture = axis.images[0].get_array()
    assert picture.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert np.allclose(picture[6:10, 8:14], 0.8)  # the last of five
    assert (picture[6:10, 15:21] == 1).all() and (picture[0] == 1).all() and (picture[5] == 1).all()
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_stand_beside_their_lines_and_do_not_meet(axis, scale):
    axis.set_yscale(scale)
    axis.set_ylim(1, 100)
    curves = {"a": ([1, 2], [10, 50]), "b": ([1, 2], [10, 50.5]), "c": ([1, 2], [10, 51], [1, 1]), "d": ([1, 2], [3, 99])}
    figures.lines(axis, curves)
    heights = [text.get_position()[1] for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c", "d"]
    assert min(b - a for a, b in zip(heights, heights[1:])) > 0.03 and max(heights) <= 1.001
    assert axis.get_ylim() == pytest.approx((1, 100))


def test_names_that_meet_share_the_way_and_others_stay_where_they_are(axis):
    axis.set_ylim(0, 100)
    figures.lines(axis, {"low": ([0], [10]), "a": ([0], [50]), "b": ([0], [50])})
    low, a, b = (text.get_position()[1] for text in axis.texts)
    assert low == pytest.approx(0.1) and (a + b) / 2 == pytest.approx(0.5)


def test_intervals_are_in_points_and_what_has_not_run_is_left_out(axis):
    gaps = {"a": {"mean": 0.02, "ci95": [0.01, 0.03], "n_pairs": 2}, "b": {"mean": -0.01, "ci95": None, "n_pairs": 1}, "c": None}
    figures.intervals(axis, gaps, "random")
    drawn = [line.get_xdata() for line in axis.lines[:-1]]
    assert np.concatenate(drawn) == pytest.approx([1, 3, 2, -1])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b", "c"]
    assert "above random" in axis.get_xlabel() and "95% interval, 1 pair, 2 pairs" in axis.get_xlabel()


def test_differences_are_a_table_bold_where_the_interval_leaves_out_none(axis):
    gap = {"mean": 0.02, "ci95": [0.01, 0.03], "n_pairs": 3}
    gaps = {"ours": {"10%": gap, "30%": None}, "theirs": {"10%": gap | {"mean": -0.3, "ci95": [-0.7, 0.1]}, "30%": gap | {"ci95": None}}}
    figures.differences(axis, gaps, "kept")
    assert [(text.get_text(), text.get_weight()) for text in axis.texts] == [("+2.0", "bold"), ("-30.0", "normal"), ("+2.0", "normal")]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["ours", "theirs"]
    low, high = axis.get_ylim()
    assert low > high  # the first row stands on top
    figures.differences(Figure().subplots(), {"ours": {"10%": None}}, "kept")


def test_a_table_that_is_as_deep_as_asked_tells_the_halves_of_intervals(axis):
    gaps = {"ours": {"10%": {"mean": 0.012, "ci95": [0.002, 0.022]}}, "hardest": {"10%": {"mean": -0.2, "ci95": None}}}
    figures.differences(axis, gaps, "kept", deepest=2.0)
    assert [text.get_text() for text in axis.texts] == ["+1.2 ± 1.0", "-20.0"]
    assert axis.collections[0].get_clim() == (-2.0, 2.0) and axis.collections[0].get_array().min() == -2.0


def test_stacked_tables_have_rows_of_one_height():
    gap = {"mean": 0.01, "ci95": [0.0, 0.02]}
    tables = {"ways": {name: {"10%": gap, "30%": None} for name in "abc"}, "values": {"0%": {"10%": gap, "30%": gap}}}
    figure = figures.stacked(tables, "kept", 2.0)
    assert [axis.get_title() or axis.get_title("left") for axis in figure.axes] == ["ways", "values"] and figure.axes[
        1
    ].get_xlabel() == "kept"
    assert figure.axes[0].get_gridspec().get_height_ratios() == [3, 1]
    plt.close(figure)


def test_on_the_way_no_line_joins_test_images_to_validation_images():
    axis = Figure().subfigures(1, 2)[0].subplots()  # a part of a figure
    rows = [{"at_start": [0.2, 0.4], "regression": [0.9], "curve": [[5, 0.5], [10, last]]} for last in (0.6, 0.8)]
    figures.on_the_way(axis, {"random": [*rows, None], "not validated": [{"at_start": [0.1]}]})
    rings, line = axis.containers
    assert rings.lines[0].get_linestyle() == "None"
    assert rings.lines[0].get_xydata() == pytest.approx(np.array([[0, 30], [10, 90]]))
    assert line.lines[0].get_xydata() == pytest.approx(np.array([[5, 50], [10, 70]]))
    low, high = line.lines[2][0].get_segments()[-1][:, 1]
    assert (high - low) / 2 == pytest.approx(10)  # the standard error of 60 and 80


def test_an_order_from_axis_to_axis(axis):
    styles = figures.told_apart(["random", "DM", "DC"], ["random"])
    assert styles["random"]["marker"] != styles["DM"]["marker"] and len({one["color"] for one in styles.values()}) == 3
    orders = {"accuracy": {"DM": 1, "DC": 2, "random": 3}, "bytes": {"random": 1, "DM": 2}}
    figures.bump(axis, orders, {"accuracy": {"DM", "DC"}, "bytes": {"random"}}, styles)
    drawn = [line for line in axis.get_lines() if len(line.get_xdata()) == 2]
    assert [list(line.get_ydata()) for line in drawn] == [[3, 1], [1, 2]] and axis.get_ylim()[0] > axis.get_ylim()[1]
    hollow = [tuple(line.get_xydata()[0]) for line in axis.get_lines() if line.get_markerfacecolor() == "white"]
    assert sorted(hollow) == [(0, 1), (0, 2), (1, 1)]
    assert [text.get_text() for text in axis.texts].count("DC") == 2


def test_styles_are_told_apart_where_colours_come_again():
    names = [f"method {i}" for i in range(12)]
    assert len({(one["color"], str(one["ls"])) for one in figures.told_apart(names, []).values()}) == 12


def test_named_dots(axis):
    axis.set_xscale("log")
    figures.named_dots(axis, {"DM": (1.0, 50.0), "DC": (10.0, 50.1)}, figures.told_apart(["DM", "DC"], []))
    assert sorted(text.get_text() for text in axis.texts) == ["DC", "DM"]
    high = [text.get_position()[1] for text in axis.texts]
    assert abs(high[0] - high[1]) > 0.02 and axis.get_lines()[-1].get_xdata()[-1] == pytest.approx(axis.get_xlim()[1])


def test_no_text_is_cut_off(tmp_path):
    """A name at the left that the layout has no room for: the picture grows by it."""

    def width(name):
        figure = plt.figure(figsize=(2, 1), layout="none")
        figure.text(0.0, 0.5, name, ha="right")
        figure.add_axes((0, 0, 1, 1))
        return plt.imread(figures.save(figure, tmp_path / "some.png")).shape[1]

    assert width("a name that is far too long") > width("a") + 50
