"""Low precision and compiled passes: the same results within what bfloat16 can hold, and directions that keep."""

import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from distillery.data import TensorSource
from distillery.evaluation import Protocol, evaluate
from distillery.matching import gradient
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.matching.step import StepContext
from distillery.networks import ConvNet, pool, precision
from distillery.networks.precision import MixedPrecision, check_not_emulated, float32_matmul, images_at_once
from distillery.seeds import generator
from distillery.training import train
from distillery.training.dsa import DSA, draw
from distillery.training.optimizers import SGD

SHAPE, CLASSES = (3, 16, 16), 4


def net(**options):
    return ConvNet(SHAPE, CLASSES, width=16, **options)


def images(*leading, seed=0):
    """Smooth patterns: low precision must not pass on noise alone."""
    coarse = torch.randn(*leading, 3, 5, 5, generator=generator(seed, "coarse"))
    fine = F.interpolate(coarse.flatten(0, -4), size=SHAPE[1:], mode="bilinear", align_corners=True)
    return fine.reshape(*leading, *SHAPE)


def cosine(a, b):
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_float32_is_the_network_itself():
    network = net()
    params = network.init(generator(0, "x"), 2)
    ours, theirs = MixedPrecision(network).apply(params, images(5)), network.apply(params, images(5))
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.embedding, theirs.embedding)
    assert MixedPrecision(network).spec() == network.spec()


