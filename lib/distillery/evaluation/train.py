"""Train fresh networks on a set under a protocol, and test them."""

from dataclasses import replace

from torch import Generator, Tensor

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.evaluation.outputs import accuracy
from distillery.evaluation.probe import Probing
from distillery.evaluation.protocol import LOSSES, Protocol
from distillery.networks import Params
from distillery.seeds import split
from distillery.training import Plan, Stats, train


def evaluate(network, source, protocol: Protocol, test: ImageSet, generator: Generator, **options) -> Tensor:
    """Test accuracy of each of `protocol.networks` fresh networks trained on `source`: (networks,) fractions.

    options  `steps_of` and `encoder` of `fit`
    raises   InputError under `Probing`, whose networks have features and no classes: `fit` them, and `probe` them
    """
    if isinstance(protocol, Probing):
        raise InputError(f"protocol: {protocol.kind!r}; accepted: one that trains classifiers (networks are probed by `probe`)")
    params, _ = fit(network, source, protocol, generator, device=test.device, **options)
    return accuracy(network, params, test)


def fit(
    network, source, protocol: Protocol, generator: Generator, *, steps_of: int = 0, encoder=None, hiding=None, device="cpu"
) -> tuple[Params, Stats]:
    """The weights that `evaluate` tests, leading axis `protocol.networks`, and what training counted.

    source    a TensorSource (`Synthetic.source()`), an ImageSet, or images with real-valued targets (`RegressionSet`)
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    encoder   where fine-tuning starts, an Encoder
    hiding    leaves images out of an epoch: has `plan`, `collect` and `after_epoch` of `training.train`. Rates then follow epochs,
              at the protocol's `milestones`, and steps are saved
    raises    InputError on a set that the protocol does not take, and hiding where rates would fall elsewhere than without
    """
    protocol.check_source(source, network)
    init_stream, train_stream = split(generator, 2)
    start = protocol.start(network, encoder, init_stream, protocol.networks)
    params = {name: value.to(device) for name, value in start.items()}
    n = steps_of or len(source)
    optimizer, steps = protocol.optimizer(n)
    length = {"steps": steps}
    if hiding:
        if n != len(source) or protocol.networks != 1 or protocol.epochs % 4:
            raise InputError(
                f"hiding: with the steps of {n} images, {protocol.networks} networks and {protocol.epochs} epochs; "
                "accepted: equal epochs, one network, and a multiple of 4 epochs: the rate then falls where it falls without hiding"
            )
        optimizer = replace(optimizer, drops=())

        def plan(epoch: int, stats: Stats) -> Plan:
            visits = hiding.plan(epoch, stats)
            drops = sum(epoch >= milestone for milestone in protocol.milestones)
            return replace(visits, scale=visits.scale * optimizer.factor**drops)

        length = {"epochs": protocol.epochs, "plan": plan, "collect": hiding.collect, "after_epoch": hiding.after_epoch}
    options = {"generator": train_stream, "batch": protocol.batch, "augmentation": protocol.augmentation}
    return train(network, params, source, LOSSES[protocol.loss], optimizer, **options, **length)
