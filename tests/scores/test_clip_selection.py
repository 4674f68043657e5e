"""Alignment and spread: by hand, against the plain twin, and whether the learned selection is a sort of their sum."""

import pytest
import torch

from distillery.report.statistics import spearman
from distillery.scores.clip_selection import clip_selection, learned, local_spread, local_spread_plain, misalignment
from distillery.seeds import generator
from distillery.selection import select
from made_up import normal

ROWS, TARGETS = 1 + normal(60, 5), torch.arange(60) % 3
SUMS = 1 - clip_selection(ROWS, TARGETS)  # S^A + alpha S^D


def test_misalignment_is_one_less_the_cosine_to_the_mean_or_to_a_text():
    """Class 0: (1, 0), (1, 2) with mean (1, 1); class 1: one sample. Texts: (0, 1) and (5, 2), whose lengths do not count."""
    rows, targets = torch.tensor([[1.0, 0.0], [5.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1, 0])
    assert misalignment(rows, targets).tolist() == pytest.approx([1 - 0.5**0.5, 0, 1 - 3 / 10**0.5], abs=1e-6)
    texts = torch.tensor([[0.0, 7.0], [10.0, 4.0], [1.0, 0.0]])
    assert misalignment(rows, targets, texts).tolist() == pytest.approx([1, 0, 1 - 2 / 5**0.5], abs=1e-6)
    assert misalignment(rows[[0, 2]], None, texts[:1]).tolist() == pytest.approx([1, 1 - 2 / 5**0.5], abs=1e-6)


def test_spread_on_a_circle():
    """0, 90 and 180 degrees: chords of sqrt 2 and 2. Lengths of the features do not count; alone in a class there is none."""
    rows, targets = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0, 0, 1])
    root = 2**0.5
    assert local_spread(rows, targets).tolist() == pytest.approx([root, root, root, 0], abs=1e-9)  # one neighbour
    assert local_spread(rows, targets, 1.0).tolist() == pytest.approx([(root + 2) / 2, root, (root + 2) / 2, 0], abs=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.33, 1.0])
def test_spread_equals_its_plain_twin(share):
    for targets in (None, TARGETS, TARGETS**2 // 2):
        assert local_spread(ROWS, targets, share).tolist() == pytest.approx(local_spread_plain(ROWS, targets, share))


def test_the_sum_at_its_ends():
    """Without spread it is the alignment; where spread is all that counts, outliers are taken first."""
    assert torch.equal(clip_selection(ROWS, TARGETS, 0), misalignment(ROWS, TARGETS))
    first = select(clip_selection(ROWS, None, 1e6), 6)
    assert torch.equal(first, select(local_spread(ROWS, None), 6, rule="highest"))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.494, 0.5])
def test_learned_from_equal_starts_is_the_sort(ratio):
    found, n = learned(SUMS, ratio), round(60 * ratio)
    assert found.missed <= 0.5 / 60 and 0 < found.steps < 20_000
    assert spearman(found.d.numpy(), SUMS.numpy()) > 0.9999
    assert set(select(found.d, n, rule="highest").tolist()) == set(torch.nonzero(found.d > 0)[:, 0].tolist())
    assert set(select(found.d, n, rule="highest").tolist()) == set(select(SUMS, n, rule="highest").tolist())


def test_learned_from_a_random_start_remembers_it_and_forgets_in_time():
    start = torch.randn(60, generator=generator(0, "start"))
    agree = [
        spearman(learned(SUMS, 0.3, start=start, most=most, near=near).d.numpy(), SUMS.numpy())
        for most, near in ((20_000, 5e-4), (3000, 0))
    ]
    assert agree[0] < 0.9 < 0.95 < agree[1]


def test_one_step_of_sgd_by_hand():
    """From 0 nothing is kept, so that all rise: a step is rate x sigma'(0) x (value + beta), with sigma'(0) = 1/4."""
    found = learned(torch.tensor([1.0, -1.0]), 0.5, beta=2.0, rate=0.8, most=1, near=0)
    assert found.d.tolist() == pytest.approx([0.2 * 3, 0.2 * 1]) and found.missed == 0.5


@pytest.mark.parametrize("texts", [False, True], ids=["class means", "texts"])
def test_most_of_the_worst_aligned_have_wrong_labels(texts):
    """A fifth of the labels is wrong, and more than half of the tenth that suits its label least, of clouds that overlap."""
    true = torch.arange(500) % 5
    centres = normal(5, 8, seed=1)
    rows, wrong = centres[true] + normal(500, 8, seed=2), torch.arange(500) % 25 < 5  # as many of every class
    given = torch.where(wrong, (true + 1 + torch.arange(500) % 4) % 5, true)
    worst = select(misalignment(rows, given, centres if texts else None), 50, rule="highest")
    assert wrong.double().mean() == 0.2 and 0.5 < wrong[worst].double().mean() < 1


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: misalignment(ROWS, TARGETS, ROWS[:2]), ["texts", (2, 5), 2]),
        (lambda: misalignment(ROWS, TARGETS, ROWS[:3, :4]), ["texts", (3, 4), 5]),
        (lambda: misalignment(ROWS, TARGETS, ROWS[:3].log()), ["texts"]),
        (lambda: misalignment(ROWS, TARGETS[:9]), [60, 9]),
        (lambda: local_spread(ROWS, TARGETS, 0), ["share", 0]),
        (lambda: local_spread(ROWS[0], None), ["(5,)"]),
        (lambda: clip_selection(ROWS, TARGETS, -0.1), ["alpha", -0.1]),
        (lambda: learned(ROWS, 0.5), ["values", (60, 5)]),
        (lambda: learned(SUMS.log().log(), 0.5), ["values", 60]),
        (lambda: learned(SUMS, 1.5), ["ratio", 1.5]),
        (lambda: learned(SUMS, 0.5, rate=0), ["rate", 0]),
        (lambda: learned(SUMS, 0.5, beta=-1.0), ["beta", -1.0]),
        (lambda: learned(SUMS, 0.5, most=0), ["most", 0]),
        (lambda: learned(SUMS, 0.5, start=SUMS[:5]), ["start", (5,), 60]),
    ],
)
def test_refused(call, words, refused):
    with refused(*words):
        call()
