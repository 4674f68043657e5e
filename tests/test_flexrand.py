"""FlexRand and the strata of CCS: budgets, the legal range, the chance of each sample."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillery.seeds import generator
from distillery.selection import check_gamma, count, coverage_plain, flexrand_budgets, flexrand_plain, legal_gammas, prune, select

SCORES = torch.rand(60, generator=generator(0, "scores"))
TARGETS = torch.tensor([0] * 37 + [1] * 23)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("i", range(5))
def test_flexrand_keeps_its_budget_of_every_class(keep, i):
    gamma = legal_gammas(keep, 5)[i]
    kept = prune(SCORES, keep, TARGETS, "flexrand", generator(i, "x"), gamma=gamma)
    assert len(set(kept.tolist())) == len(kept)
    assert torch.bincount(TARGETS[kept]).tolist() == [count(keep, 37), count(keep, 23)]


@given(size=st.integers(1, 60), data=st.data())
def test_budgets_add_up_and_fit(size, data):
    n = data.draw(st.integers(1, size))
    gamma = data.draw(st.floats(n / size / 2, 1 - n / size / 2))
    easy, hard = flexrand_budgets(size, n, gamma)
    pool = round(gamma * size)
    assert easy + hard == n and 0 <= easy <= pool and 0 <= hard <= size - pool
    assert abs(easy - hard) <= 2 or easy == pool or hard == size - pool


@pytest.mark.parametrize("n, gamma", [(7, 0.1), (7, 0.5), (8, 0.5), (20, 0.5), (9, 0.87), (37, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_flexrand_is_its_plain_twin(n, gamma, seed):
    scores = SCORES[:37]
    found = select(scores, n, None, "flexrand", generator(seed, "x"), gamma)
    assert set(found.tolist()) == flexrand_plain(scores.tolist(), n, gamma, generator(seed, "x"))


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.46, 0.9])
def test_the_ends_of_the_range_take_one_part_whole(keep):
    order = SCORES.argsort()
    for gamma, part in ((keep / 2, order[: round(keep / 2 * 60)]), (1 - keep / 2, order[round((1 - keep / 2) * 60) :])):
        kept = prune(SCORES, keep, None, "flexrand", generator(0, "x"), gamma=gamma)
        assert set(part.tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.7])
def test_chances_of_easy_and_hard_samples(gamma):
    """(keep / 2) / gamma in the easy part, (keep / 2) / (1 - gamma) in the hard one; uniform inside."""
    scores, n, draws = torch.arange(40.0), 12, 4000
    counts = torch.zeros(40)
    for seed in range(draws):
        counts[select(scores, n, None, "flexrand", generator(seed, "x"), gamma)] += 1
    chance, easy = counts / draws, round(gamma * 40)
    wanted = torch.cat([torch.full((easy,), 6 / easy), torch.full((40 - easy,), 6 / (40 - easy))])
    assert (chance - wanted).abs().max() < 5 * 0.5 / draws**0.5


def test_flexrand_sees_the_order_alone():
    kept, same = (
        prune(s, 0.3, TARGETS, "flexrand", generator(0, "x"), gamma=0.3).tolist()
        for s in (SCORES, torch.where(TARGETS == 0, SCORES.exp() * 7, SCORES**3 - 4))
    )
    assert kept == same


def test_gamma_out_of_range(refused):
    for gamma, keep in ((0.1, 0.3), (0.9, 0.3), (0.4, 0.9), (-1, 0.1), (float("nan"), 0.1), (True, 0.1)):
        with refused(gamma, f"{keep / 2:g}"):
            prune(SCORES, keep, TARGETS, "flexrand", generator(0, "x"), gamma=gamma)
    check_gamma(0.05, 0.1)
    with refused(0.1):
        select(SCORES, 20, None, "flexrand", generator(0, "x"), 0.1)
    for keep in (0.0, 1.2, -0.5):
        with refused(keep):
            prune(SCORES, keep, TARGETS, "flexrand", generator(0, "x"))
    with refused("flexrand", "generator"):
        prune(SCORES, 0.5, TARGETS, "flexrand")
    with refused("flexrand", "scores"):
        prune(None, 0.5, TARGETS, "flexrand", generator(0, "x"))


def test_legal_gammas():
    assert legal_gammas(0.1, 5) == [0.05, 0.275, 0.5, 0.725, 0.95]
    assert legal_gammas(0.9, 5) == pytest.approx([0.45, 0.475, 0.5, 0.525, 0.55])
    assert legal_gammas(1.0, 3) == [0.5, 0.5, 0.5] and legal_gammas(0.3, 1) == [0.5]


@pytest.mark.parametrize("n", [1, 10, 33, 60, 199, 200])
def test_coverage_gives_every_stratum_its_share(n):
    scores = torch.randn(200, generator=generator(1, "scores"))
    kept = select(scores, n, None, "coverage", generator(0, "x"))
    assert len(set(kept.tolist())) == n
    low, width = scores.min(), (scores.max() - scores.min()) / 50
    found = Counter(((scores[kept] - low) / width).long().clamp(max=49).tolist())
    budgets = coverage_plain(scores.tolist(), n)
    assert [found[s] for s in range(50)] == budgets


def test_coverage_by_hand():
    """Scores 0 (four times), 1, 2: three filled strata of 4, 1 and 1; four samples are one, one and two."""
    scores = torch.tensor([0.0, 0, 0, 0, 1, 2])
    kept = select(scores, 4, None, "coverage", generator(0, "x"))
    assert sorted(scores[kept].tolist()) == [0, 0, 1, 2]
    assert len(select(torch.ones(5), 3, None, "coverage", generator(0, "x"))) == 3
