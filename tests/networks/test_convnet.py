"""K stacked networks against plain modules, parameter counts, initialization."""

import pytest
import torch
from torch import nn

from distillery.networks import ConvNet, ModuleNetwork, depth_for, trainable
from distillery.seeds import generator


def count(network):
    return sum(value[0].numel() for value in trainable(network.init(generator(0, "init"))).values())


@pytest.mark.parametrize(
    "shape, classes, depth, parameters",
    [
        ((3, 32, 32), 10, 3, 320_010),  # CIFAR-10, SVHN
        ((3, 32, 32), 100, 3, 504_420),  # CIFAR-100
        ((1, 28, 28), 10, 3, 317_706),  # MNIST, padded to 32 x 32
        ((3, 64, 64), 200, 4, 857_160),  # Tiny ImageNet
        ((3, 128, 128), 10, 5, 615_690),  # ImageNet subsets
    ],
)
def test_parameter_counts(shape, classes, depth, parameters):
    """The counts of the field's ConvNet at width 128, from its layers by hand."""
    network = ConvNet(shape, classes)
    assert network.depth == depth == depth_for(shape)
    assert count(network) == parameters
    assert sum(value.numel() for value in network.module().parameters()) == parameters


def test_parameter_count_of_imagenet_at_64():
    assert sum(p.numel() for p in ConvNet((3, 64, 64), 1000).module().parameters()) == 2_496_360


def test_feature_size():
    assert ConvNet((3, 32, 32), 10).features == 2048
    network = ConvNet((1, 28, 28), 10, width=4)
    params = network.init(generator(0, "x"))
    assert network.embed(params, torch.randn(2, 1, 28, 28)).shape == (1, 2, 4 * 4 * 4)


VARIANTS = [*({"normalization": n} for n in ("instance", "batch", "group", "layer", "none")), {"activation": "swish"}]


def perturbed(network, k):
    """k networks whose norm weights, biases and running statistics are not the trivial ones."""
    stream = generator(9, "perturb")
    params = network.init(generator(1, "init"), k)
    return {name: value + 0.1 * torch.rand(value.shape, generator=stream).to(value) for name, value in params.items()}


@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: next(iter(v.values())))
def test_stack_equals_modules(variant, train, shared, as_module):
    """Logits, embeddings and buffers of a K-stack are those of `ConvNet.module` with each network's weights."""
    network = ConvNet((3, 9, 12), 5, width=8, depth=2, **variant)
    params = perturbed(network, 3)
    before = {name: value.clone() for name, value in params.items()}
    x = torch.randn(*(() if shared else (3,)), 6, 3, 9, 12, generator=generator(2, "x"))
    output = network.apply(params, x, train=train)
    assert output.logits.shape == (3, 6, 5) and output.embedding.shape == (3, 6, network.features)
    assert torch.equal(network.embed(params, x, train), output.embedding)
    assert bool(output.buffers) == (train and variant.get("normalization") == "batch")
    for i in range(3):
        module = as_module(network, params, i).train(train)
        images = x if shared else x[i]
        embedding = module[:-1](images)
        assert torch.allclose(output.embedding[i], embedding, atol=1e-5)
        assert torch.allclose(output.logits[i], module.head(embedding), atol=1e-5)
        for name, value in output.buffers.items():
            assert torch.allclose(value[i], module.state_dict()[name], atol=1e-5)
            assert not torch.allclose(value[i], before[name][i])
    assert all(torch.equal(params[name], value) for name, value in before.items())


def test_gray_28_is_padded_to_32(as_module):
    network = ConvNet((1, 28, 28), 10, width=4)
    params = network.init(generator(0, "x"), 2)
    x = torch.randn(3, 1, 28, 28, generator=generator(1, "x"))
    assert network.maps[0] == (32, 32)
    expected = as_module(network, params, 1)(x)
    assert torch.allclose(network.apply(params, x).logits[1], expected, atol=1e-5)


