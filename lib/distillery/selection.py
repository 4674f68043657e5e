r"""From scores to indices: which real samples are kept, as a smaller training set or as the start of a distilled one.

Scores are (N,), high = hard. Greedy methods (herding, k-center, D2) put their rank in place of the score, so keeping the lowest keeps the
first chosen. Selection is per class unless there are no classes.

| rule | keeps | source |
|---|---|---|
| lowest, highest | the easiest, the hardest | top-K |
| middle | the band around the median; with the distance to the prototype, Moderate | Xia, ICLR 2023 |
| random | | |
| flexrand | half of the budget at random from the easy part gamma of a class, half from the rest | below |
| coverage | as many from each of 50 strata of equal width in score | CCS, Zheng, ICLR 2023 |
| proportional | distinct samples, one after another with chances in proportion to the score | Gumbel top-k, Kool, ICML 2019 |

FlexRand (DLC, arXiv 2402.05356): of the $N$ samples of a class, in the order $\pi$ of their scores, $n$ are drawn without putting back,

$$E = \{\pi_1, \dots, \pi_{[\gamma N]}\}, \quad H = \{\pi_{[\gamma N]+1}, \dots, \pi_N\}, \qquad n/2 \text{ uniformly from } E,\; n/2 \text{ from } H$$

Slow references: `flexrand_plain`, `coverage_plain`, `proportional_plain`.
"""

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_keep, check_positive_int, is_number

RULES = ("lowest", "highest", "middle", "random", "flexrand", "coverage", "proportional")
DRAWN = ("random", "flexrand", "coverage", "proportional")  # rules that draw
STRATA = 50  # of 'coverage'
# published ways to keep a part: the score and the rule of each; 'Moderate' and 'CCS' by a score that takes no training
_HARDEST = ("forgetting", "EL2N", "GraNd", "AUM", "least confidence", "entropy", "margin", "cumulative loss", "TDDS")
BASELINES: dict[str, tuple[str, str]] = {score: (score, "highest") for score in _HARDEST}
_FIRST = ("contextual diversity", "herding", "k-center", "D2", "alignment", "alignment + spread", "DBP", "SSP")
BASELINES |= {score: (score, "lowest") for score in _FIRST}
BASELINES |= {"Moderate": ("prototype distance", "middle"), "CCS strata": ("complexity", "coverage")}


def select(
    scores: Tensor | None, n: int, targets: Tensor | None = None, rule: str = "lowest", generator: Generator | None = None,
    gamma: float = 0.5, *, total: int = 0,
) -> Tensor:  # fmt: skip
    """Indices of `n` samples, of every class if `targets` are given: ascending by class, in the rule's order within it.

    scores  (N,) float; may be None for 'random' with targets or `total`
    n       samples to keep (per class)
    rule    one of RULES; those in DRAWN need a generator. Of 'middle' the odd one is dropped at the hard end; ties go to the smaller index
    gamma   of 'flexrand': the share of a class that is its easy part
    total   N, for 'random' without scores and targets
    raises  InputError without scores, targets and `total`, on unknown rules, scores that are not finite or not one a sample, a class with fewer than n samples, a gamma that
            `check_gamma` refuses, scores for 'proportional' that are negative or of which fewer than n in a class are above 0
    """
    check_positive_int("n", n)
    return _per_class(targets, total, lambda size: n, scores, rule, generator, gamma)


def prune(
    scores: Tensor | None, keep: float, targets: Tensor | None, rule: str, generator: Generator | None = None, gamma: float = 0.5
) -> Tensor:
    """Indices of the part `keep` of every class, as `select` orders them; of all samples where there are no classes.

    keep    a fraction in (0, 1]: floor((1 - keep) * n_class) samples of a class are dropped, as in BiLP's code; or a whole number above
            1: so many samples of every class are kept. 1 is the fraction: everything
    gamma   of 'flexrand', in [keep / 2, 1 - keep / 2]
    raises  InputError as `select`, and when a class would keep none or has fewer than `keep`
    """
    check_enough_left(keep, targets)
    if rule == "flexrand" and keep <= 1:
        check_gamma(gamma, keep)
    return _per_class(targets, 0, lambda size: count(keep, size), scores, rule, generator, gamma)


