"""Sensitivities: against their definitions, cases worked out by hand, and the theorems they are made for."""

import itertools
import math

import pytest
import torch
from sklearn.cluster import kmeans_plusplus

from distillery.networks.ridge import factor
from distillery.scores import sensitivity
from distillery.scores.importance_sampling import deviation, deviation_plain, error_bound, sample, sample_size
from distillery.scores.kmeans_sensitivity import kmeans, kmeans_plain, one_means, seeding
from distillery.scores.sensitivity import penalty_of, ridge_exact, ridge_features, ridge_kernel, ridge_plain
from distillery.seeds import generator
from distillery.training.losses import centred

SHAPES = [(1, 1, 1), (2, 5, 2), (17, 3, 3), (40, 40, 10), (60, 8, 1)]  # N, p, C
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "numbers", *shape), dtype=torch.float64)


def problem(n, p, c, seed=0):
    """Features of unequal size and the labels of c classes; one noisy output where c is 1."""
    features = normal(n, p, seed=seed) * normal(n, 1, seed=seed + 1).exp()
    if c == 1:
        return features, features[:, 0] + normal(n, seed=seed + 2)
    classes = (normal(n, c, seed=seed + 2) + 2 * features[:, :1]).argmax(1)
    return features, centred(classes, c)


def same(found, expected, **tolerance):
    for name in ("leverage", "label", "optimum", "effective_dimension", "penalty"):
        one, other = (torch.as_tensor(getattr(which, name)) for which in (found, expected))
        torch.testing.assert_close(one, other, **(tolerance or CLOSE))


def losses(features, targets, penalty, queries):
    """f_i(W) with the shared penalty (Q, N), of queries (Q, p, C)."""
    gaps = (features @ queries - targets).square().sum(2)  # (Q, N)
    return gaps + penalty / len(features) * queries.square().sum((1, 2))[:, None]


# Ridge regression


def test_two_points_by_hand():
    """Features 1 and 1, labels 1 and -1, lambda 2: the weight is 0, leverages 1 / 4, and each holds half of OPT = 2."""
    found = ridge_features(torch.ones(2, 1), torch.tensor([1.0, -1.0]), 2.0)
    torch.testing.assert_close(found.leverage, torch.full((2,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found.label, torch.full((2,), 0.5, dtype=torch.float64))
    assert (found.optimum, found.effective_dimension, found.penalty) == pytest.approx((2, 0.5, 2))
    torch.testing.assert_close(found.tau, torch.full((2,), 0.75, dtype=torch.float64))
    torch.testing.assert_close(found.scores, torch.full((2,), 1.25, dtype=torch.float64))


def test_an_outlier_and_a_wrong_label_score_high():
    features = torch.ones(20, 2)
    features[:, 1] = torch.linspace(-1, 1, 20)
    targets = features[:, 1].clone()
    features[3], targets[3] = torch.tensor([0.0, 9.0]), 9.0
    targets[12] = -3.0
    found = ridge_features(features, targets, 1e-2)
    assert int(found.leverage.argmax()) == 3 and int(found.label.argmax()) == 12
    assert sorted(found.scores.topk(2).indices.tolist()) == [3, 12]


def test_labels_are_centred():
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [-0.25, -0.25, -0.25, 0.75]], dtype=torch.float64)
    assert centred(torch.tensor([0, 3]), 4).equal(expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [1e-3, 0.7])
@pytest.mark.parametrize("each", [False, True])
def test_features_and_kernel_equal_the_plain_twin(shape, penalty, each, monkeypatch):
    monkeypatch.setattr(sensitivity, "BLOCK", 7)
    features, targets = problem(*shape)
    expected = ridge_plain(features, targets, penalty, each)
    same(ridge_features(features, targets, penalty, each), expected)
    same(ridge_kernel(features @ features.T, targets, penalty, each), expected)


def test_one_output_may_be_a_column_or_not():
    features, targets = problem(30, 4, 1)
    same(ridge_features(features, targets, 0.1), ridge_features(features, targets[:, None], 0.1))


@pytest.mark.parametrize("block", [1, 16, 99, 100, 1000])
def test_blocks_change_nothing(block, monkeypatch):
    features, targets = problem(100, 6, 3)
    expected = ridge_features(features, targets, 0.1)
    monkeypatch.setattr(sensitivity, "BLOCK", block)
    same(ridge_features(features, targets, 0.1), expected)


