"""Scores of real samples and the selections made from them."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from distillery.networks import ConvNet
from distillery.runs import Runs
from distillery.scores.cached import CachedScores, ScoreSettings
from distillery.scores.dynamics import Dynamics, dynamics, mean_loss, mean_loss_plain
from distillery.scores.geometry import herding, herding_plain, kmeans_nearest
from distillery.seeds import generator
from distillery.selection import RULES, check_enough_left, count, prune, select
from distillery.training import Stats, train

TARGETS = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
SCORES = torch.tensor([5.0, 1, 3, 9, 4, 7, 3, 2, 1, 8])


def test_mean_loss_equals_its_definition(tiny):
    passed = dynamics(ConvNet((1, 8, 8), 3, width=4), tiny, 2, 3, generator(0, "x"), batch=9)
    losses = passed.stats.collected["loss"]  # (E, T, N)
    assert losses.shape == (3, 2, 24)
    visits = [[dict(enumerate(losses[e, t].tolist())) for e in range(3)] for t in range(2)]
    assert mean_loss(passed).tolist() == pytest.approx(mean_loss_plain(visits, 24), rel=1e-5)


def test_streamed_mean_loss_is_that_of_all_epochs(tiny):
    net = ConvNet((1, 8, 8), 3, width=4)
    every, mean = (mean_loss(dynamics(net, tiny, 2, 4, generator(0, "x"), batch=9, collect_mean=streamed)) for streamed in (False, True))
    assert mean.shape == (24,) and torch.allclose(mean, every, rtol=1e-6)


def test_mean_loss_does_not_depend_on_the_order_within_a_batch(tiny):
    """One batch of everything: two data orders are the same steps."""
    net, losses = ConvNet((1, 8, 8), 3, width=4), []
    params = net.init(generator(0, "weights"), 2)
    for seed in (1, 2):
        _, stats = train(net, params, tiny, generator=generator(seed, "order"), epochs=4, batch=24, collect=("loss",), collect_mean=True)
        losses.append(mean_loss(Dynamics(params, stats)))
    assert torch.allclose(*losses, rtol=1e-4)


def test_mean_loss_of_one_epoch_of_one_trial_is_the_plain_loss(tiny):
    """One step: the loss of the first weights, before they learn."""
    net = ConvNet((1, 8, 8), 3, width=4)
    params = net.init(generator(0, "x"), 1)
    logits = net.apply(params, tiny.batch(torch.arange(24))).logits[0]
    for streamed in (False, True):
        passed = dynamics(net, tiny, 1, 1, generator(0, "x"), batch=24, collect_mean=streamed)
        wanted = F.cross_entropy(logits, tiny.targets, reduction="none")
        assert torch.allclose(mean_loss(passed), wanted, rtol=1e-4)


def test_mean_loss_passes_over_epochs_without_a_visit():
    losses = torch.tensor([[[1.0, math.nan]], [[3.0, 5.0]]])
    assert mean_loss(Dynamics({}, Stats(collected={"loss": losses}))).tolist() == [2.0, 5.0]


def test_a_mislabelled_image_is_hard(tiny):
    targets = tiny.targets.clone()
    targets[3] = 2
    wrong = type(tiny)(tiny.pixels, targets, tiny.classes, tiny.transform)
    passed = dynamics(ConvNet((1, 8, 8), 3, width=8), wrong, 3, 8, generator(0, "x"), batch=8)
    assert int(mean_loss(passed).argmax()) == 3


def test_features_are_those_of_the_first_network(tiny, tmp_path):
    net = ConvNet((1, 8, 8), 3, width=4)
    passed = dynamics(net, tiny, 2, 1, generator(0, "scores"))
    rows = CachedScores(tiny, tiny.digest, net, Runs(tmp_path), ScoreSettings(early=(2, 1)), None, None).features(0)
    assert rows.shape == (24, net.features)
    assert torch.allclose(rows, net.embed(passed.params, tiny.batch(torch.arange(24)))[0], atol=1e-5)


@pytest.mark.parametrize(
    "rule, expected", [("lowest", [8, 2, 6, 1, 7, 5]), ("highest", [0, 4, 2, 3, 9, 5]), ("middle", [2, 6, 4, 7, 5, 9])]
)
def test_select_per_class_in_the_order_of_the_rule(rule, expected):
    """Ties go to the smaller index."""
    assert select(SCORES, 3, TARGETS, rule).tolist() == expected


@pytest.mark.parametrize("rule, expected", [("lowest", [1, 8, 7, 2]), ("highest", [3, 9, 5, 0])])
def test_select_without_classes(rule, expected):
    assert select(SCORES, 4, None, rule).tolist() == expected


def test_select_random():
    chosen = select(None, 3, TARGETS, "random", generator(0, "x"))
    assert len(set(chosen.tolist())) == 6 and TARGETS[chosen].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(chosen, select(None, 3, TARGETS, "random", generator(0, "x")))
    draws = {tuple(select(None, 3, TARGETS, "random", generator(s, "x")).tolist()) for s in range(20)}
    assert len(draws) > 15


@pytest.mark.parametrize("keep, n", [(1.0, 5), (0.8, 4), (0.61, 4), (0.6, 3), (0.2, 1), (0.01, 1)])
def test_prune_drops_whole_samples_of_every_class(keep, n):
    """floor((1 - keep) * n_class) samples are dropped, whatever the rounding of 1 - keep."""
    kept = prune(SCORES, keep, TARGETS, "lowest")
    assert torch.bincount(TARGETS[kept]).tolist() == [n, n]
    assert kept.tolist() == select(SCORES, n, TARGETS, "lowest").tolist()


def uneven(n=97, seed=0):
    """Scores without ties and unevenly filled classes: (n,), (n,)."""
    stream = generator(seed, "uneven")
    return torch.randperm(n, generator=stream).double(), torch.randint(4, (n,), generator=stream) ** 2 // 2


def by_class(indices, targets):
    return [{int(i) for i in indices if targets[i] == label} for label in targets.unique()]


@pytest.mark.parametrize(
    "size, keep, n",
    [
        *[(5000, 0.01, 50), (5000, 0.1, 500), (5000, 0.0004, 2), (500, 0.0004, 1), (4659, 0.0004, 2)],
        *[(13861, 0.0004, 6), (5000, 50, 50), (5000, 500.0, 500), (5000, 2, 2), (5000, 1, 5000), (7, 1 / 3, 3)],
    ],
)
def test_counts(size, keep, n):
    """The paper's: CIFAR-10 at 1%, 10% and 0.04%, CIFAR-100 at 0.04%, the smallest and the largest class of SVHN."""
    assert count(keep, size) == n
    assert len(prune(None, keep, torch.zeros(size), "random", generator(0, "x"))) == n