def check_gamma(gamma: float, keep: float, slack: float = 1e-9) -> None:
    """Raise InputError unless half of the part `keep` fits into the easy part `gamma` and into the rest.

    Source: the range over which DLC plots gamma; outside of it the smaller part would be taken whole.
    """
    if not is_number(gamma) or not keep / 2 - slack <= gamma <= 1 - keep / 2 + slack:
        accepted = f"{keep / 2:g} to {1 - keep / 2:g}, so that half of what is kept fits into the easy part and into the hard one"
        raise InputError(f"gamma: {gamma!r} with keep {keep:g}; accepted: {accepted}")


def legal_gammas(keep: float, n: int) -> list[float]:
    """n evenly spaced values of gamma for a part kept, from all of the easiest to all of the hardest."""
    check_positive_int("n", n)
    return [0.5] if n == 1 else [round(keep / 2 + (1 - keep) * i / (n - 1), 6) for i in range(n)]


def check_enough_left(keep: float, targets: Tensor | None, at_least: int = 1) -> None:
    """Raise InputError where `prune` would, before any score is computed, and where a class keeps fewer than `at_least`."""
    check_keep("keep", keep)
    for size in [] if targets is None else targets.unique(return_counts=True)[1].tolist():
        if (n := count(keep, size)) > size:
            raise InputError(f"keep: {keep} images of a class that has {size}; accepted: at most {size}, or a fraction")
        if n < at_least:
            raise InputError(f"keep: {keep} leaves {n} of {size} images of a class; accepted: at least {at_least} (ipc)")


def count(keep: float, size: int) -> int:
    """How many samples of a class of `size` the part `keep` is, see `prune`; a number of samples is itself."""
    # 1 - keep is rounded: what lies a billionth below a whole number is that number
    return int(keep) if keep > 1 else size - int((1 - keep) * size + 1e-9)


def _per_class(targets, total: int, count, scores: Tensor | None, rule: str, generator: Generator | None, gamma: float) -> Tensor:
    check_choice("rule", rule, RULES)
    given = scores if targets is None else targets
    if given is None and not total:
        raise InputError("scores and targets: None both; accepted: one of them, with a value for every sample")
    total = total or len(given)
    if rule in DRAWN and generator is None:
        raise InputError(f"rule: {rule!r} without a generator; accepted: a generator to draw with")
    if rule != "random" and scores is None:
        raise InputError(f"rule: {rule!r} without scores; accepted: one score a sample, or 'random'")
    if scores is not None:
        check_finite("scores", scores)
        if scores.shape != (total,):
            raise InputError(f"scores: {tuple(scores.shape)} for {total} samples; accepted: one score a sample, ({total},)")
    labels = [None] if targets is None else targets.unique().tolist()
    chosen = []
    for label in labels:
        members = torch.arange(total) if label is None else torch.nonzero(targets.cpu() == label)[:, 0]
        size, n = len(members), count(len(members))
        if n > size:
            where = "" if label is None else f"class {label} has "
            raise InputError(f"ipc: {where}{size} images, {n} were asked for; accepted: at most {size}")
        if rule == "flexrand":
            check_gamma(gamma, n / size, 1 / size)
        own = None if scores is None else scores.cpu()[members]
        chosen.append(members[_pick(own, size, n, rule, generator, gamma)])
    return torch.cat(chosen)


def _pick(scores: Tensor | None, size: int, n: int, rule: str, generator, gamma: float) -> Tensor:
    """Positions of n samples of one group of `size`."""
    if rule == "random":
        return torch.randperm(size, generator=generator)[:n]
    if rule in ("coverage", "proportional"):
        return (_coverage if rule == "coverage" else _proportional)(scores, n, generator)
    order = scores.argsort(stable=True, descending=rule == "highest")
    if rule == "flexrand":
        pools, budgets = order.tensor_split([round(gamma * size)]), flexrand_budgets(size, n, gamma)
        return torch.cat([pool[torch.randperm(len(pool), generator=generator)][:budget] for pool, budget in zip(pools, budgets)])
    first = (size - n) // 2 if rule == "middle" else 0
    return order[first : first + n]


