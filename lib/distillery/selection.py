"""From scores to indices: which real samples are kept, as a smaller training set or as the start of a distilled one.

Scores are (N,), high = hard. Greedy methods (herding, k-means) put their rank in place of the score, so keeping the
lowest keeps the first chosen. Selection is per class unless there are no classes.
"""

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_fraction, check_positive_int

RULES = ("lowest", "highest", "random")


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
    rule       'lowest' (easiest), 'highest' (hardest) or 'random' (needs a generator); ties go to the smaller index
    raises     InputError on unknown rules, scores that are not finite, or a class with fewer than n samples
    """
    check_choice("rule", rule, RULES)
    check_positive_int("n", n)
    if scores is not None:
        check_finite("scores", scores)
    return _per_class(
        targets, len(targets if targets is not None else scores), lambda size: n, scores, rule, generator
    )


def prune(
    scores: Tensor | None, keep: float, targets: Tensor, rule: str, generator=None, at_least: int = 1
) -> Tensor:
    """Indices of the fraction `keep` of every class: floor((1 - keep) * n_class) samples are dropped.

    at_least  refuse to leave a class with fewer (the images per class to distill)
    raises    InputError as `select`, and when a class would keep fewer than `at_least`
    """
    check_choice("rule", rule, RULES)
    check_fraction("keep", keep)
    if scores is not None:
        check_finite("scores", scores)

    def kept(size: int) -> int:
        n = size - int((1 - keep) * size + 1e-9)
        if n < at_least:
            raise InputError(
                f"keep: {keep} leaves {n} of {size} images of a class; accepted: at least {at_least} (ipc)"
            )
        return n

    return _per_class(targets, len(targets), kept, scores, rule, generator)


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
        chosen.append(members[order[:n]])
    return torch.cat(chosen)
