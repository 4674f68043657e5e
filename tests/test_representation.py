"""KRR-ST: the loss and its gradients against the plain twin, the pool trained along, whole distillations, what is refused."""

import pytest
import torch

from distillery.distill import Optimizer, distill
from distillery.kernels import regress
from distillery.matching.representation import (
    SelfSupervisedRegression,
    build,
    krrst_loss_plain,
    preset,
    presets,
)
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from distillery.students import Regression
from distillery.synthetic import Synthetic

WIDTH = 5  # of the targets


@pytest.fixture
def real(tiny):
    targets = torch.randn(len(tiny), WIDTH, generator=generator(0, "targets"))
    return Regression(tiny, targets, tiny.digest)


def objective(pool=3, age=6, **more):
    return SelfSupervisedRegression(
        ConvNet((1, 8, 8), WIDTH, width=4), 10, width=4, pool=pool, age=age, **more
    )


def first(real, m=6):
    """Real images and targets, moved a little: their maxima have kinks where pixels are equal."""
    noise = 0.1 * torch.randn(m, *real.shape, generator=generator(0, "noise"))
    return Synthetic({"images": real.batch(torch.arange(m)) + noise, "targets": real.targets[:m]}, None)


def batches(real, seed=0):
    return RealBatches(real, Uniform(None, len(real)), generator(seed, "real"))


def double(params):
    return {name: value.double() if value.is_floating_point() else value for name, value in params.items()}


@pytest.mark.parametrize("m", [2, 6, 12])
def test_loss_and_gradients_are_those_of_the_plain_twin(real, m):
    """In float64; the ridge passes no gradient."""
    one, made = objective(), first(real, m)
    state = double(one.start(made, generator(0, "start")))
    made = made.replace(**{name: value.double() for name, value in made.tensors.items()})
    seen = batches(real)(None, 10)
    exact = lambda label, n: tuple(value.double() for value in seen)  # noqa: E731
    grads, _, log = one.step(made, state, exact, generator(1, "step"))
    losses = []
    for i in range(one.pool):  # one of them was picked
        picked = {
            name.removeprefix("net."): value[i : i + 1]
            for name, value in state.items()
            if name.startswith("net.")
        }

        def features(images, picked=picked):
            return one.own.embed(picked, images, train=False)[0]

        images, targets = (made.tensors[name].clone().requires_grad_() for name in ("images", "targets"))
        loss = krrst_loss_plain(features, images, targets, seen[0].double(), seen[1].double())
        losses.append((loss, images, targets))
    loss, images, targets = min(losses, key=lambda found: abs(float(found[0].detach() - log["loss"])))
    assert torch.allclose(loss, log["loss"], rtol=1e-6)
    for name, value in zip(("images", "targets"), torch.autograd.grad(loss, [images, targets])):
        assert torch.allclose(grads[name], value, rtol=1e-6, atol=1e-12), name


def test_regression_is_primal_ridge(real):
    """F_b (F_s' F_s + lambda I)^-1 F_s' Y = K_bs (K_ss + lambda I)^-1 Y, with a 1 behind the features."""
    one, made = objective(), first(real)
    params = one.moment(made, one.start(made, generator(0, "start")), generator(0, "step"))
    f = one.features(params, made.tensors["images"], False)
    assert torch.equal(f[:, -1], torch.ones(6, dtype=torch.float64))
    k = f @ f.T
    assert float(one.ridge(k)) == pytest.approx(1e-6 * float(k.trace()))
    ridge, y = 1e-2 * k.trace(), made.tensors["targets"].double()
    dual = k @ regress(k, y, ridge)
    primal = f @ torch.linalg.solve(f.T @ f + ridge * torch.eye(f.shape[1]), f.T @ y)
    assert torch.allclose(dual, primal, rtol=1e-8)


def test_one_network_of_the_pool_trains_in_a_step(real):
    """SGD on all of the set, by hand for the first layer; the others stay."""
    one, made = objective(age=60), first(real)
    state = one.start(made, generator(0, "start"))
    assert all(1 <= age < 60 for age in state["age"].tolist())
    _, after, _ = one.step(made, state, batches(real), generator(3, "step"))
    moved = [i for i in range(3) if not torch.equal(state["net.0.weight"][i], after["net.0.weight"][i])]
    assert len(moved) == 1 and after["age"][moved[0]] == state["age"][moved[0]] + 1
    before = {
        name.removeprefix("net."): value[moved] for name, value in state.items() if name.startswith("net.")
    }
    params = {name: value.clone() for name, value in before.items()}
    weight = params["0.weight"].requires_grad_()
    output = one.own.apply(params, made.tensors["images"][None], train=True).logits[0]
    loss = (output - made.tensors["targets"]).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = weight - 0.1 * (gradient + 1e-3 * weight)
    assert torch.allclose(after["net.0.weight"][moved], expected, atol=1e-6)


def test_old_networks_are_drawn_anew(real):
    one, made = objective(pool=1, age=2), first(real)
    state = one.start(made, generator(0, "start"))
    assert state["age"].tolist() == [1]
    _, state, _ = one.step(made, state, batches(real), generator(0, "step"))
    assert state["age"].tolist() == [0] and not any(
        state[name].any() for name in state if name.startswith("momentum.")
    )


def run(real, path=None, steps=8, watch=None):
    one, made = objective(), first(real)
    how = Optimizer(0.02, kind="adamw", schedule="linear to a thousandth")
    return distill(
        made, one, real, Uniform(None, len(real)), {"images": how, "targets": how}, steps, generator(0, "distill"),
        checkpoint=path, checkpoint_seconds=0, validate=watch, validate_every=1 if watch else 0,
    )  # fmt: skip


def test_a_distillation_lowers_the_loss(real):
    done = run(real, steps=60)
    loss = done.log["loss"]
    assert loss[-15:].mean() < 0.8 * loss[:15].mean()
    assert set(done.log) == {"loss"}


def test_resumes_with_the_same_bits(real, tmp_path):
    class Killed(Exception):
        pass

    def killing(made, step):
        if step == 5:
            raise Killed
        return 0.0

    with pytest.raises(Killed):
        run(real, tmp_path / "c", watch=killing)
    unbroken, resumed = run(real), run(real, tmp_path / "c", watch=lambda made, step: 0.0)
    assert all(
        torch.equal(value, resumed.last.tensors[name]) for name, value in unbroken.last.tensors.items()
    )


def test_settings_are_complete():
    for name in presets():
        one = build(ConvNet((3, 32, 32), 512), preset(name))
        assert one.pool == 10 and one.age == 1000 and one.batch == 1024
        assert one.own.channels == (64 if name == "tiny-imagenet" else 128)


def test_refusals(real, refused):
    for change in ({"pool": 0}, {"age": 0}, {"network_lr": 0.0}):
        with refused(next(iter(change))):
            objective(**change)
    with refused("batch"):
        SelfSupervisedRegression(ConvNet((1, 8, 8), WIDTH, width=4), 0)
    with refused("targets"):
        made = first(real)
        objective().start(made.replace(targets=torch.zeros(6, WIDTH + 1)), generator(0, "start"))
    with refused("imagenet"):
        preset("imagenet")
