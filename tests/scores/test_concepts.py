"""Concept clusters: each step by hand or against its plain twin, budgets against a quadratic program, and what is kept."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.experiment import Experiment
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import concepts as here
from distillery.scores.kmeans_sensitivity import seeding
from distillery.seeds import generator
from made_up import blobs, normal

ROWS = normal(160, 6) + 2 * normal(8, 6, seed=1).repeat_interleave(20, 0)
TARGETS = torch.arange(160) % 3
CASES = [  # wanted, least, most
    ([6.0, 3.0, 1.0], [0, 0, 0], [4, 9, 9]),
    ([1.5, 1.3, 0.2], [0, 0, 0], [9, 9, 9]),
    ([7.9, 0.05, 0.05], [2, 2, 2], [20, 20, 20]),
    ([5.2, 2.4, 2.3, 0.1], [1, 1, 0, 1], [3, 9, 9, 9]),
    ([3.3, 3.3, 3.4, 4.0], [3, 3, 3, 3], [4, 4, 4, 4]),
    ([9.0, 0.3, 0.2, 0.3, 0.2], [0, 1, 0, 0, 0], [3, 3, 2, 1, 1]),
]


def clusters(rows=ROWS, k=12):
    return here.spherical_kmeans(rows, k, generator(0, "x"))


def test_copies_and_near_copies_are_no_distinct_samples():
    """By direction; 0.001 rad is 5e-7 of a cosine, 0.1 rad is not near. Of more rows than are held at once only the first copies stay."""
    angles = torch.tensor([0.0, 1.0, 0.001, 1.0, 0.1])
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 2, 3, 0.5, 1])[:, None]
    assert here.distinct(rows).tolist() == [True, True, False, False, True]
    assert here.distinct(rows, 1e-8).tolist() == [True, True, True, False, True]
    copies = torch.randperm(900, generator=generator(0, "x")) % 160
    seen: set[int] = set()
    assert here.distinct(ROWS[copies]).tolist() == [not (i in seen or seen.add(i)) for i in copies.tolist()]


@pytest.mark.parametrize("k, rounds", [(1, 9), (3, 1), (12, 2), (12, 100), (160, 5)])
def test_spherical_kmeans_equals_its_plain_twin(k, rounds):
    first = F.normalize(ROWS)[seeding(F.normalize(ROWS), k, generator(0, "x"))[0]]
    which, centres = here.spherical_kmeans(ROWS, k, generator(0, "x"), rounds)
    expected, there = here.spherical_kmeans_plain(ROWS, first, rounds)
    assert which.tolist() == expected and torch.allclose(centres, there)
    assert torch.allclose(centres.norm(dim=1), torch.ones(k, dtype=torch.float64))


def test_lengths_do_not_count_and_rounds_do_not_part():
    which, centres = clusters()
    assert torch.equal(which, clusters(ROWS * torch.rand(160, 1, generator=generator(0, "y")))[0])
    within = [
        float((F.normalize(ROWS) * c[w]).sum()) for w, c in (here.spherical_kmeans(ROWS, 12, generator(0, "x"), n) for n in (1, 2, 100))
    ]
    assert within == sorted(within) and within[0] < within[-1]


def test_complexity_by_hand():
    """Three axes as centres, each 1 from the others. Samples at cosines 1, .8, .8 of the first: .4 / 3; .6 three times of the second: .4; of the
    third one sample alone: the mean of these."""
    rows = torch.tensor([[1.0, 0, 0], [0.8, 0, 0.6], [0.8, 0.6, 0], [0.8, 0.6, 0], [0, 0.6, 0.8], [0, 0.6, 0.8], [0, 0, 1]])
    which, centres = torch.tensor([0, 0, 0, 1, 1, 1, 2]), torch.eye(3, dtype=torch.float64)
    expected = [0.4 / 3, 0.4, (0.4 / 3 + 0.4) / 2]
    assert here.complexities(rows, which, centres).tolist() == pytest.approx(expected, abs=1e-6)
    assert here.complexities(rows, which, centres, 1).tolist() == pytest.approx(expected, abs=1e-6)
    assert here.complexities(rows[:3], which[:3], centres[:1]).tolist() == [0]  # no other centre


@pytest.mark.parametrize("k, nearest", [(1, 20), (5, 2), (12, 20), (40, 20), (100, 20)])
def test_complexity_equals_its_plain_twin(k, nearest):
    which, centres = clusters(k=k)
    expected = here.complexities_plain(ROWS, which.tolist(), centres, nearest)
    assert here.complexities(ROWS, which, centres, nearest).tolist() == pytest.approx(expected, abs=1e-12)


def test_budgets_by_hand():
    """6 of at most 4: the 2 left go to the others alike. 1.5, 1.3 and .2: the one left goes to the largest remainder. 7.9: both others are raised to 2."""
    assert [here.budgets(*map(torch.tensor, case)).tolist() for case in CASES[:3]] == [[4, 4, 2], [2, 1, 0], [4, 2, 2]]


@pytest.mark.parametrize("case", CASES)
def test_budgets_are_those_of_the_quadratic_program(case):
    """Within one of the program's; and of all whole numbers the nearest, by trying all."""
    wanted, least, most = case
    found, total = here.budgets(*map(torch.tensor, case)).tolist(), round(sum(wanted))
    assert sum(found) == total and all(low <= x <= high for x, low, high in zip(found, least, most))
    assert max(abs(x - y) for x, y in zip(found, here.budgets_plain(*case))) < 1
    tried = (x for x in product(*(range(low, high + 1) for low, high in zip(least, most))) if sum(x) == total)
    best = min(sum((x - w) ** 2 for x, w in zip(one, wanted)) for one in tried)
    assert sum((x - w) ** 2 for x, w in zip(found, wanted)) == pytest.approx(best)


