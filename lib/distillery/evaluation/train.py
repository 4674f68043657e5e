"""The one protocol that turns a set into accuracies: fresh networks, trained on the set alone, tested at the end.

Source: the evaluation shared by DC, DSA, DM and the trajectory methods, as in the public code of the first three
(github.com/VICO-UoE/DatasetCondensation): SGD with momentum .9, weight decay 5e-4, batch 256, epochs 0..E inclusive;
after epoch E // 2 + 1 the rate falls to a tenth once and momentum restarts. Accuracy is that of the final weights;
nothing is chosen on the test images.

Beside it stand fine-tuning (`FineTuning`): a pre-trained encoder with a fresh classifier, trained on a part of a task; and
probing (`Probing`), MKDT's (arXiv 2410.02116): networks pre-trained on a set with real-valued targets, whose features, frozen,
a linear classifier learns from few labels. Slow reference of that classifier, `fit_linear`: `fit_linear_plain`.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.evaluation.outputs import accuracy, distributions
from distillery.evaluation.probe import probe
from distillery.evaluation.protocol import LOSSES, Protocol
from distillery.networks import Params
from distillery.networks.encoder import Encoder
from distillery.seeds import split
from distillery.training import Plan, Stats, squared_error, train


def evaluate(
    network,
    source,
    protocol: Protocol,
    test: ImageSet,
    generator: Generator,
    *,
    steps_of: int = 0,
    labelled: ImageSet | None = None,
    encoder: Encoder | None = None,
    chunk: int = 0,
) -> Tensor:
    """Test accuracy of each of `protocol.networks` fresh networks trained on `source`: (networks,) fractions.

    Under `Probing` those of `probe`: (networks, fractions of labels).

    source    a TensorSource (`Synthetic.source()`), an ImageSet, or images with real-valued targets (`students.Regression`)
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    labelled  real images of which `Probing` draws the labels that it sees
    encoder   where protocol kind 'fine-tune' starts
    """
    if protocol.kind == "probe" and labelled is None:
        raise InputError("labelled: None; accepted: labelled real images for the linear probe")
    params, _ = fit(
        network, source, protocol, generator, steps_of=steps_of, encoder=encoder, chunk=chunk, device=test.device
    )
    if protocol.kind == "probe":
        return probe(network, params, labelled, test, protocol, generator)[0]
    return accuracy(network, params, test)


def fit(
    network,
    source,
    protocol: Protocol,
    generator: Generator,
    *,
    steps_of: int = 0,
    encoder: Encoder | None = None,
    hiding=None,
    chunk: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Params, Stats]:
    """The weights that `evaluate` tests, leading axis `protocol.networks`, and what training counted.

    hiding  a `hiding.Hiding`, which leaves images out of an epoch: rates then follow epochs, and steps are saved
    """
    if protocol.kind == "fine-tune" and encoder is None:
        raise InputError("encoder: None; accepted: an encoder to fine-tune")
    if protocol.kind == "scratch" and protocol.loss == "cross-entropy" and not distributions(source.targets):
        raise InputError(
            "loss: 'cross-entropy' with labels that are no distributions; accepted: 'squared error', for learned real-valued labels"
        )
    targets = source.targets
    if protocol.kind == "probe" and not (
        targets.is_floating_point() and targets.shape == (len(source), network.classes)
    ):
        raise InputError(
            f"targets: {targets.dtype} {tuple(targets.shape)} of a set to regress; accepted: real numbers "
            f"({len(source)}, {network.classes}), as wide as the network's output"
        )
    init_stream, train_stream = split(generator, 2)
    start = encoder.start if protocol.kind == "fine-tune" else network.init
    params = {name: value.to(device) for name, value in start(init_stream, protocol.networks).items()}
    optimizer, steps = protocol.optimizer(steps_of or len(source))
    length = {"steps": steps}
    if hiding:
        if steps_of not in (0, len(source)) or protocol.networks != 1 or protocol.epochs % 4:
            raise InputError(
                f"hiding: with the steps of {steps_of or len(source)} images, {protocol.networks} networks and "
                f"{protocol.epochs} epochs; accepted: equal epochs, one network, and a multiple of 4 epochs, so that the "
                "rate falls where it falls without hiding"
            )
        optimizer = replace(optimizer, drops=())

        def plan(epoch: int, stats: Stats) -> Plan:
            found = hiding.plan(epoch, stats)
            drops = sum(epoch >= milestone for milestone in protocol.milestones)
            return replace(found, scale=found.scale * optimizer.factor**drops)

        length = {"epochs": protocol.epochs, "plan": plan, "collect": hiding.collect, "after_epoch": hiding.after_epoch}
    return train(
        network,
        params,
        source,
        squared_error if protocol.kind == "probe" else LOSSES[protocol.loss],
        optimizer,
        generator=train_stream,
        batch=protocol.batch,
        augmentation=protocol.augmentation,
        chunk=chunk,
        **length,
    )
