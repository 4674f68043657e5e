"""First images by sensitivity: drawn with the right chances, for every method, and refused where they make no sense."""

from itertools import permutations

import pytest
import torch

from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import SCORES, sensitivity
from distillery.scores.cached import CachedScores, ScoreSettings
from distillery.scores.kmeans_sensitivity import kmeans, one_means
from distillery.seeds import generator
from distillery.selection import proportional_plain, select
from distillery.training.losses import centred
from distillery.training.optimizers import Adam

SENSITIVE = ("ridge sensitivity", "leverage", "k-means sensitivity", "k-means++")
SHORT = {"steps": 2, "batch": 8}


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
    "scores, words", [([0.0] * 4, ("total 0",)), ([1.0, 0.0, 0.0, 2.0], ("2 of 4", "3")), ([1.0, -1.0, 2.0, 3.0], ("1 below",))]
)
def test_too_few_or_negative_scores_are_refused(scores, words, refused):
    with refused(*words):
        select(torch.tensor(scores), 3, None, "proportional", generator(0, "x"))


def scores(splits, folder, **importance):
    network = ConvNet(splits.train.shape, 10, width=4)
    settings = ScoreSettings(early=(1, 1), importance=importance)
    return CachedScores(splits.train, splits.digest, network, Runs(folder), settings, None, None)


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
    torch.testing.assert_close(found.get("ridge sensitivity", 0), wanted.scores.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.get("leverage", 5), wanted.leverage.float(), rtol=1e-4, atol=1e-6)
    again = scores(splits, tmp_path, ridge=space, width=4, networks=2)
    assert torch.equal(again.get("leverage", 0), found.get("leverage", 0)) and ("ridge", 0) in again.costs


def test_k_means_scores_are_within_each_class(splits, tmp_path):
    found = scores(splits, tmp_path)
    everything = torch.arange(len(splits.train))
    values, rank = found.get("k-means sensitivity", 0, 2), found.seeded(0, 2, everything)
    for label in range(10):
        members = splits.train.of_class(label)
        assert sorted(rank[members].tolist())[:3] == [0, 1, len(splits.train)]
        bound, _ = kmeans(splits.train.batch(members).flatten(1), 2, generator(0, "k-means sensitivity", label))
        torch.testing.assert_close(values[members], bound.float())
    assert not torch.equal(values, found.get("k-means sensitivity", 1, 2))
    assert SCORES["k-means sensitivity"].version == 2  # scores of one cluster were bounds before
    exact = found.get("k-means sensitivity", 0, 1)
    for label in range(10):
        members = splits.train.of_class(label)
        torch.testing.assert_close(exact[members], one_means(splits.train.batch(members).flatten(1)).float())
    assert torch.equal(exact, found.get("k-means sensitivity", 1, 1))  # no seed changes it
    assert not torch.equal(values, found.get("k-means sensitivity", 0, 3))


def test_a_kernel_of_too_many_points_names_the_way_out(splits, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(sensitivity, "LARGEST", 100)
    with refused("100", "random features"):
        scores(splits, tmp_path, ridge="ntk").get("leverage", 0)
    assert len(scores(splits, tmp_path, ridge="pixels").get("leverage", 0)) == len(splits.train)


def test_unknown_spaces_and_options_are_refused(splits, tmp_path, refused):
    with refused("elsewhere"):
        scores(splits, tmp_path, ridge="elsewhere")
    with refused("ntk"):
        scores(splits, tmp_path, **{"k-means": "ntk"})
    with refused("typo"):
        scores(splits, tmp_path, typo=1)
    for name, value in (("rho", -1.0), ("rho", 0.0), ("width", 0), ("networks", 1.5)):
        with refused(name, value):
            scores(splits, tmp_path, **{name: value})
    with refused("path", "stepz"):
        ScoreSettings(path={"stepz": 3})
    for name, value in (("early", (0, 5)), ("converged", (5, 0)), ("tunings", 0)):
        with refused(name, 0):
            ScoreSettings(**{name: value})


def experiment(splits, folder, loss="half squared error"):
    changes = {"width": 4, "networks": 2, "eval_networks": 2, "pool": 2, "flip": False}
    scores = ScoreSettings(early=(1, 1), importance={"ridge": "ntk"})
    network, protocol = ConvNet(splits.train.shape, 10, width=4), Protocol(2, 1, loss=loss)
    return Experiment(splits, network, protocol, Runs(folder), presets=Presets("cifar10", changes), scores=scores)


@pytest.mark.parametrize("how", SENSITIVE)
@pytest.mark.parametrize("method", ["KIP", "FRePo", "RFAD", "DM", "IDM"])
def test_every_method_starts_from_them(how, method, splits, tmp_path):
    here = experiment(splits, tmp_path)
    recipe = Recipe(method, 1, 3, start=how, settings=SHORT)
    result = here.run(recipe)
    start = here.synthetic(result).card["start"]
    copies = 4 if method == "IDM" else 1
    chosen = here.job(recipe).chosen(how)
    assert len(chosen.unique()) == 10 * copies
    if copies == 1:
        torch.testing.assert_close(start, splits.train.batch(chosen))
    assert here.run(recipe) == result and here.runs.reused == 1


@pytest.mark.parametrize("how", SENSITIVE)
def test_a_selection_by_them_stands_by_itself_and_follows_its_seed(how, splits, tmp_path):
    here = experiment(splits, tmp_path, loss="cross-entropy")
    sets = [here.synthetic(here.run(Recipe(how, 2, seed))).tensors["images"] for seed in (0, 1)]
    assert not torch.equal(*sets) and len(sets[0]) == 20


@pytest.mark.parametrize("how", SENSITIVE)
def test_starts_of_a_pruned_set_lie_in_it(how, splits, tmp_path):
    """And are drawn all over it: not its first images by index."""
    here = experiment(splits, tmp_path)
    kept, drawn = here.kept(Recipe("DM", 3, 0, Prune(0.5, rule="random"))), []
    for seed in range(4):
        job = here.job(Recipe("DM", 3, seed))
        job.__dict__["kept"] = kept
        drawn.append(job.chosen(how))
    drawn = torch.cat(drawn)
    assert torch.isin(drawn, kept).all()
    place = torch.searchsorted(kept, drawn).remainder(len(kept) // 10)  # within the class, which are equal here
    assert (place > len(kept) // 20).float().mean() > 0.3


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
