"""Gradient and distribution matching: identities that follow from their definitions, and the plain twins."""

import pytest
import torch

from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.matching import gradient as gm
from distillery.matching.distribution import DistributionMatching, distribution_loss_plain
from distillery.matching.gradient import GradientMatching, gradient_distance, gradient_distance_plain, gradient_loss_plain, loops
from distillery.matching.step import StepContext, gradient_by_classes
from distillery.networks import ConvNet
from distillery.sampling import Uniform
from distillery.seeds import generator
from distillery.training import dsa
from distillery.training.dsa import DSA, Draw
from made_up import Counting

CLASSES, N, M = 3, 5, 2


def network(**options):
    return ConvNet((2, 6, 7), CLASSES, width=4, depth=1, **options)


def problem(dtype=torch.float32, **options):
    """A network, real and synthetic images by class, and unequal weights with zeros among them."""
    stream = generator(0, "problem")
    net = network(**options)
    params = {name: value.to(dtype) for name, value in net.init(stream, 1).items()}
    real = torch.randn(CLASSES, N, 2, 6, 7, generator=stream, dtype=dtype)
    synthetic = torch.randn(CLASSES, M, 2, 6, 7, generator=stream, dtype=dtype)
    weights = torch.rand(CLASSES, N, generator=stream, dtype=dtype)
    weights[0, 2] = weights[1, 0] = weights[1, 4] = 0
    return net, params, real, weights / weights.sum(1, keepdim=True), synthetic.requires_grad_()


def siamese(strategy=DSA, seed=1):
    return dsa.draw(strategy, CLASSES, 1, generator(seed, "draw"), siamese=True)


def grad(loss, synthetic):
    return torch.autograd.grad(loss, synthetic)[0]


LABELS = torch.arange(CLASSES)


def gradient_loss(net, params, real, weights, synthetic, labels, drawn):
    return GradientMatching(net).loss(StepContext(params, labels, drawn), real, weights, synthetic, slice(None))


def distribution_loss(net, params, real, weights, synthetic, drawn):
    return DistributionMatching(net).loss(StepContext(params, LABELS, drawn), real, weights, synthetic, slice(None))


# The distance of DC


def rows(*shape, seed=0):
    return {
        "conv.weight": torch.randn(1, *shape, generator=generator(seed, "rows"), dtype=torch.float64),
        "bias": torch.randn(1, 6, generator=generator(seed, "bias"), dtype=torch.float64),
    }


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (4, 7), (5, 2, 3)])
def test_distance_of_a_gradient_to_itself(shape):
    """Each row gives 1e-6 / (|a|^2 + 1e-6)."""
    a = rows(*shape)
    square = a["conv.weight"][0].flatten(1).square().sum(1)
    assert gradient_distance(a, a) == pytest.approx(float((1e-6 / (square + 1e-6)).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (4, 7)])
def test_distance_lies_between_0_and_2_a_row(shape):
    a, b = rows(*shape), rows(*shape, seed=1)
    n = shape[0]
    opposite = {name: -value for name, value in a.items()}
    assert gradient_distance(a, opposite) == pytest.approx(2 * n, abs=1e-4)
    assert 0 < gradient_distance(a, b) < 2 * n
    assert 0 <= gradient_distance(a, a) < 1e-4


def test_distance_of_a_zero_row_is_one():
    a, b = rows(4, 7), rows(4, 7, seed=1)
    before = gradient_distance(a, b)
    row = 1 - torch.nn.functional.cosine_similarity(a["conv.weight"][0, 2], b["conv.weight"][0, 2], dim=0)
    a["conv.weight"][0, 2] = 0
    assert gradient_distance(a, b) == pytest.approx(float(before - row + 1), abs=1e-5)
    zero = {name: torch.zeros_like(value).requires_grad_() for name, value in a.items()}
    distance = gradient_distance(zero, b)
    assert distance.item() == pytest.approx(4)
    assert torch.autograd.grad(distance, zero["conv.weight"])[0].isfinite().all()


def test_distance_is_free_of_scale():
    a, b = rows(4, 7), rows(4, 7, seed=1)
    scaled = {name: 1000 * value for name, value in a.items()}
    assert gradient_distance(scaled, b) == pytest.approx(float(gradient_distance(a, b)), abs=1e-5)


