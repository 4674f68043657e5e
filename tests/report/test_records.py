"""The one rule that turns numbers into a verdict, and the statistics behind it."""

import json
import os
import shutil

import pytest
from scipy import stats

from distillery import store
from distillery.checks import InputError
from distillery.report import records
from distillery.report.provenance import provenance
from distillery.report.records import VERDICTS, claim, verdict
from distillery.report.statistics import counted, critical_size, difference, measured, rank_correlation


def row(value, std_sets=0.0):
    return {"value": value, "n_sets": 5, "std_sets": std_sets, "n_networks": 2, "std_networks": 0.01}


def gap(low, high, n=5):
    return {"mean": (low + high) / 2, "ci95": [low, high], "n_pairs": n}


def apart(difference):
    return PUBLISHED | {"difference": difference}


PUBLISHED = {"mean": 0.6, "std": 0.005}
ONE_SIDED = {"mean": 0.1, "ci95": None, "how": "welch", "n_sets": [1, 5]}
OURS = (0.0, "points", 1, "scores are ours")
CASES = {
    "nothing has run": (None, None, PUBLISHED, True, "not run"),
    "one pair": (row(0.6), {"mean": 0.1, "ci95": None, "n_pairs": 1}, PUBLISHED, True, "inconclusive"),
    "both answers": (row(0.6), gap(-0.01, 0.05), PUBLISHED, True, "inconclusive"),
    "both answers, where a published difference would show": (row(0.6), gap(-0.01, 0.05), apart(0.031), True, "inconclusive"),
    "both answers, where it would not": (row(0.6), gap(-0.01, 0.05), apart(0.029), False, "under-powered"),
    "a published difference below": (row(0.6), gap(-0.01, 0.05), apart(-0.031), True, "inconclusive"),
    "a margin is part of what would show": (row(0.6), gap(-0.05, 0.01), apart(0.011), True, 0.02, "inconclusive"),
    "a margin, and less beside it": (row(0.6), gap(-0.05, 0.01), apart(0.009), True, 0.02, "under-powered"),
    "a side that is decided": (row(0.6), gap(-0.05, -0.01), apart(0.001), True, "not reproduced"),
    "no interval to be too wide": (row(0.6), ONE_SIDED, apart(0.001), True, "inconclusive"),
    "touching zero": (row(0.6), gap(0.0, 0.05), PUBLISHED, True, "inconclusive"),
    "other side": (row(0.6), gap(-0.05, -0.01), PUBLISHED, True, "not reproduced"),
    "other side, not comparable": (row(0.6), gap(-0.05, -0.01), None, False, "not reproduced"),
    "sign alone": (row(0.2), gap(0.01, 0.05), PUBLISHED, False, "direction reproduced"),
    "sign without a number": (row(0.2), gap(0.01, 0.05), None, True, "direction reproduced"),
    "value alone, not comparable": (row(0.6), None, PUBLISHED, False, "not testable at this scale"),
    "value alone, unpublished": (row(0.6), None, None, True, "not testable at this scale"),
    "value within a point": (row(0.609), None, PUBLISHED, True, "reproduced"),
    "value outside": (row(0.615), None, PUBLISHED, True, "not reproduced"),
    "within deviation and standard error": (row(0.618, 0.01), None, PUBLISHED, True, "reproduced"),
    "outside deviation and standard error": (row(0.62, 0.01), None, PUBLISHED, True, "not reproduced"),
    "a wide spread is no excuse": (row(0.631, 0.2), None, PUBLISHED, True, "not reproduced"),
    "published without deviation": (row(0.591), None, {"mean": 0.6, "std": None}, True, "reproduced"),
    "sign and value": (row(0.6), gap(0.01, 0.05), PUBLISHED, True, "reproduced"),
    "sign, another value": (row(0.5), gap(0.01, 0.05), PUBLISHED, True, "direction reproduced"),
    "reconstructed, the gain": (row(0.5), gap(0.01, 0.05), apart(0.031), True, *OURS, False, "reproduced"),
    "reconstructed, another gain": (row(0.6), gap(0.01, 0.05), apart(0.07), True, *OURS, False, "direction reproduced"),
    "reconstructed, no gain known": (row(0.6), gap(0.01, 0.05), PUBLISHED, True, *OURS, False, "direction reproduced"),
    "reconstructed, a value": (row(0.6), None, PUBLISHED, True, *OURS, False, "not testable at this scale"),
    "a gain alone": (row(0.5), gap(0.01, 0.05), apart(0.031), True, *OURS, True, "reproduced"),
    "a gain alone, other side": (row(0.5), gap(-0.05, 0.05), apart(-0.004), True, *OURS, True, "reproduced"),
    "a gain alone, another": (row(0.6), gap(0.01, 0.05), apart(0.07), True, *OURS, True, "not reproduced"),
    "a gain alone, another within the interval": (row(0.6), gap(-0.04, 0.10), apart(0.07), True, *OURS, True, "inconclusive"),
    "a gain alone, no interval": (row(0.6), ONE_SIDED, apart(0.1), True, *OURS, True, "inconclusive"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    *given, expected = CASES[case]
    found, why = verdict(*given)
    assert found == expected and why


def test_every_verdict_has_a_case():
    assert {case[-1] for case in CASES.values()} | {"smoke: not judged", "same as random"} == set(VERDICTS)


def one_of(id, ours, zeros=5, **how):
    return claim(id, "ours is better", "nobody", [[x] for x in ours], [[0.0]] * zeros, against="zero", **how)


STRONG, WEAK = [0.10, 0.11, 0.09, 0.10, 0.12], [0.01, 0.05, 0.02, 0.001, 0.03]


def test_a_p_value_is_scipys_and_goes_by_the_margin():
    found = difference([[x] for x in WEAK], [[0.0]] * 5, 0.01)
    assert found["p"] == pytest.approx(stats.ttest_1samp(WEAK, -0.01).pvalue)
    welch = difference([[x] for x in WEAK], [[x] for x in STRONG[:2]])
    assert welch["p"] == pytest.approx(stats.ttest_ind(WEAK, STRONG[:2], equal_var=False).pvalue)
    assert difference([[0.1]] * 3, [[0.1]] * 3)["p"] == 1.0 and difference([[0.2]] * 3, [[0.1]] * 3)["p"] < 1e-9
    assert difference([[0.1]], [[0.2], [0.3]])["p"] is None


def test_claims_of_a_kind_are_judged_together():
    """By hand: of three the smallest p counts three times, the next twice, the last once but no less than that."""
    alone = [one_of("a-1", STRONG), one_of("a-2", [x + 0.005 for x in WEAK]), one_of("b-1", [x + 0.005 for x in WEAK])]
    alone += [one_of("a-3", [0.02, -0.02, 0.01, 0.0, 0.01], further=True)]
    p = [one["difference"]["p"] for one in alone]
    assert p[0] < p[1] < 0.05 < p[3] and 2 * p[1] > 0.05
    found = records.corrected(alone)
    assert [one["p_holm"] for one in found] == pytest.approx([3 * p[0], 2 * p[1], p[2], max(p[3], 2 * p[1])])
    assert [one["verdict"] for one in found] == ["direction reproduced", "inconclusive", "direction reproduced", ""]
    assert "among the 3 comparisons 'a'" in found[1]["why"] and [one["verdict"] for one in alone[:2]] == ["direction reproduced"] * 2
    assert records.corrected(found) == found  # once more changes nothing


def test_families_are_named_or_go_by_the_first_word():
    assert one_of("start-kip-1", STRONG)["family"] == "start" and one_of("start-kip-1", STRONG, family="KIP")["family"] == "KIP"


def test_what_is_not_judged_corrects_nothing():
    others = [one_of("a-2", WEAK, same="total variation .01"), one_of("a-3", WEAK, untestable="too short"), one_of("a-4", [0.1], zeros=1)]
    found = records.corrected([one_of("a-1", STRONG), *others])
    assert found[0]["p_holm"] == found[0]["difference"]["p"] and not any("p_holm" in one for one in found[1:])


def test_a_treatment_that_is_its_control_is_no_finding():
    found = one_of("a", STRONG, same="total variation .01")
    assert (found["verdict"], found["why"]) == ("same as random", "total variation .01")
    assert claim("a", "s", "p", None, [[0.0]], against="zero", same="total variation .01")["verdict"] == "not run"


def test_an_inconclusive_interval_states_the_detectable_effect():
    assert "3.0%" in verdict(row(0.6), gap(-0.01, 0.05), None, False)[1]


def test_spreads_by_hand():
    """Sets with means .5, .6, .4: deviation over sets .1; over networks the mean of .1, .2, 0."""
    accuracies = [[0.4, 0.5, 0.6], [0.4, 0.6, 0.8], [0.4, 0.4, 0.4]]
    found = measured(accuracies)
    assert found["value"] == pytest.approx(0.5)
    assert found["std_sets"] == pytest.approx(0.1)
    assert found["std_networks"] == pytest.approx(0.1)
    assert (found["n_sets"], found["n_networks"]) == (3, 3)


def test_spreads_that_do_not_exist():
    assert measured([]) is None and measured(None) is None
    one = measured([[0.5]])
    assert (one["value"], one["std_sets"], one["std_networks"]) == (0.5, None, None)
    assert measured([[0.4], [0.6]])["std_networks"] is None


def test_paired_interval_equals_scipys():
    ours = [[0.50, 0.54], [0.61, 0.61], [0.40, 0.46], [0.55, 0.51]]
    baseline = [[0.45, 0.45], [0.60, 0.58], [0.38, 0.42], [0.50, 0.50]]
    means = [[sum(one) / 2 for one in rows] for rows in (ours, baseline)]
    expected = stats.ttest_rel(*means).confidence_interval(0.95)
    found = difference(ours, baseline)
    assert found["ci95"] == pytest.approx([expected.low, expected.high])
    assert found["mean"] == pytest.approx(0.0375) and found["n_pairs"] == 4


def test_gaps_that_happen_to_be_alike_spread_as_their_networks_do():
    """Three gaps of exactly .02, of two networks: the mean variance of network gaps, (.0008 + .0002 + .0018) / 3, over two networks."""
    ours, baseline = [[0.50, 0.54], [0.51, 0.53], [0.49, 0.55]], [[0.5, 0.5]] * 3
    half = stats.t.ppf(0.975, 2) * (0.0028 / 3 / 2 / 3) ** 0.5
    assert difference(ours, baseline)["ci95"] == pytest.approx([0.02 - half, 0.02 + half])
    both = [[x + shift for x in one] for one, shift in zip(ours, (0.1, 0.2, 0.3))]  # networks of a seed rise and fall together
    assert difference(both, ours)["ci95"] == pytest.approx(
        [0.2 - stats.t.ppf(0.975, 2) * 0.1 / 3**0.5, 0.2 + stats.t.ppf(0.975, 2) * 0.1 / 3**0.5]
    )
    assert difference(ours, [[0.5, 0.5, 0.5]] * 3)["ci95"] == pytest.approx([0.02 - half, 0.02 + half])  # another number of networks
    welch = difference(ours[:2], baseline[:2])  # two means of exactly .52: (.0008 + .0002) / 2, over two networks
    assert welch["how"] == "welch" and welch["ci95"][1] - 0.02 == pytest.approx(stats.t.ppf(0.975, 1) * (0.0005 / 2 / 2) ** 0.5)


ON = [[0.1], [0.2], [0.4], [0.3], [0.2], [0.5]]  # seeds in order
HOW = {  # our sets, those of the baseline, and how they are compared: 'paired', or 'welch' where few pairs would lose more than a quarter
    "as many": (ON[:3], ON[3:], "3 pairs"),
    "two of eight left out": (ON[:3], ON[:5], "3 pairs"),
    "three of nine left out": (ON[:3], ON, "3 against 6 sets"),
    "one of nine left out": (ON[:5], ON[1:5], "4 pairs"),
    "five of fifteen left out": (ON[:5], [*ON, *ON[:4]], "5 pairs"),
    "holes on one side": ([None, *ON[:3]], ON[:4], "3 pairs"),
    "holes on both sides": ([None, *ON[:3]], [*ON[:3], None], "3 against 3 sets"),
    "two pairs": (ON[:2], ON[2:4], "2 against 2 sets"),
    "two beside five": (ON[:2], ON[:5], "2 against 5 sets"),
    "a side of one set": (ON[:1], ON[:5], "1 against 5 sets"),
    "no seed in common": ([None, *ON[:2]], [ON[3]], "2 against 1 sets"),
}


@pytest.mark.parametrize("case", HOW)
def test_all_sets_are_used_and_the_interval_is_scipys(case):
    ours, baseline, made_of = HOW[case]
    found = difference(ours, baseline)
    a, b = ([one[0] for one in side if one] for side in (ours, baseline))
    if "pairs" in made_of:
        both = [(x[0], y[0]) for x, y in zip(ours, baseline) if x and y]
        test, mean = stats.ttest_rel(*zip(*both)), sum(x - y for x, y in both) / len(both)
    else:
        mean = sum(a) / len(a) - sum(b) / len(b)
        test = stats.ttest_ind(a, b, equal_var=False) if min(len(a), len(b)) > 1 else None
    assert counted(found) == made_of and found["mean"] == pytest.approx(mean)
    assert found["ci95"] == (pytest.approx(list(test.confidence_interval(0.95))) if test else None)


def test_welch_by_hand():
    """Variances 1/2 and 1 of 2 and 3 sets: squared errors 1/4 and 1/3, (7/12)^2 / (1/16 + 1/18) = 2.88 degrees of freedom, t 3.261."""
    found = difference([[5.0], [6.0]], [[1.0], [2.0], [3.0]])
    assert found["how"] == "welch" and found["mean"] == pytest.approx(3.5)
    assert (found["ci95"][1] - 3.5) / (7 / 12) ** 0.5 == pytest.approx(stats.t.ppf(0.975, 2.8824), rel=1e-4)
    one_spread = difference([[0.5], [0.5]], [[0.3], [0.4]])["ci95"]  # one degree of freedom, as of one sample
    assert one_spread == pytest.approx([0.15 - 12.7062 * 0.05, 0.15 + 12.7062 * 0.05], rel=1e-4)
    same = difference([[0.5], [0.5]], [[0.4], [0.4]])  # no spread at all
    assert same["ci95"] == pytest.approx([0.1, 0.1])
    assert difference([], [[0.4]]) is None and difference([[0.5]], None) is None and difference([None], [[0.5]]) is None
    assert counted({"mean": 0.1, "ci95": None, "n_pairs": 1}) == "1 pair"  # of a record that does not say how


def test_a_published_difference_stands_in_the_claim_and_smoke_is_not_judged():
    ours, baseline, known = [[0.5], [0.56]], [[0.5], [0.51], [0.5], [0.52]], {"mean": 0.468, "std": 0.0}
    how = {"published": known, "published_baseline": {"mean": 0.462, "std": None}, "against": "MTT"}
    one = claim("a", "s", "p", ours, baseline, **how)
    assert one["verdict"] == "under-powered" and one["published"]["difference"] == pytest.approx(0.006)
    assert one["why"].endswith("published difference 0.6%")
    assert claim("a", "s", "p", ours, baseline, known, against="MTT")["verdict"] == "inconclusive"
    smoke = [claim("a", "s", "p", mine, baseline, scale="smoke", **how) for mine in (ours, [[0.9], [0.91]], [], ours[:1])]
    assert [one["verdict"] for one in smoke] == ["smoke: not judged"] * 2 + ["not run", "smoke: not judged"]
    closed = claim("a", "s", "p", ours, baseline, untestable="the gate is closed", scale="smoke", **how)
    assert closed["verdict"] == "not testable at this scale"


def test_claims():
    ours, baseline = [[0.6], [0.61], [0.62]], [[0.5], [0.52], [0.51]]
    won = claim("a", "DM beats random", "paper", ours, baseline, against="random")
    assert won["verdict"] == "direction reproduced" and won["difference"]["n_pairs"] == 3
    lost = claim("b", "random beats DM", "paper", baseline, ours, against="DM")
    assert lost["verdict"] == "not reproduced"
    unpaired = claim("c", "DM beats random", "paper", ours, [], against="random")
    assert unpaired["verdict"] == "not run" and unpaired["measured"] is None
    value = claim("d", "DM reaches 61", "paper", ours, published={"mean": 0.61, "std": 0.0}, comparable=True)
    assert value["verdict"] == "reproduced" and value["difference"] is None
    closed = claim("e", "DM beats random", "paper", ours, baseline, against="random", untestable="the gate is closed")
    assert (closed["verdict"], closed["why"]) == ("not testable at this scale", "the gate is closed")
    store.canonical([won, lost, unpaired, value, closed])  # a record holds nothing that JSON does not


def test_record_key_follows_what_decides_the_numbers():
    base = {"seed": 1, "results_dir": "/a", "budget_minutes": 1.0, "progress": True}
    silent = base | {"results_dir": "/b", "budget_minutes": 0.0, "progress": False}
    assert records.record_key("n", base) == records.record_key("n", silent)
    for more in ({"seed": 2}, {"device": "cuda"}, {"dataset": "digits"}):
        assert records.record_key("n", base) != records.record_key("n", base | more)
    assert records.record_key("n", base) != records.record_key("m", base)


def test_provenance_names_no_person_and_no_path():
    text = json.dumps(provenance())
    assert "/" not in json.loads(text)["host"] and len(json.loads(text)["host"]) == 12
    import getpass
    import socket

    assert socket.gethostname() not in text and f'"{getpass.getuser()}"' not in text
    assert json.loads(text)["packages"]["torch"]


def test_claims_pair_equal_seeds_only():
    """A set that has not run leaves its pair out, it does not shift the others."""
    found = claim("c", "s", "p", [None, [0.9], [0.8], [0.7]], [[0.1], [0.5], [0.6], [0.4]], against="random")
    assert found["difference"]["n_pairs"] == 3 and found["difference"]["mean"] == pytest.approx(0.3)
    assert found["measured"]["n_sets"] == 3


def test_a_folder_is_known_by_what_it_holds(tmp_path, class_folder):
    root = class_folder("a/set")

    def key(path=root, **more):
        return records.record_key("n", {"dataset": "folder", "data_root": str(path)} | more)

    before = key()
    assert before == key(budget_minutes=2.0)
    other = shutil.copytree(root, tmp_path / "b" / "set")
    assert before == key(other)  # wherever it lies, whenever it was written
    (root / "cat" / "1.png").rename(root / "dog" / "9.png")  # the same files, another label
    assert before != key()
    for one, content in (("0.png", "1.png"), ("1.png", "0.png")):  # the same names, sizes and times
        (other / "cat" / one).write_bytes((root / "dog" / content).read_bytes())
    os.utime(other / "cat" / "0.png", ns=(1, 1))
    assert before != key(other)
    assert key(others=["digits", "folder"], other_roots=["", str(root)]) != key(others=["digits", "folder"], other_roots=["", str(other)])
    assert key(encoder_dataset="folder", encoder_root=str(root)) != key(encoder_dataset="folder", encoder_root=str(other))
    with pytest.raises(InputError, match="accepted"):
        key(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["encoder", "teacher", "instructions", "language_model"])
def test_files_behind_parameters_are_known_by_what_they_hold(tmp_path, name):
    for place in ("a", "b", "c"):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "model" / "x.pt").write_text("other" if place == "c" else "same")
    for way in ("{}/model/x.pt", "{}/model", "timm:resnet18:{}/model/x.pt"):
        same, again, other = (records.record_key("n", {name: way.format(tmp_path / place)}) for place in "abc")
        assert same == again != other
    kept = {name: "torchvision:resnet18"}
    assert records.record_key("n", kept) == store.identity("n", records.SCHEMA, kept, "")


CLAIM = claim("a-1", "DM beats random", "paper", [[0.6], [0.61]], [[0.5], [0.52]], against="random")
RECORD = {"key": "k", "scale": "small", "parameters": {}, "claims": [CLAIM], "rows": [], "missing": [], "costs": {}}
RECORD["data"] = {"label": "x", "train": 9, "test": 5}


def lay_down(root, **changes):
    return records.write(root / "small" / "n" / "x" / "record.json", notebook="n", **RECORD | changes)


def test_records_of_differences_of_both_kinds_are_read(tmp_path):
    both = [CLAIM, claim("b", "s", "p", *[[[0.5], [0.6], [0.8]]] * 2, against="random")]
    earlier = both[1] | {"difference": {name: value for name, value in both[1]["difference"].items() if name != "how"}}
    found = records.load(lay_down(tmp_path, claims=[*both, earlier]))["claims"]
    assert [counted(one["difference"]) for one in found] == ["2 against 2 sets", "3 pairs", "3 pairs"]
    with pytest.raises(InputError, match="difference"):
        lay_down(tmp_path, claims=[CLAIM | {"difference": {"mean": 0.1, "ci95": None}}])


BROKEN = {
    "cut": lambda text: text[:40],
    "a list": lambda text: "[1]",
    "another schema": lambda text: text.replace('"schema": 1', '"schema": 99'),
    "a mean in words": lambda text: text.replace('"mean": 0.0', '"mean": "much", "was": 0.0'),
    "an unknown verdict": lambda text: text.replace("direction reproduced", "proved"),
    "without claims": lambda text: text.replace('"claims"', '"claim"'),
    "rows of text": lambda text: text.replace('"rows": []', '"rows": ["DM"]'),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_files_that_are_no_records_are_told_and_passed_over(tmp_path, fault):
    path = lay_down(tmp_path, claims=[CLAIM | {"verdict": "direction reproduced"}])
    assert len(records.find(tmp_path)) == 1
    text = path.read_text()
    path.write_text(BROKEN[fault](text))
    assert path.read_text() != text
    told = []
    assert records.find(tmp_path, told.append) == [] and len(told) == 1
    assert str(path) in str(told[0]) and "accepted" in str(told[0]) and "\n" not in str(told[0])


def test_a_record_of_another_program_is_passed_over(tmp_path):
    for text in ('{"schema": 1}', '{"schema": 1, "artist": "x", "data": []}'):
        path = lay_down(tmp_path)
        (path.parent.with_name("y") / "record.json").parent.mkdir(exist_ok=True)
        (path.parent.with_name("y") / "record.json").write_text(text)
        told = []
        assert len(records.find(tmp_path, told.append)) == 1 and not told


def test_a_record_that_is_none_is_not_written(tmp_path):
    with pytest.raises(InputError, match="verdict"):
        lay_down(tmp_path, claims=[CLAIM | {"verdict": "proved"}])
    assert not list(tmp_path.rglob("*.json"))


def test_a_complete_record_is_not_replaced_by_an_incomplete_one(tmp_path, capsys):
    whole = lay_down(tmp_path, missing=[{"seed": 1}])
    lay_down(tmp_path)  # complete, in place of an incomplete one
    kept = whole.read_bytes()
    assert not capsys.readouterr().out
    beside = lay_down(tmp_path, key="beef", missing=[{"seed": 1}])
    assert beside.name == "record.beef.json" and whole.read_bytes() == kept
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert [one["key"] for one in records.find(tmp_path)] == ["k"]
    assert [one["key"] for one in records.find(tmp_path, name="record*.json")] == ["beef", "k"]
    lay_down(tmp_path, key="beef")
    assert not beside.exists() and records.load(whole)["key"] == "beef"


def test_claims_recorded_without_a_unit_are_of_accuracies(tmp_path):
    older = {name: value for name, value in CLAIM.items() if name not in ("unit", "digits", "data")}
    newer = claim("a", "s", "p", [[0.5]], unit="times", digits=3, data="clips")
    found = records.load(lay_down(tmp_path, claims=[older, newer]))["claims"]
    assert [(one["unit"], one["digits"], one["data"]) for one in found] == [("points", 1, ""), ("times", 3, "clips")]


@pytest.mark.parametrize(("published", "word"), [(PUBLISHED, "are not the published"), (None, "no published number")])
def test_why_says_nothing_that_the_numbers_do_not(published, word):
    for one in (None, gap(0.01, 0.05)):
        assert word in verdict(row(0.2), one, published, False)[1]
    assert "%" not in verdict(row(0.6), gap(-0.01, 0.05), None, False, unit="correlation", digits=2)[1]
    assert "compared" in claim("c", "s", "p", [[0.9]], [None], against="random")["why"]  # ours has run


def test_a_margin_fixed_beforehand():
    """No worse than by two points: the interval may hold zero, not the margin."""
    cases = {(-0.015, 0.01): "direction reproduced", (-0.03, 0.01): "inconclusive", (-0.05, -0.03): "not reproduced"}
    for (low, high), expected in cases.items():
        found, why = verdict(row(0.6), gap(low, high), None, False, margin=0.02)
        assert found == expected
    ours, baseline = [[0.5], [0.51], [0.49]], [[0.5], [0.5], [0.5]]
    one = claim("a", "b", "c", ours, baseline, against="float32", margin=0.05)
    assert one["verdict"] == "direction reproduced" and one["margin"] == 0.05 and "5.0%" in one["why"]
    assert claim("a", "b", "c", ours, baseline, against="float32")["verdict"] == "inconclusive"


def test_rank_correlation():
    same = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert same["value"] == pytest.approx(1) and same["ci95"][1] == pytest.approx(1)
    back = rank_correlation([1, 2, 3], [3, 2, 1])
    assert back["value"] == pytest.approx(-1) and back["ci95"] is None
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])["value"] == 0
    one = rank_correlation([1, 3, 2, 5, 4], [1, 2, 3, 4, 5])
    assert one["ci95"][0] <= one["value"] <= one["ci95"][1]


