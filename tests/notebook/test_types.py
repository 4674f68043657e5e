"""Parameter types: what a value may be stands beside the parameter, refusals are one line."""

import pytest

from distillery.notebook import parameters, types

KINDS = {name: getattr(types, name) for name in types.__all__ if name[0].isupper() and name not in ("SCALES", "OfThisMachine", "OneOf")}
TAKEN = [
    ("Count", 3, 3), ("Whole", 0, 0), ("Number", 2, 2.0), ("Share", 1, 1.0), ("Keep", 0.1, 0.1), ("Keep", 50, 50.0), ("Scale", "night", "night"),
    ("Device", "cpu", "cpu"), ("Engine", "local", "local"), ("Precision", "tf32", "tf32"), ("Dataset", "folder", "folder"),
    ("Normalization", "published:cifar10", "published:cifar10"), ("Rule", "flexrand", "flexrand"), ("MethodName", "DM", "DM"),
    ("ScoreName", "loss", "loss"), ("StartName", "herding", "herding"), ("NetworkName", "LeNet", "LeNet"), ("LocalPath", "", ""),
]  # fmt: skip
REFUSED = [
    ("Count", 0), ("Count", True), ("Count", 1.5), ("Count", "2"), ("Whole", -1), ("Number", -0.1), ("Number", float("inf")), ("Number", True),
    ("Share", 0), ("Share", 1.1), ("Keep", 2.5), ("Keep", 0), ("Scale", "huge"), ("Device", "tpu"), ("Engine", "dask"), ("Precision", "int8"),
    ("Dataset", "imagenet"), ("Normalization", "none"), ("Rule", "best"), ("MethodName", "DMM"), ("ScoreName", "luck"),
    ("StartName", "none"), ("NetworkName", "Net"), ("LocalPath", 3),
]  # fmt: skip


@pytest.mark.parametrize("kind, value, expected", TAKEN)
def test_taken(kind, value, expected):
    found = parameters.check({"x": KINDS[kind]}, {"x": value})["x"]
    assert found == expected and type(found) is type(expected)
    assert parameters.check({"x": list[KINDS[kind]]}, {"x": value}) == {"x": [expected]}  # a scalar where a list is meant


@pytest.mark.parametrize("kind, value", REFUSED)
def test_refused(kind, value, refused):
    with refused(repr(value)):
        parameters.check({"x": KINDS[kind]}, {"x": value})
    with refused(repr(value)):
        parameters.check({"x": list[KINDS[kind]]}, {"x": [value]})


def test_plain_types_are_not_negative_and_lists_not_empty(refused):
    with refused("x: -1"):
        parameters.check({"x": int}, {"x": -1})
    with refused("x: -0.5"):
        parameters.check({"x": list[float]}, {"x": -0.5})
    with refused("empty"):
        parameters.check({"x": list[str]}, {"x": []})
    with refused("'y'", "x"):
        parameters.check({"x": int}, {"y": 1})


def test_paths_of_this_machine_are_absolute_and_in_no_record(tmp_path, tiny_notebook, monkeypatch):
    path = tiny_notebook("")
    monkeypatch.chdir(tmp_path)
    given, values = parameters.planned(path, {"data_root": "here"})
    assert given["data_root"] == str(tmp_path / "here")
    kinds, _ = parameters.declared(path)
    shown = parameters.public(kinds, values)
    assert shown["data_root"] == "here" and "results_dir" not in shown


def test_annotations_that_are_no_parameter_types_are_refused(tiny_notebook, refused):
    import nbformat

    path = tiny_notebook("")
    content = nbformat.read(path, 4)
    content.cells[0].source = "x: dict = {}"
    nbformat.write(content, path)
    with refused("annotation of x", "dict"):
        parameters.declared(path)