def test_counts_are_exact():
    """Against whole numbers: keep = k / 2500, of classes of every size up to 60 and of some large ones."""
    for size in [*range(1, 60), 500, 4659, 5000, 6131, 13861, 1_281_167]:
        for k in range(1, 2501):
            assert count(k / 2500, size) == size - (2500 - k) * size // 2500, (k, size)


@pytest.mark.parametrize("rule", RULES)
def test_pruning_nothing(rule):
    scores, targets = uneven()
    kept = prune(scores, 1.0, targets, rule, generator(0, "x"))
    assert kept.sort().values.tolist() == list(range(97))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("keep", [0.5, 0.33, 0.1, 3])
def test_pruning_keeps_the_same_part_of_every_class(rule, keep):
    scores, targets = uneven()
    kept = by_class(prune(scores, keep, targets, rule, generator(0, "x")), targets)
    members = by_class(torch.arange(97), targets)
    assert [len(one) for one in kept] == [count(keep, len(one)) for one in members]
    for ours, everything in zip(kept, members):  # brute force
        order = sorted(everything, key=lambda i: scores[i])
        cut = len(order) - len(ours)
        ends = {"lowest": (0, cut), "highest": (cut, 0), "middle": (cut // 2, cut - cut // 2)}
        if rule in ends:
            low, high = ends[rule]
            assert ours == set(order[low : len(order) - high])


def test_lowest_and_highest_reverse_each_other():
    """Where nothing ties: the order itself, and what one drops is what the other keeps."""
    scores, targets = uneven()
    for label in targets.unique():
        members = torch.nonzero(targets == label)[:, 0]
        first, last = (select(scores[members], len(members), None, rule) for rule in ("lowest", "highest"))
        assert first.flip(0).tolist() == last.tolist()
    even = torch.arange(96) % 4  # classes of 24: no half samples
    dropped = set(range(96)) - set(prune(scores[:96], 0.25, even, "lowest").tolist())
    assert dropped == set(prune(scores[:96], 0.75, even, "highest").tolist())


def test_taking_the_top_is_the_best_subset_of_an_additive_utility():
    """Mean field: each sample has a utility of its own, and the best of all subsets of a size is found by sorting."""
    utility = torch.randn(9, generator=generator(0, "x"), dtype=torch.float64)
    for n in (1, 4, 8):
        best = max(combinations(range(9), n), key=lambda chosen: utility[list(chosen)].sum())
        assert set(select(utility, n, None, "highest").tolist()) == set(best)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_herding_equals_its_plain_twin(n):
    rows = torch.randn(18, 5, generator=generator(0, "x"), dtype=torch.float64)
    targets = torch.arange(18) % 2
    rank = herding(rows, targets, n)
    for label in (0, 1):
        members = torch.nonzero(targets == label)[:, 0]
        chosen = [int(members[i]) for i in herding_plain(rows[members], n)]
        assert sorted(chosen, key=lambda i: rank[i]) == chosen
        assert rank[chosen].tolist() == list(range(n))
        rest = [int(i) for i in members if int(i) not in chosen]
        assert (rank[rest] == 18).all()


def test_herding_brings_the_means_together():
    rows = torch.randn(100, 4, generator=generator(1, "x"))
    targets = torch.zeros(100, dtype=torch.long)

    def gap(chosen):
        return (rows[chosen].mean(0) - rows.mean(0)).norm()

    herded = select(herding(rows, targets, 10), 10, targets, "lowest")
    random = [gap(select(None, 10, targets, "random", generator(s, "x"))) for s in range(20)]
    assert gap(herded) < min(random)


def test_kmeans_takes_the_samples_nearest_to_the_centres():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    sizes = torch.tensor([5, 9, 7])
    rows = centres.repeat_interleave(sizes, 0) + torch.randn(21, 2, generator=generator(0, "x"))
    rank = kmeans_nearest(rows, torch.zeros(21, dtype=torch.long), 3, generator(1, "x"))
    chosen = rank.argsort()[:3]
    assert rank[chosen].tolist() == [0, 1, 2] and (rank.sort().values[3:] == 21).all()
    clusters = [slice(5, 14), slice(14, 21), slice(0, 5)]  # larger clusters first
    for index, members in zip(chosen.tolist(), clusters):
        nearest = (rows[members] - rows[members].mean(0)).norm(dim=1).argmin()
        assert index == members.start + int(nearest)


def test_kmeans_takes_distinct_samples():
    rows = torch.zeros(6, 2)
    rows[3:] = 1  # two centres, three asked for: duplicates are kept apart
    rows += 1e-3 * torch.rand(6, 2, generator=generator(0, "x"))
    rank = kmeans_nearest(rows, torch.zeros(6, dtype=torch.long), 5, generator(0, "x"))
    assert sorted(rank.tolist()) == [0, 1, 2, 3, 4, 6]


def test_kmeans_follows_its_generator(tiny):
    rows = torch.rand(24, 6, generator=generator(0, "x"))
    first, again = (kmeans_nearest(rows, tiny.targets, 3, generator(2, "x")) for _ in range(2))
    assert torch.equal(first, again)
    fitted = KMeans(3, n_init=10, random_state=0).fit(rows[:8].double().numpy())
    assert len(set(fitted.labels_)) == 3 and (first[:8] < 3).sum() == 3


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: select(SCORES, 2, TARGETS, "best"), "best"),
        (lambda: select(SCORES, 0, TARGETS), 0),
        (lambda: select(SCORES, 1.5, TARGETS), 1.5),
        (lambda: select(SCORES, 6, TARGETS), 6),
        (lambda: select(SCORES.log() - math.inf, 2, TARGETS), 10),
        (lambda: select(SCORES, 6, 3 * TARGETS + 4), "class 4 has"),  # its label, which is not its place
        (lambda: prune(SCORES, 0.0, TARGETS, "lowest"), 0.0),
        (lambda: prune(SCORES, 6, TARGETS, "lowest"), 6),
        (lambda: check_enough_left(2, TARGETS, 3), 2),
        (lambda: prune(SCORES[:9], 0.5, TARGETS, "lowest"), 9),
        (lambda: prune(None, 0.5, TARGETS, "middle"), "middle"),
        (lambda: prune(None, 0.5, TARGETS, "random"), "random"),
        (lambda: check_enough_left(0.2, TARGETS, 3), 0.2),
        (lambda: select(None, 2), "None both"),
        (lambda: select(None, 2, None, "random", generator(0, "x")), "None both"),
        (lambda: prune(None, 0.5, None, "random", generator(0, "x")), "None both"),
    ],
)
def test_refused(call, word, refused):
    with refused(word):
        call()