def test_one_dimensional_weights_count_nothing():
    a, b = rows(4, 7), rows(4, 7, seed=1)
    assert gradient_distance({"bias": a["bias"]}, {"bias": b["bias"]}) == 0
    alone = gradient_distance({"conv.weight": a["conv.weight"]}, {"conv.weight": b["conv.weight"]})
    assert gradient_distance(a, b) == alone


def test_distance_equals_its_plain_twin():
    stream = generator(3, "x")
    shapes = {"conv0.weight": (4, 2, 3, 3), "conv0.bias": (4,), "head.weight": (3, 8), "norm": (4, 3, 3)}
    a, b = ({n: torch.randn(5, *s, generator=stream) for n, s in shapes.items()} for _ in range(2))
    a["conv0.weight"][2, 1] = 0
    assert float(gradient_distance(a, b).sum()) == pytest.approx(gradient_distance_plain(a, b), rel=1e-5)


# DC and DSA


@pytest.mark.parametrize("drawn", [None, siamese()], ids=["DC", "DSA"])
def test_gradient_loss_equals_its_plain_twin(drawn):
    """All classes as one stack = class after class, values and pixel gradients, weighted real batches."""
    net, params, real, weights, synthetic = problem()
    fast = gradient_loss(net, params, real, weights, synthetic, LABELS, drawn)
    plain = gradient_loss_plain(net, params, real, weights, synthetic, LABELS, drawn)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-4)
    assert 0 < fast.item() < 2 * CLASSES * (4 + 3)
    ours, expected = grad(fast, synthetic), grad(plain, synthetic)
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))


def test_labels_name_the_classes_present():
    net, params, real, weights, synthetic = problem()
    args = (net, params, real[1:], weights[1:], synthetic[1:])
    for labels in (torch.tensor([1, 2]), torch.tensor([2, 0])):
        fast, plain = gradient_loss(*args, labels, None), gradient_loss_plain(*args, labels, None)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize("loss", [gradient_loss, distribution_loss])
def test_weight_zero_drops_a_sample(loss):
    net, params, real, _, synthetic = problem()
    half = torch.tensor([0.5, 0, 0, 0.5, 0]).expand(CLASSES, N)
    kept = torch.full((CLASSES, 2), 0.5)
    last = (LABELS, None) if loss is gradient_loss else (None,)
    dropped = loss(net, params, real, half, synthetic, *last)
    alone = loss(net, params, real[:, [0, 3]], kept, synthetic, *last)
    assert dropped.item() == pytest.approx(alone.item(), rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_class_gradients_are_those_of_each_class(weighted):
    net, params, real, weights, _ = problem()
    grads = GradientMatching(net).class_gradients(net, StepContext(params, LABELS), real, LABELS, weights if weighted else None)
    assert set(grads) == {"conv0.weight", "head.weight"}
    for c in range(CLASSES):
        learned = {name: value[0].clone().requires_grad_() for name, value in params.items()}
        module = net.module()
        logits = torch.func.functional_call(module, learned, real[c])
        losses = torch.nn.functional.cross_entropy(logits, LABELS[c].expand(N), reduction="none")
        total = (losses * weights[c]).sum() if weighted else losses.mean()
        for name, value in grads.items():
            expected = torch.autograd.grad(total, learned[name], retain_graph=True)[0]
            assert torch.allclose(value[c], expected, atol=1e-5)


@pytest.mark.parametrize("drawn", [None, siamese()], ids=["DC", "DSA"])
def test_pixel_gradient_of_dc_equals_finite_differences(drawn):
    """Second derivatives in float64; a smooth activation keeps kinks away."""
    net, params, real, weights, synthetic = problem(torch.float64, activation="swish")
    if drawn is not None:
        drawn = Draw(drawn.families, drawn.uniforms.double())
    assert torch.autograd.gradcheck(
        lambda pixels: gradient_loss(net, params, real, weights, pixels, LABELS, drawn), [synthetic], fast_mode=True
    )


def test_loops_of_the_published_settings():
    published = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: loops(ipc) for ipc in published} == published
    assert loops(3) == (3, 167) and loops(5) == (5, 100) and loops(2000) == (2000, 1)


