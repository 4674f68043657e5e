"""Learning complexity: the path of masks, and the prototype loss that rides on it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distillery.evaluation import embed
from distillery.networks import pool
from distillery.networks.encoder import Encoder
from distillery.networks.precision import MixedPrecision
from distillery.scores.complexity import (
    learning_complexity_plain,
    maskable,
    masked,
    masked_plain,
    prototype_logits,
    prototype_path,
    prototypes,
    settled,
    shares,
)
from distillery.seeds import generator


def weights(seed=0):
    stream = generator(seed, "weights")
    return {"a": torch.randn(5, 3, generator=stream), "b": 3 * torch.randn(2, 2, 3, 3, generator=stream)}


def test_linear_shares_are_those_of_the_captions():
    assert shares(50, "linear") == pytest.approx([0.02 * t for t in range(50)])
    assert shares(1, "linear") == [0]


def test_five_masks_are_the_published_ones_unless_said_otherwise():
    """2% of what is left at a time: 0, 2, 4, 6, 8% of the weights; five even shares would be 0, 20, .. 80%."""
    assert shares(5) == pytest.approx([0, 0.02, 0.04, 0.06, 0.08], abs=3e-3)
    assert settled({}) == {"steps": 5, "schedule": "geometric", "interval": 0.02}
    assert settled({"schedule": "linear", "interval": 0.1}) == {"steps": 5, "schedule": "linear"}  # no interval of even shares
    assert settled({"normalized": False, "temperature": 1.0}) == settled({})  # as published
    assert settled({"normalized": True, "temperature": 0.1}) == settled({}) | {"normalized": True, "temperature": 0.1}


def test_geometric_shares_leave_98_percent_each_time():
    left = [1 - share for share in shares(50, "geometric")]
    assert left[:3] == pytest.approx([1, 0.98, 0.9604]) and left[49] == pytest.approx(0.98**49)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_are_those_of_the_definition(share, scope):
    given = weights()
    [one] = [{k: v.clone() for k, v in w.items()} for w in masked(given, [share], scope=scope)]
    wanted = masked_plain(given, share, scope)
    assert all(torch.equal(one[name], wanted[name]) for name in given)


def test_the_threshold_is_global():
    """A sort of all magnitudes in one list; by layers another weight would go."""
    given = {"small": torch.tensor([0.1, -0.2, 0.3]), "large": torch.tensor([-5.0, 6.0, 7.0])}
    [one] = masked(given, [0.5])
    assert one["small"].tolist() == [0, 0, 0] and one["large"].tolist() == [-5, 6, 7]
    [one] = masked(given, [1 / 3], scope="layer")
    assert one["small"].tolist() == pytest.approx([0, -0.2, 0.3]) and one["large"].tolist() == [0, 6, 7]


@pytest.mark.parametrize("how", ["magnitude", "random"])
def test_masks_are_nested_of_the_asked_size_and_leave_the_weights_alone(how):
    given = weights()
    before = {name: value.clone() for name, value in given.items()}
    n, zeros = sum(value.numel() for value in given.values()), None
    for share, one in zip(shares(9), masked(given, shares(9), how, generator=generator(0, "m")), strict=True):
        now = torch.cat([one[name].flatten() == 0 for name in given])
        assert int(now.sum()) == round(share * n)
        assert zeros is None or bool((now | ~zeros).all())
        rest = torch.cat([(one[name] == given[name]).flatten() for name in given])
        assert bool((rest | now).all())
        zeros = now
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_one_copy_is_overwritten():
    path = masked(weights(), [0, 0.5])
    assert next(path)["a"] is next(path)["a"]


def test_equal_magnitudes_go_in_order():
    [one] = masked({"w": torch.tensor([1.0, -1, 1, -1])}, [0.5])
    assert one["w"].tolist() == [0, 0, 1, -1]


def test_what_can_be_masked():
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    assert maskable(block) == ["0.weight"]
    vit = pool.build("ViT", (3, 16, 16), 5, 0.1).build()
    names = maskable(vit)
    assert "patches.weight" not in names and "head.weight" not in names and "positions" not in names
    assert "blocks.0.qkv.weight" in names and "blocks.0.mlp.2.weight" in names
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert "self_attn.in_proj_weight" in maskable(nn.Sequential(attention, nn.Linear(8, 2)))[0]


def test_refused_masks(refused):
    with refused("weights"):
        maskable(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    for share in (-0.1, 1.0):
        with refused(share):
            next(masked(weights(), [share]))
    with refused("random", "generator"):
        next(masked(weights(), [0.1], "random"))
    with refused("cubic"):
        shares(3, "cubic")
    with refused(1.5):
        shares(3, "geometric", 1.5)
    with refused(0):
        shares(0)


FEATURES = torch.randn(20, 6, generator=generator(0, "features"))
TARGETS = torch.arange(20) % 3


def prototype_losses(features, targets, centres):
    return F.cross_entropy(prototype_logits(features, centres), targets, reduction="none").float()


def test_prototype_losses_are_their_definition():
    losses = prototype_losses(FEATURES, TARGETS, prototypes(FEATURES, TARGETS))
    wanted = learning_complexity_plain([FEATURES.tolist()], TARGETS.tolist())
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5)


def test_prototype_losses_by_hand():
    """Two classes on a line, centres 0 and 4; a sample at 1 has logits 1 and 1/3."""
    features, targets = torch.tensor([[-1.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    losses = prototype_losses(features, targets, prototypes(features, targets))
    wanted = [math.log(1 + math.exp(1 / b - 1 / a)) for a, b in ((1, 5), (1, 3), (1, 3), (1, 5))]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_sample_on_a_prototype_is_easy_and_finite():
    features, targets = torch.tensor([[0.0], [0.0], [2.0], [4.0]]), torch.tensor([0, 0, 1, 1])
    losses = prototype_losses(features, targets, prototypes(features, targets))
    assert losses[0] == 0 and losses.isfinite().all()


def encoder(tiny, name="ConvNet"):
    network = pool.build(name, tiny.shape, 3, 0.1 if name == "ViT" else 0.05)
    return network, network.init(generator(0, "encoder"), 1)


@pytest.mark.parametrize("name", ["ConvNet", "ResNet18", "ViT", "MLP"])
def test_a_path_of_one_is_the_prototype_loss_of_the_encoder(tiny, name):
    network, params = encoder(tiny, name)
    before = {key: value.clone() for key, value in params.items()}
    losses, _, features = prototype_path(network, params, tiny, 1)
    rows = embed(network, params, tiny)[0]
    assert torch.equal(features, rows)
    wanted = prototype_losses(rows, tiny.targets, prototypes(rows, tiny.targets))
    assert torch.equal(losses, wanted[None])
    assert all(torch.equal(params[key], before[key]) for key in params)


def test_a_path_is_masked_networks_one_by_one(tiny, as_module):
    """The plain twin: a module whose weights are overwritten, features by hand, one sample at a time."""
    network, params = encoder(tiny)
    found = prototype_path(network, params, tiny, 3, schedule="geometric", interval=0.4)
    centres, by_mask = prototypes(found.features, tiny.targets), []
    for share, losses, accuracy in zip(shares(3, "geometric", 0.4), found.losses, found.accuracies, strict=True):
        module = as_module(network, params, 0)
        names = [f"conv{i}.weight" for i in range(network.depth)]
        weights = masked_plain({name: module.get_parameter(name) for name in names}, share)
        with torch.no_grad():
            for name in names:
                module.get_parameter(name).copy_(weights[name])
            rows = torch.stack([module[:-1](tiny.batch(torch.tensor([i])))[0] for i in range(len(tiny))])
        wanted = prototype_losses(rows, tiny.targets, centres)
        assert torch.allclose(losses, wanted, rtol=1e-4)
        nearest = [min(range(3), key=lambda c: float((row - centres[c]).norm())) for row in rows]
        assert float(accuracy) == pytest.approx(sum(c == int(y) for c, y in zip(nearest, tiny.targets)) / len(tiny))
        by_mask.append(rows.tolist())
    wanted = learning_complexity_plain(by_mask, tiny.targets.tolist())
    assert found.losses.mean(0).tolist() == pytest.approx(wanted, rel=1e-4)
    turned = prototype_path(network, params, tiny, 3, schedule="geometric", interval=0.4, normalized=True, temperature=0.1)
    unit = [[[value / math.dist(row, [0] * len(row)) for value in row] for row in rows] for rows in by_mask]
    wanted = learning_complexity_plain(unit, tiny.targets.tolist(), 0.1)
    assert turned.losses.mean(0).tolist() == pytest.approx(wanted, rel=1e-3) and torch.equal(turned.features, found.features)


def test_a_path_takes_one_forward_pass_a_mask(tiny, monkeypatch):
    network, params = encoder(tiny)
    seen, inner = [], network.embed
    monkeypatch.setattr(network, "embed", lambda *a, **o: seen.append(a[1].shape[0]) or inner(*a, **o))
    prototype_path(network, params, tiny, 5)
    assert sum(seen) == 5 * len(tiny)


def test_random_masks_follow_their_generator(tiny):
    network, params = encoder(tiny)
    one, again, other = (prototype_path(network, params, tiny, 3, how="random", generator=generator(s, "m"))[0] for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one[0], other[0])  # the first model is whole


def test_a_mislabelled_image_is_complex(tiny):
    targets = tiny.targets.clone()
    targets[3] = 2
    wrong = type(tiny)(tiny.pixels, targets, tiny.classes, tiny.transform)
    network, params = encoder(tiny)
    assert int(prototype_path(network, params, wrong, 5)[0].mean(0).argmax()) == 3


def test_a_path_in_low_precision(tiny):
    network, params = encoder(tiny)
    low, full = (prototype_path(one, params, tiny, 3)[0] for one in (MixedPrecision(network, "bfloat16"), network))
    assert torch.allclose(low, full, rtol=0.1)


def test_refused_paths(tiny, refused):
    network, params = encoder(tiny)
    lonely = tiny.subset(torch.tensor([0, 1, 2, 8, 9, 16]))
    with refused("class 2", "1 sample"):
        prototype_path(network, params, lonely)
    broken = FEATURES.clone()
    broken[2, 1] = math.nan
    with refused("NaN", 1):
        prototypes(broken, TARGETS)


def test_an_encoder_shows_its_features(tiny):
    network, params = encoder(tiny)
    weights = {name: value for name, value in params.items() if not name.startswith("head")}
    start = Encoder(network, weights).params
    assert torch.equal(prototype_path(network, start, tiny, 2)[0], prototype_path(network, params, tiny, 2)[0])
