"""Whole data: what a network reaches with all real images, in as many steps as a small set takes, or trained out."""

from dataclasses import dataclass, replace

from distillery.methods.base import Method, Settings, register


@dataclass(frozen=True)
class WholeSettings(Settings):
    """Training of its own, 0 = as the protocol says: so many passes over all images, `batch` images a step."""

    epochs: int = 0
    batch: int = 0


@register
class Whole(Method):
    """All real images, or those that pruning leaves.

    The size is that of the set whose training steps are taken, 0 = its own. With `epochs` they are trained out.
    """

    name, kind, labels, makes_set = "whole", "all real images", None, False
    Settings = WholeSettings

    def protocol(self, job, protocol, made):
        settings, classes = job.settings, job.experiment.classes
        if settings.epochs:
            return replace(protocol.passes(settings.epochs), batch=settings.batch or protocol.batch), 0
        if job.recipe.size:
            return protocol, job.recipe.size * (len(classes) if classes else 1)
        return protocol, protocol.steps_of(0, 0, len(job.experiment.real))
