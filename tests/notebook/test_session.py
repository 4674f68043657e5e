"""A session runs rows, pairs them by seed, judges claims, knows what is comparable, and writes the record last."""

import json
import warnings
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from distillery.data import Splits, synthetic
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.notebook import display
from distillery.notebook.published import as_published, reconstructed
from distillery.notebook.session import Row, Session
from distillery.notebook.types import Whole
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.report import pages, pooling, records
from distillery.runs import Runs
from distillery.training.dsa import DSA, DSA_NO_FLIP
from made_up import blobs, namespace


@pytest.fixture
def session(tmp_path):
    return Session("90_tiny", namespace(tmp_path))


def test_rows_claims_figures_files_and_the_record(session, capsys):
    S = session
    S.describe()
    assert "digits: " in capsys.readouterr().out
    S.row("random", "random", 1, 1)
    S.row("random", "random", 1, 2)  # more seeds
    S.row("DM", "DM", 1, 2, settings={"steps": 2, "batch": 4})
    S.row("DM, pruned", "DM", 1, 2, prune=Prune(0.5), settings={"steps": 2, "batch": 4})
    S.row("all", "whole", 1, published=None)
    assert len(S.results["random"]) == 2 and S.runs.computed
    S.claim("dm", "DM beats random images", "DM", "random")
    S.claim("nobody", "what was not asked for is not claimed", "DC", "random")
    S.claim_values("numbers", "ones are above zeros", [[1.0], [1.0]], [[0.0], [0.0]], "zeros")
    assert [one["id"] for one in S.claims] == ["dm", "numbers"]
    assert [one["verdict"] for one in S.claims] == ["smoke: not judged"] * 2
    assert S.claims[0]["difference"]["n_sets"] == [2, 2] and METHODS["DM"].paper in S.claims[0]["source"]
    assert "DM, pruned" in S.table().data and "ones are above zeros" in S.verdicts().data
    S.save(S.sets_and_bars(["DM"], ["random", "DM"], ("sets", "accuracies"), start_of="DM"), "headline")
    for name, file in (("DM", "dm"), ("all", "kept")):
        made = S.export(name, file)
        assert len(synthetic.load(S.here / f"{file}.safetensors")) == len(made)
    S.record()
    record = json.loads((S.here / "record.json").read_text())
    assert [one["method"] for one in record["rows"]] == ["random", "DM", "DM, pruned", "all"]
    assert record["rows"][3]["ipc"] is None and record["parameters"]["max_side"] == 8 and "results_dir" not in record["parameters"]
    assert record["costs"]["runs_missing"] == 0 and (S.here / "headline.png").exists()
    again = Session("90_tiny", namespace(S.folder.parents[1]))
    again.row("DM", "DM", 1, 2, settings={"steps": 2, "batch": 4})
    assert again.runs.computed == 0


def strip(S, names):
    """Label and picture of each strip that is drawn of rows."""
    figure = matplotlib.pyplot.figure()
    S.strips(names, figure.subfigures(1, 2)[0])
    drawn = [(axis.get_yticklabels()[0].get_text(), axis.images[0].get_array()) for axis in figure.axes]
    matplotlib.pyplot.close(figure)
    return drawn


def test_sets_that_are_mostly_noise_are_shown_by_what_has_changed(session):
    S, short = session, {"steps": 1, "batch": 4}
    S.row("DC", "DC", 1, 1, settings=short | {"lr": 1e-6})
    S.row("DM", "DM", 1, 1, settings=short)
    [(label, picture)] = strip(S, ["DC"])
    assert label == "DC, change" and 0 < (picture < 0.25).mean() < 0.3  # stretched, however little it is
    assert [label for label, _ in strip(S, ["DC", "DM"])] == ["DC", "DM"]
    S.row("DC, far", "DC", 1, 1, settings=short | {"lr": 1e6})
    assert [label for label, _ in strip(S, ["DC", "DC, far"])] == ["DC", "DC, far"]


def test_a_row_again_has_other_seeds_and_is_held_against_the_first(session):
    S = session
    S.row("random", "random", 1, 2)
    assert len(S.again("random")) == 2 and S.rows["random, again"].against == "random"
    assert not {one.seed for one in S.rows["random"].recipes} & {one.seed for one in S.rows["random, again"].recipes}
    shown = S.summary("random, again")
    assert shown["difference"]["n_sets"] == [2, 2] and "(2 against 2 sets)" in S.table().data
    assert S.accuracies("random, again") != S.accuracies("random")


