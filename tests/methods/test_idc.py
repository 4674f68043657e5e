"""IDC: its distances, the loop over networks that train on real images, and pixels in their own units."""

import pytest
import torch
import torch.nn.functional as F

from distillery.data.synthetic import Synthetic, form, pack
from distillery.distill import Optimizer, distill
from distillery.matching import step as matching_step
from distillery.matching.step import StepContext
from distillery.methods import METHODS, idc
from distillery.methods.idc import METRICS, FormationContext, MultiFormation, convolutions
from distillery.networks import ConvNet, ModuleNetwork
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from distillery.training import dsa
from distillery.training.optimizers import SGD
from made_up import Counting

CLASSES, N, M = 3, 5, 2
LABELS = torch.arange(CLASSES)
A = "color+crop+cutout"


def network(**options):
    return ConvNet((1, 8, 8), CLASSES, **{"width": 4, "depth": 2} | options)


def problem(dtype=torch.float32):
    """A network, real and synthetic images by class, and unequal weights with zeros among them."""
    stream, net = generator(0, "problem"), network()
    params = {name: value.to(dtype) for name, value in net.init(stream, 1).items()}
    real = torch.randn(CLASSES, N, 1, 8, 8, generator=stream, dtype=dtype)
    images = torch.randn(CLASSES, M, 1, 8, 8, generator=stream, dtype=dtype)
    weights = torch.rand(CLASSES, N, generator=stream, dtype=dtype)
    weights[0, 2] = weights[1, 0] = 0
    return net, params, real, weights / weights.sum(1, keepdim=True), images.requires_grad_()


def siamese():
    return dsa.draw(A, CLASSES, 1, generator(1, "draw"), siamese=True)


def gradients(seed=0):
    stream = generator(seed, "gradients")
    shapes = {"conv0.weight": (4, 2, 3, 3), "conv1.weight": (4, 4, 3, 3)}
    return {n: torch.randn(CLASSES, *s, generator=stream, dtype=torch.float64) for n, s in shapes.items()}


