"""KRR-ST: its step against the plain twin, its ridge and its pool, whole distillations, published settings, and what is refused."""

import pytest
import torch

from distillery.data import NORMALIZATIONS
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.methods.krr_st import SelfSupervisedRegression, krrst_loss_plain, krrst_network
from distillery.networks import ConvNet
from distillery.recipe import ByLoss, Recipe
from distillery.runs import Runs
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator, split

WIDTH = 5  # of the targets
F64 = torch.float64


@pytest.fixture
def net(tiny):
    return ConvNet(tiny.shape, WIDTH, width=4)


@pytest.fixture
def real(tiny):
    """The images with the embeddings of a random network, of which a regression can learn something."""
    teacher = ConvNet(tiny.shape, WIDTH, width=8)
    with torch.no_grad():
        found = teacher.apply(teacher.init(generator(0, "teacher")), tiny.batch(torch.arange(24))).logits[0]
    return RegressionSet(tiny, 10 * (found - found.mean(0)), tiny.digest)


def made(net, **options):
    return SelfSupervisedRegression(net, 12, **{"width": 4, "pool": 3, "age": 6} | options)


def first(real, m=6):
    chosen = torch.arange(0, len(real), len(real) // m)[:m]
    return Synthetic({"images": real.batch(chosen), "targets": real.targets[chosen]})


def everything(real):
    return Uniform(torch.zeros(len(real), dtype=torch.int64))


def wide(tensors):
    return {name: v.to(F64) if v.is_floating_point() else v for name, v in tensors.items()}


def problem(real, net, m=6, **options):
    """All in float64: (objective, synthetic set, state, (real images, targets, weights), features of the network that is seen)."""
    objective = made(net, **options)
    begin = first(real, m)
    state = wide(objective.start(begin, generator(0, "start")))
    begin = begin.replace(**wide(begin.tensors))
    weights = torch.rand(12, generator=generator(0, "weights"), dtype=F64)
    images = real.batch(torch.arange(12, 24)).double()
    batch = images, real.targets[12:].double(), weights / weights.sum()
    params = objective.networks_of_step(begin, state, split(generator(0, "step"), 2)[0])

    def features(images):
        return objective.own.embed(params, images, False)[0]

    return objective, begin, state, batch, features


def step(objective, begin, state, batch):
    asked = []

    def draw(label, n):
        asked.append((label, n))
        return batch

    found = objective.step(begin, state, draw, generator(0, "step"))
    assert asked == [(None, 12)]
    return found


# The loss


@pytest.mark.parametrize("options", [{}, {"rho": 1e-2}, {"width": 2, "pool": 1}], ids=str)
@pytest.mark.parametrize("m", [1, 6, 12])
def test_a_step_is_its_twin(real, net, m, options):
    objective, begin, state, batch, features = problem(real, net, m, **options)
    grads, _, log = step(objective, begin, state, batch)
    images, targets = (begin.tensors[name].clone().requires_grad_() for name in ("images", "targets"))
    wanted = krrst_loss_plain(features, images, targets, *batch, objective.rho)
    expected = torch.autograd.grad(wanted, [images, targets])
    assert set(grads) == set(objective.learned) == {"images", "targets"} and set(log) == {"loss"}
    torch.testing.assert_close(log["loss"], wanted.detach(), rtol=1e-8, atol=0)
    for name, value in zip(("images", "targets"), expected, strict=True):
        assert (grads[name] - value).norm() < 1e-7 * value.norm(), name


def test_one_image_and_one_feature_by_hand():
    """f = 2 for the synthetic image and 1 for the real one: K_ss = 5, K_bs = 3, lambda = .5, so y = 3 * 11 / 5.5 = 6; (6 - 4)^2 = 4."""
    one = torch.ones(1, 1, 1, 1, dtype=F64)
    target, truth = (torch.full((1, 1), value, dtype=F64) for value in (11.0, 4.0))
    weights = torch.ones(1, dtype=F64)
    loss = krrst_loss_plain(lambda x: x.flatten(1), 2 * one, target, one, truth, weights, rho=0.1)
    assert loss.item() == pytest.approx(4, rel=1e-12)


def loss_of(features, images, targets, real, truth, weights, penalty):
    """The loss at a given lambda."""
    f_s, f_b = (torch.nn.functional.pad(features(x), (0, 1), value=1.0) for x in (images, real))
    dual = torch.linalg.solve(f_s @ f_s.T + penalty * torch.eye(len(f_s), dtype=F64), targets)
    return (weights * (f_b @ f_s.T @ dual - truth).square().mean(1)).sum(), f_s.square().sum()


@pytest.mark.parametrize("name", ["images", "targets"])
def test_gradients_are_central_differences_at_a_fixed_lambda(real, net, name):
    """A lambda that moves with the images, here large, gives other differences."""
    objective, begin, state, batch, features = problem(real, net, rho=0.05)
    grads, _, _ = step(objective, begin, state, batch)
    tensors, h = {name: begin.tensors[name] for name in ("images", "targets")}, 1e-5
    direction = torch.randn(tensors[name].shape, generator=generator(1, "direction"), dtype=F64)
    with torch.no_grad():
        trace = loss_of(features, *tensors.values(), *batch, 1.0)[1]

        def difference(moving):
            values = []
            for sign in (1, -1):
                at = tensors | {name: tensors[name] + sign * h * direction}
                here = loss_of(features, *at.values(), *batch, 1.0)[1] if moving else trace
                values.append(loss_of(features, *at.values(), *batch, 0.05 * here)[0])
            return float(values[0] - values[1]) / (2 * h)

        found = float((grads[name] * direction).sum())
        assert found == pytest.approx(difference(False), rel=1e-5)
        if name == "images":
            assert abs(found - difference(True)) > 1e-3 * abs(found)


@pytest.mark.parametrize("m", [4, 12])
def test_the_dual_prediction_is_that_of_primal_ridge(real, net, m):
    """At equal lambda, with fewer and with more images than it has features (8 and a 1)."""
    objective, begin, state, (images, *_), features = problem(real, net, m, width=1, rho=1e-3)
    params = objective.networks_of_step(begin, state, split(generator(0, "step"), 2)[0])
    f_s, f_b = (torch.cat([features(x), torch.ones(len(x), 1, dtype=F64)], 1) for x in (begin.tensors["images"], images))
    assert f_s.shape == (m, 2 * 2 * 2 + 1)
    penalty = 1e-3 * f_s.square().sum()
    head = torch.linalg.solve(f_s.T @ f_s + penalty * torch.eye(9, dtype=F64), f_s.T @ begin.tensors["targets"])
    torch.testing.assert_close(objective._outputs(begin, params, [images]), f_b @ head, rtol=1e-9, atol=1e-10)
    single = [{name: v.float() if v.is_floating_point() else v for name, v in one.items()} for one in (begin.tensors, params)]
    found = objective.outputs(Synthetic(single[0]), single[1], real)  # of the whole set, in its own precision
    assert found.shape == (24, WIDTH)
    torch.testing.assert_close(found[12:], f_b @ head, rtol=1e-3, atol=1e-4)


# The pool


def test_a_network_of_the_pool_trains_as_a_plain_module(real, net):
    """Full batches, mean squared error, SGD with momentum and weight decay: weights and statistics after every step."""
    objective, begin = made(net, width=3), first(real)
    one = objective.new(begin.device, generator(0, "net"))
    module = objective.own.build()
    module.load_state_dict({n.removeprefix("net."): v[0].clone() for n, v in one.items() if n.startswith("net.")})
    sgd = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for age in range(1, 6):
        loss = torch.nn.functional.mse_loss(module.train()(begin.tensors["images"]), begin.tensors["targets"])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        one = objective._train(begin, one)
        assert one["age"].tolist() == [age]
        for name, value in module.state_dict().items():
            torch.testing.assert_close(one[f"net.{name}"][0], value, rtol=1e-4, atol=1e-5)


def test_first_ages_are_uniform_and_trained(real, net):
    """From 1 to the limit - 1; as many steps as the age says, which BatchNorm counts."""
    objective = made(net, width=1, pool=60, age=4)
    state = objective.start(first(real), generator(0, "start"))
    counts = state["age"].bincount()
    assert len(counts) == 4 and counts[0] == 0 and (counts[1:] > 10).all()
    assert torch.equal(state["net.1.num_batches_tracked"], state["age"])
    assert made(net, width=1, pool=2, age=1).start(first(real), generator(0, "x"))["age"].tolist() == [1, 1]


def test_one_network_ages_in_a_step_and_is_drawn_anew_at_the_limit(real, net):
    objective, begin = made(net, width=1, pool=2, age=4), first(real)
    state = objective.start(begin, generator(0, "start"))
    renewed, seen = 0, set()
    for i in range(20):
        draw = RealBatches(real, everything(real), generator(0, "real", i))
        before = {name: value.clone() for name, value in state.items()}
        _, new, _ = objective.step(begin, state, draw, generator(0, "step", i))
        assert all(torch.equal(state[name], value) for name, value in before.items())
        (j,) = (k for k in range(2) if not torch.equal(new["net.0.weight"][k], state["net.0.weight"][k]))
        seen.add(j)
        if state["age"][j] == 4:
            assert new["age"][j] == 0 and not new["velocity.0.weight"][j].any()
            assert new["net.1.num_batches_tracked"][j] == 0
            renewed += 1
        else:
            assert new["age"][j] == state["age"][j] + 1
            assert new["net.1.num_batches_tracked"][j] == new["age"][j]
        state = new
    assert renewed >= 2 and seen == {0, 1}


@pytest.mark.parametrize(
    "shape, width, sizes, features",
    [((3, 32, 32), 128, [128, 256, 512], 8192), ((3, 64, 64), 64, [64, 128, 256, 512], 8192), ((1, 8, 8), 16, [16, 32], 128)],
)
def test_the_network_is_the_published_one(shape, width, sizes, features):
    """Each block: convolution, BatchNorm, ReLU, pooling; 8192 features at both published sizes."""
    network = krrst_network(shape, 7, width)
    kinds = [type(layer).__name__ for layer in network.skeleton]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d"] * len(sizes) + ["Flatten", "Linear"]
    assert [m.num_features for m in network.skeleton.modules() if isinstance(m, torch.nn.BatchNorm2d)] == sizes
    assert network.head.in_features == features and network.classes == 7


# Whole distillations


def rates(objective, lr=0.02):
    return {name: Optimizer(lr, kind="adam", schedule="linear to a thousandth") for name in objective.learned}


def test_a_distillation_lowers_its_loss_and_repeats_its_bits(real, net):
    objective, begin = made(net, width=8, age=20), first(real, 12)

    def go():
        return distill(objective.prepare(begin), objective, real, everything(real), rates(objective, 0.05), 100, generator(0, "go"))

    done, again = go(), go()
    for name, value in done.last.tensors.items():
        assert torch.equal(value, again.last.tensors[name]), name
        assert not torch.equal(value, begin.tensors[name]), name
    assert set(done.log) == {"loss"} and done.cost["samples"] == 100 * 12
    assert done.log["loss"][-10:].mean() < 0.85 * done.log["loss"][:10].mean()
    errors = []
    for one in (begin, done.last):  # on all real images, by a network that the pool never held
        found = objective.outputs(one, objective.fresh(one, generator(0, "judge")), real)
        errors.append(float((found - real.targets).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_resumes_with_the_same_bits(real, net, tmp_path):
    """Killed after a step: images, targets, moments, and pool with momentum and ages are in the checkpoint."""
    objective = made(net, age=3)

    class Kill(Exception):
        pass

    def go(path=None, at=99):
        def validate(one, now):
            if now == at:
                raise Kill
            return now / 10

        return distill(
            first(real),
            objective,
            real,
            everything(real),
            rates(objective),
            9,
            generator(0, "go"),
            checkpoint=path,
            checkpoint_seconds=0.0,
            validate=validate,
            validate_every=1,
        )

    wanted, path = go(), tmp_path / "checkpoint.safetensors"
    for at in (3, 8):
        with pytest.raises(Kill):
            go(path, at)
        assert path.exists()
    done = go(path)
    for name, value in wanted.last.tensors.items():
        assert torch.equal(value, done.last.tensors[name]), name
    assert torch.equal(done.log["loss"], wanted.log["loss"]) and done.cost["samples"] == wanted.cost["samples"]


def test_the_schedule_is_that_of_torch():
    """LinearLR from 1 to 1e-3, as the public code has it."""
    begin = Synthetic({"images": torch.ones(2, 1, 1, 1), "targets": torch.ones(2, 3)})

    class Given:
        learned = ("images",)

        def start(self, synthetic, generator):
            return {}

        def step(self, synthetic, state, draw, generator):
            return {"images": synthetic.tensors["images"].square() + 1}, state, {}

    sampler, optimizers = Uniform(None, 2), rates(Given(), 0.1)
    done = distill(begin, Given(), begin, sampler, optimizers, 5, generator(0, "x"))
    wanted = torch.ones(2, 1, 1, 1, requires_grad=True)
    adam = torch.optim.Adam([wanted], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1e-3, total_iters=5)
    for _ in range(5):
        wanted.grad = wanted.detach().square() + 1
        adam.step()
        schedule.step()
    torch.testing.assert_close(done.last.tensors["images"], wanted.detach(), rtol=1e-6, atol=0)


# Published settings, and in an experiment


@pytest.mark.parametrize(
    "dataset, lr, width", [("cifar10", 1e-4, 128), ("cifar100", 1e-4, 128), ("tiny-imagenet", 1e-5, 64), ("imagenet-1k", 1e-5, 64)]
)
def test_published_settings_make_an_objective(dataset, lr, width, tmp_path, tiny):
    """Those of CIFAR-100 serve CIFAR-10, for which there are none."""
    method = METHODS["KRR-ST"]
    cell = method.common | method.cell(dataset, 1000, 50_000)
    side = cell.get("side", 32)
    network = ConvNet((3, side, side), 512, depth=cell.get("depth", 0))
    real = RegressionSet(tiny, torch.zeros(24, 512), tiny.digest)
    job = Experiment(real, network, Probing(), Runs(tmp_path), presets=Presets(dataset)).job(Recipe("KRR-ST", 5, 0))
    objective, optimizers = method.regression(job), method.optimizers(job)
    assert (job.settings.lr, method.updates(job.settings, 5)) == (lr, 160_000)
    assert cell["normalization"] in NORMALIZATIONS and job.start == "random"
    assert (objective.batch, objective.pool, objective.age, objective.rho) == (1024, 10, 1000, 1e-6)
    assert (objective.optimizer.lr, objective.optimizer.momentum, objective.optimizer.weight_decay) == (0.1, 0.9, 1e-3)
    assert objective.own.channels == width and objective.own.head.out_features == 512
    assert optimizers == rates(objective, lr)


def test_a_data_set_without_published_settings_is_refused(refused):
    with refused("mnist", "cifar100"):
        METHODS["KRR-ST"].settings("mnist", 10)


SHORT = {"width": 4, "pool": 2, "age": 4, "batch": 8, "lr": 1e-2, "steps": 3}


def test_a_set_is_that_of_the_loop_by_hand(real, net, tmp_path):
    """First images at random, labels nowhere; images and targets are learned."""
    here = Experiment(real, net, Probing(2, 3, batch=4, labels=(0.5,)), Runs(tmp_path))
    recipe = Recipe("KRR-ST", 6, 0, settings=SHORT)
    result = here.run(recipe)
    found = here.synthetic(result)
    chosen = torch.randperm(24, generator=generator(0, "random subset"))[:6]
    start = Synthetic({"images": real.batch(chosen), "targets": real.targets[chosen]})
    objective = SelfSupervisedRegression(net, 8, width=4, pool=2, age=4)
    done = distill(start, objective, real, Uniform(None, 24), rates(objective, 1e-2), 3, generator(0, "distill"))
    assert torch.equal(found.card["start"], start.tensors["images"])
    assert all(torch.equal(value, found.tensors[name]) for name, value in done.last.tensors.items())
    assert result["moved"] > 0 and result["samples"] == 3 * 8


def test_settings_and_samplers_that_it_has_not_are_refused(real, net, tmp_path, refused):
    with refused("widht", "width"):
        Recipe("KRR-ST", 5, 0, settings={"widht": 4})
    with refused("real batch", "KRR-ST"):
        Recipe("KRR-ST", 5, 0, batches=ByLoss(0.5))
    here = Experiment(real, net, Probing(), Runs(tmp_path))
    for name, value in (("rho", 0.0), ("batch", 0), ("optimizer", "sgdd"), ("schedule", "steep"), ("pool", 0)):
        with refused(name, value):
            here.check(Recipe("KRR-ST", 5, 0, settings={name: value}))


# Refused


@pytest.mark.parametrize(
    "name, value", [("batch", 0), ("batch", -3), ("width", 0), ("pool", 0), ("age", 0), ("age", 2.5), ("rho", 0.0), ("rho", -1.0)]
)
def test_options_out_of_range_are_refused(net, refused, name, value):
    with refused(name, value):
        SelfSupervisedRegression(net, **{name: value})