@pytest.mark.parametrize("by, off", [("complexity", 0), ("size", 1)])
def test_the_first_of_the_rank_are_the_budgets_and_the_farthest(by, off):
    which, centres = clusters(k=13)
    sizes, n = torch.bincount(which, minlength=13), torch.arange(1, 161)
    shares = here.shares(ROWS, which, centres, by)
    exact = here.budgets_of(n, shares, sizes, here.LEAST if by == "complexity" else 0.0)  # (160, 13)
    rank = here.concepts(ROWS, None, generator(0, "x"), by)  # the root of 160 clusters
    assert sorted(rank.tolist()) == list(range(160))
    taken = torch.stack([torch.bincount(which[rank < m], minlength=13) for m in n])
    assert torch.equal(exact.sum(1), n) and int((taken - exact).abs().max()) <= off
    cosine = (F.normalize(ROWS) * centres[which]).sum(1)
    for j in range(13):
        assert torch.equal(cosine[which == j].argsort(), rank[which == j].argsort())
    if by == "size":
        assert ((taken - n[:, None] * sizes / 160).abs() < 1.5).all()  # the same part of every cluster
    else:
        assert (exact[-40] > (n[-40] * sizes / 160)).any() and (exact[79] >= (here.LEAST * 80 // 13)).logical_or(
            exact[79] >= sizes - 1
        ).all()


def test_every_cluster_keeps_half_an_equal_share_but_not_its_last_image():
    """Of 40 images for four clusters at least 5 each; of a cluster of 5 at least 4, of a cluster of one none; without a floor none."""
    share, sizes = torch.tensor([0.0, 1, 0, 0]), torch.tensor([5, 90, 1, 80])
    n = torch.tensor([40, 3])
    assert here.budgets_of(n, share, sizes).tolist() == [[4, 31, 0, 5], [0, 3, 0, 0]]
    assert here.budgets_of(n, share, sizes, 0.0).tolist() == [[0, 40, 0, 0], [0, 3, 0, 0]]


def test_complex_clusters_keep_more():
    """A narrow and a wide cluster of 50 each: of 40 images the wide one keeps more, the more so at a low temperature."""
    centres = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).repeat_interleave(50, 0)
    rows = centres + torch.tensor([0.01, 0.5]).repeat_interleave(50)[:, None] * normal(100, 3)
    which = torch.arange(100) // 50
    middle = F.normalize(torch.stack([F.normalize(rows)[which == j].sum(0) for j in range(2)]))
    kept = [
        here.budgets_of(torch.tensor([40]), here.shares(rows, which, middle, temperature=t), torch.tensor([50, 50]))[0] for t in (0.5, 0.05)
    ]
    assert 10 <= kept[1][0] < kept[0][0] < 20