# Critical sample size. Sets of one network; with gaps m - w, m, m + w the 95% interval reaches 2.48 w to both sides of m.

FULL = [[0.50], [0.60], [0.55]]


def off(mean, w=0.001):
    return [[accuracy + gap] for (accuracy,), gap in zip(FULL, (mean - w, mean, mean + w))]


SAME, WORSE, FAR, WIDE = off(0.0), off(-0.05), off(-0.4, 0.03), off(0.0, 0.02)
SIZES = {
    "the smallest that is as good": ({0.5: SAME, 0.1: SAME, 0.01: WORSE}, 0.1, "at 0.01"),
    "whatever the order of the parts": ({0.01: WORSE, 0.5: SAME, 0.1: SAME}, 0.1, "at 0.01"),
    "an interval a little wider than the margin": ({0.5: SAME, 0.1: off(-0.01, 0.012)}, None, "undefined, undecided at 0.1"),
    "all are as good": ({0.5: SAME, 0.1: SAME}, 0.1, "a smaller one may be too"),
    "all data are as good as all data": ({1: FULL, 0.1: WORSE}, 1, "at 0.1"),
    "a better one in between does not count": ({0.5: SAME, 0.1: WORSE, 0.01: SAME}, 0.5, "at 0.1"),
    "none is as good": ({0.5: WORSE, 0.1: SAME}, None, "inferior at 0.5"),
    "undecided by a wide interval": ({0.5: SAME, 0.1: WIDE}, None, "undecided at 0.1"),
    "undecided by a narrow interval": ({0.5: SAME, 0.1: off(-0.018, 0.004)}, 0.5, "undecided at 0.1"),
    "a wide interval below is not needed": ({0.5: SAME, 0.1: WORSE, 0.01: WIDE}, 0.5, "at 0.1"),
    "a wide interval that lies apart decides": ({0.5: SAME, 0.1: FAR}, 0.5, "at 0.1"),
    "a wide interval above the margin decides": ({0.5: off(0.1, 0.03), 0.1: WORSE}, 0.5, "at 0.1"),
    "one pair": ({0.5: SAME[:1], 0.1: WORSE}, None, "undefined, undecided at 0.5"),
    "not run": ({0.5: None, 0.1: WORSE}, None, "undefined, not run at 0.5"),
    "not run, and not needed": ({0.5: SAME, 0.1: WORSE, 0.01: [None, None, None]}, 0.5, "at 0.1"),
    "images of every class": ({500: SAME, 50: SAME, 10: WORSE}, 50, "at 10"),
}


