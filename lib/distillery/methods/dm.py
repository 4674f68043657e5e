r"""DM, distribution matching (arXiv 2110.04181).

$$\min_S \sum_c \Big\| \tfrac{1}{|B_c|}\sum_{x \in B_c} \phi(A(x)) - \tfrac{1}{|S_c|}\sum_{s \in S_c} \phi(A(s)) \Big\|^2$$

with a fresh random network $\phi$ in every step; see `matching/distribution.py`.
"""

from distillery.evaluation import Protocol
from distillery.matching.distribution import DistributionMatching
from distillery.matching.effects import check_uncoupled
from distillery.methods.base import register
from distillery.methods.matched import Matched
from distillery.seeds import generator
from distillery.training.dsa import DSA


@register
class DM(Matched):
    """Class means of features of fresh random networks. On CIFAR-10 the rate is ten times larger from 100 images a class on, as published."""

    name, kind, paper = "DM", "distribution matching", "2110.04181"
    source = "code: VICO-UoE/DatasetCondensation"
    objective, once = DistributionMatching, True
    common = {"iterations": 20_000, "lr": 1.0, "momentum": 0.5, "batch": 256, "augmented": True}
    judged = Protocol(augmentation=DSA)
    numbers = {  # tables of FTD and DATM [other paper]
        "cifar10": {1: (26.0, 0.8), 10: (48.9, 0.6), 50: (63.0, 0.4)},
        "cifar100": {1: (11.4, 0.3), 10: (29.7, 0.3), 50: (43.6, 0.4)},
        "tiny-imagenet": {1: (3.9, 0.2), 10: (12.9, 0.4), 50: (24.1, 0.3)},
    }

    def cell(self, dataset: str, size: int, n: int) -> dict:
        return {"lr": 10.0} if dataset == "cifar10" and size >= 100 else {}

    def matching(self, job):
        made = super().matching(job)
        if job.recipe.batches and "statistic" in job.recipe.batches.sampler_class.needs:
            check_uncoupled(made.network.init(generator(0, "names"), 1))
        return made