def test_float32_features_are_worked_in_float64():
    features, targets = problem(2500, 24, 10)
    features = features.float()
    found = ridge_features(features, targets.float(), 0.3)
    assert found.leverage.dtype == found.label.dtype == torch.float64
    exact = ridge_features(features.double(), targets.float().double(), 0.3)
    assert found.leverage.equal(exact.leverage) and found.label.equal(exact.label)
    same(ridge_features(features, targets, 0.3), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c", [1, 4])
def test_scores_for_each_output_are_those_of_the_joint_gram_matrix(c):
    """tau_i = a_i^T M^+ a_i with a = [phi; y]; of centred labels the pseudo-inverse, for they sum up to 0."""
    features, targets = problem(80, 6, c)
    a = torch.cat([features, targets.view(80, c)], 1)  # (N, p + C)
    ridge = torch.diag(torch.tensor([0.4] * 6 + [0.0] * c, dtype=torch.float64))
    inverse = torch.linalg.pinv(a.T @ a + ridge, rtol=1e-12, hermitian=True)
    tau = torch.einsum("np,pq,nq->n", a, inverse, a)
    torch.testing.assert_close(ridge_features(features, targets, 0.4, each=True).tau, tau, **CLOSE)


@pytest.mark.parametrize("n, p, c, penalty", [(300, 15, 1, 1.0), (40, 3, 1, 20.0), (12, 30, 1, 0.05), (60, 6, 5, 1.0), (15, 20, 3, 0.2)])
def test_the_exact_sensitivity_is_within_one_nth(n, p, c, penalty):
    features, targets = problem(n, p, c)
    found = ridge_features(features, targets, penalty)
    above = ridge_exact(features, targets, penalty) - found.tau
    assert above.min() >= -1e-10 and above.max() <= 1 / n + 1e-10
    assert found.scores.sum() <= found.effective_dimension + 2 + 1e-9


def test_the_exact_sensitivity_is_reached_and_never_passed():
    """The best query of a point without the shared penalty is the optimum moved along M^-1 a_i."""
    features, targets = problem(50, 4, 1)
    exact = ridge_exact(features, targets, 0.5)
    gram = features.T @ features + 0.5 * torch.eye(4, dtype=torch.float64)
    best = torch.linalg.solve(gram, features.T @ targets)
    moved = torch.linalg.solve(gram, features.T)  # (p, N)
    found = ridge_features(features, targets, 0.5)
    step = found.optimum / (targets - features @ best)  # (N,)
    near = losses(features, targets[:, None], 0.5, (best[:, None] - moved * step).T[:, :, None])  # (N, N)
    own = near.diagonal() / near.sum(1)
    assert (own <= exact + 1e-12).all() and (own >= found.tau - 1e-12).all()
    queries = normal(3000, 4, 1) * torch.logspace(-2, 2, 3000, dtype=torch.float64)[:, None, None]
    values = losses(features, targets[:, None], 0.5, queries)
    assert ((values / values.sum(1, keepdim=True)).amax(0) <= exact + 1e-12).all()


def test_many_outputs_under_random_weights_of_four_decades():
    features, targets = problem(300, 12, 5)
    found = ridge_features(features, targets, 1.0)
    gram = features.T @ features + torch.eye(12, dtype=torch.float64)
    best = torch.linalg.solve(gram, features.T @ targets)
    steps = normal(4000, 12, 5) * torch.logspace(-3, 1, 4000, dtype=torch.float64)[:, None, None]
    values = losses(features, targets, 1.0, best + steps)
    assert ((values / values.sum(1, keepdim=True)).amax(0) / found.scores).max() <= 1
    assert found.scores.sum() <= found.effective_dimension + 2 + 1e-9
    assert losses(features, targets, 1.0, best[None]).sum() == pytest.approx(found.optimum)


def test_of_each_output_the_bound_is_above_its_own_sensitivity():
    """And above that of a mix of outputs; the sensitivity of their sum is passed by that of a single one."""
    features, targets = problem(40, 3, 4)
    together, each = (ridge_features(features, targets, 1.0, each=how) for how in (False, True))
    mixed = [targets[:, j] for j in range(4)] + [targets @ normal(4, seed=i) for i in range(5)]
    alone = torch.stack([ridge_exact(features, one, 1.0) for one in mixed]).amax(0)
    assert (alone <= each.scores + 1e-10).all() and (alone > together.scores + 1e-3).any()
    assert (together.tau <= each.tau + 1e-12).all() and float(each.label.sum()) <= 4 + 1e-9


def test_leverages_sum_up_to_the_effective_dimension():
    features, targets = problem(40, 7, 3)
    values = torch.linalg.eigvalsh(features @ features.T)
    for penalty in (1e-2, 1.0, 1e2):
        found = ridge_features(features, targets, penalty)
        assert found.effective_dimension == pytest.approx(float((values / (values + penalty)).sum()))


def test_without_a_ridge_all_scores_are_one():
    """K of full rank: every point can be fitted alone, whatever it is."""
    features, targets = problem(20, 40, 3)
    trace = float(features.square().sum())
    for form, rows in ((ridge_features, features), (ridge_kernel, features @ features.T)):
        found = [form(rows, targets, penalty_of(trace, 20, rho)).tau for rho in (1e-1, 1e-6, 1e-10)]
        assert found[0].max() / found[0].min() > 1.2
        torch.testing.assert_close(found[1], torch.ones_like(found[1]), rtol=0, atol=2e-3)
        torch.testing.assert_close(found[2], torch.ones_like(found[2]), rtol=0, atol=1e-5)


def test_penalty_of_a_trace():
    assert penalty_of(8.0, 4, 0.5) == 1.0 and penalty_of(3.0, 3) == 5e-3


def test_factor_of_a_matrix_without_one(refused):
    matrix = torch.diag(torch.tensor([4.0, 1.0, 2.0]).double())
    assert factor(matrix, "K").equal(matrix.sqrt())
    with refused("K_SS", "3 rows", "-1.00e+00", "4.00e+00"):
        factor(torch.diag(torch.tensor([4.0, -1.0, 2.0]).double()), "K_SS")
    with refused("K_SS"):
        factor(torch.ones(3, 3).double(), "K_SS")
    with refused("K_SS", "finite"):
        factor(torch.full((2, 2), torch.nan).double(), "K_SS")


# K-means


def test_one_mean_by_hand():
    """0, 0, 3, 9 of mean 3: squared distances 9, 9, 0, 36 of 54, and a quarter each."""
    expected = torch.tensor([9.0, 9, 0, 36]).double() / 54 + 0.25
    torch.testing.assert_close(one_means(torch.tensor([[0.0], [0], [3], [9]])), expected)


def test_one_mean_is_exact():
    """The worst centre is opposite of the point, sum / (n d) from the mean; no random one is worse."""
    rows = normal(60, 3) + 5
    scores, mean = one_means(rows), rows.mean(0)
    assert float(scores.sum()) == pytest.approx(2)
    gaps = rows - mean
    own = gaps.square().sum(1, keepdim=True)  # (N, 1)
    worst = torch.cdist(rows, mean - gaps * own.sum() / (60 * own)).square()  # (point, centre)
    torch.testing.assert_close(worst.diagonal() / worst.sum(0), scores, **CLOSE)
    centres = mean + normal(20000, 3) * torch.logspace(-2, 2, 20000, dtype=torch.float64)[:, None]
    distance = torch.cdist(rows, centres).square()
    ratio = (distance / distance.sum(0)).amax(1) / scores
    assert ratio.max() <= 1 + 1e-9 and ratio.max() > 0.999


@pytest.mark.parametrize("n, width, k", [(2, 1, 1), (30, 2, 4), (50, 7, 1), (40, 3, 12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kmeans_equals_its_plain_twin(n, width, k, dtype):
    rows = (normal(n, width) + 3).to(dtype)
    rows[2::5] = rows[0]  # copies
    found, centres = kmeans(rows, k, generator(0, "k-means"))
    factor = 16 * (math.log(k) + 2)
    expected = torch.tensor(kmeans_plain(rows, centres.tolist(), factor), dtype=torch.float64)
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)
    assert float(found.sum()) == pytest.approx(6 * factor + 4 * k)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_bound_of_kmeans_holds_for_random_queries(k):
    rows = torch.cat([normal(60, 2, seed=i) * 0.3 + 4 * normal(2, seed=i) for i in range(3)])
    found, _ = kmeans(rows, k, generator(1, "k-means"))
    spread = torch.logspace(-1, 2, 30000, dtype=torch.float64)[:, None, None]
    centres = rows[torch.randint(180, (30000, k), generator=generator(0, "near"))] + normal(30000, k, 2) * spread
    largest = torch.zeros(180, dtype=torch.float64)
    for some in centres.split(3000):
        distance = torch.cdist(rows, some.flatten(0, 1)).view(180, -1, k).square().amin(2)  # (N, Q)
        largest = largest.maximum((distance / distance.sum(0)).amax(1))
    assert (largest <= found).all()
    if k == 1:
        assert (one_means(rows) <= found).all()


def test_seeds_are_drawn_by_squared_distance():
    """All sequences of three of five points, by the definition, against 2,000 draws."""
    rows = torch.tensor([[0.0], [1], [1], [4], [9]])
    chances = {}
    for sequence in itertools.product(range(5), repeat=3):
        chance = 1 / 5
        for i in (1, 2):
            gaps = [(rows - rows[j]).square()[:, 0] for j in sequence[:i]]
            nearest = torch.stack(gaps).amin(0)
            chance *= float(nearest[sequence[i]] / nearest.sum())
        chances[sequence] = chance
    stream, draws = generator(0, "seeds"), 2000
    counts = dict.fromkeys(chances, 0)
    for _ in range(draws):
        counts[tuple(seeding(rows, 3, stream)[0].tolist())] += 1
    assert all(counts[one] == 0 for one, chance in chances.items() if chance == 0)
    statistic = sum((counts[s] - draws * c) ** 2 / (draws * c) for s, c in chances.items() if c > 0)
    free = sum(c > 0 for c in chances.values()) - 1
    assert abs(statistic - free) < 4 * math.sqrt(2 * free)


def test_seeds_are_those_of_scikit_learn_with_one_trial():
    rows, k, draws = normal(12, 2) * normal(12, 1, seed=1).exp(), 4, 500
    stream = generator(1, "seeds")
    ours = torch.stack([seeding(rows, k, stream)[0] for _ in range(draws)])
    theirs = torch.stack(
        [torch.from_numpy(kmeans_plusplus(rows.numpy(), k, n_local_trials=1, random_state=seed)[1]).long() for seed in range(draws)]
    )
    rates = [torch.bincount(which.flatten(), minlength=12) / draws for which in (ours, theirs)]
    error = ((rates[0] * (1 - rates[0]) + rates[1] * (1 - rates[1])) / draws).sqrt()
    assert ((rates[0] - rates[1]).abs() <= 4 * error + 1e-3).all()
    costs = [torch.cdist(rows[which], rows.expand(draws, -1, -1)).square().amin(1).sum(1) for which in (ours, theirs)]
    error = math.sqrt(sum(float(one.var()) for one in costs) / draws)
    assert abs(float(costs[0].mean() - costs[1].mean())) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_seeds_far_from_zero_are_still_distinct(dtype, offset, refused):
    """Products of matrices lose small distances there, and take copies for different rows."""
    rows = ((normal(9, 5) * 64).round() / 64 + offset).to(dtype)[torch.arange(90) % 9]  # exact in float32
    chosen = seeding(rows, 9, generator(0, "seeds"))[0]
    assert sorted((chosen % 9).tolist()) == list(range(9))
    with refused("k: 10", "90 rows", "9"):
        seeding(rows, 10, generator(0, "seeds"))
    found, centres = kmeans(rows, 3, generator(0, "k-means"))
    expected = torch.tensor(kmeans_plain(rows, centres.tolist(), 16 * (math.log(3) + 2))).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


# Sampling


def test_weights_are_unbiased_by_enumeration():
    """E sum w f over all outcomes of m draws, each with its chance."""
    scores = torch.tensor([0.5, 2.0, 0.25, 1.0])
    chance, values = scores.double() / scores.sum(), torch.tensor([3.0, -1, 40, 7]).double()
    for m in (1, 2, 3):
        indices, weights = sample(scores, m, generator(0, "draws", m))
        assert indices.shape == weights.shape == (m,)
        torch.testing.assert_close(weights, 1 / (m * chance[indices]))
        outcomes = torch.tensor(list(itertools.product(range(4), repeat=m)))  # (4^m, m)
        sums = (values / (m * chance))[outcomes].sum(1)
        assert float((chance[outcomes].prod(1) * sums).sum()) == pytest.approx(49)


def test_draws_have_their_chances():
    scores = torch.tensor([0.0, 3, 1, 0, 6])
    rates = torch.bincount(sample(scores, 20000, generator(0, "draws"))[0], minlength=5) / 20000
    torch.testing.assert_close(rates, scores / 10, rtol=0, atol=4 * 0.5 / math.sqrt(20000))
    assert rates[0] == rates[3] == 0


def test_sample_size_by_hand():
    """(2 * 15 / .25) (1 + 1 / 6) ln(2 * 16 / .1) = 140 ln 320 = 807.6."""
    assert sample_size(15.0, 0.5, 0.1, 16) == 808
    assert error_bound(15.0, 808, 0.1, 16) == pytest.approx(0.5, abs=2e-4)
    assert error_bound(300.0, 10, 0.1, 310) > 1  # ten images say nothing


@pytest.mark.parametrize("error", [0.01, 0.3, 0.99])
def test_error_bound_is_the_inverse_of_sample_size(error):
    m = sample_size(7.5, error, 0.05, 40)
    assert error_bound(7.5, m, 0.05, 40) <= error < error_bound(7.5, m - 1, 0.05, 40)


def test_a_finite_number_of_queries():
    """Scalar Bernstein: with m = sample_size of Q queries, more than delta of the trials fail in one of 10^4 tests."""
    features, targets = problem(200, 4, 1)
    queries = normal(30, 4, 1) * torch.logspace(-2, 2, 30, dtype=torch.float64)[:, None, None]
    values = losses(features, targets[:, None], 1.0, queries)  # (Q, N)
    scores = (values / values.sum(1, keepdim=True)).amax(0)  # exact, of these queries
    m = sample_size(float(scores.sum()), 0.5, 0.1, 30)
    stream, failures, trials = generator(0, "queries"), 0, 300
    for _ in range(trials):
        indices, weights = sample(scores, m, stream)
        error = (values[:, indices] @ weights) / values.sum(1) - 1
        failures += bool(error.abs().max() > 0.5)
    assert failures <= 0.1 * trials + 4 * math.sqrt(trials * 0.09)


@pytest.mark.parametrize("c, trials", [(1, 400), (4, 100)])
def test_the_sampling_theorem(c, trials):
    """All weights at once: |F_S / F - 1| <= e but in delta of the samples, and F(W_S) <= (1 + e) / (1 - e) OPT."""
    p, penalty, error, failure = 15, 1.0, 0.5, 0.1
    features, targets = problem(300, p, c)
    labels = targets.view(300, c)
    found = ridge_features(features, targets, penalty)
    m = sample_size(float(found.tau.sum()), error, failure, p * c + 1)
    stream, worst = generator(0, "theorem"), []
    for _ in range(trials):
        indices, weights = sample(found.tau, m, stream)
        worst.append(deviation(features, targets, penalty, indices, weights))
        rows = features[indices] * weights[:, None]
        fitted = torch.linalg.solve(rows.T @ features[indices] + penalty * torch.eye(p, dtype=torch.float64), rows.T @ labels[indices])
        full = float(losses(features, labels, penalty, fitted[None]).sum())
        assert worst[-1] > error or full <= (1 + error) / (1 - error) * found.optimum
    failures = sum(one > error for one in worst)
    assert failures <= failure * trials + 4 * math.sqrt(trials * failure * (1 - failure))
    assert max(worst) > 0.1  # it is measured at all


@pytest.mark.parametrize("shape", [(12, 1, 1), (30, 5, 1), (30, 5, 3), (9, 12, 4), (25, 2, 10)])
def test_deviation_equals_its_plain_twin(shape):
    features, targets = problem(*shape)
    indices, weights = sample(torch.ones(shape[0]), 8, generator(0, "draws"))
    expected = deviation_plain(features, targets, 0.3, indices, weights)
    assert deviation(features, targets, 0.3, indices, weights) == pytest.approx(expected, rel=1e-9)


def test_deviation_is_passed_by_no_weights_and_nearly_reached():
    features, targets = problem(40, 2, 2)
    indices, weights = sample(torch.ones(40), 10, generator(0, "draws"))
    bound = deviation(features, targets, 0.3, indices, weights)
    queries = normal(40000, 2, 2) * torch.logspace(-1, 1.5, 40000, dtype=torch.float64)[:, None, None]
    gaps = (features @ queries - targets).square().sum(2)  # (Q, N)
    shared = 0.3 * queries.square().sum((1, 2))
    error = ((gaps[:, indices] @ weights + shared) / (gaps.sum(1) + shared) - 1).abs().max()
    assert 0.97 * bound < error <= bound


def test_deviation_of_everything_is_zero():
    features, targets = problem(30, 5, 3)
    assert deviation(features, targets, 0.3, torch.arange(30), torch.ones(30)) < 1e-12


# Bad input

ROWS = torch.arange(12.0).view(6, 2)
LABELS = torch.tensor([1.0, -1, 1, -1, 1, -1])
SQUARE = torch.eye(6)


@pytest.mark.parametrize("form, rows", [(ridge_features, ROWS), (ridge_kernel, SQUARE)])
def test_bad_ridges(form, rows, refused, monkeypatch):
    for penalty in (0.0, -1.0, math.nan, math.inf, "much"):
        with refused("penalty", penalty):
            form(rows, LABELS, penalty)
    for targets, word in ((LABELS[:5], "5"), (LABELS.long(), "int64"), (LABELS.view(6, 1, 1), "(6, 1, 1)")):
        with refused("targets", word):
            form(rows, targets, 1.0)
    with refused("targets", "1 of 6"):
        form(rows, LABELS.index_fill(0, torch.tensor([2]), math.nan), 1.0)
    with refused("1 of"):
        form(rows.clone().index_put_((torch.tensor(0), torch.tensor(1)), torch.tensor(math.inf)), LABELS, 1.0)
    with refused("targets", "zero"):
        form(rows, 0 * LABELS, 1.0)


def test_bad_kernels(refused):
    with refused("kernel + ridge", "-2.00e+00"):
        ridge_kernel(SQUARE - 4 * torch.diag(torch.eye(6)[0]), LABELS, 1.0)
    with refused("kernel", "-9.0e+00"):  # -.9 + 1 is positive: there is a factor
        ridge_kernel(SQUARE - 1.9 * torch.diag(torch.eye(6)[0]), LABELS, 1.0)
    with refused("kernel + ridge", "Cholesky"):
        ridge_kernel(torch.ones(6, 6), LABELS, 1e-30)


def test_bad_penalties(refused):
    for rho in (0, -1e-3, math.nan):
        with refused("rho", rho):
            penalty_of(1.0, 5, rho)
    with refused("trace", "0"):
        penalty_of(0.0, 5)


def test_bad_rows(refused):
    stream = generator(0, "bad")
    copies = torch.full((6, 3), 0.1)
    with refused("rows", "6"):
        one_means(copies.double())
    with refused("rows", "NaN"):
        one_means(ROWS * math.nan)
    for make in (seeding, kmeans):
        with refused("k: 7", "6 rows"):
            make(ROWS, 7, stream)
        with refused("k: 2", "6 rows", "1 differ"):
            make(copies, 2, stream)
        with refused("k", 0):
            make(ROWS, 0, stream)
        with refused("rows", "(6,)"):
            make(LABELS, 2, stream)
    with refused("6 centres"):
        kmeans(ROWS, 6, stream)


def test_bad_samples(refused):
    stream = generator(0, "bad")
    with refused("scores", "1 of 3"):
        sample(torch.tensor([1.0, -1, 2]), 2, stream)
    with refused("scores", "1 of 3"):
        sample(torch.tensor([1.0, math.inf, 2]), 2, stream)
    with refused("scores", "total 0"):
        sample(torch.zeros(3), 2, stream)
    for m in (0, -1, 1.5):
        with refused("m", m):
            sample(torch.ones(3), m, stream)


def test_bad_sizes(refused):
    for error in (0, 1, -0.1, math.nan):
        with refused("error", error):
            sample_size(1.0, error, 0.1, 2)
    for total, failure, dimension in ((0.0, 0.1, 2), (math.inf, 0.1, 2), (1.0, 0, 2), (1.0, 1, 2), (1.0, 0.1, 0)):
        with refused(total, failure, dimension):
            sample_size(total, 0.5, failure, dimension)
        with refused(total, failure, dimension):
            error_bound(total, 10, failure, dimension)
    with refused("m", 0):
        error_bound(1.0, 0, 0.1, 2)


def test_bad_deviations(refused):
    with refused("penalty", 0.0):
        deviation(ROWS, LABELS, 0.0, torch.tensor([0]), torch.ones(1))
    with refused("targets", "zero"):
        deviation(ROWS, 0 * LABELS, 1.0, torch.tensor([0]), torch.ones(1))
