"""Scores from the geometry of features: against their definitions and against cases worked out by hand."""

import math

import pytest
import torch

from distillery.scores.geometry import (
    check_features,
    contextual_diversity,
    d2,
    d2_plain,
    herding,
    herding_plain,
    k_center,
    k_center_plain,
    kmeans_nearest,
    mmd,
    mmd_plain,
    prototype_distance,
    symmetric_kl_plain,
)
from distillery.seeds import generator
from distillery.selection import select

SHAPES = [(1, 3), (2, 1), (17, 5), (40, 2), (31, 33)]


def rows_of(n, width, seed=0):
    """(n, width) float32, neither centred nor of width 1."""
    return 3 + 0.5 * torch.randn(n, width, generator=generator(seed, "rows"))


def line(*points):
    return torch.tensor(points, dtype=torch.float32)[:, None]  # (N, 1)


def order(rank):
    """Indices in the order of taking, of a rank of one group."""
    taken = int((rank < len(rank)).sum())
    assert rank.sort().values.tolist() == [*range(taken)] + [len(rank)] * (len(rank) - taken)
    return rank.argsort()[:taken].tolist()


# Greedy methods


def test_herding_on_a_line():
    """Mean 4: nearest is 5; of sums with 5 the nearest to 8 is 5 + 2 = 7, not 5 + 0 = 5; then 7 + 0 of 12 or 7 + 9."""
    assert order(herding(line(0, 2, 5, 9), None, 4)) == [2, 1, 3, 0]


def test_k_center_on_a_line():
    """Mean 4.2: 4 is first, then 11 (7 away), then 0 (4 away), then 1 and 5 tie, both 1 away."""
    assert order(k_center(line(0, 4, 5, 11, 1), None, 5)) == [1, 3, 0, 2, 4]
    assert order(k_center(line(0, 4, 5, 11, 1), None, 3)) == [1, 3, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_herding_equals_its_plain_twin(shape):
    rows = rows_of(*shape)
    assert order(herding(rows, None, 9)) == herding_plain(rows.double(), min(9, len(rows)))


@pytest.mark.parametrize("shape", SHAPES)
def test_k_center_equals_its_plain_twin(shape):
    rows = rows_of(*shape)
    assert order(k_center(rows, None, 9)) == k_center_plain(rows.double(), min(9, len(rows)))


@pytest.mark.parametrize("shape", SHAPES)
def test_contextual_diversity_equals_its_plain_twin(shape):
    rows = (2 * rows_of(*shape)).softmax(1)
    expected = k_center_plain(rows.double(), min(9, len(rows)), symmetric_kl_plain)
    assert order(contextual_diversity(rows, None, 9)) == expected


def test_contextual_diversity_of_certain_outputs():
    """log(0) is never taken. The undecided row is nearest to the mean, the certain ones are equally far, a copy is last."""
    rows = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [1, 0]])
    assert order(contextual_diversity(rows, None, 4)) == [2, 0, 1, 3]


def test_symmetric_kl_by_hand():
    """.5 log(.5 / .25) + .5 log(.5 / .75) one way, .25 log(.25 / .5) + .75 log(.75 / .5) back: log(3) / 4."""
    found = symmetric_kl_plain(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
    assert found == pytest.approx(math.log(3) / 4)


GREEDY = [herding, k_center, lambda rows, *rest: contextual_diversity(rows.softmax(1), *rest)]


@pytest.mark.parametrize("method", GREEDY)
def test_greedy_methods_work_within_classes(method):
    """A class alone and among others; a class of one sample; the rest get N."""
    rows, targets = rows_of(21, 4), torch.tensor([0, 2] * 10 + [1])
    rank = method(rows, targets, 4)
    assert rank.shape == (21,) and rank.dtype == torch.float32
    for label, n in ((0, 4), (1, 1), (2, 4)):
        own = targets == label
        assert sorted(rank[own].tolist())[:n] == [*range(n)] and (rank[own] < 21).sum() == n
        alone = method(rows[own], None, 4)
        assert torch.equal(alone < len(alone), rank[own] < 21)
        assert torch.equal(alone[alone < 4], rank[own][rank[own] < 4])
    assert torch.equal(targets[select(rank, 1, targets)], torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("method", GREEDY)
def test_ties_go_to_the_smaller_index(method):
    """Copies of samples: 37 wide and unevenly placed, where a product of matrices rounds copies differently."""
    assert order(method(torch.full((7, 3), 0.1), None, 7)) == [*range(7)]
    rows, copies = rows_of(19, 37), torch.arange(57) // 3
    first = order(method(rows[copies], None, 57))
    place = {index: at for at, index in enumerate(first)}
    assert all(place[3 * i] < place[3 * i + 1] < place[3 * i + 2] for i in range(19))


@pytest.mark.parametrize("method", GREEDY[:2])
def test_rotations_shifts_and_scales_change_no_choice(method):
    rows = rows_of(40, 5).double()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(0, "turn"), dtype=torch.float64))[0]
    expected = order(method(rows, None, 40))
    assert order(method(7 * rows @ turn - 100, None, 40)) == expected


