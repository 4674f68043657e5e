"""The cross-architecture pool: parameter counts by hand, every image size, training, and vmap against one by one."""

import pytest
import torch
from torch import nn

from distillery.checks import InputError
from distillery.data import TensorSource
from distillery.networks import ModuleNetwork, trainable
from distillery.networks.module import vmap_pays
from distillery.networks.pool import NAMES, POOL, build, of
from distillery.training import train
from distillery.training.optimizers import SGD

SHAPES = [(1, 8, 8), (1, 16, 13), (1, 28, 28), (3, 48, 40), (3, 32, 32), (3, 64, 64)]
VARIANTS = [(name, "") for name in NAMES] + [(name, "batch") for name in ("ConvNet", "VGG11", "ResNet10", "ResNet18")]
STACKABLE = ["MLP", "LeNet", "AlexNet", "VGG11", "ResNet10", "ResNet18", "ResNet18_AP", "ViT"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors here are tiny: threads cost more than they give, above all where test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def module(name, *args, **options) -> nn.Module:
    """The plain `nn.Module` of a network, initialized from torch's global generator."""
    network = build(name, *args, **options)
    return network.module() if name == "ConvNet" else network.build()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Parameter counts at 3 x 32 x 32 and 10 classes, from the definitions of the architectures.


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel * kernel + (outputs if bias else 0)


def norm(channels: int) -> int:
    return 2 * channels  # a scale and a shift


def basic_block(inputs: int, outputs: int) -> int:
    inner = conv(inputs, outputs, 3, bias=False) + conv(outputs, outputs, 3, bias=False) + 2 * norm(outputs)
    shortcut = conv(inputs, outputs, 1, bias=False) + norm(outputs) if inputs != outputs else 0
    return inner + shortcut


def resnet_body(channels: int, blocks: int = 2) -> int:
    stem = conv(channels, 64, 3, bias=False) + norm(64)
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    return stem + sum(basic_block(a, b) + (blocks - 1) * basic_block(b, b) for a, b in stages)


def convnet_count() -> int:
    blocks = conv(3, 128, 3) + norm(128) + 2 * (conv(128, 128, 3) + norm(128))
    return blocks + linear(128 * 4 * 4, 10)  # 32 -> 16 -> 8 -> 4


def mlp_count() -> int:
    return linear(3 * 32 * 32, 128) + linear(128, 128) + linear(128, 10)


def lenet_count() -> int:
    features = conv(3, 6, 5) + conv(6, 16, 5)  # 32 -> 28 -> 14 -> 10 -> 5
    return features + linear(16 * 5 * 5, 120) + linear(120, 84) + linear(84, 10)


def alexnet_count() -> int:
    features = conv(3, 128, 5) + conv(128, 192, 5)
    features += conv(192, 256, 3) + conv(256, 192, 3) + conv(192, 192, 3)
    return features + linear(192 * 4 * 4, 10)  # three pools: 32 -> 16 -> 8 -> 4


def vgg11_count() -> int:
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    features = sum(conv(a, b, 3) + norm(b) for a, b in zip(widths, widths[1:]))
    return features + linear(512, 10)  # five pools: 32 -> 1


def resnet18_count() -> int:
    return resnet_body(3) + linear(512, 10)  # averaged over the map


def resnet18_ap_count() -> int:
    return resnet_body(3) + linear(512 * 4 * 4, 10)  # three halvings: 32 -> 4, flattened


def vit_count() -> int:
    width, tokens = 192, 1 + (32 // 4) ** 2  # class token and 8 x 8 patches of 4 x 4 pixels
    patches = conv(3, width, 4) + width + tokens * width  # with class token and positions
    attention = linear(width, 3 * width) + linear(width, width)
    perceptron = linear(width, 4 * width) + linear(4 * width, width)
    block = norm(width) + attention + norm(width) + perceptron
    return patches + 6 * block + norm(width) + linear(width, 10)


COUNTS = {
    "ConvNet": (convnet_count(), 320_010),  # of the public code of DC, DSA and DM
    "MLP": (mlp_count(), 411_146),
    "LeNet": (lenet_count(), 62_006),
    "AlexNet": (alexnet_count(), 1_872_202),
    "VGG11": (vgg11_count(), 9_231_114),
    "ResNet10": (resnet_body(3, blocks=1) + linear(512, 10), 4_903_242),
    "ResNet18": (resnet18_count(), 11_173_962),
    "ResNet18_AP": (resnet18_ap_count(), 11_250_762),
    "ViT": (vit_count(), 2_693_578),
}


def learned(built: nn.Module) -> int:
    return sum(value.numel() for value in built.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_at_the_published_size(name):
    by_hand, number = COUNTS[name]
    with torch.device("meta"):
        assert learned(module(name, (3, 32, 32), 10)) == by_hand == number


def test_counts_of_gray_images_padded_to_32_pixels():
    def count(name, shape):
        with torch.device("meta"):
            return learned(module(name, shape, 10))

    assert count("ConvNet", (1, 28, 28)) == 317_706  # of the public code of DC, DSA and DM
    assert count("AlexNet", (1, 28, 28)) == alexnet_count() - 2 * 128 * 25
    assert count("VGG11", (1, 28, 28)) == vgg11_count() - 2 * 64 * 9
    assert count("LeNet", (1, 28, 28)) == lenet_count() - 2 * 6 * 25
    # not padded: 28 -> 14 -> 7 -> 3 by pools
    assert count("ResNet18_AP", (1, 28, 28)) == resnet_body(1) + linear(512 * 3 * 3, 10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, normalization", VARIANTS)
def test_every_image_size(name, normalization, shape):
    network = build(name, shape, 7, width=0.125, normalization=normalization)
    params = network.init(generator(), 2)
    output = network.apply(params, torch.randn(3, *shape, generator=generator(1)))
    assert output.logits.shape == (2, 3, 7) and output.logits.isfinite().all()
    head = params["head.weight"]
    assert output.embedding.shape == (2, 3, head.shape[-1])
    by_hand = torch.einsum("kbf,kcf->kbc", output.embedding, head) + params["head.bias"][:, None]
    torch.testing.assert_close(output.logits, by_hand, rtol=1e-4, atol=1e-5)
    # an instance normalization over one pixel would give all images the same logits
    assert (output.logits[:, 0] - output.logits[:, 1]).abs().amax() > 1e-6


def test_the_map_never_falls_under_the_stated_size():
    sides = {}

    def watch(module, inputs):
        if isinstance(module, nn.GroupNorm):
            sides["normalized"] = min(sides.get("normalized", 99), *inputs[0].shape[2:])

    for name in ("VGG11", "ResNet18", "ResNet18_AP"):
        for shape in [(1, 4, 4), (1, 4, 30), (3, 5, 7), (1, 8, 8), (3, 11, 9)]:
            net = module(name, shape, 3, width=0.06)
            for each in net.modules():
                each.register_forward_pre_hook(watch)
            net(torch.zeros(2, *shape))
    assert sides["normalized"] == 2


@pytest.mark.parametrize("name, normalization", VARIANTS)
def test_a_few_steps_of_training_lower_the_loss(name, normalization):
    shape = (1, 8, 8)
    small = name in ("MLP", "LeNet")  # few channels even at full width
    network = build(name, shape, 2, width=1.0 if small else 0.25, normalization=normalization)
    targets = torch.arange(12) % 2
    stripes = torch.arange(8).float().mul(2).sin().expand(8, 8)
    images = torch.stack([stripes, stripes.T])[targets][:, None] + 0.3 * torch.randn(12, *shape, generator=generator(1))
    normalized = bool(normalization) or name not in ("MLP", "LeNet", "AlexNet")
    _, stats = train(
        network,
        network.init(generator(), 2),
        TensorSource(images, targets),
        optimizer=SGD(lr=0.01 if normalized else 0.1),
        generator=generator(2),
        epochs=20 if normalized else 30,
        batch=12,
        collect=("loss",),
    )
    first, last = stats.collected["loss"].mean(-1)[[0, -1]]  # (K,) each
    assert (last < 0.8 * first).all()


@pytest.mark.parametrize("name", NAMES)
def test_init_is_reproducible_and_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    network = build(name, (1, 8, 8), 3, width=0.25)
    three = network.init(generator(5), 3)
    again = build(name, (1, 8, 8), 3, width=0.25).init(generator(5), 2)
    other = network.init(generator(6), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, three[key][:2]) for key, value in again.items())  # whatever the number of networks
    assert not torch.equal(three["head.weight"][0], three["head.weight"][1])
    assert not torch.equal(three["head.weight"][:1], other["head.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    shape = (1, 16, 13)
    network = build(name, shape, 3, width=0.125)
    params = network.init(generator(), 2)
    images = torch.randn(5, *shape, generator=generator(1))
    mates = images.clone()
    mates[1:] = 9 * torch.randn(4, *shape, generator=generator(2))
    one, other, alone = (network.apply(params, x).logits[:, 0] for x in (images, mates, images[:1]))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", STACKABLE)
def test_vmap_agrees_with_one_by_one(name, shared):
    """Logits, embeddings, gradients of weights and images, and the gradient of a gradient that gradient matching takes."""
    shape = (1, 8, 8)
    network = build(name, shape, 3, width=0.1)
    params = {key: value.double() for key, value in network.init(generator(), 3).items()}
    images = torch.randn(*(() if shared else (3,)), 4, *shape, generator=generator(1), dtype=torch.float64)
    results = []
    for network.vmap in (True, False):
        weights = {key: value.clone().requires_grad_() for key, value in params.items()}
        x = images.clone().requires_grad_()
        output = network.apply(weights, x)
        loss = output.logits.square().sum() + output.embedding.sin().sum()
        grads = torch.autograd.grad(loss, [*weights.values(), x], create_graph=True)
        (second,) = torch.autograd.grad(sum(grad.square().sum() for grad in grads[:-1]), x)
        results.append([output.logits, output.embedding, *grads, second])
    for stacked, one_by_one in zip(*results, strict=True):
        torch.testing.assert_close(stacked, one_by_one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", STACKABLE)
def test_one_by_one_is_the_module_itself(name):
    network = build(name, (1, 8, 8), 3, width=0.1)
    params = network.init(generator(), 2)
    images = torch.randn(4, 1, 8, 8, generator=generator(1))
    plain = module(name, (1, 8, 8), 3, width=0.1)
    for i, logits in enumerate(network.apply(params, images).logits):
        plain.load_state_dict({key: value[i] for key, value in params.items()})
        torch.testing.assert_close(logits, plain(images), rtol=1e-4, atol=1e-5)


def test_the_rule_for_vmap():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert vmap_pays(2, (2, 10, 3, 32, 32), True, cpu) and not vmap_pays(2, (2, 16, 3, 32, 32), True, cpu)
    assert vmap_pays(2, (255, 1, 8, 8), True, cpu) and not vmap_pays(2, (256, 1, 8, 8), True, cpu)
    assert vmap_pays(2, (256, 3, 32, 32), False, cpu) and vmap_pays(2, (256, 3, 32, 32), True, gpu)
    assert not vmap_pays(1, (10, 3, 32, 32), False, gpu)


def test_batch_norm_and_dropout_run_one_by_one():
    network = build("ResNet18", (1, 8, 8), 3, width=0.1, normalization="batch")
    assert not network.stackable
    params = network.init(generator(), 2)
    output = network.apply(params, torch.randn(4, 1, 8, 8, generator=generator(1)))
    assert set(output.buffers) == set(params) - set(trainable(params))
    assert not torch.equal(output.buffers["norm.running_mean"], params["norm.running_mean"])
    assert network.apply(params, torch.zeros(4, 1, 8, 8), train=False).buffers == {}

    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))

    assert not ModuleNetwork(dropping).stackable
    with pytest.raises(InputError, match="vmap: True"):
        ModuleNetwork(dropping, vmap=True)


def test_width_scales_every_architecture():
    for name in NAMES:
        with torch.device("meta"):
            counts = [learned(module(name, (3, 32, 32), 10, width)) for width in (0.01, 0.25, 1, 1.5)]
        assert counts == sorted(set(counts))


@pytest.mark.parametrize("name, normalization", VARIANTS)
def test_a_spec_is_enough_to_build_the_network_again(name, normalization, refused):
    network = build(name, (3, 32, 32), 10, 0.5, normalization)
    again = of(network.spec() | {"precision": "tf32", "compiled": True})
    assert again.spec() == network.spec() and again.name == network.name
    for wrong in ({"network": "LeNets"}, {"width": -1}, {"widht": 1}, {"shape": [3, 1, 1]}, {"normalization": "no"}, {"pooling": "max"}):
        with refused("network"):
            of(network.spec() | wrong)


def test_spec_and_name_identify_the_network():
    assert {build(name, (1, 8, 8), 3).spec()["network"] for name in NAMES} == set(NAMES)
    network = build("VGG11", (1, 8, 8), 3, width=0.5, normalization="batch")
    assert network.spec() == {"network": "VGG11", "shape": [1, 8, 8], "classes": 3, "width": 0.5, "normalization": "batch"}
    assert network.classes == 3 and network.name == "VGG11 width x0.5, batch norm"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "ResNet19"}, "network: 'ResNet19' is unknown.*accepted: ConvNet, MLP, .*ViT"),
        ({"name": "AlexNet", "normalization": "batch"}, "normalization of AlexNet: 'batch'"),
        ({"name": "ConvNet", "normalization": "spectral"}, "normalization of ConvNet: 'spectral'"),
        ({"shape": (1, 3, 8)}, "shape: .*4 pixels a side"),
        ({"shape": (8, 8)}, "shape: "),
        ({"classes": 0}, "classes: 0"),
        ({"width": 0}, "width: 0"),
        ({"width": float("nan")}, "width: nan"),
        ({"width": "1"}, "width: '1'"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        build(**{"name": "ResNet18", "shape": (1, 8, 8), "classes": 3} | change)


def test_every_normalization_on_offer_builds():
    for name, (_, normalizations) in POOL.items():
        for normalization in normalizations:
            assert build(name, (1, 8, 8), 3, width=0.1, normalization=normalization).normalization == normalization