def test_a_part_without_an_experiment_has_a_record(session):
    """Of numbers alone, in a notebook that describes no ConvNet."""
    S = session
    del S.p.width
    S.bills += [{"seconds": 2.0, "samples": 8}] * 2 + [{"seconds": 3.0, "samples": 8}]
    S.claim_values("numbers", "ones are above zeros", [[1.0], [1.0]], [[0.0], [0.0]], "zeros")
    S.record()
    costs = records.load(S.here / "record.json")["costs"]
    assert (costs["seconds_scoring"], costs["samples_scoring"], costs["seconds_all_runs"]) == (5.0, 16, 0)


def test_verdicts_shown_are_those_of_the_record(session):
    S, values = session, ([0.015, 0.055, 0.025, 0.006, 0.035], [0.1, 0.11, 0.09, 0.1, 0.12])
    S.p.scale = "small"
    for i, ours in enumerate(values):
        S.claim_values(f"kind-{i}", f"claim {i}", [[x] for x in ours], [[0.0]] * 5, "zero", family="ones")
    S.claim_values("kind-2", "more", [[x, x - 0.02] for x in values[0]], [[0.0]] * 5, "zero", family="ones", further=True)
    assert "among the 3 comparisons 'ones'" in S.verdicts().data
    assert [one["verdict"] for one in S.claims] == ["direction reproduced"] * 2 + [""]


def test_records_of_two_sets_of_one_name_and_of_two_seeds_are_kept(tmp_path, class_folder, capsys):
    roots = [class_folder(f"{one}/pets") for one in "ab"]

    def run(root, **more):
        S = Session("90_tiny", namespace(tmp_path / "results", dataset="folder", data_root=str(root), label="pets", **more))
        S.row("random", "random", 1)
        S.record()
        return S.here

    first = run(roots[0])
    before = (first / "record.json").read_bytes()
    places = [first, run(roots[1]), run(roots[0], seed=1)]
    assert first.name == "pets" and len(set(places)) == 3 and "which stays" in capsys.readouterr().out
    assert run(roots[1]) == places[1] and run(roots[0], seed=1) == places[2] and (first / "record.json").read_bytes() == before
    assert len(records.find(tmp_path / "results")) == 3
    assert run(roots[0], ipc=[2]) == first


def test_a_view_judges_the_same_sets_in_another_way_and_is_not_paid_again(session):
    S = session
    regressed = S.experiment(protocol=Protocol(1, 1, loss="half squared error"))
    S.row("KIP", "KIP", 1, 2, label="KIP, as networks", experiment=regressed, settings={"steps": 2, "batch": 4})
    S.view("start", "KIP", "at_start")
    S.view("end", "KIP", "regression", label="KIP", against="start")
    assert S.accuracies("end") == [one["regression"] for one in S.results["KIP"]] and S.set_of("end") is not None
    assert S.summary("end")["difference"]["n_sets"] == [2, 2] and S.summary("start")["difference"] is None
    table = S.grid(["from", "start", "end", "else"], {"random": ["start", "end", "nowhere"]}).data
    assert "| random |" in table and table.rstrip().endswith("| - |")
    S.record()
    record = json.loads((S.here / "record.json").read_text())
    assert [one["method"] for one in record["rows"]] == ["KIP, as networks", "start", "KIP"]
    assert record["costs"]["samples_all_runs"] == sum(one["samples"] for one in S.results["KIP"])


def test_a_row_keeps_what_it_is_compared_with(session):
    """`against` of a table stands in where a row names none of its own."""
    S = session
    for name, value, against in (("random", 0.1, ""), ("low", 0.2, ""), ("mine", 0.5, "low"), ("other", 0.5, "")):
        S.add(name, [{"accuracies": [value], "seconds": 1.0, "steps": 1, "samples": 1, "stored_numbers": 1}], against=against)
    gaps = [line.split(" | ")[7] for line in S.table(["mine", "other"], "random").data.splitlines()[2:]]
    assert gaps == ["+30.0 (1 against 1 sets)", "+40.0 (1 against 1 sets)"] and S.summary("mine")["difference"]["mean"] == pytest.approx(
        0.3
    )
    assert [line.split(" | ")[7] for line in S.table(["mine", "other"], "random", every=True).data.splitlines()[2:]] == [gaps[1]] * 2
    assert S.summary("random")["difference"] is None  # to itself
    assert "difference to low" in S.table(["mine"]).data and "difference to random" in S.table(["other"]).data