def packed(tiny, formation="partition2"):
    chosen = torch.cat([tiny.of_class(c)[:4] for c in range(CLASSES)])
    images = pack(tiny.batch(chosen), formation)
    return Synthetic({"images": images, "targets": tiny.targets[chosen][:: 12 // len(images)]}, tiny.classes, formation)  # fmt: skip


def objective(net=None, **options):
    small = {"batch": 4, "inner": 3, "n_data": 9, "train_batch": 5}
    return MultiFormation(net or network(), **small | options)


def run(tiny, made, steps=4, lr=0.01, **options):
    return distill(
        packed(tiny, made.formation), made, tiny, Uniform(tiny.targets), {"images": Optimizer(lr)}, steps,
        generator(0, "run"), **options,
    )  # fmt: skip


# The distance


@pytest.mark.parametrize("metric", METRICS)
def test_distances_by_brute_force(metric):
    ours, real = gradients(0), gradients(1)
    found = METRICS[metric](ours, real)
    for c in range(CLASSES):
        pairs = [(a, b) for n in ours for a, b in zip(ours[n][c].flatten().tolist(), real[n][c].flatten().tolist())]  # fmt: skip
        expected = sum((a - b) ** 2 if metric == "mse" else abs(a - b) for a, b in pairs)
        assert float(found[c]) == pytest.approx(expected, rel=1e-12)
    assert METRICS[metric](ours, ours).tolist() == [0] * CLASSES


@pytest.mark.parametrize("factor", [3.0, -0.5])
@pytest.mark.parametrize("metric, power", [("mse", 2), ("l1", 1)])
def test_scaling_both_gradients(metric, power, factor):
    ours, real = gradients(0), gradients(1)
    scaled = [{name: factor * value for name, value in one.items()} for one in (ours, real)]
    expected = abs(factor) ** power * METRICS[metric](ours, real)
    assert torch.allclose(METRICS[metric](*scaled), expected, rtol=1e-12)


def test_only_convolution_weights_are_compared():
    net, params, real, *_ = problem()
    assert convolutions(params) == ["conv0.weight", "conv1.weight"]
    grads = objective(net).class_gradients(net, StepContext(params, LABELS), real, LABELS)
    assert {name: value.shape[1:] for name, value in grads.items()} == {"conv0.weight": (4, 1, 3, 3), "conv1.weight": (4, 4, 3, 3)}
    published = ConvNet((3, 32, 32), 10).init(generator(0, "x"))
    assert sum(published[name].numel() for name in convolutions(published)) == 298_368


@pytest.mark.parametrize("drawn", [None, siamese()], ids=["plain", "augmented"])
@pytest.mark.parametrize("metric", METRICS)
def test_loss_is_that_of_one_class_after_another(metric, drawn, as_module):
    """Through a plain module, with torch's own second derivatives."""
    net, params, real, weights, images = problem()
    context = FormationContext(params, LABELS, drawn)
    ours = objective(metric=metric).loss(context, real, weights, images, slice(None))
    total = torch.zeros(())
    for c in range(CLASSES):
        one = None if drawn is None else drawn[c : c + 1]
        module = as_module(net, params, 0)
        kernels = [module.conv0.weight, module.conv1.weight]
        wrong = F.cross_entropy(module(dsa.augment(real[c : c + 1], one)[0]), torch.tensor([c] * N), reduction="none")  # fmt: skip
        target = torch.autograd.grad((wrong * weights[c]).sum(), kernels)
        wrong = F.cross_entropy(module(dsa.augment(images[c : c + 1], one)[0]), torch.tensor([c] * M))
        found = torch.autograd.grad(wrong, kernels, create_graph=True)
        gaps = [(a - b) for a, b in zip(found, target)]
        total = total + sum((gap.square() if metric == "mse" else gap.abs()).sum() for gap in gaps)
    assert ours.item() == pytest.approx(total.item(), rel=1e-4)
    one, other = (torch.autograd.grad(value, images)[0] for value in (ours, total))
    assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_batches_have_no_distance_and_duplicates_change_nothing(metric):
    net, params, real, weights, images = problem(torch.float64)
    made, context = objective(metric=metric), FormationContext(params, LABELS, siamese())
    uniform = torch.full_like(weights, 1 / N)
    assert made.loss(context, real, uniform, real.clone().requires_grad_(), slice(None)) < 1e-12
    once, twice = (made.loss(context, real, weights, i, slice(None)) for i in (images, images.repeat(1, 2, 1, 1, 1)))
    assert twice.item() == pytest.approx(once.item(), rel=1e-10)


# The loop


def test_networks_train_between_updates_and_then_a_new_one_comes(tiny, monkeypatch):
    """Matched states are those after 0 .. inner - 1 trainings, and momentum is kept in between."""
    calls, real = [], matching_step.train

    def train(*args, **options):
        calls.append((len(options["done"][1]), options["steps"], options["augmentation"], options["cutmix"]))
        return real(*args, **options)

    monkeypatch.setattr(matching_step, "train", train)
    net = Counting(network())
    done = run(tiny, objective(net), steps=7)
    assert net.drawn == 3  # of 3, 3 and 1 updates
    momenta = len(network().init(generator(0, "x")))
    assert [call[0] for call in calls] == [0, momenta, 0, momenta]
    assert calls[0][1:] == (2, "color+crop", 0.5)
    assert done.cost["samples"] == 7 * 3 * 4 + 4 * 10
    assert done.last.tensors["images"].isfinite().all()


def test_momentum_goes_on_as_in_one_training(tiny):
    """Two trainings with the state kept are what SGD does in one go, image for image."""
    made, start = objective(cutmix=0.0, train_augmentation="", n_data=5), packed(tiny)
    draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    state = made.start(start, generator(0, "start"))
    weights = {n: v[0].clone().requires_grad_() for n, v in state.items() if n.startswith("network.")}
    sgd = torch.optim.SGD(list(weights.values()), 0.01, 0.9, weight_decay=5e-4)
    again = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    for _ in range(3):
        before = {name: value.clone() for name, value in state.items()}
        after = made._train(state, draw, generator(0, "train"))
        assert all(torch.equal(state[name], before[name]) for name in before)  # nothing is changed in place
        state = after
        images, targets, _ = again(None, 5)
        stacked = {n.removeprefix("network."): v[None] for n, v in weights.items()}
        loss = F.cross_entropy(network().apply(stacked, images).logits[0], targets)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, value in weights.items():
        assert torch.allclose(state[name][0], value, atol=1e-5)


def test_published_steps_a_training():
    """Whole batches: 2000 images are 32 steps, 500 are 8."""
    assert MultiFormation(network()).train_steps == 32
    assert MultiFormation(network(), n_data=500).train_steps == 8
    assert MultiFormation(network()).optimizer == SGD(0.01, 0.9, 5e-4)


def test_a_killed_run_goes_on_with_its_network(tiny, tmp_path, monkeypatch):
    whole = run(tiny, objective(most=2), 6)
    path, calls, step = tmp_path / "checkpoint.safetensors", [], MultiFormation.step

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(MultiFormation, "step", dies)
    options = {"checkpoint": path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        run(tiny, objective(most=2), 6, **options)
    again = run(tiny, objective(most=2), 6, **options)
    assert torch.equal(whole.last.tensors["images"], again.last.tensors["images"])
    assert torch.equal(whole.log["loss"], again.log["loss"])


# Decoded images and pixels


def test_a_random_part_of_many_decoded_images_enters(tiny, monkeypatch):
    seen, real = [], idc.GradientMatching.loss
    monkeypatch.setattr(idc.GradientMatching, "loss", lambda self, *given: seen.append(given[3]) or real(self, *given))
    made = objective(most=3)
    run(tiny, made, 2, lr=0.0)
    decoded = packed(tiny).decode()[0].unflatten(0, (3, 4))
    kept = [[torch.nonzero((decoded[c] == image).flatten(1).all(1))[0].item() for image in images[c]] for images in seen for c in range(3)]
    assert all(len(set(one)) == 3 for one in kept) and len({tuple(sorted(one)) for one in kept}) > 1
    seen.clear()
    run(tiny, objective(most=4), 1)
    assert torch.equal(seen[0], decoded)


def test_effects_see_the_chosen_images():
    net, params, real, weights, images = problem(torch.float64)
    picked = torch.tensor([[1, 2], [0, 3], [2, 0]])
    made = objective(formation="partition2")
    used = form(images.flatten(0, 1)[::2], "partition2").unflatten(0, (3, 4))  # four of each class
    chosen = torch.stack([used[c, picked[c]] for c in range(3)])
    for c in range(3):
        means = (weights[c] @ made.statistic(FormationContext(params, LABELS), real[c], c))[None]
        found = made.distance(FormationContext(params, LABELS, picked=picked), used[c][None], means, c)
        expected = made.distance(FormationContext(params, LABELS), chosen[c][None], means, c)
        assert torch.allclose(found, expected)
        alone = made.loss(FormationContext(params, LABELS, picked=picked), real, weights, used[c : c + 1], slice(c, c + 1))  # fmt: skip
        assert float(found.detach()) == pytest.approx(alone.item(), rel=1e-10)


def test_rates_and_bounds_are_those_of_pixels(tiny):
    """A step moves pixels in [0, 1] by lr times their own gradient, and leaves them there."""
    plain = run(tiny, objective(formation="identity"), 1, lr=0.001)
    made = objective(formation="identity", transform=tiny.transform)
    ours = run(tiny, made, 1, lr=0.001)
    start, std = packed(tiny, "identity").tensors["images"], tiny.transform.std
    gradient = (start - plain.last.tensors["images"]) / 0.001  # on standardized images
    pixels = tiny.transform.inverse(start) - 0.001 * gradient / std[:, None, None]  # chain rule
    expected = tiny.transform(pixels.clamp(0, 1))
    assert torch.allclose(ours.last.tensors["images"], expected, atol=1e-4)
    far = tiny.transform.inverse(run(tiny, made, 3, lr=100.0).last.tensors["images"])
    assert far.min() >= -1e-5 and far.max() <= 1 + 1e-5 and far.max() - far.min() > 0.9


# Names and refusals


def test_names():
    assert MultiFormation(network()).name == "IDC"
    assert MultiFormation(network(), formation="identity").name == "IDC-I"


@pytest.mark.parametrize(
    "wrong", [{"metric": "cos"}, {"formation": "grid"}, {"inner": 0}, {"n_data": 0}, {"most": 0}, {"transform": "zca"}],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_refused(wrong, refused):
    with refused(next(iter(wrong))):
        objective(**wrong)


def test_foreign_sets_and_networks_are_refused(tiny, refused):
    with refused("partition2", "identity"):
        objective(formation="identity").start(packed(tiny), generator(0, "x"))
    flat = ModuleNetwork(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), "MLP")
    with refused("MLP", "convolution"):
        objective(flat).start(packed(tiny), generator(0, "x"))


# Published settings


@pytest.mark.parametrize(
    "name, dataset, size, expected",
    [
        ("IDC", "cifar10", 10, {"lr": 5e-3, "n_data": 2000, "metric": "mse", "formation": "partition2"}),
        ("IDC", "svhn", 50, {"lr": 2.5e-2, "n_data": 500, "interpolation": "nearest"}),
        ("IDC", "mnist", 10, {"lr": 1e-4, "metric": "l1", "augmentation": "color+crop", "cutmix": 0.0}),
        ("IDC-I", "mnist", 10, {"augmentation": "color+crop+cutout", "cutmix": 0.5, "formation": "identity", "n_data": 500}),
        ("IDC-I", "fashion-mnist", 50, {"lr": 3.83e-4, "metric": "l1"}),
        ("IDC-I", "cifar100", 20, {"lr": 1e-2, "cutmix": 0.5}),
    ],
)  # fmt: skip
def test_some_cells_by_hand(name, dataset, size, expected):
    settings = METHODS[name].settings(dataset, size)
    for setting, value in expected.items():
        assert getattr(settings, setting) == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    assert METHODS[name].updates(settings, size) == 200_000


def test_the_rate_of_a_recipe_stands_for_itself():
    """The published rate grows with the images of a class, a given one does not."""
    assert METHODS["IDC"].settings("cifar10", 10, own={"lr": 0.5, "steps": 7}).lr == 0.5
    assert METHODS["IDC"].updates(METHODS["IDC"].settings("cifar10", 10, own={"steps": 7}), 10) == 7
