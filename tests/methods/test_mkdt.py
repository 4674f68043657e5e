"""MKDT: students that regress a teacher's targets, their high-loss images, their matching, and published settings."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from distillery import experts as ex
from distillery.data import ImageSet, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.experiment import Experiment, Presets
from distillery.experts import Experts
from distillery.matching.trajectory import Flat, StartEpochs, TrajectoryMatching, student, sweep, sweep_plain
from distillery.methods import METHODS
from distillery.methods.mkdt import high_loss, high_loss_plain, losses, published_probe
from distillery.networks import ConvNet, ModuleNetwork
from distillery.networks.encoder import Encoder
from distillery.recipe import Recipe
from distillery.runs import Runs
from distillery.sampling import Uniform
from distillery.seeds import generator, split
from distillery.training import squared_error, train
from distillery.training.optimizers import SGD
from made_up import blobs, most_graphs

WIDTH = 5  # of the targets
KD = ex.Training(3, SGD(0.1, 0.9, 1e-4), 10, "", loss="squared error")
F64 = torch.float64


def network(width=4, outputs=WIDTH, **options):
    return ConvNet((1, 8, 8), outputs, width=width, depth=1, **options)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


def regression(images, seed=0, width=WIDTH):
    return RegressionSet(images, normal(len(images), width, seed=seed), images.digest)


def made(folder, source, epochs=2, training=KD, net=None):
    ex.make(folder, net or network(), source, training, epochs)
    return ex.load(folder, net or network(), source, training, epochs)


# Students as experts


def test_students_are_the_networks_of_a_plain_loop(tiny, tmp_path, as_module):
    """SGD with momentum and weight decay on the squared error, mean over batch and outputs: every weight after every epoch."""
    source, net = regression(tiny), network()
    students = made(tmp_path, source)
    for i in range(3):
        module = as_module(net, students.at(i, 0), 0)
        sgd = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=1e-4)
        # the stream of expert i, which draws the order of every epoch
        stream = split(generator(0, "expert training"), 3)[i]
        for epoch in (1, 2):
            for indices in torch.randperm(24, generator=stream).split(10):
                output = module(tiny.batch(indices))
                loss = ((output - source.targets[indices]) ** 2).sum() / (len(indices) * WIDTH)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
            stored = students.at(i, epoch)
            for name, value in module.state_dict().items():
                assert torch.allclose(value, stored[name][0], atol=1e-5), (i, epoch, name)


def test_snapshots_are_those_asked_for_and_all_differ(tiny, tmp_path):
    students = made(tmp_path, regression(tiny), 3)
    assert students.epochs == 3 and len([*tmp_path.rglob("*.safetensors")]) == 4
    weights = students.weights["conv0.weight"]
    assert all((weights[:, i] - weights[:, j]).norm() > 1e-4 for i in range(4) for j in range(i))
    more = made(tmp_path, regression(tiny), 4)
    assert all(torch.equal(more.weights[name][:, :4], value) for name, value in students.weights.items())


def test_the_published_student_has_the_published_size():
    for side, depth, expected in ((32, 3, 1_348_608), (64, 4, 1_496_448)):
        net = ConvNet((3, side, side), 512, depth=depth)
        assert net.features == 2048
        assert sum(value.numel() for value in net.init(generator(0, "x"), 1).values()) == expected


def test_targets_belong_to_their_images(tiny, tmp_path, refused):
    other = blobs(seed=1)
    assert len(other) == len(tiny)
    with refused("made of images", other.digest[:12], tiny.digest[:12]):
        RegressionSet(tiny, normal(24, WIDTH), other.digest)
    with refused("(23, 5)", "(24, D)"):
        RegressionSet(tiny, normal(23, WIDTH), tiny.digest)
    with refused("NaN"):
        RegressionSet(tiny, normal(24, WIDTH).log(), tiny.digest)
    with refused("int64", "real"):
        RegressionSet(tiny, torch.zeros(24, WIDTH, dtype=torch.int64), tiny.digest)

    net = network(outputs=3)
    teacher = Encoder(net, {n: v for n, v in net.init(generator(0, "t"), 1).items() if "head" not in n})
    path = tmp_path / "targets.safetensors"
    source = RegressionSet.of(teacher, tiny, path)
    assert source.targets.shape == (24, net.features)
    assert torch.equal(RegressionSet.of(teacher, tiny, path).targets, source.targets)
    with refused("another data set"):
        RegressionSet.of(teacher, other, path)


def test_students_of_other_targets_or_another_loss_are_not_these(tiny, tmp_path, refused):
    source = regression(tiny)
    made(tmp_path, source)
    with refused("0 of 3 epochs"):
        ex.load(tmp_path, network(), regression(tiny, seed=1), KD, 2)
    with refused("0 of 3 epochs"):
        ex.load(tmp_path, network(), tiny, replace(KD, loss="cross-entropy"), 2)
    with refused("(24, 5)", "(24, 7)"):
        ex.make(tmp_path, network(outputs=7), source, KD, 2)
    with refused("(24,)", "(24, 5)"):
        ex.make(tmp_path, network(), tiny, KD, 2)
    with refused("cross-entropy", "squared error"):
        ex.make(tmp_path, network(), source, replace(KD, loss="cross-entropy"), 2)
    with refused("hinge"):
        replace(KD, loss="hinge")


def test_identities_from_before_hold(tiny):
    """A loss is named only where it is not the first one."""
    before = ex.Training(3, KD.optimizer, 10, "")
    assert "loss" not in before.spec() and KD.spec() == before.spec() | {"loss": "squared error"}
    for source, how, loss in ((tiny, before, None), (regression(tiny), KD, "squared error")):
        [(*_, card, _)] = ex._chunks("", network(), source, how)
        assert card["inputs"].get("loss") == loss


def test_a_subset_keeps_each_image_with_its_target(tiny):
    source, chosen = regression(tiny), torch.tensor([5, 2, 17])
    part = source.subset(chosen)
    assert len(part) == 3 and part.made_of == tiny.subset(chosen).digest and part.digest != source.digest
    assert torch.equal(part.targets, source.targets[chosen])
    assert torch.equal(part.batch(torch.tensor([1])), source.batch(torch.tensor([2])))


# High-loss images


@pytest.mark.parametrize("epoch, normalization", [(1, "instance"), (2, "instance"), (1, "batch")])
def test_high_loss_images_one_by_one(tiny, tmp_path, epoch, normalization):
    source, net = regression(tiny), network(normalization=normalization)
    students = made(tmp_path, source, net=net)
    expected = high_loss_plain(net, students, source, 24, epoch)
    assert high_loss(net, students, source, 24, epoch).tolist() == expected
    found = losses(net, students, source, epoch)
    assert found.dtype == F64 and found.shape == (24,)
    assert (found[expected].diff() <= 0).all() and sorted(expected) == list(range(24))
    assert high_loss(net, students, source, 5, epoch).tolist() == expected[:5]


def test_a_mean_over_students_by_hand():
    """Outputs are a student's bias: 0 and 2. Targets 0, 3, 1, 3: errors (0 + 4) / 2, (9 + 1) / 2, 1, 5."""
    net = ModuleNetwork(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1, 1)))
    weights = {"1.weight": torch.zeros(2, 2, 1, 1), "1.bias": torch.tensor([[[9.0], [0.0]], [[9.0], [2.0]]])}
    images = ImageSet.of(torch.rand(4, 1, 1, 1, generator=generator(0, "x")), torch.zeros(4, dtype=torch.int64))
    source = RegressionSet(images, torch.tensor([[0.0], [3], [1], [3]]), images.digest)
    assert losses(net, Experts(weights), source).tolist() == [2, 5, 1, 5]
    assert high_loss(net, Experts(weights), source, 4).tolist() == [1, 3, 0, 2]  # equal ones by index
    assert high_loss(net, Experts(weights), source, 1).tolist() == [1]