def selected(images, ipc):
    indices = torch.cat([images.of_class(c)[:ipc] for c in range(len(images.classes))])
    return Synthetic({"images": images.batch(indices), "targets": images.targets[indices]}, images.classes)


def run(objective, images, ipc=2, steps=7, lr=0.1, seed=0):
    return distill(
        selected(images, ipc), objective, images, Uniform(images.targets), {"images": Optimizer(lr, 0.5)}, steps, generator(seed, "distill")
    )


@pytest.mark.parametrize("ipc, steps, networks, inner", [(2, 7, 4, 3), (1, 4, 4, 0), (4, 8, 2, 6)])
def test_network_updates_between_pixel_updates(tiny, monkeypatch, ipc, steps, networks, inner):
    """T pixel updates a network; zeta inner epochs between them and none after the last."""
    epochs = []
    real_train = gm.train

    def train(*args, **options):
        epochs.append(options["epochs"])
        assert options["optimizer"].momentum == 0 and options["optimizer"].weight_decay == 0
        return real_train(*args, **options | {"epochs": 1})

    monkeypatch.setattr(gm, "train", train)
    net = Counting(ConvNet((1, 8, 8), 3, width=4, depth=1))
    run(GradientMatching(net), tiny, ipc, steps)
    assert net.drawn == networks
    assert epochs == [loops(ipc)[1]] * inner


def test_inner_training_sees_the_updated_pixels_and_the_augmentation(tiny, monkeypatch):
    seen = []
    real_train = gm.train
    monkeypatch.setattr(gm, "train", lambda *a, **o: seen.append((a, o)) or real_train(*a, **o))
    done = run(GradientMatching(ConvNet((1, 8, 8), 3, width=4, depth=1), 3, 2, augmentation=DSA), tiny, steps=2)
    first_update = run(GradientMatching(ConvNet((1, 8, 8), 3, width=4, depth=1), 3, 2, augmentation=DSA), tiny, steps=1)
    ((args, options),) = seen
    assert options["epochs"] == 2 and options["augmentation"] == DSA
    assert torch.equal(args[2].images, first_update.last.tensors["images"])
    assert not torch.equal(args[2].images, done.last.tensors["images"])


def test_batch_norm_statistics_come_from_real_images_and_are_frozen(tiny):
    """As published: statistics first frozen from 16 real images of every class."""
    net = ConvNet((1, 8, 8), 3, width=4, depth=1, normalization="batch")
    params = net.init(generator(0, "x"))
    real = tiny.batch(torch.arange(24)).unflatten(0, (3, 8))
    fresh = StepContext(params, torch.arange(3))
    context = GradientMatching(net).with_real(fresh, real)
    frozen = context.params
    mean = torch.nn.functional.conv2d(real.flatten(0, 1), params["conv0.weight"][0], params["conv0.bias"][0], padding=1).mean((0, 2, 3))
    assert context.train_mode is False
    assert torch.allclose(frozen["norm0.running_mean"][0], 0.1 * mean, atol=1e-5)
    more = torch.randn(3, 20, 1, 8, 8, generator=generator(0, "more"))
    means = [GradientMatching(net).with_real(fresh, more[:, :n]).params["norm0.running_mean"] for n in (15, 16, 20)]
    assert torch.equal(means[1], means[2]) and not torch.allclose(means[0], means[1], atol=1e-6)
    done = run(GradientMatching(net), tiny, steps=3)
    assert done.last.tensors["images"].isfinite().all()


# DM