def test_k_center_follows_the_order_of_the_samples():
    rows, shuffled = rows_of(40, 5), torch.randperm(40, generator=generator(0, "shuffle"))
    rank = k_center(rows, None, 10)
    assert torch.equal(k_center(rows[shuffled], None, 10), rank[shuffled])


def test_k_center_is_at_most_twice_the_best_cover():
    """Gonzalez 1985; the best of all covers by brute force."""
    rows = rows_of(12, 2).double()
    distance = torch.cdist(rows, rows)
    chosen = order(k_center(rows, None, 3))
    best = min(float(distance[three].min(0).values.max()) for three in torch.combinations(torch.arange(12), 3))
    assert best <= float(distance[chosen].min(0).values.max()) <= 2 * best


# Distance to the prototype


def test_prototype_distance_by_hand():
    """Class 0: 0, 1, 2, 9 with mean 3; class 1: one sample."""
    rows, targets = line(0, 7, 1, 2, 9), torch.tensor([0, 1, 0, 0, 0])
    assert prototype_distance(rows, targets).tolist() == [3, 0, 2, 1, 6]
    assert prototype_distance(rows, None).tolist() == pytest.approx([3.8, 3.2, 2.8, 1.8, 5.2], abs=1e-6)


def test_moderate_keeps_the_middle_of_the_distances():
    kept = select(prototype_distance(rows_of(30, 4), None), 10, None, "middle")
    distance = (rows_of(30, 4) - rows_of(30, 4).mean(0)).norm(dim=1)
    assert set(kept.tolist()) == set(distance.argsort()[10:20].tolist())


# D2


def test_d2_on_three_points():
    """0, 1, 3 with one neighbour each: N(0) = {1}, N(1) = {0}, N(2) = {1}.

    Scores 1, 2, 2 become 1 + 2/e = 1.74, 2 + 1/e = 2.37 and 2 + 2/e^2 = 2.27. Sample 1 is first and sets back sample 0,
    to 1.74 - 2.37/e = .86; so sample 2 comes next. From scores 4, 2, 2: 4.74, 3.47, 2.27; sample 0 sets back sample 1, to
    3.47 - 4.74/e = 1.73, behind sample 2, unless gamma is large.
    """
    rows = line(0, 1, 3)
    assert order(d2(rows, torch.tensor([1.0, 2, 2]), 1)) == [1, 2, 0]
    assert order(d2(rows, torch.tensor([4.0, 2, 2]), 1)) == [0, 2, 1]
    assert order(d2(rows, torch.tensor([4.0, 2, 2]), 1, gamma=50.0)) == [0, 1, 2]