def test_many_equal_losses_come_by_index():
    net = ModuleNetwork(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1, 1)))
    zero = Experts({"1.weight": torch.zeros(1, 2, 1, 1), "1.bias": torch.zeros(1, 2, 1)})
    images = ImageSet.of(torch.zeros(5000, 1, 1, 1), torch.zeros(5000, dtype=torch.int64))
    source = RegressionSet(images, torch.arange(5000)[:, None] % 2 + 1.0, images.digest)
    expected = [*range(1, 5000, 2), *range(0, 5000, 2)]
    assert high_loss(net, zero, source, 5000).tolist() == expected


def test_impossible_subsets_are_refused(tiny, tmp_path, refused):
    source = regression(tiny)
    students = made(tmp_path, source, 1)
    with refused("epoch 2", "0 to 1"):
        high_loss(network(), students, source, 3, epoch=2)
    with refused("(24, 7)", "(24, 5)"):
        losses(network(), students, regression(tiny, width=7))


# Matching


def bank(images, net, epochs=3, k=2):
    """Students in memory, in float64."""
    params = {name: value.double() for name, value in net.init(generator(0, "students"), k).items()}
    source = TensorSource(images.batch(torch.arange(24)).double(), normal(24, WIDTH, dtype=F64))
    _, stats = train(
        net,
        params,
        source,
        squared_error,
        SGD(0.1, 0.9, 1e-4),
        generator=generator(0, "train"),
        epochs=epochs,
        batch=8,
        snapshots=range(epochs + 1),
        chunk=k,
    )
    return Experts({name: torch.stack([stats.snapshots[e][name] for e in range(epochs + 1)], 1) for name in params})


