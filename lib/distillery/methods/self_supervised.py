"""What an encoder is pre-trained on where there are no labels: what methods share, and the rows beside them.

Real images come with a teacher's embeddings in place of labels (`encoders.regression_set`). An encoder learns to regress those of the set,
or learns by SimCLR without them; a protocol then fits linear probes on few labels of some tasks.
"""

from dataclasses import dataclass, replace

from distillery.checks import InputError
from distillery.encoders.teacher import SIMCLR, pretrain
from distillery.methods.base import Method, Settings, register
from distillery.methods.trajectories import Trajectories
from distillery.seeds import split
from distillery.training import Stats
from distillery.training.views import Views


class WithoutLabels(Method):
    """A method that makes a set of images with real-valued targets. It may also start from the images that students find hardest."""

    labels = False
    own_starts = ("high loss",)  # of MKDT
    iterates = ("last",)


class StudentTrajectories(WithoutLabels, Trajectories):
    """Trajectory matching without labels. Published are sets of 2 and 5% of the images, given as images over classes."""

    version = 2
    judged = None
    common = Trajectories.common | {"expert_training_epochs": 20, "student_batch": 256, "lr_step_size": 1e-4, "step_size": 0.1}

    def cell(self, dataset: str, size: int, n: int) -> dict:
        """The published settings of the nearer of the two published sizes, for `size` images of n."""
        sizes = sorted(self.published.get(dataset, ()))
        return super().cell(dataset, sizes[0 if size <= 0.035 * n else -1] if sizes else size, n)

    def augmentation(self, experiment) -> str:
        """None: the loss of a student is not random but for its batches."""
        return ""

    def bank_with(self, experiment, seed: int, own: dict) -> tuple:
        """How experts are trained under changes of a recipe, and the last epoch that is kept: one bank of each seed serves both sizes."""
        presets, n = experiment.presets, len(experiment.real)
        both = [self.settings(presets.dataset, size, n, presets.changes, own) for size in (0, n)]
        training = self.training(both[0], experiment)
        return replace(training, seed=training.seed + seed), max(one.last_epoch for one in both)

    def bank(self, job) -> tuple:
        return self.bank_with(job.experiment, job.recipe.seed, job.recipe.settings)


@register
class Untrained(Method):
    """No pre-training: the networks that others start from, as they are drawn, which every set has to beat."""

    version = 2
    name, kind, labels, makes_set, prunes = "none", "no pre-training", False, False, False

    def check(self, recipe) -> None:
        super().check(recipe)
        if recipe.size or recipe.evaluate.equal_steps:
            raise InputError(f"size: {recipe.size} with {self.name!r}, which sees no images; accepted: 0, and its own steps")

    def train(self, job, network, source, protocol, stream, steps_of: int) -> tuple:
        params = network.init(split(stream, 2)[0], protocol.networks)  # as `fit` draws them
        return {name: value.to(job.experiment.device) for name, value in params.items()}, Stats(), {}


@dataclass(frozen=True)
class ViewSettings(Settings):
    """The random views that are compared."""

    views: Views = Views()


@register
class SelfSupervised(Method):
    """Random images on which encoders learn by SimCLR as teachers do, without a teacher.

    They see as many images as the protocol's passes over the set, or, with equal steps, over all images.
    """

    name, labels, selects = "random, self-supervised", False, "random"

    Settings = ViewSettings

    def train(self, job, network, source, protocol, stream, steps_of: int) -> tuple:
        images = job.experiment.real.images.subset(job.chosen("random"))  # as bytes: views are made before standardization
        batch = min(SIMCLR.batch, len(images))
        steps = len(images) // batch  # of a pass
        epochs = max(1, round(protocol.epochs * (steps_of or len(images)) / (steps * batch)))
        how = replace(SIMCLR, epochs=epochs, batch=batch, warmup=min(SIMCLR.warmup, epochs - 1))
        how = replace(how, views=job.settings.views, seed=job.recipe.seed)
        return pretrain(network, images, how, protocol.networks), Stats(steps=epochs * steps), {}
