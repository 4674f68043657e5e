"""Parameter types: what a value may be stands beside the parameter, refusals are one line."""

import nbformat
import pytest

from distillery import data, names
from distillery.checks import InputError, check_choice
from distillery.notebook import parameters, types

KINDS = vars(types)
TAKEN = [
    ("Count", 3, 3), ("Whole", 0, 0), ("Number", 2, 2.0), ("Share", 1, 1.0), ("Keep", 0.1, 0.1), ("Keep", 50, 50.0), ("Scale", "night", "night"),
    ("Device", "cpu", "cpu"), ("Engine", "local", "local"), ("Precision", "tf32", "tf32"), ("Dataset", "folder", "folder"),
    ("Normalization", "published:cifar10", "published:cifar10"), ("Rule", "flexrand", "flexrand"), ("MethodName", "DM", "DM"),
    ("StartName", "herding", "herding"), ("NetworkName", "LeNet", "LeNet"), ("LocalPath", "", ""),
]  # fmt: skip
REFUSED = [
    ("Count", 0), ("Count", True), ("Count", 1.5), ("Count", "2"), ("Whole", -1), ("Number", -0.1), ("Number", float("inf")), ("Number", True),
    ("Share", 0), ("Share", 1.1), ("Keep", 2.5), ("Keep", 0), ("Scale", "huge"), ("Device", "tpu"), ("Engine", "dask"), ("Precision", "int8"),
    ("Dataset", "imagenet"), ("Normalization", "none"), ("Rule", "best"), ("MethodName", "DMM"),
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


def test_lists_are_not_empty_and_names_known(refused):
    with refused("empty"):
        parameters.check({"x": list[str]}, {"x": []})
    with refused("'y'", "x"):
        parameters.check({"x": str}, {"y": 1})


def test_paths_of_this_machine_are_absolute_and_in_no_record(tmp_path, tiny_notebook, monkeypatch):
    path = tiny_notebook("")
    monkeypatch.chdir(tmp_path)
    given, values = parameters.planned(path, {"data_root": "here"})
    assert given["data_root"] == str(tmp_path / "here")
    kinds, _ = parameters.declared(path)
    shown = parameters.public(kinds, values)
    assert shown["data_root"] == "here" and "results_dir" not in shown


def test_a_path_behind_the_name_of_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").touch()
    kinds = {"encoder": types.NameOrPath}
    for given, absolute, shown in (
        ("timm:resnet18:a.pth", f"timm:resnet18:{tmp_path}/a.pth", "timm:resnet18:a.pth"),
        ("torchvision:resnet18:DEFAULT", "torchvision:resnet18:DEFAULT", "torchvision:resnet18:DEFAULT"),
        ("a.pth", f"{tmp_path}/a.pth", "a.pth"),
        ("simclr", "simclr", "simclr"),
    ):
        found = parameters.check(kinds, {"encoder": given})["encoder"]
        assert found == absolute and parameters.public(kinds, {"encoder": found}) == {"encoder": shown}


@pytest.mark.parametrize(
    "source, named",
    [
        ("x: dict = {}", "dict"),
        ("x: bool", "tiny.ipynb"),
        ("x: bool = f()", "tiny.ipynb"),
        ("%magic", "tiny.ipynb"),
        ("a.b: bool = 1", "tiny.ipynb"),
    ],
)
def test_cells_that_declare_no_parameters_are_refused(tiny_notebook, refused, source, named):
    path = tiny_notebook("")
    content = nbformat.read(path, 4)
    content.cells[0].source = source
    nbformat.write(content, path)
    with refused(named):
        parameters.declared(path)


NO_CELLS = [
    "3", "[]", "[3]", '[{"cell_type": "code", "source": "x"}]', '[{"cell_type": "code", "source": "", "metadata": {"tags": null}}]',
    '[{"cell_type": "code", "metadata": {"tags": ["parameters"]}}]', '[{"cell_type": "code", "source": "x: int = 1", "metadata": {}}]',
]  # fmt: skip
NO_NOTEBOOKS = [f'{{"nbformat": 4, "nbformat_minor": 4, "metadata": {{}}, "cells": {cells}}}' for cells in NO_CELLS]


@pytest.mark.parametrize("text", ["", "hello", "[]", "{}", "[" * 5000, '{"nbformat": 99}', *NO_NOTEBOOKS], ids=range(6 + len(NO_CELLS)))
def test_files_that_are_no_notebooks_are_refused(tmp_path, refused, text):
    path = tmp_path / "bad.ipynb"
    path.write_text(text)
    with refused("bad.ipynb"):
        parameters.declared(path)


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("1", int, 1), ("1,10", list[int], [1, 10]), ("[1, 2]", list[int], [1, 2]), ("1e-3", float, 0.001), ("True", bool, True),
        ("true", bool, True), ("a b", None, "a b"), ("007x", None, "007x"), ("2020-13-45", None, "2020-13-45"), ("[" * 5000, None, "[" * 5000),
        ("#2", str, "#2"), ("a,b", str, "a,b"), ("007", str, "007"), ("no", str, "no"), ("[x]: y", str, "[x]: y"), ("", str, ""),
        ("/a: #1,b", types.LocalPath, "/a: #1,b"), ("1e3", types.Dataset, "1e3"), ("DM, DC", list[types.MethodName], ["DM", "DC"]),
        ("[DM, DC]", list[types.MethodName], ["DM", "DC"]), ("12,#3", list[str], ["12", "#3"]),
        ("010", int, 10), ("5e-1,.5", list[float], [0.5, 0.5]), ("[5e-1, 1.e3]", list[float], [0.5, 1000.0]), ("-1_0", int, "-1_0"),
        ("1:30", int, "1:30"), ("0x1f", int, "0x1f"), ("2024-01-01", int, "2024-01-01"), ("[010, yes]", list[str], ["010", "yes"]),
    ],
)  # fmt: skip
def test_texts_of_the_command_line(text, kind, value):
    found = parameters.from_text(text, kind)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("5e-1", types.Keep), ("010", types.Whole), ("010", str), ("no", str), ("2024-01-01", str), ("1:30", str), ("~", str), ("", str),
        ("5e-1,1", list[types.Keep]), ("[5e-1, 1]", list[types.Keep]), ("[a, 010]", list[str]), ("true", bool), ("1.5", types.Number),
    ],
)  # fmt: skip
def test_files_and_the_command_line_are_read_the_same_way(tmp_path, text, kind):
    (tmp_path / "values.yaml").write_text(f"x: {text}")
    found = parameters.typed(parameters.read_values(tmp_path / "values.yaml"), {"x": kind})["x"]
    assert found == parameters.from_text(text, kind) and type(found) is type(parameters.from_text(text, kind))
    assert parameters.check({"x": kind}, {"x": found}) and (kind is not str or found == text)


