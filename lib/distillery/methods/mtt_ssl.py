r"""MTT-SSL: trajectory matching of SimCLR, which MKDT's paper (arXiv 2410.02116) shows to fail.

Experts are encoders that learn by SimCLR on real images, students take steps of the same loss on two random views of each image of the
set. Both are random beyond their batches, and their gradients depend on which images meet in a batch.
"""

from dataclasses import dataclass

import torch

from distillery.data import TensorSource
from distillery.methods.base import TINY, register
from distillery.methods.self_supervised import StudentTrajectories
from distillery.methods.trajectories import TrajectorySettings, row
from distillery.seeds import split
from distillery.training import train
from distillery.training.contrastive import two_views_apart
from distillery.training.views import TwoViews, Views


@dataclass(frozen=True)
class Pixels(TensorSource):
    """Made images as `TwoViews` takes them, in [0, 1] but for what distillation moved out of it; `transform` standardizes them."""

    transform: object = None


@dataclass(frozen=True, kw_only=True)
class MTTSSLSettings(TrajectorySettings):
    """Settings of MTT-SSL; `views` are those of experts, students and pre-training."""

    expert_weight_decay: float
    views: Views = Views()


@register
class MTTSSL(StudentTrajectories):
    """Trajectories of encoders that learn by SimCLR, from random images.

    Published for Figure 1 of the paper alone (500 images of CIFAR-100): optimizer and batch of the experts, N, M, start epoch and rate
    of the pixels. They stand here for every data set and size, which is our choice; the rest is MKDT's.
    """

    name, paper, loss = "MTT-SSL", "2410.02116", "simclr"
    source = "paper: Figure 1 of arXiv 2410.02116"
    Settings = MTTSSLSettings
    common = StudentTrajectories.common | {"optimizer": "Adam", "expert_lr": 1e-3, "expert_weight_decay": 1e-6, "expert_batch": 1024}
    published = {"cifar10": dict.fromkeys((100, 250), row(10, 2, 1, 1000)), "cifar100": dict.fromkeys((10, 25), row(10, 2, 1, 1000))}
    published["tiny-imagenet"] = dict.fromkeys((10, 25), row(10, 2, 1, 1000, **TINY))

    def options(self, job) -> dict:
        return {"loss": two_views_apart, "views": job.settings.views, "transform": job.source.transform}

    def train(self, job, network, source, protocol, stream, steps_of: int) -> tuple:
        """SimCLR on the set, as its experts learn, under the protocol's optimizer; the network's output is taken for the projection."""
        k, n, steps = protocol.networks, len(source), protocol.optimizer(steps_of or len(source))[1]
        first, order = split(stream, 2)
        params = {name: value.to(source.images.device) for name, value in network.init(first, k).items()}
        transform = job.experiment.real.transform
        pixels = transform.inverse(source.images) if transform else source.images
        images = Pixels(pixels, torch.zeros(n, dtype=torch.int64, device=pixels.device), transform)
        seen = TwoViews(images, job.settings.views, job.recipe.seed)
        options = {"generator": order, "steps": steps, "batch": min(protocol.batch, n), "whole_batches": True, "chunk": k}
        return *train(network, params, seen, two_views_apart, protocol.optimizer(n)[0], **options), {}
