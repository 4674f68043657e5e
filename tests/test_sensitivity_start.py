"""First images by sensitivity: drawn with the right chances, for every method, and refused where they make no sense."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from distillery.data import load
from distillery.evaluation import Protocol
from distillery.networks import ConvNet
from distillery.pipeline import Bench
from distillery.recipes import SENSITIVE, Hosts, Recipe
from distillery.runs import Runs
from distillery.scores import sensitivity
from distillery.scores.cached import CachedScores
from distillery.scores.kmeans_sensitivity import kmeans
from distillery.seeds import generator
from distillery.selection import proportional_plain, select
from distillery.training.losses import centred
from distillery.training.optimizers import Adam


def chances(scores, n):
    """How often each sample is among n drawn one after another, by enumeration."""
    found = [0.0] * len(scores)
    for order in permutations(range(len(scores)), n):
        p, left = 1.0, sum(scores)
        for i in order:
            p, left = p * scores[i] / left, left - scores[i]
        for i in order:
            found[i] += p
    return torch.tensor(found)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_proportional_draws_follow_the_enumeration(n):
    scores, draws = [0.5, 1.0, 4.0, 2.5, 0.0], 6000
    stream, found = generator(0, "draws"), torch.zeros(5)
    for _ in range(draws):
        chosen = select(torch.tensor(scores), n, None, "proportional", stream)
        assert len(chosen.unique()) == n
        found[chosen] += 1 / draws
    assert (found - chances(scores, n)).abs().max() < 0.03 and found[4] == 0


def test_the_twin_follows_it_too():
    scores, draws = [0.5, 1.0, 4.0, 2.5], 4000
    stream, found = generator(0, "twin"), torch.zeros(4)
    for _ in range(draws):
        found[proportional_plain(scores, 2, stream)] += 1 / draws
    assert (found - chances(scores, 2)).abs().max() < 0.03


def test_draws_are_by_class(tiny):
    scores = torch.rand(len(tiny), generator=generator(0, "scores")) + 0.1
    chosen = select(scores, 3, tiny.targets, "proportional", generator(0, "draw"))
    assert torch.bincount(tiny.targets[chosen]).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    "scores, words",
    [([0.0] * 4, ("total 0",)), ([1.0, 0.0, 0.0, 2.0], ("2 of 4", "3")), ([1.0, -1.0, 2.0, 3.0], ("1 below",))],
)
def test_too_few_or_negative_scores_are_refused(scores, words, refused):
    with refused(*words):
        select(torch.tensor(scores), 3, None, "proportional", generator(0, "x"))


@pytest.fixture(scope="module")
def splits():
    return load("digits", per_class=20)


def scores(splits, folder, **importance):
    network = ConvNet(splits.train.shape, 10, width=4)
    return CachedScores(splits, network, Runs(folder), {"loss": (1, 1)}, importance=importance)


@pytest.mark.parametrize("space", ["ntk", "random features", "pixels"])
def test_ridge_scores_are_those_of_the_module(space, splits, tmp_path):
    found = scores(splits, tmp_path, ridge=space, width=4, networks=2)
    rows = found.rows("ridge")
    kernel = rows.double() @ rows.double().T
    if space == "ntk":
        from distillery.networks.ridge import ntk

        kernel = ntk(rows.double())
    penalty = sensitivity.penalty_of(float(kernel.trace()), len(rows))
    labels = centred(splits.train.targets, 10)
    wanted = sensitivity.ridge_kernel(kernel, labels, penalty)
    torch.testing.assert_close(found.of("ridge sensitivity", 0), wanted.scores.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.of("leverage", 5), wanted.leverage.float(), rtol=1e-4, atol=1e-6)
    again = scores(splits, tmp_path, ridge=space, width=4, networks=2)
    assert torch.equal(again.of("leverage", 0), found.of("leverage", 0)) and ("ridge", 0) in again.costs


def test_k_means_scores_are_within_each_class(splits, tmp_path):
    found = scores(splits, tmp_path)
    everything = torch.arange(len(splits.train))
    values, rank = found.of("k-means sensitivity", 0, 2), found.seeded(0, 2, everything)
    for label in range(10):
        members = splits.train.of_class(label)
        assert sorted(rank[members].tolist())[:3] == [0, 1, len(splits.train)]
        bound = kmeans(splits.train.batch(members).flatten(1), 2, generator(0, "k-means sensitivity", label))
        torch.testing.assert_close(values[members], bound.scores.float())
    assert not torch.equal(values, found.of("k-means sensitivity", 1, 2))
    assert not torch.equal(values, found.of("k-means sensitivity", 0, 3))


def test_a_kernel_of_too_many_points_names_the_way_out(splits, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(sensitivity, "LARGEST", 100)
    with refused("100", "ridge_features"):
        scores(splits, tmp_path, ridge="ntk").of("leverage", 0)
    assert len(scores(splits, tmp_path, ridge="pixels").of("leverage", 0)) == len(splits.train)


def test_unknown_spaces_and_options_are_refused(splits, tmp_path, refused):
    with refused("elsewhere"):
        scores(splits, tmp_path, ridge="elsewhere")
    with refused("ntk"):
        scores(splits, tmp_path, **{"k-means": "ntk"})
    with refused("typo"):
        scores(splits, tmp_path, typo=1)


def bench(splits, folder, **options):
    changes = {"width": 4, "networks": 2, "judged": 2, "pool": 2, "flip": False}
    hosts = Hosts("cifar10", changes, validations=options.pop("validations", 0))
    protocol = Protocol(2, 1, loss=options.pop("loss", "squared error"))
    return Bench(
        splits,
        ConvNet(splits.train.shape, 10, width=4),
        protocol,
        Runs(folder),
        hosts=hosts,
        score_trials=1,
        score_epochs=1,
        importance={"ridge": "ntk"},
        **options,
    )


@pytest.mark.parametrize("how", SENSITIVE)
@pytest.mark.parametrize("method", ["KIP", "FRePo", "RFAD", "DM", "IDM"])
def test_every_method_starts_from_them(how, method, splits, tmp_path):
    made = bench(splits, tmp_path)
    result = made.run(Recipe(method, 1, 3, steps=2, batch=8, initialize=how))
    start = made.synthetic(result).card["start"]
    copies = 4 if method == "IDM" else 1
    chosen = made.choose(how, copies, 3, torch.arange(len(splits.train)))
    assert len(chosen.unique()) == 10 * copies
    if copies == 1:
        torch.testing.assert_close(start, splits.train.batch(chosen))
    assert made.run(Recipe(method, 1, 3, steps=2, batch=8, initialize=how)) == result and made.runs.reused == 1


@pytest.mark.parametrize("how", SENSITIVE)
def test_a_selection_by_them_stands_by_itself_and_follows_its_seed(how, splits, tmp_path):
    made = bench(splits, tmp_path, loss="cross-entropy")
    sets = [made.synthetic(made.run(Recipe(how, 2, seed))).tensors["images"] for seed in (0, 1)]
    assert not torch.equal(*sets) and len(sets[0]) == 20


def test_a_pruned_set_is_drawn_by_them(splits, tmp_path):
    made = bench(splits, tmp_path)
    recipe = Recipe("KIP", 1, 0, steps=1, batch=4, keep=0.5, score="ridge sensitivity", rule="proportional")
    kept = made.kept(recipe)
    assert len(kept) == len(splits.train) // 2 and len(kept.unique()) == len(kept)
    assert made.run(recipe)["regression"]


@pytest.mark.parametrize("how", SENSITIVE)
def test_starts_of_a_pruned_set_lie_in_it(how, splits, tmp_path):
    """And are drawn all over it: not its first images by index."""
    made = bench(splits, tmp_path)
    kept = made.kept(Recipe("DM", 3, 0, keep=0.5, rule="random"))
    drawn = torch.cat([made.choose(how, 3, seed, kept) for seed in range(4)])
    assert torch.isin(drawn, kept).all()
    place = torch.searchsorted(kept, drawn).remainder(len(kept) // 10)  # within the class, which are equal here
    assert (place > len(kept) // 20).float().mean() > 0.3


@pytest.mark.parametrize("method", ["KIP", "FRePo", "RFAD"])
def test_a_kernel_run_says_how_its_regression_did(method, splits, tmp_path):
    made = bench(splits, tmp_path, validations=2)
    result = made.run(Recipe(method, 1, 0, steps=4, batch=8))
    assert len(result["regression"]) == len(result["at_start"]) == (1 if method == "KIP" else 2)
    assert [step for step, _ in result["curve"]] == [2, 4]
    labels = {"KIP": 0, "FRePo": 100, "RFAD": 1}[method]  # learned labels, or a scale, count as stored
    assert result["stored_numbers"] == 640 + labels
    best = made.run(Recipe(method, 1, 0, steps=4, batch=8, iterate="best"))
    assert len(best["accuracies"]) == 2
    assert result["curve"] != bench(splits, tmp_path, validations=0).run(Recipe(method, 1, 0, steps=4, batch=8)).get(
        "curve"
    )


def test_learned_labels_need_a_protocol_that_takes_them(splits, tmp_path, refused):
    made = bench(splits, tmp_path, loss="cross-entropy")
    with refused("squared error", "FRePo"):  # before anything is made
        made.run(Recipe("FRePo", 1, 0, steps=10**9, batch=4))
    with refused("best", "validations"):
        bench(splits, tmp_path).run(Recipe("KIP", 1, 0, steps=10**9, iterate="best"))


def test_test_images_decide_nothing_that_is_learned(splits, tmp_path):
    """Other test images: the same set, the same curve."""
    other = replace(splits, test=splits.validation)
    sets = [
        (one := bench(data, tmp_path / str(i), validations=2)).synthetic(one.run(Recipe("KIP", 1, 0, steps=4, batch=8)))
        for i, data in enumerate((splits, other))
    ]
    assert torch.equal(*(made.tensors["images"] for made in sets))


def test_adam_equals_torch_at_every_step():
    stream = generator(0, "adam")
    ours = [torch.randn(2, 3, generator=stream, dtype=torch.float64) for _ in range(2)]
    theirs = [weight.clone().requires_grad_() for weight in ours]
    adam, wanted, state = Adam(0.05, weight_decay=0.1), torch.optim.Adam(theirs, 0.05, weight_decay=0.1), []
    for step in range(6):
        grads = [torch.randn(2, 3, generator=stream, dtype=torch.float64) for _ in ours]
        for weight, gradient in zip(theirs, grads):
            weight.grad = gradient.clone()
        wanted.step()
        state = adam.update(ours, [gradient.clone() for gradient in grads], state, step, 1.0)
        for weight, expected in zip(ours, theirs):
            torch.testing.assert_close(weight, expected.detach(), rtol=1e-10, atol=1e-12)