def test_quotes_in_files_make_a_text(tmp_path):
    (tmp_path / "values.yaml").write_text("seed: '1'\nlabel: \"no\"\nwords: [1, '1']")
    assert parameters.typed(parameters.read_values(tmp_path / "values.yaml")) == {"seed": "1", "label": "no", "words": [1, "1"]}


@pytest.mark.parametrize(
    "text, named",
    [
        ("seed: 1\nseed: 2", "'seed'"), ("- 1", "list"), ("a word", "str"), ("", "NoneType"), ("[1", "expected"), ("x: &a [1]\ny: *a", "*a"),
        ("x: " + "[" * 5000, "recursion"), ("x: " + "9" * 200_000, "100000 bytes"), ("x: \x00", "x"),
        ("? [1]\n: 2", "unhashable"), (None, "No such file"),
    ],
)  # fmt: skip
def test_files_that_hold_no_values_are_refused(tmp_path, refused, text, named):
    path = tmp_path / "values.yaml"
    if text is not None:
        path.write_text(text)
    with refused("values.yaml", named):
        parameters.read_values(path)


@pytest.mark.parametrize("value", [".nan", "{a: 1}", "[[[1]]]", "[{a: .inf}]", "9" * 5000, "z" * 9000], ids=lambda value: value[:9])
def test_values_of_files_are_refused_in_short(tmp_path, value):
    (tmp_path / "values.yaml").write_text(f"x: {value}")
    with pytest.raises(InputError, match="accepted") as caught:
        kinds = {"x": list[types.Share]}
        parameters.check(kinds, parameters.typed(parameters.read_values(tmp_path / "values.yaml"), kinds))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "x" * 5000])
def test_paths_that_cannot_be_are_refused(tiny_notebook, refused, path):
    with refused("path"):
        parameters.planned(tiny_notebook(""), {"data_root": path, "results_dir": path})


def test_names_that_nothing_heavy_is_imported_for_are_those_of_what_they_name():
    assert names.DATASETS == data.NAMES and parameters.described(types.Dataset) == f"one of {', '.join(data.NAMES)}"


@pytest.mark.parametrize(
    "kind, value, meant",
    [
        ("MethodName", "dm", "DM"),
        ("NetworkName", "LeNe", "LeNet"),
        ("Dataset", "cifar-10", "cifar10"),
        ("Dataset", "zebra", ""),
        ("Scale", 7, ""),
    ],
)
def test_a_name_that_is_nearly_one(kind, value, meant):
    for check in (
        lambda: parameters.check({"x": KINDS[kind]}, {"x": value}),
        lambda: check_choice("x", value, KINDS[kind].__metadata__[0].func),
    ):
        with pytest.raises(InputError, match="x: .* is unknown; ") as refused:
            check()
        assert (f"did you mean {meant}? accepted: " in str(refused.value)) == bool(meant) or not meant and "mean" not in str(refused.value)