def test_d2_within_classes():
    """0 and 3 are of one class: sample 0 gives to and sets back sample 2 instead, 2 + 4/e^3 = 2.20 - .21 = 1.99."""
    rows, scores = line(0, 1, 3), torch.tensor([4.0, 2, 2])
    assert order(d2(rows, scores, 1, targets=torch.tensor([0, 1, 0]))) == [0, 1, 2]
    assert order(d2(rows, scores, 1, targets=torch.tensor([0, 1, 2]))) == [0, 1, 2]  # nobody has neighbours


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("neighbours, gamma", [(1, 1.0), (4, 0.5), (60, 0.0), (5, 2)])
def test_d2_equals_its_plain_twin(shape, neighbours, gamma):
    rows, scores = rows_of(*shape), torch.rand(shape[0], generator=generator(0, "scores"))
    for targets in (None, torch.arange(shape[0]) % 3, torch.arange(shape[0]) // 5):
        rank = d2(rows, scores, neighbours, gamma, targets)
        assert order(rank) == d2_plain(rows.double(), scores, neighbours, gamma, targets)


def test_d2_takes_the_nearest_in_every_block():
    """More rows than are held at once, on a grid, where most neighbours tie."""
    grid = torch.cartesian_prod(torch.arange(17.0), torch.arange(18.0))
    scores = torch.rand(306, generator=generator(0, "scores"))
    assert order(d2(grid, scores, 3, 1.0)) == d2_plain(grid.double(), scores, 3, 1.0)


def test_d2_far_apart_is_the_order_of_the_scores():
    """Nothing is passed on; ties to the smaller index."""
    scores = torch.tensor([2.0, 5, 5, 0, 2])
    assert order(d2(1000 * line(0, 1, 2, 3, 4), scores)) == [1, 2, 0, 4, 3]


def test_d2_spreads():
    """A dense heap of the hardest samples: the second half is not taken from it alone."""
    rows = torch.cat([0.1 * rows_of(20, 2), 100 * rows_of(20, 2, 1)])
    scores = torch.cat([torch.full((20,), 1.0), torch.full((20,), 0.9)])
    hardest, taken = select(scores, 20, None, "highest"), select(d2(rows, scores, 5), 20)
    assert (hardest < 20).all() and 0 < (taken < 20).sum() < 10


# Maximum mean discrepancy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bandwidth", [0.1, 1.0, 20])
def test_mmd_equals_its_plain_twin(shape, bandwidth):
    rows = rows_of(*shape)
    kept = torch.randperm(len(rows), generator=generator(0, "kept"))[: max(1, len(rows) // 3)]
    expected = mmd_plain(rows.double(), kept, bandwidth)
    assert mmd(rows, kept, bandwidth) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_mmd_by_hand():
    """0 and 2 kept to 0, bandwidth 1: mean kernel (1 + k) / 2 of the whole, 1 of the kept, (1 + k) / 2 across; k = exp(-2)."""
    found = mmd(line(0, 2), torch.tensor([0]), 1.0)
    assert found == pytest.approx((1 - math.exp(-2)) / 2)
    assert mmd(line(0, 2), torch.tensor([0])) == pytest.approx((1 - math.exp(-0.5)) / 2)  # the median is 2


def test_mmd_of_everything_is_zero():
    rows = rows_of(600, 3)
    assert mmd(rows, torch.randperm(600, generator=generator(0, "kept"))) == 0
    assert mmd(rows[:1], torch.tensor([0])) == 0


def test_mmd_tells_an_even_selection_from_one_side():
    rows = rows_of(600, 3)
    random = mmd(rows, torch.randperm(600, generator=generator(0, "kept"))[:60])
    sided = mmd(rows, rows[:, 0].argsort()[:60])
    assert 0 < random < sided / 10
    shifted = mmd(5 * rows - 100, rows[:, 0].argsort()[:60])  # the bandwidth follows the scale
    assert shifted == pytest.approx(sided, rel=1e-4)


# Refusals

ROWS, HALF = rows_of(10, 3), torch.arange(10) % 2
SOFT = ROWS.softmax(1)
SCORES = torch.arange(10.0)
LACKING = torch.where(torch.arange(30).reshape(10, 3) % 11 == 0, torch.nan, ROWS)  # 3 of 30

OF_FEATURES = {
    "check_features": lambda rows: check_features(rows, 10),
    "herding": lambda rows: herding(rows, HALF, 2),
    "k-means": lambda rows: kmeans_nearest(rows, HALF, 2, generator(0, "x")),
    "k-center": lambda rows: k_center(rows, HALF, 2),
    "contextual diversity": lambda rows: contextual_diversity(rows, HALF, 2),
    "prototype distance": lambda rows: prototype_distance(rows, HALF),
    "d2": lambda rows: d2(rows, SCORES, targets=HALF),
    "mmd": lambda rows: mmd(rows, HALF[:1]),
}
BAD = [
    (LACKING, [3, 30]),
    (ROWS[0], ["(3,)"]),
    (ROWS[None], ["(1, 10, 3)"]),
    (ROWS.long(), ["int64"]),
    (ROWS[:0], ["(0, 3)"]),
    (ROWS[:9], [9, 10]),
]


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features_refused(name, refused):
    for rows, words in BAD if name != "mmd" else BAD[:-1]:  # mmd has no targets to compare with
        with refused(*words):
            OF_FEATURES[name](rows)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None, "2"])
@pytest.mark.parametrize("method", [herding, k_center, contextual_diversity])
def test_numbers_of_samples_refused(method, n, refused):
    with refused(repr(n)):
        method(SOFT, HALF, n)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: d2(ROWS, SCORES.log()), [1, 10]),
        (lambda: mmd(ROWS, HALF[:1], 0.0), ["bandwidth", 0.0]),
        (lambda: mmd(ROWS, HALF[:1], math.nan), ["bandwidth", "nan"]),
        (lambda: mmd(torch.ones(10, 3), HALF[:1]), ["bandwidth", 0.0]),
    ],
)
def test_refused(call, words, refused):
    with refused(*words):
        call()