def problem(images, n=3, *, learn=True, net=None, step_size=0.1):
    """Arguments of `sweep` as the objective makes them, with its network and its first set of six images."""
    net = net or network(activation="swish")
    matching = TrajectoryMatching(net, bank(images, net), n, 2, StartEpochs(0, 2), batch=4, loss=squared_error, targets=learn)
    synthetic = Synthetic(
        {
            "images": images.batch(torch.arange(6)).double(),
            "targets": normal(6, WIDTH, dtype=F64, seed=1),
            "step_size": torch.tensor(step_size, dtype=F64),
        }
    )
    start, target = (matching.experts.at(1, epoch) for epoch in (1, 3))
    tensors = {name: synthetic.tensors[name] for name in matching.learns}
    draws = matching.draws(synthetic, generator(0, "order"), generator(0, "augment"))
    return (matching.step_loss(synthetic, {}), start, target, tensors, draws), matching, synthetic


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_gradients_of_the_sweep_are_those_of_the_loop_and_central_differences(tiny, n, learn):
    (loss, start, target, tensors, draws), *_ = problem(tiny, n, learn=learn)
    given = loss, start, target
    value, found = sweep(*given, tensors, draws)
    expected_value, expected = sweep_plain(*given, tensors, draws)
    assert set(found) == {"images", "step_size"} | ({"targets"} if learn else set())
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-12)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() < 1e-10 * expected[name].norm(), name
        direction, h = normal(*gradient.shape, seed=2, dtype=F64), 1e-5
        up, down = (sweep(*given, tensors | {name: tensors[name] + h * s * direction}, draws)[0] for s in (1, -1))
        difference = float(up - down) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-6), name


