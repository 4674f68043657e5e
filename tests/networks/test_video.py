"""Networks of clips against plain modules, and the counts of the sheet."""

import pytest
import torch
import torch.nn.functional as F

from distillery.checks import InputError
from distillery.networks import ConvNet, trainable
from distillery.networks.video import ConvNet3D, Dropout, PerFrame, frames_of
from distillery.seeds import generator

SMALL = (8, 16, 16)  # 8 gray frames


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "clips"))


@pytest.mark.parametrize("shape, frames, features", [((24, 64, 64), 8, 256), ((48, 112, 112), 16, 2048)])
def test_parameters_and_embeddings_of_the_published_shapes(shape, frames, features):
    network = ConvNet3D(shape, 400, frames)
    params = network.init(generator(0, "x"), 1)
    assert sum(value.numel() for value in trainable(params).values()) == 3_692_816
    assert network.apply(params, clips(1, 1, *shape)).embedding.shape == (1, 1, features)


def plain(params, x, frames):
    """The 3D ConvNet layer by layer as the sheet has it, for 64 x 64 clips in evaluation mode, channels of all frames unfolded by hand."""
    x = torch.stack([x[:, 3 * t : 3 * t + 3] for t in range(frames)], 2)  # (B, 3, T, H, W)
    for i, pool in ((0, (1, 2, 2)), (3, 2), (6, 2)):
        x = F.conv3d(x, params[f"features.{i}.weight"][0], params[f"features.{i}.bias"][0], (1, 2, 2), (1, 3, 3))
        x = F.max_pool3d(x.relu(), pool)
    embedding = x.flatten(1)
    x = F.avg_pool3d(x, (2, 1, 1), 1)
    weight = params["head.weight"][0][:, :, None, None, None]
    return F.conv3d(x, weight, params["head.bias"][0]).squeeze(-1).squeeze(-1).amax(-1), embedding


def test_it_is_the_plain_network():
    network = ConvNet3D((24, 64, 64), 10, 8, width=16)
    params, x = network.init(generator(1, "x"), 1), clips(3, 24, 64, 64)
    found, (logits, embedding) = network.apply(params, x, train=False), plain(params, x, 8)
    assert torch.allclose(found.logits[0], logits, atol=1e-6) and torch.allclose(found.embedding[0], embedding, atol=1e-6)


def test_a_still_clip_and_a_moving_one_differ_in_order_alone():
    network, x = ConvNet3D(SMALL, 4, 8, width=16), clips(5, *SMALL)
    params = network.init(generator(0, "x"), 2)
    logits = network.apply(params, x, train=False).logits
    assert logits.shape == (2, 5, 4)
    assert not torch.allclose(logits, network.apply(params, x.flip(1), train=False).logits, atol=1e-4)
    frames = PerFrame(ConvNet((1, 16, 16), 4, width=8), 8)
    params = frames.init(generator(0, "x"), 2)
    logits = frames.apply(params, x).logits
    assert torch.allclose(logits, frames.apply(params, x.flip(1)).logits, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_network_of_frames_is_the_mean_of_its_features(shared):
    inner = ConvNet((3, 8, 8), 5, width=8)
    network = PerFrame(inner, 4)
    params, x = network.init(generator(2, "x"), 2), clips(2, 6, 12, 8, 8)
    x = x[0] if shared else x
    found = network.apply(params, x)
    each = [inner.embed(params, x[..., 3 * t : 3 * t + 3, :, :]) for t in range(4)]
    assert torch.allclose(found.embedding, sum(each) / 4, atol=1e-6)
    assert torch.allclose(found.logits, found.embedding @ params["head.weight"].mT + params["head.bias"][:, None], atol=1e-5)
    assert network.channels == inner.channels and network.spec()["frames"] == 4


def test_statistics_of_a_network_of_frames_are_kept():
    network, x = PerFrame(ConvNet((1, 8, 8), 5, width=8, normalization="batch"), 4), clips(6, 4, 8, 8)
    params = network.init(generator(2, "x"), 1)
    buffers = network.apply(params, x).buffers
    assert buffers and any(not torch.equal(value, params[name]) for name, value in buffers.items())
    assert network.classes == 5 and not hasattr(network, "network")  # by which a wrapper for precision is known


def test_dropout_repeats_with_its_weights_and_leaves_torch_alone():
    network, x = ConvNet3D(SMALL, 4, 8, width=16), clips(6, *SMALL)
    params = network.init(generator(3, "x"), 2)
    before = torch.random.get_rng_state()
    first = network.apply(params, x)
    again = network.apply(params, x)
    assert torch.equal(first.logits, again.logits) and torch.equal(before, torch.random.get_rng_state())
    counted = params["dropout.num_batches_tracked"]
    assert torch.equal(first.buffers["dropout.num_batches_tracked"], counted + 1) and counted[0] != counted[1]
    assert not torch.equal(network.apply(params | first.buffers, x).logits, first.logits)  # the next batch, another mask
    assert "dropout.num_batches_tracked" not in trainable(params)
    layer = Dropout(0.5).train()
    ones = layer(torch.ones(4000))
    assert set(ones.tolist()) == {0.0, 2.0} and abs(float(ones.mean()) - 1) < 0.1


def test_frames_are_refused_where_they_do_not_fit():
    assert frames_of(clips(2, 6, 3, 3), 2).shape == (2, 2, 3, 3, 3)
    for wrong in (
        lambda: frames_of(clips(2, 6, 3, 3), 4),
        lambda: frames_of(clips(2, 6, 3, 3), 0),
        lambda: ConvNet3D((7, 16, 16), 4, 2),
        lambda: ConvNet3D(SMALL, 4, 0),
    ):
        with pytest.raises(InputError, match="frames"):
            wrong()
    for share in (1.5, 1.0, -0.1, "half"):
        with pytest.raises(InputError, match="dropout"):
            ConvNet3D(SMALL, 4, 8, dropout=share)