@pytest.mark.parametrize("normalization", ["instance", "group", "none"])
@pytest.mark.parametrize("drawn", [None, siamese()], ids=["plain", "augmented"])
def test_distribution_loss_equals_its_plain_twin(drawn, normalization):
    """One forward of all classes = the loop over classes, values and pixel gradients, weighted batches."""
    net, params, real, weights, synthetic = problem(normalization=normalization)
    fast = distribution_loss(net, params, real, weights, synthetic, drawn)
    plain = distribution_loss_plain(net, params, real, weights, synthetic, drawn)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-4)
    assert torch.allclose(grad(fast, synthetic), grad(plain, synthetic), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_equal_batches_have_no_distance_under_siamese_augmentation(seed):
    """S_c = B^T_c gives L = 0 and zero gradient."""
    net, params, real, _, _ = problem()
    synthetic = real.clone().requires_grad_()
    uniform = torch.full((CLASSES, N), 1 / N)
    loss = distribution_loss(net, params, real, uniform, synthetic, siamese(seed=seed))
    assert loss.item() < 1e-9
    assert grad(loss, synthetic).abs().max() < 1e-5


def test_distribution_loss_does_not_see_the_order_within_a_class():
    net, params, real, weights, synthetic = problem()
    first, swapped = (distribution_loss(net, params, real, weights, images, siamese()) for images in (synthetic, synthetic.flip(1)))
    assert first.item() == pytest.approx(swapped.item(), rel=1e-5)
    other = distribution_loss(net, params, real, weights, synthetic.flip(0), siamese())
    assert other.item() != pytest.approx(first.item(), rel=1e-2)  # but it does see the classes


def test_pixel_gradient_of_dm_equals_finite_differences():
    net, params, real, weights, synthetic = problem(torch.float64, activation="swish")
    assert torch.autograd.gradcheck(
        lambda pixels: distribution_loss(net, params, real, weights, pixels, siamese("color_rotate")), [synthetic], fast_mode=True
    )


def test_every_step_of_dm_has_a_new_network(tiny):
    net = Counting(ConvNet((1, 8, 8), 3, width=4, depth=1))
    run(DistributionMatching(net, augmentation=DSA), tiny, steps=5)
    assert net.drawn == 5


def test_networks_of_dm_differ_from_step_to_step(tiny):
    net, drawn = ConvNet((1, 8, 8), 3, width=4, depth=1), []
    init = net.init
    net.init = lambda *args: drawn.append(init(*args)) or drawn[-1]
    run(DistributionMatching(net), tiny, steps=4)
    assert len({float(params["head.weight"].sum()) for params in drawn}) == 4


# Both


@pytest.mark.parametrize("build", [GradientMatching, DistributionMatching])
def test_distillation_lowers_the_loss_it_descends(tiny, build):
    """Noise moves towards the real images: the matching loss under fresh networks falls."""
    net = ConvNet((1, 8, 8), 3, width=8, depth=1)
    start = selected(tiny, 1).replace(images=torch.randn(3, 1, 8, 8, generator=generator(1, "noise")))
    lr = 0.3 if build is GradientMatching else 3.0
    done = distill(start, build(net), tiny, Uniform(tiny.targets), {"images": Optimizer(lr, 0.5)}, 60, generator(0, "x"))
    losses = done.log["loss"]
    assert losses[-15:].mean() < 0.8 * losses[:5].mean()
    assert done.cost["samples"] == 60 * 24


@pytest.mark.parametrize("build", [GradientMatching, DistributionMatching])
def test_unbalanced_classes_are_refused(tiny, build, refused):
    lopsided = selected(tiny, 2)
    tensors = {name: value[1:] for name, value in lopsided.tensors.items()}
    with refused([1, 2, 2]):
        distill(
            Synthetic(tensors, tiny.classes),
            build(network()),
            tiny,
            Uniform(tiny.targets),
            {"images": Optimizer(0.1)},
            1,
            generator(0, "x"),
        )


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", ["DC", "DM"])
def test_classes_in_chunks_give_the_gradient_of_all(name, size):
    """The loss is a sum over classes: chunks change memory alone, also where one stored image is four."""
    net, params, real, weights, _ = problem()
    targets = LABELS.repeat_interleave(2)[torch.tensor([3, 0, 4, 1, 5, 2])]  # in no order
    stored = torch.randn(6, *real.shape[2:], generator=generator(5, "stored"))
    made = Synthetic({"images": stored, "targets": targets}, formation="partition2")

    objective = {"DC": GradientMatching, "DM": DistributionMatching}[name](net)

    def loss(images, here):
        return objective.loss(StepContext(params, LABELS), real, weights, images, here)

    total, gradient = gradient_by_classes(made, size, loss)
    leaf = stored.clone().requires_grad_()
    _, members = made.classes_present()
    grouped = made.replace(images=leaf).decode()[0][members]
    expected = loss(grouped, slice(None))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, grad(expected, leaf), atol=1e-4 * float(gradient.abs().max()))