def test_instance_norm_is_group_norm_with_one_channel_a_group():
    """GroupNorm(C, C) = InstanceNorm with affine."""
    network = ConvNet((3, 8, 8), 4, width=6, depth=1)
    params = perturbed(network, 1)
    x = torch.randn(5, 3, 8, 8, generator=generator(3, "x"))
    conv = torch.nn.functional.conv2d(x, params["conv0.weight"][0], params["conv0.bias"][0], padding=1)
    norm = nn.InstanceNorm2d(6, affine=True)
    norm.load_state_dict({"weight": params["norm0.weight"][0], "bias": params["norm0.bias"][0]})
    expected = torch.nn.functional.avg_pool2d(norm(conv).relu(), 2).flatten(1)
    assert torch.allclose(network.embed(params, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("normalization", ["instance", "group", "layer", "none"])
def test_a_sample_does_not_depend_on_its_batch_mates(normalization):
    network = ConvNet((1, 8, 8), 4, width=8, depth=2, normalization=normalization)
    params = perturbed(network, 2)
    x = torch.randn(7, 1, 8, 8, generator=generator(4, "x"))
    alone = network.apply(params, x[2:3]).logits[:, 0]
    assert torch.allclose(network.apply(params, x).logits[:, 2], alone, atol=1e-5)


def test_batch_norm_does_couple_samples_in_training_mode():
    network = ConvNet((1, 8, 8), 4, width=8, depth=2, normalization="batch")
    params = perturbed(network, 2)
    x = torch.randn(7, 1, 8, 8, generator=generator(4, "x"))
    for train in (True, False):
        alone = network.apply(params, x[:3], train).logits
        assert torch.allclose(network.apply(params, x, train).logits[:, :3], alone, atol=1e-5) is not train


def module_network():
    return ModuleNetwork(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)), "mlp")


@pytest.mark.parametrize("build", [lambda: ConvNet((1, 8, 8), 4, width=4), module_network])
def test_network_i_does_not_depend_on_k(build):
    network = build()
    five, two = (network.init(generator(7, "init"), k) for k in (5, 2))
    for name, value in two.items():
        assert torch.equal(five[name][:2], value)
    weight = next(value for value in five.values() if value.ndim > 2)
    assert len(weight.flatten(1).unique(dim=0)) == 5  # five different networks


def test_initialization_is_pytorchs():
    """Uniform in +-1/sqrt(fan in), norm weights one and biases zero."""
    params = ConvNet((3, 16, 16), 10, width=64, depth=2).init(generator(0, "init"))
    for name, fan_in in (("conv0", 27), ("conv1", 576), ("head", 64 * 16)):
        bound = fan_in**-0.5
        weight = params[f"{name}.weight"]
        assert weight.abs().max() <= bound and params[f"{name}.bias"].abs().max() <= bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert params[f"{name}.bias"].abs().max() > bound / 2
    assert (params["norm1.weight"] == 1).all() and (params["norm1.bias"] == 0).all()


def test_module_network_leaves_the_global_generator_alone():
    network = module_network()
    before = torch.random.get_rng_state()
    params = network.init(generator(1, "x"), 3)
    network.apply(params, torch.ones(2, 1, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("train", [True, False])
def test_module_network_equals_its_module(train):
    network = module_network()
    params = network.init(generator(1, "x"), 3)
    before = {name: value.clone() for name, value in params.items()}
    x = torch.randn(3, 5, 1, 8, 8, generator=generator(2, "x"))
    output = network.apply(params, x, train)
    for i in range(3):
        module = network.build().train(train)
        module.load_state_dict({name: value[i] for name, value in params.items()})
        assert torch.allclose(output.logits[i], module(x[i]), atol=1e-6)
        assert torch.allclose(output.embedding[i], network_features(module, {n: v[i] for n, v in before.items()}, x[i]), atol=1e-6)
        for name, value in output.buffers.items():
            assert torch.allclose(value[i].float(), module.state_dict()[name].float(), atol=1e-6)
    assert set(output.buffers) == (set(params) - set(trainable(params)) if train else set())
    assert all(torch.equal(params[name], value) for name, value in before.items())
    shared = network.apply(params, x[0], train).logits
    assert torch.allclose(shared[0], output.logits[0], atol=1e-6) and shared.shape == (3, 5, 4)


def network_features(module, state, images):
    """The input of the classifier, before the forward pass above moved the running statistics."""
    module.load_state_dict(state)
    return module[:-1](images)


def test_trainable_leaves_out_running_statistics():
    params = ConvNet((1, 8, 8), 4, width=4, depth=1, normalization="batch").init(generator(0, "x"))
    assert set(params) - set(trainable(params)) == {"norm0.running_mean", "norm0.running_var"}


@pytest.mark.parametrize(
    "options, word",
    [
        ({"width": 0}, 0),
        ({"width": 6, "normalization": "group"}, "width: 6"),
        ({"depth": 4}, 4),
        ({"activation": "tanh"}, "tanh"),
        ({"normalization": "weight"}, "weight"),
    ],
)
def test_impossible_networks_are_refused(options, word, refused):
    with refused(word):
        ConvNet((1, 8, 8), 4, **options)


def test_module_without_classifier_is_refused(refused):
    with refused("bare"):
        ModuleNetwork(lambda: nn.Conv2d(1, 2, 3), "bare")