@pytest.mark.parametrize("by", ["complexity", "size"])
def test_copies_come_last(by):
    """Thirty copies of one image: at most one of them is among those taken before all others are."""
    rows = torch.cat([ROWS[:40], ROWS[:1].repeat(30, 1)])
    rank = here.concepts(rows, None, generator(0, "x"), by)
    assert set(rank[40:].tolist()) == set(range(40, 70))


def test_classes_are_taken_apart():
    rank = here.concepts(ROWS, TARGETS, generator(0, "x"), clusters=4)
    for label in range(3):
        assert sorted(rank[TARGETS == label].tolist()) == list(range(int((TARGETS == label).sum())))
    alone = here.concepts(ROWS[TARGETS == 0], None, generator(0, "x"), clusters=4)
    assert torch.equal(rank[TARGETS == 0], alone)


def test_images_without_classes_are_pruned_by_their_targets(tmp_path):
    """Targets are a teacher's features: no encoder is asked for, and other targets keep other images."""
    images = blobs(per_class=10)
    kept = []
    for seed in range(2):
        real = RegressionSet(images, normal(30, 5, seed=seed).float(), images.digest)
        one = Experiment(real, ConvNet((1, 8, 8), 5, width=4), Probing(1, 1), Runs(tmp_path))
        kept.append(one.kept(Recipe("random", 2, 0, Prune(0.4, score="DBP"))))
        expected = here.concepts(real.targets, None, generator(0, "concepts"))
        assert set(kept[-1].tolist()) == set(torch.nonzero(expected < 12)[:, 0].tolist())
    assert kept[0].tolist() != kept[1].tolist()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: here.distinct(ROWS, 0.0), ["within", 0.0]),
        (lambda: clusters(ROWS[0]), ["(6,)"]),
        (lambda: clusters(ROWS[:4].repeat(9, 1), 5), [5, 4]),
        (lambda: clusters(k=0), ["k", 0]),
        (lambda: here.concepts(ROWS, TARGETS[:9], generator(0, "x")), [160, 9]),
        (lambda: here.concepts(ROWS.log(), None, generator(0, "x")), ["features"]),
        (lambda: here.concepts(ROWS, None, generator(0, "x"), "density"), ["by", "density", "complexity"]),
        (lambda: here.concepts(ROWS, None, generator(0, "x"), clusters=161), [161, 160]),
        (lambda: here.concepts(ROWS, None, generator(0, "x"), clusters=-1), ["clusters", -1]),
        (lambda: here.shares(ROWS, *clusters(), temperature=0), ["temperature", 0]),
        (lambda: here.complexities(ROWS, *clusters(), 0), ["nearest", 0]),
        (lambda: here.budgets(torch.tensor([1.2, 1.2]), torch.zeros(2), torch.ones(2)), ["wanted", 2.4]),
        (lambda: here.budgets(torch.tensor([1.5, 1.5]), torch.zeros(2), torch.ones(2)), ["budget", 3]),
        (lambda: here.budgets(torch.tensor([1.5, 1.5]), torch.full((2,), 2), torch.full((2,), 5)), ["budget", 3]),
    ],
)
def test_refused(call, words, refused):
    with refused(*words):
        call()