def test_verdicts_are_told_once(session):
    for i in (1, 2):
        session.claim_values(f"{i}", f"claim {i}", [[1.0]], [[0.0]], "zeros")
        assert f"claim {i}" in (shown := session.verdicts().data) and f"claim {3 - i}" not in shown


@pytest.mark.parametrize("name", ["US$ and A$", "$x", "$$", "a$b_{c$", "$caf\\xe9$"])
def test_a_dollar_in_a_name_is_a_dollar(session, name):
    figure, axes = matplotlib.pyplot.subplots(1, 2)
    axes[0].barh([0, 1], [1, 2], label=name)
    axes[0].set_yticks([0, 1], [name, "b"])
    axes[0].set(title=name, xscale="log", xlabel=r"$\rho$")
    axes[0].legend()
    figure.subfigures(1, 1).suptitle(name)
    session.save(figure, "dollars")
    texts = {text.get_text(): text.get_parse_math() for text in figure.findobj(matplotlib.text.Text)}
    assert not texts[name] and texts[r"$\rho$"]
    assert all(math for text, math in texts.items() if "mathdefault" in text)


def test_libraries_do_not_ask_for_widgets(tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        Session("90_tiny", namespace(tmp_path))
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", stacklevel=1)
    assert not seen


def test_data_are_loaded_with_changes(session):
    assert max(session.data.train.counts()) <= 12 < min(session.load(per_class=0).train.counts())


def test_what_the_budget_leaves_out_is_not_run(tmp_path):
    S = Session("90_tiny", namespace(tmp_path, budget_minutes=1e-9))
    S.row("random", "random", 1, 2)
    S.claim("value", "random images reach something", "random")
    assert S.results["random"] == [None, None] and S.claims[0]["verdict"] == "not run"
    assert S.export("random", "nothing") is None and "not run" in S.table().data


def test_the_budget_runs_from_the_start_of_the_session(tmp_path, monkeypatch):
    """Also where the images take longer to load than the budget lasts, nothing is started."""
    now = [0.0]
    for clock in ("time.time", "time.monotonic"):
        monkeypatch.setattr(clock, lambda: now[0])
    S = Session("90_tiny", namespace(tmp_path, budget_minutes=2))
    now[0] = 121
    assert S.runs.spent() and S.row("random", "random", 1) == [None]


def test_a_misspelt_parameter_of_plain_papermill_is_refused(tmp_path, refused):
    with refused("'n_sedes'"):
        Session("90_tiny", namespace(tmp_path, n_sedes=5))
    names = namespace(tmp_path)
    Session("90_tiny", names)
    Session("90_tiny", names | {"later": 3})  # the cell once more, after other cells gave names


def test_numbers_are_those_of_the_published_set(session):
    recipe = Recipe("DM", 1, 0)
    session.p.published_for = "cifar10"
    assert session._number(recipe, "")["mean"] == pytest.approx(0.26)
    assert session._number(Recipe("DM", 1, 0, prune=Prune(0.5)), "") is None
    assert session._number(Recipe("DM", 1, 0, evaluate=Evaluate(network="LeNet")), "") is None
    assert session._number(Recipe("DM", 1, 0, prune=Prune(0.5)), "DC")["mean"] == pytest.approx(0.283)


def test_each_method_is_judged_by_its_own_protocol_beside_random_images_judged_alike(tmp_path):
    names = namespace(tmp_path, published_protocols=True)
    names["__annotations__"] |= {"published_protocols": bool}
    S = Session("90_tiny", names, against="random images")
    S.bench.augmentation = DSA_NO_FLIP  # digits
    S.row("random images", "random", 1, 1)
    short = {"settings": {"steps": 1, "batch": 4}}
    S.row("DC", "DC", 1, 1, **short, experiment=S.bench)
    S.row("DC, as published", "DC", 1, 1, **short)
    S.row("DM", "DM", 1, 1, **short)
    S.row("IDC", "IDC", 1, 1, settings=short["settings"] | {"n_data": 8, "train_batch": 8})
    S.row("DM, again", "DM", 1, 2, **short)  # as many controls as sets
    judged = {name: (row.experiment.protocol.epochs, row.experiment.protocol.augmentation) for name, row in S.rows.items()}
    base = S.protocol.epochs, S.protocol.augmentation
    mixing = (1000, "color+crop_scale_rotate")
    assert judged == {
        "random images": base, "DC": base, "DC, as published": (300, ""), "random images, judged as DC": (300, ""), "DM": (1000, DSA_NO_FLIP),
        "random images, judged as DM": (1000, DSA_NO_FLIP), "IDC": mixing, "random images, packed, nearest, judged as IDC": mixing,
        "DM, again": (1000, DSA_NO_FLIP),
    }  # fmt: skip
    assert S.rows["DM"].against == "random images, judged as DM" and len(S.results["random images, judged as DM"]) == 2
    assert S.rows["DC"].against == "" and S.control("MTT", 1) == "random images, judged as DM" and S.control("random", 1) == "random images"
    assert len({S.bench.set_id(row.recipes[0]) for name, row in S.rows.items() if name.startswith("random") and "packed" not in name}) == 1
    assert S.experiments == [S.bench]


def test_at_paper_scale_a_number_stands_beside_what_is_judged_as_published(tmp_path):
    S = Session("90_tiny", namespace(tmp_path, scale="paper"))
    S.p.published_for = "cifar10"
    families, recipe = DSA if "flip" in S.bench.augmentation else DSA_NO_FLIP, Recipe("DM", 1, 0)
    assert S._number(recipe, "", S.bench.under(Protocol(2, augmentation=families)))["mean"] == pytest.approx(0.26)
    assert S._number(recipe, "", S.bench.under(Protocol(2))) is None
    assert S._number(Recipe("random", 10, 0), "", S.bench) is None  # its numbers are of the evaluation of DC
    assert S._number(Recipe("random", 10, 0), "", S.bench.under(Protocol(2, 300)))["mean"] == pytest.approx(0.26)


def test_where_a_selection_is_reconstructed_its_gain_is_held_against_the_published_one(tmp_path, monkeypatch):
    """How the images behind a published number were scored is not published; what pruning by it gains can be compared, a value cannot."""
    S = Session("90_tiny", namespace(tmp_path, scale="paper"))
    monkeypatch.setattr(S, "comparable", lambda name: True)
    rows = {
        "random images": (Recipe("random", 1, 0), 0.14, [0.15, 0.13, 0.15]),
        "herding": (Recipe("herding", 1, 0), 0.21, [0.18, 0.16, 0.18]),
        "DC": (Recipe("DC", 1, 0), 0.28, [0.29, 0.28, 0.285]),
        "DC, random 10%": (Recipe("DC", 1, 0, prune=Prune(0.1, "random")), 0.285, [0.28, 0.28, 0.27]),
        "DC, selected 10%": (Recipe("DC", 1, 0, prune=Prune(0.1)), 0.30, [0.31, 0.301, 0.30]),
        "DC, selected 2 a class": (Recipe("DC", 1, 0, prune=Prune(2)), 0.284, [0.25, 0.24, 0.25]),
    }
    for name, (recipe, number, values) in rows.items():
        S.rows[name] = Row(name, 1, {"mean": number, "std": 0.002}, "", [recipe] * 3, S.bench)
        S.results[name] = [{"accuracies": [value, value]} for value in values]
    S.claim_published()
    found = {one["id"]: (one["against"], one["verdict"], "reconstructed" in one["why"]) for one in records.corrected(S.claims)}
    assert found == {
        "value-random images": ("", "reproduced", False),
        "gain-herding": ("random images", "not reproduced", True),
        "value-DC": ("", "reproduced", False),
        "value-DC, random 10%": ("", "reproduced", False),
        "gain-DC, selected 10%": ("DC", "reproduced", True),
        "gain-DC, selected 2 a class": ("DC", "not reproduced", True),
    }
    assert S.claims[4]["published"]["difference"] == pytest.approx(0.02) and "p" not in S.claims[4]["difference"]
    S.claim("beats", "DC from the selected 10% beats DC", "DC, selected 10%", "DC")
    assert S.claims[-1]["verdict"] == "reproduced" and "gain" in S.claims[-1]["why"]
    numbers = pages.published_rows(
        [{"notebook": "a", "scale": "paper", "data": {"label": "b"}, "claims": S.claims, "missing": [], "path": ""}]
    )
    assert "| DC, selected 10% at ipc 1: gain over DC | +2.0 | +1.9 (3 pairs) |" in numbers


@pytest.mark.parametrize("changed", [{"start": "noise"}, {"evaluate": Evaluate(lr=0.1)}, {"evaluate": Evaluate(labels="hard")}])
def test_a_recipe_of_its_own_is_not_the_published_one(tmp_path, changed):
    tiny = blobs(classes=10, shape=(3, 32, 32), per_class=2)
    network, protocol = ConvNet(tiny.shape, 10, 128), Protocol(5, 1000, augmentation=DSA)
    experiment = Experiment(Splits(tiny, tiny, tiny), network, protocol, Runs(tmp_path), augmentation=DSA)
    assert as_published(experiment, Recipe("DM", 1, 0), SimpleNamespace(**COMPARABLE), "cifar10")
    assert not as_published(experiment, Recipe("DM", 1, 0, **changed), SimpleNamespace(**COMPARABLE), "cifar10")
    assert not reconstructed(Recipe("DM", 1, 0)) and not reconstructed(Recipe("DM", 1, 0, prune=Prune(0.1, "random")))


COMPARABLE = {"dataset": "cifar10", "normalization": "published", "per_class": 0}


@pytest.mark.parametrize(
    "changed",
    [{}, {"dataset": "folder"}, {"normalization": "own"}, {"per_class": 5}, {"resize": 32}, "width", "epochs", "steps", "families", "flip"],
)
def test_comparable_is_the_published_setting_alone(tmp_path, changed):
    tiny = blobs(classes=10, shape=(3, 32, 32), per_class=2)
    network = ConvNet(tiny.shape, 10, 64 if changed == "width" else 128)
    protocol = Protocol(5, 300 if changed == "epochs" else 1000, augmentation="flip" if changed == "families" else DSA)
    matched = DSA_NO_FLIP if changed == "flip" else DSA
    experiment = Experiment(Splits(tiny, tiny, tiny), network, protocol, Runs(tmp_path), augmentation=matched)
    p = SimpleNamespace(**(COMPARABLE | (changed if isinstance(changed, dict) else {})))
    recipe = Recipe("DM", 1, 0, settings={"steps": 10} if changed == "steps" else {"steps": 20_000})
    assert as_published(experiment, recipe, p, "cifar10") == (changed == {})


@pytest.mark.parametrize(
    "changed", [{}, {"published_for": ""}, {"published_for": "cifar100"}, {"normalization": "own"}, "training images", "test images"]
)
def test_a_whole_copy_of_a_published_set_may_lie_in_a_folder(tmp_path, changed):
    from distillery.data import ImageSet

    def images(n):
        pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(n, 3, 32, 32)
        return ImageSet(pixels, torch.arange(10).repeat(n // 10), tuple("abcdefghij"), None)

    train, test = 44_990 if changed == "training images" else 45_000, 9_990 if changed == "test images" else 10_000
    experiment = Experiment(
        Splits(images(train), images(5_000), images(test)), ConvNet((3, 32, 32), 10, 128), Protocol(5, 300), Runs(tmp_path)
    )
    folder = {"dataset": "folder", "published_for": "cifar10", "normalization": "published:cifar10", "max_side": 0}
    p = SimpleNamespace(**(folder | (changed if isinstance(changed, dict) else {})))
    for method in ("DC", "random", "herding"):
        assert as_published(experiment, Recipe(method, 10, 0), p, "cifar10") == (changed == {})
    assert not as_published(experiment, Recipe("k-means", 10, 0), p, "cifar10")  # of which no number is known


@pytest.mark.parametrize(
    "changed", [{}, {"dataset": "cifar10"}, {"resize": 64}, {"normalization": "own"}, "test images", "training images"]
)
def test_ten_classes_of_imagenet_come_as_a_folder(tmp_path, changed):
    """Those of the public code of MTT, 128 x 128: 50 test images of each, where other parts of the same name have hundreds."""
    from distillery.data import ImageSet

    def images(n):
        pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(10 * n, 3, 128, 128)
        return ImageSet(pixels, torch.arange(10).repeat(n), tuple("abcdefghij"), None)

    train, test = 700 if changed == "training images" else 900, 390 if changed == "test images" else 50
    data = Splits(images(train), images(0), images(test))
    experiment = Experiment(
        data, ConvNet((3, 128, 128), 10), Protocol(augmentation=DSA), Runs(tmp_path), presets=Presets("imagenet-subset")
    )
    folder = {"dataset": "folder", "normalization": "published:tiny-imagenet", "resize": 128}
    p = SimpleNamespace(**(folder | (changed if isinstance(changed, dict) else {})))
    assert as_published(experiment, Recipe("FTD", 10, 0), p, "imagenette") == (changed == {})
    assert not as_published(experiment, Recipe("FTD", 10, 0), p, "cifar10")


def test_classes_of_wordnet_are_named_in_words():
    assert display.in_words(["n01443537", "n02123045", "own"]) == ["goldfish", "tabby", "own"]
    assert display.in_words(["0", "n0144"]) == ["0", "n0144"]


@pytest.mark.parametrize(("method", "expected"), [("DM", {0: True, 1: True}), ("MTT", {0: True, 1: False}), ("FTD", {0: True, 1: False})])
def test_experts_of_shortened_epochs_are_not_published_ones(tmp_path, method, expected):
    """A held-out tenth leaves 176 of 196 steps to an epoch of an expert; a loop over batches it leaves as it is."""
    tiny = blobs(classes=10, shape=(3, 32, 32), per_class=2)
    network, protocol = ConvNet(tiny.shape, 10, 128), Protocol(5, 1000, augmentation=DSA)
    p = SimpleNamespace(**COMPARABLE | {"normalization": "published" if method == "DM" else "zca"})
    for held_out, published in expected.items():
        splits = Splits(tiny, tiny.subset(torch.arange(held_out)), tiny)
        assert as_published(Experiment(splits, network, protocol, Runs(tmp_path)), Recipe(method, 1, 0), p, "cifar10") == published


def test_source_and_committed_figures(tmp_path, monkeypatch):
    shown = display.source(display.embedded).data
    assert shown.startswith("`distillery.notebook.display.embedded`\n```python\ndef embedded(")
    session, told, figure = display.Shown(), [], matplotlib.figure.Figure()
    session.notebook, session.here = "90_tiny", tmp_path
    monkeypatch.setattr(display, "ROOT", tmp_path)
    monkeypatch.setattr(display, "display", lambda *parts: told.extend(parts))
    session.save(figure, "headline", committed=True)
    assert len(told) == 1
    for scale, label in (("small", "A"), ("paper", "B")):
        folder = tmp_path / "results" / scale / "90_tiny" / "x"
        folder.mkdir(parents=True)
        figure.savefig(folder / "headline.png")
        data = {"label": label, "train": 1, "test": 1}
        records.write(folder / "record.json", notebook="90_tiny", key="k", scale=scale, data=data, claims=[], rows=[], missing=[], costs={})
    session.save(figure, "headline", committed=True)
    _, _, caption, picture = told
    session.save(figure, "headline")
    session.save(figure, "another", committed=True)
    assert len(told) == 6
    assert "paper scale, on B" in caption.data and picture.data[:4] == b"\x89PNG"


def test_machines_share_the_seeds_of_rows(tmp_path):
    """Sets of `first_seed` 0 and 1 on one split of the data are those of two seeds; the split is drawn by `seed` alone."""

    def run(n, **more):
        kinds = {"first_seed": Whole}
        values = namespace(tmp_path, seed=3, **{"first_seed": 0} | more)
        S = Session("90_tiny", values | {"__annotations__": values["__annotations__"] | kinds})
        S.row("random", "random", 1, n)
        S.row("DM", "DM", 1, n, settings={"steps": 1, "batch": 4})
        S.control("DM", 1, n)
        S.record()
        return S

    first, second = run(1), run(1, first_seed=1)
    assert [list(S.seeds(1)) for S in (first, second)] == [[3], [4]] and first.data.digest == second.data.digest
    assert list(first.rows) == list(second.rows) == ["random", "DM"]  # which is a control of its own
    assert first.here.name == "digits" and second.here.name.startswith("digits-")
    both = run(2)
    assert both.runs.computed == 0 and both.results["DM"][1] == second.results["DM"][0] and both.here == first.here
    keys = [records.record_key("90_tiny", {"seed": 3} | more) for more in ({}, {"first_seed": 0}, {"first_seed": 1})]
    assert keys[0] == keys[1] != keys[2]  # records of before there was one still count
    assert len({pooling.pool_key("90_tiny", {"seed": seed, "first_seed": seed}) for seed in (0, 1)}) == 1


def test_strips_of_sets_that_were_not_kept_say_so(tmp_path):
    S = Session("90_tiny", namespace(tmp_path))
    S.row("random", "random", 1, 1)
    kept, gone = Figure(), Figure()
    S.strips(["random"], kept)
    S.runs.artifact(S.results["random"][0]["artifact"]).unlink()
    S.strips(["random"], gone)
    assert len(kept.axes[0].images) == 1 and not gone.axes[0].images and not gone.axes[0].axison
    assert [text.get_text() for text in gone.axes[0].texts] == ["no set is kept here"]