def test_one_step_of_linear_regression_in_closed_form():
    r"""$\theta_1 = \theta_0 - \eta\,G$, $G = \frac{2}{BD}\sum_b (W x_b + c - z_b)(x_b, 1)^T$; $\partial L$ through $\Lambda = 2(\theta_1 - \tau)/|\tau_0 - \tau|^2$."""
    net = ModuleNetwork(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    x, z, eta = normal(4, 3, dtype=F64), normal(4, 2, dtype=F64, seed=1), 0.3
    start, target = normal(2, 4, dtype=F64, seed=2), normal(2, 4, dtype=F64, seed=3)  # (D, inputs and bias)
    ends = [{"1.weight": v[None, :, :3], "1.bias": v[None, :, 3]} for v in (start, target)]
    students = Experts({name: torch.stack([end[name] for end in ends], 1) for name in ends[0]})
    matching = TrajectoryMatching(net, students, 1, 1, StartEpochs(0, 1), loss=squared_error, targets=True)
    synthetic = Synthetic({"images": x.view(4, 3, 1, 1), "targets": z, "step_size": torch.tensor(eta, dtype=F64)})
    state = matching.start(synthetic, generator(0, "start"))
    found, _, log = matching.step(synthetic, state, None, generator(0, "step"))

    ones = torch.cat([x, torch.ones(4, 1, dtype=F64)], 1)  # (B, inputs and bias)
    residual = ones @ start.T - z  # (B, D)
    gradient = 2 / 8 * residual.T @ ones
    distance = (start - target).square().sum()
    gap = start - eta * gradient - target
    along = 2 * gap / distance  # (D, inputs and bias)
    assert log["loss"].item() == pytest.approx(float(gap.square().sum() / distance), rel=1e-12)
    assert torch.allclose(found["step_size"], -(along * gradient).sum(), rtol=1e-10)
    assert torch.allclose(found["targets"], 2 / 8 * eta * ones @ along.T, rtol=1e-10)
    through = -2 / 8 * eta * (ones @ along.T @ start + residual @ along)[:, :3]
    assert torch.allclose(found["images"].view(4, 3), through, rtol=1e-10)


def test_a_student_that_does_not_move_has_loss_one(tiny):
    _, matching, synthetic = problem(tiny, step_size=0.0)
    state = matching.start(synthetic, generator(0, "start"))
    gradients, _, log = matching.step(synthetic, state, None, generator(0, "step"))
    assert log["loss"] == 1 and (gradients["images"] == 0).all() and (gradients["targets"] == 0).all()
    assert gradients["step_size"] != 0


@pytest.mark.parametrize("n", [1, 3])
def test_its_own_end_is_reached(tiny, n):
    (loss, start, _, tensors, draws), *_ = problem(tiny, n)
    end = Flat(start).params(student(loss, start, tensors, draws)[-1])
    value, gradients = sweep(loss, start, end, tensors, draws)
    assert value < 1e-12 and all(gradient.abs().max() < 1e-5 for gradient in gradients.values())


@pytest.mark.parametrize("n", [2, 6])
def test_memory_holds_the_graph_of_one_step(tiny, n):
    """Graphs alive when a step begins: at most one, however many steps; the unrolled loop holds them all."""
    (loss, *rest), *_ = problem(tiny, n)
    assert most_graphs(partial(sweep, keep=0), loss, "targets", *rest) <= 1
    assert most_graphs(sweep_plain, loss, "targets", *rest) == n - 1


def test_batches_pass_through_the_set_without_replacement(tiny):
    """1000 images in batches of 256 and the rest, as published; a smaller set at once."""
    net = network()
    matching = TrajectoryMatching(net, bank(tiny, net), 8, 2, StartEpochs(0, 2), batch=256, loss=squared_error)
    for m, sizes in ((1000, [256, 256, 256, 232] * 2), (6, [6] * 8)):
        synthetic = Synthetic({"images": torch.zeros(m, 1, 8, 8), "targets": torch.zeros(m, WIDTH)})
        drawn = matching.draws(synthetic, generator(0, "order"), generator(0, "augment"))
        assert [len(indices) for indices, _ in drawn] == sizes
        one = len(sizes) // 2 if m == 1000 else 1
        assert sorted(torch.cat([indices for indices, _ in drawn[:one]]).tolist()) == list(range(m))
        assert all(augmentation is None for _, augmentation in drawn)


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_a_distillation_comes_nearer_and_learns_what_it_shall(tiny, tmp_path, learn):
    """From the images of highest loss; fixed targets keep their bits."""
    source = regression(tiny)
    students = made(tmp_path, source, 3)
    part = source.subset(high_loss(network(), students, source, 8))
    start = Synthetic({"images": part.batch(torch.arange(8)), "targets": part.targets, "step_size": torch.tensor(0.1)})
    matching = TrajectoryMatching(network(), students, 6, 2, StartEpochs(0, 2), batch=4, loss=squared_error, targets=learn)
    rates = {"images": Optimizer(10.0, 0.5), "step_size": Optimizer(1e-4, 0.5)}
    rates |= {"targets": Optimizer(1.0, 0.5)} if learn else {}
    done = distill(start, matching, tiny, Uniform(tiny.targets), rates, 40, generator(0, "distill"))
    for epoch in (0, 1):  # later starts have larger losses: compared apart
        loss = done.log["loss"][done.log["start"] == epoch]
        assert len(loss) > 10 and loss[-5:].mean() < 0.97 * loss[:5].mean(), epoch
    assert torch.equal(done.last.tensors["targets"], start.tensors["targets"]) != learn
    assert not torch.equal(done.last.tensors["images"], start.tensors["images"])
    assert math.isfinite(done.last.tensors["step_size"]) and done.last.tensors["step_size"] != 0.1


# Published settings


@pytest.mark.parametrize(
    "dataset, images, expected",
    [
        ("cifar10", 1000, {"student_steps": 40, "expert_epochs": 2, "max_start_epoch": 5, "lr_images": 1000, "student_batch": 256}),
        ("cifar100", 1000, {"student_steps": 40, "max_start_epoch": 2, "lr_images": 1000, "step_size": 0.1}),
        ("cifar100", 2500, {"max_start_epoch": 5, "lr_images": 10000, "learned": False, "lr_step_size": 1e-4}),
        ("tiny-imagenet", 5000, {"student_steps": 10, "max_start_epoch": 2, "lr_images": 100000}),
    ],
)  # fmt: skip
def test_some_cells_by_hand(dataset, images, expected):
    settings = METHODS["MKDT"].settings(dataset, images, 100_000 if dataset == "tiny-imagenet" else 50_000)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_nearer_published_size_is_taken():
    """2 and 5% of the images: below and above 3.5%."""
    method = METHODS["MKDT"]
    found = [method.settings("cifar100", size, 50_000).max_start_epoch for size in (1, 1000, 1750, 1751, 2500, 9000)]
    assert found == [2, 2, 2, 5, 5, 5]


@pytest.mark.parametrize("dataset, last", [("cifar10", 6), ("cifar100", 6), ("tiny-imagenet", 3)])
def test_one_bank_serves_both_sizes_and_no_epoch_is_trained_that_is_not_read(dataset, last, tiny, tmp_path):
    presets = Presets(dataset, {"expert_seed": 7})
    here = Experiment(regression(tiny), network(), Probing(), Runs(tmp_path), presets=presets)
    for size in (1, 20):
        bank = METHODS["MKDT"].bank(here.job(Recipe("MKDT", size, 0)))
        assert bank == (ex.Training(100, SGD(0.1, 0.9, 1e-4), 256, "", 7, loss="squared error"), last)


def test_settings_become_an_objective(tiny, tmp_path):
    """Fixed targets, as in the paper, unless it is told to learn them."""
    changes = {"experts": 2, "max_start_epoch": 1, "expert_batch": 8}
    here = Experiment(regression(tiny), network(), Probing(), Runs(tmp_path), presets=Presets("cifar100", changes))
    for learned, names in ((False, ("images", "step_size")), (True, ("images", "step_size", "targets"))):
        job = here.job(Recipe("MKDT", 5, 0, settings={"learned": learned}))
        made = job.method.matching(job)
        assert made.learns == tuple(job.method.optimizers(job)) == names
        assert made.loss is squared_error and made.augmentation == "" and made.threshold == math.inf
        assert (made.student_steps, made.expert_epochs, made.batch) == (40, 2, 256)
        assert made.start_epochs == StartEpochs(0, 1)


def test_published_probes_by_hand():
    assert published_probe("cifar10", "2%", "1%", "cifar10", "MKDT") == {"mean": pytest.approx(0.4436), "std": pytest.approx(0.0161)}
    assert published_probe("cifar10", "5%", "5%", "cifar10", "random")["mean"] == pytest.approx(0.4813)
    whole = published_probe("cifar100", "5%", "5%", "cifar100", "all images")
    assert whole == published_probe("cifar100", "2%", "5%", "cifar100", "all images") and whole["mean"] == pytest.approx(0.3578)
    assert published_probe("cifar10", "3%", "1%", "cifar10", "MKDT") is None
    assert published_probe("folder", "2%", "1%", "x", "MKDT") is None


def test_the_teacher_of_tiny_imagenet_is_that_of_the_cited_recipe():
    """Mixed Barlow Twins: lambda 1/1024 and gray views one time in ten there, 1/128 and one in five on CIFAR."""
    params = Path(__file__).parents[2] / "notebooks" / "params"
    for name, lam, gray in (("tiny-imagenet", 1 / 1024, 0.1), ("cifar10", 1 / 128, 0.2), ("cifar100", 1 / 128, 0.2)):
        values = yaml.safe_load((params / f"04_mkdt.paper-{name}.yaml").read_text())
        assert (values["lam"], values["gray"]) == (lam, gray)
