"""From scores to indices: which real samples are kept, as a smaller training set or as the start of a distilled one.

Scores are (N,), high = hard. Greedy methods (herding, k-means) put their rank in place of the score, so keeping the
lowest keeps the first chosen. Selection is per class unless there are no classes.
"""

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_keep, check_positive_int

RULES = ("lowest", "highest", "middle", "random")


def select(
    scores: Tensor | None,
    n: int,
    targets: Tensor | None = None,
    rule: str = "lowest",
    generator: Generator | None = None,
) -> Tensor:
    """Indices of `n` samples, of every class if `targets` are given: ascending by class, in the rule's order within it.

    scores     (N,) float; may be None for 'random' with targets
    n          samples to keep (per class)
    rule       'lowest' (easiest), 'highest' (hardest), 'middle' (equally many dropped at both ends of the order, the odd
               one at the hard end) or 'random' (needs a generator); ties go to the smaller index
    raises     InputError on unknown rules, scores that are not finite or not one a sample, or a class with fewer than n
               samples
    """
    check_positive_int("n", n)
    total = len(targets if targets is not None else scores)
    _check(scores, total, rule, generator)
    return _per_class(targets, total, lambda size: n, scores, rule, generator)


def prune(
    scores: Tensor | None, keep: float, targets: Tensor, rule: str, generator=None, at_least: int = 1
) -> Tensor:
    """Indices of the part `keep` of every class, as `select` orders them; the paper's code, per class.

    keep      a fraction in (0, 1]: floor((1 - keep) * n_class) samples of a class are dropped; or a whole number above
              1: so many samples of every class are kept. 1 is the fraction: everything
    at_least  refuse to leave a class with fewer (the images per class to distill)
    raises    InputError as `select`, and when a class would keep fewer than `at_least` or has fewer than `keep`
    """
    check_left(keep, targets, at_least)
    _check(scores, len(targets), rule, generator)
    return _per_class(targets, len(targets), lambda size: count(keep, size), scores, rule, generator)


def check_left(keep: float, targets: Tensor, at_least: int = 1) -> None:
    """Raise InputError where `prune` would, before any score is computed."""
    check_keep("keep", keep)
    for size in targets.unique(return_counts=True)[1].tolist():
        n = count(keep, size)
        if n > size:
            raise InputError(
                f"keep: {keep} images of a class that has {size}; accepted: at most {size}, or a fraction"
            )
        if n < at_least:
            raise InputError(
                f"keep: {keep} leaves {n} of {size} images of a class; accepted: at least {at_least} (ipc)"
            )


def count(keep: float, size: int) -> int:
    """How many samples of a class of `size` the part `keep` is, see `prune`; a number of samples is itself."""
    # 1 - keep is rounded: what lies a billionth below a whole number is that number
    return int(keep) if keep > 1 else size - int((1 - keep) * size + 1e-9)


def _check(scores: Tensor | None, total: int, rule: str, generator: Generator | None) -> None:
    check_choice("rule", rule, RULES)
    if rule == "random" and generator is None:
        raise InputError("rule: 'random' without a generator; accepted: a generator to draw with")
    if rule != "random" and scores is None:
        raise InputError(f"rule: {rule!r} without scores; accepted: one score a sample, or 'random'")
    if scores is not None:
        check_finite("scores", scores)
        if scores.shape != (total,):
            raise InputError(
                f"scores: {tuple(scores.shape)} for {total} samples; accepted: one score a sample, ({total},)"
            )


def _per_class(targets, total, count, scores, rule, generator) -> Tensor:
    groups = (
        [torch.arange(total)]
        if targets is None
        else [torch.nonzero(targets.cpu() == c)[:, 0] for c in targets.unique()]
    )
    chosen = []
    for label, members in enumerate(groups):
        n = count(len(members))
        if n > len(members):
            raise InputError(
                f"ipc: class {label} has {len(members)} images, {n} were asked for; accepted: at most {len(members)}"
            )
        if rule == "random":
            order = torch.randperm(len(members), generator=generator)
        else:
            order = scores.cpu()[members].argsort(stable=True, descending=rule == "highest")
        first = (len(members) - n) // 2 if rule == "middle" else 0
        chosen.append(members[order[first : first + n]])
    return torch.cat(chosen)
