"""A teacher's labels: one stored for each image, and a loop as anyone would write it where every batch is labelled."""

import pytest
import torch
import torch.nn.functional as F

from distillery.data import TensorSource
from distillery.evaluation import Protocol, Teacher, accuracy, fit
from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training.dsa import Draw, augment, draw


@pytest.fixture
def net():
    return ConvNet((1, 8, 8), 3, width=4, depth=1)


@pytest.fixture
def teacher(tiny, net):
    weights, _ = fit(net, tiny, Protocol(1, 60), generator(5, "teacher"))
    return Teacher(net, weights, 4.0)


def test_a_stored_label_is_the_softmax_of_the_image_as_it_is(tiny, net, teacher, as_module):
    made = teacher.stored(tiny, batch=7)
    expected = as_module(net, teacher.weights, 0)(tiny.batch(torch.arange(24))).softmax(-1)
    assert torch.allclose(made.targets, expected, atol=1e-6) and torch.equal(made.images, tiny.batch(torch.arange(24)))
    assert teacher.bytes == 4 * sum(value.numel() for value in teacher.weights.values())


def test_the_loss_is_that_of_kl_div():
    """At any temperature, and at 1 cross-entropy with soft labels less their entropy."""
    own, seen = torch.randn(2, 3, 5, generator=generator(0, "a")), torch.randn(2, 3, 5, generator=generator(1, "a"))
    for heat in (1.0, 4.0, 20.0):
        found = Teacher(None, {}, heat).loss(torch.cat([own, seen], -1), None)
        expected = heat**2 * F.kl_div((own / heat).log_softmax(-1), (seen / heat).softmax(-1), reduction="none").sum(-1)
        assert torch.allclose(found, expected, atol=1e-4)  # rounding times 400
    labels = seen.softmax(-1)
    soft = -(labels * own.log_softmax(-1)).sum(-1) + (labels * labels.log()).sum(-1)
    assert torch.allclose(Teacher(None, {}).loss(torch.cat([own, seen], -1), None), soft, atol=1e-5)


def test_every_batch_is_labelled_as_it_is_augmented(tiny, net, teacher, as_module):
    """`fit` beside the loop that anyone would write, for each of two networks."""
    source = TensorSource(tiny.batch(torch.arange(0, 24, 2)), tiny.targets[::2])
    protocol = Protocol(2, 4, lr=0.02, batch=8, augmentation="flip_crop", looks=2)
    params, stats = fit(net, source, protocol, generator(0, "e"), teacher=teacher)
    init, stream = split(generator(0, "e"), 2)
    first, teaching = net.init(init, 2), as_module(net, teacher.weights, 0)
    for k, own in enumerate(split(stream, 2)):
        module = as_module(net, first, k)
        sgd = torch.optim.SGD(module.parameters(), 0.02, 0.9, weight_decay=5e-4)
        for epoch in range(5):
            if epoch == 4:  # behind epoch 4 // 2 + 1
                sgd = torch.optim.SGD(module.parameters(), 0.002, 0.9, weight_decay=5e-4)
            order, draws = torch.randperm(12, generator=own), draw(protocol.augmentation, 2, 8, own)
            for i, indices in enumerate(order.split(8)):
                step = Draw(draws.families[i : i + 1], draws.uniforms[i : i + 1, : len(indices)])
                images = augment(source.batch(indices)[None], step)[0]
                with torch.no_grad():
                    labels = (teaching(images) / 4).softmax(-1)
                loss = 16 * F.kl_div((module(images) / 4).log_softmax(-1), labels, reduction="batchmean")
                sgd.zero_grad()
                loss.backward()
                sgd.step()
        for name, value in module.named_parameters():
            assert torch.allclose(params[name][k], value, atol=1e-5), name
    assert sorted(stats.snapshots) == [2, 5]


def test_a_teacher_is_followed_against_the_labels(tiny, net, teacher):
    wrong = TensorSource(tiny.batch(torch.arange(24)), (tiny.targets + 1) % 3)
    params, _ = fit(net, wrong, Protocol(2, 60), generator(1, "e"), teacher=teacher)
    assert (accuracy(net, params, tiny) > 0.9).all()


def test_a_temperature_is_above_0(refused):
    with refused("temperature: 0"):
        Teacher(None, {}, 0)