@pytest.mark.parametrize("case", SIZES)
def test_critical_size(case):
    kept, expected, word = SIZES[case]
    found = critical_size(kept, FULL, 0.02)
    assert found["keep"] == expected and word in found["why"] and found["margin"] == 0.02
    assert list(found["points"]) == sorted(kept, reverse=True)
    for keep, point in found["points"].items():
        gap = difference(kept[keep], FULL) or {"mean": None, "ci95": None, "n_pairs": 0}
        assert point == gap | {"verdict": point["verdict"]}


def test_verdicts_of_critical_size():
    cases = {
        0.5: (SAME, "non-inferior"),
        0.4: (off(-0.01), "non-inferior"),
        0.3: (WORSE, "inferior"),
        0.25: (FAR, "inferior"),
        0.2: (off(-0.018, 0.004), "undecided"),  # the interval holds -margin, and is narrow
        0.15: (WIDE, "undecided"),
        0.1: (SAME[:1], "undecided"),
        0.05: (None, "not run"),
    }
    points = critical_size({keep: made for keep, (made, _) in cases.items()}, FULL, 0.02)["points"]
    assert {keep: point["verdict"] for keep, point in points.items()} == {k: v for k, (_, v) in cases.items()}


def test_critical_size_refused(refused):
    for kept, margin, word in [
        ({0.5: SAME}, 0, 0),
        ({0.5: SAME}, 2, 2),
        ({}, 0.02, "keep"),
        ({0.5: SAME, 50: SAME}, 0.02, 50),
        ({1: SAME, 50: SAME}, 0.02, 50),
        ({-0.5: SAME}, 0.02, -0.5),
    ]:
        with refused(word):
            critical_size(kept, FULL, margin)