@pytest.mark.parametrize("units", [{"avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True}])
def test_bfloat16_is_refused_where_it_is_emulated(units, monkeypatch, refused):
    product, emulates = torch.Tensor.__matmul__, units == {"avx2": True}

    def slow(a, b):
        for _ in range(50 if emulates and a.dtype == torch.bfloat16 else 1):
            found = product(a.float(), b.float())
        return found

    monkeypatch.setattr(precision, "check_not_emulated", check_not_emulated.__wrapped__)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.Tensor, "__matmul__", slow)
    network = net()
    params = network.init(generator(0, "x"), 1)
    MixedPrecision(network).apply(params, images(1))
    with refused("'bfloat16'", "times as long") if emulates else nullcontext():
        MixedPrecision(network, "bfloat16").apply(params, images(1))
    chosen = MixedPrecision(network, "auto")
    assert chosen.precision == ("float32" if emulates and not torch.cuda.is_available() else "bfloat16")
    assert chosen.spec() == MixedPrecision(network, chosen.precision).spec()


@pytest.mark.parametrize("normalization", ["instance", "batch", "group", "layer", "none"])
def test_bfloat16_is_close_and_hands_out_float32(normalization):
    network = net(normalization=normalization)
    params = network.init(generator(0, "x"), 2)
    fast = MixedPrecision(network, "bfloat16")
    ours, theirs = fast.apply(params, images(6)), network.apply(params, images(6))
    assert ours.logits.dtype == ours.embedding.dtype == torch.float32
    assert all(value.dtype == params[name].dtype for name, value in ours.buffers.items())
    assert cosine(ours.embedding, theirs.embedding) > 0.999
    assert not torch.equal(ours.embedding, theirs.embedding)  # it did run in low precision
    assert fast.spec() != network.spec()


@pytest.mark.parametrize("name", ["ResNet18", "ViT", "MLP"])
def test_bfloat16_on_the_pool(name):
    network = pool.build(name, SHAPE, CLASSES, 0.125)
    params = network.init(generator(0, "x"), 1)
    ours, theirs = MixedPrecision(network, "bfloat16").embed(params, images(6)), network.embed(params, images(6))
    assert cosine(ours, theirs) > 0.99


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("method", ["DM", "DC"])
def test_direction_of_the_pixel_gradient_keeps(method, ipc):
    """Real images in bfloat16, synthetic ones in float32: cosine with the all-float32 gradient."""
    network, labels = net(), torch.arange(CLASSES)
    params = network.init(generator(1, "x"), 1)
    real, weights = images(CLASSES, 32), torch.full((CLASSES, 32), 1 / 32)
    drawn = draw(DSA, CLASSES, 1, generator(2, "x"), siamese=True)

    def gradient_with(real_network):
        made = images(CLASSES, ipc, seed=1).requires_grad_()
        objective = {"DM": DistributionMatching, "DC": GradientMatching}[method](network, real_network=real_network)
        loss = objective.loss(StepContext(params, labels, drawn), real, weights, made, slice(None))
        return torch.autograd.grad(loss, made)[0]

    exact, low = gradient_with(network), gradient_with(MixedPrecision(network, "bfloat16"))
    assert not torch.equal(exact, low)
    assert cosine(exact, low) > 0.99


def test_real_gradients_in_parts_are_those_of_the_whole(monkeypatch):
    network = net()
    params = network.init(generator(1, "x"), 1)
    real, labels = images(CLASSES, 10), torch.arange(CLASSES)
    weights = torch.rand(CLASSES, 10, generator=generator(0, "w"))
    objective, context = GradientMatching(network), StepContext(params, labels)
    whole = objective.class_gradients(network, context, real, labels, weights)
    monkeypatch.setattr(gradient, "images_at_once", lambda *_: 3)
    for stack in (1, 2, CLASSES):
        monkeypatch.setattr(gradient, "networks_at_once", lambda *_, stack=stack: stack)
        parts = objective.real_gradients(context, real, labels, weights)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)


def test_accuracy_keeps_in_pairs():
    """The same networks in the same data order, with and without bfloat16, on patterns that can be learned."""
    stream = generator(0, "patterns")
    patterns = images(CLASSES, seed=3)

    def noisy(n):
        noise = 5 * torch.randn(CLASSES, n, *SHAPE, generator=stream)
        return TensorSource((patterns[:, None] + noise).flatten(0, 1), torch.arange(CLASSES).repeat_interleave(n))

    class HeldOut(TensorSource):
        device = torch.device("cpu")

    small, test = noisy(4), noisy(60)
    protocol = Protocol(networks=8, epochs=25, batch=8)
    held_out = HeldOut(test.images, test.targets)
    plain, low = (evaluate(one, small, protocol, held_out, generator(1, "x")) for one in (net(), MixedPrecision(net(), "bfloat16")))
    assert 0.4 < plain.mean() < 1  # neither chance nor a ceiling
    gaps = low - plain
    assert gaps.mean().abs() < 0.02 + 3 * gaps.std() / len(gaps) ** 0.5 and gaps.std() < 0.1


def test_weights_stay_float32_and_learn():
    network = net()
    params = network.init(generator(0, "x"), 2)
    source = TensorSource(images(8), torch.arange(8) % CLASSES)
    trained, _ = train(MixedPrecision(network, "bfloat16"), params, source, optimizer=SGD(1e-4), generator=generator(0, "y"), steps=3)
    for name, value in trained.items():
        # steps far below the 8 bits of bfloat16 are not lost
        assert value.dtype == torch.float32 and not torch.equal(value, params[name]), name


@pytest.mark.slow
def test_compiled_agrees_with_eager():
    network = ConvNet((1, 8, 8), 3, width=4, depth=1)
    params = network.init(generator(0, "x"), 1)
    inputs = torch.randn(3, 1, 8, 8, generator=generator(0, "y"))
    fast = MixedPrecision(network, compiled=True)
    found = []
    for one in (network, fast):
        learned = {name: value.clone().requires_grad_() for name, value in params.items()}
        output = one.apply(learned, inputs).logits
        found.append([output, *torch.autograd.grad(output.square().sum(), list(learned.values()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not fast._broken
    assert pickle.loads(pickle.dumps(fast)).spec() == fast.spec()


def test_without_a_compiler_it_runs_uncompiled(monkeypatch):
    def no_compiler(function, **options):
        def fails(*args):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

        return fails

    monkeypatch.setattr(torch, "compile", no_compiler)
    network = net()
    params = network.init(generator(0, "x"), 1)
    fast = MixedPrecision(network, compiled=True)
    with pytest.warns(RuntimeWarning, match="uncompiled: no C"):
        first = fast.embed(params, images(2))
    assert torch.equal(first, network.embed(params, images(2)))
    assert torch.equal(fast.embed(params, images(2)), first)  # no second warning: it would be an error here
    assert fast.spec()["compiled"]  # what was asked for identifies a run


def test_bad_options(refused):
    with refused("precision", "int4"):
        MixedPrecision(net(), "int4")
    with refused("compiled", "MLP"):
        MixedPrecision(pool.build("MLP", SHAPE, CLASSES, 1.0), compiled=True)
    with refused("precision", "float16"), float32_matmul("float16"):
        pass


def test_tensor_cores_are_named_and_put_back():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for name in ("float32", "bfloat16", "tf32"):
        with pytest.raises(KeyError), float32_matmul(name):
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cudnn.allow_tf32 is (name == "tf32")
            raise KeyError
    assert flags == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_images_at_once_follow_shapes():
    cpu, other = torch.device("cpu"), torch.device("meta")
    published = ConvNet((3, 32, 32), 10, 128)
    assert images_at_once(published, (256, 3, 32, 32), cpu) == 64
    assert images_at_once(published, (9, 256, 3, 64, 64), cpu) == 16
    assert images_at_once(published, (3, 32, 32), other) > 1000
    assert images_at_once(published, (3, 9999, 9999), cpu) == 1


def test_importing_the_package_is_importing_torch():
    """The compiler, Ray and the plotting stack wait until they are asked for."""
    code = "import sys, distillery.experiment, distillery.cli; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "IPython", "papermill", "pandas"} & set(loaded), loaded