def flexrand_budgets(size: int, n: int, gamma: float) -> tuple[int, int]:
    """How many of n samples come from the easy part and from the hard part of a class of `size`; their sum is n.

    Half of n each, the odd one from the smaller part (the easy one at gamma 1/2), so that at the ends of the legal range the smaller part is
    taken whole; what a part lacks, the other gives. The paper's code rounds both by themselves and may miss its budget by one.
    """
    pool = round(gamma * size)
    easy = min(-(-n // 2), pool) if gamma <= 0.5 else n - min(-(-n // 2), size - pool)
    easy = max(min(easy, pool), n - (size - pool))
    return easy, n - easy


def flexrand_plain(scores: list[float], n: int, gamma: float, generator: Generator) -> set[int]:
    """FlexRand of one class in the words of the paper: a list of the easy, a list of the hard, names out of two hats."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    easy, hard = order[: round(gamma * len(order))], order[round(gamma * len(order)) :]
    wanted = {"easy": n // 2, "hard": n // 2}
    wanted["easy" if gamma <= 0.5 else "hard"] += n % 2
    for hat, other, names in (("easy", "hard", easy), ("hard", "easy", hard)):
        while wanted[hat] > len(names):
            wanted[hat], wanted[other] = wanted[hat] - 1, wanted[other] + 1
    drawn = set()
    for hat, names in (("easy", easy), ("hard", hard)):
        drawn |= {names[i] for i in torch.randperm(len(names), generator=generator)[: wanted[hat]]}
    return drawn


def _proportional(scores: Tensor, n: int, generator: Generator) -> Tensor:
    """The n largest of log score + Gumbel noise: what drawing one after another without putting back would give."""
    above, below = int((scores > 0).sum()), int((scores < 0).sum())
    if below or above < n < len(scores):  # all are taken whatever their scores
        found = f"{above} of {len(scores)} above 0, {below} below, total {float(scores.sum()):g}"
        raise InputError(f"scores: {found}; accepted: none below 0, and at least {n} above 0 to draw {n} in proportion")
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    keys = scores.double().log() - (-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
    return keys.argsort(descending=True, stable=True)[:n]


def proportional_plain(scores: list[float], n: int, generator: Generator) -> list[int]:
    """Names out of a hat in which each is as often as its score says; what is drawn stays out."""
    left, drawn = dict(enumerate(scores)), []
    while len(drawn) < n:
        at, names = float(torch.rand((), generator=generator)) * sum(left.values()), iter(left.items())
        i, score = next(names)
        while at >= score:
            at -= score
            i, score = next(names)
        drawn.append(i)
        del left[i]
    return drawn


def _coverage(scores: Tensor, n: int, generator: Generator) -> Tensor:
    """Stratified by score, the emptiest stratum first: each gives its share of the budget that is left, or all it has.

    Source: CCS, without its cut-off of the hardest samples, whose size is tuned for each data set there.
    """
    scores = scores.double()
    low, high = scores.min(), scores.max()
    width = ((high - low) / STRATA).clamp_min(torch.finfo(scores.dtype).tiny)
    stratum = ((scores - low) / width).long().clamp(0, STRATA - 1)
    members = [torch.nonzero(stratum == s)[:, 0] for s in range(STRATA)]
    chosen, left = [], n
    for i, one in enumerate(sorted(members, key=len)):
        take = min(len(one), left // (STRATA - i))
        chosen.append(one[torch.randperm(len(one), generator=generator)[:take]])
        left -= take
    return torch.cat(chosen)


def coverage_plain(scores: list[float], n: int) -> list[int]:
    """The budget of each of the 50 strata, from the lowest scores to the highest."""
    low, high = min(scores), max(scores)
    filled, budgets, left = [0] * STRATA, [0] * STRATA, n
    for score in scores:
        at = int((score - low) / ((high - low) / STRATA)) if high > low else 0
        filled[min(at, STRATA - 1)] += 1
    for done, s in enumerate(sorted(range(STRATA), key=lambda s: filled[s])):
        budgets[s] = min(filled[s], left // (STRATA - done))
        left -= budgets[s]
    return budgets
