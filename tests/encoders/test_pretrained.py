"""Encoders: starts with fresh classifiers, files that fit, refusals; fine-tuning from them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distillery import store
from distillery.data import Splits
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning, accuracy, embed, evaluate, fit
from distillery.networks import ConvNet, ModuleNetwork, pool
from distillery.networks.encoder import Encoder, head_names
from distillery.runs import Runs
from distillery.seeds import generator, split
from distillery.training import train
from distillery.training.optimizers import Nesterov
from made_up import blobs


def network(classes=3):
    return ConvNet((1, 8, 8), classes, width=4)


@pytest.fixture
def weights(tiny):
    return pretrained.pretrain(network(), tiny, 8, generator(0, "encoder"), batch=8)


def test_pretraining_learns_and_leaves_the_classifier_behind(tiny, weights):
    assert set(weights) == {name for name in network().init(generator(0, "x")) if not name.startswith("head")}
    fresh = network().init(generator(0, "encoder"), 1)
    assert not torch.equal(weights["conv0.weight"], fresh["conv0.weight"])


def test_a_start_is_trained_layers_under_fresh_classifiers(weights):
    start = Encoder(network(5), weights).start(generator(1, "x"), 3)
    fresh = network(5).init(generator(1, "x"), 3)
    for name, value in start.items():
        trained = not name.startswith("head")
        wanted = weights[name].expand(3, *weights[name].shape[1:]) if trained else fresh[name]
        assert torch.equal(value, wanted)
    start["conv0.weight"].zero_()
    assert weights["conv0.weight"].abs().sum() > 0


@pytest.mark.parametrize("name", ["ConvNet", "ResNet18", "ViT"])
def test_heads_are_found_by_their_place(name):
    built = pool.build(name, (3, 8, 8), 4, 0.05)
    heads = head_names(built)
    params = built.init(generator(0, "x"))
    assert {tuple(params[one].shape) for one in heads} >= {(1, 4)} and heads <= set(params)


def test_files_are_read_back(weights, tmp_path):
    pretrained.save(tmp_path / "e.safetensors", network(), weights, {"trained on": "blobs"})
    found = pretrained.load(tmp_path / "e.safetensors", network(7))
    assert found.digest == Encoder(network(7), weights).digest and found.name == "e.safetensors"


def test_an_encoder_is_trained_once_and_kept(tmp_path, refused):
    images, runs = blobs(classes=2), Runs(tmp_path)
    source, how = Splits(images, images, images), {"epochs": 2, "lr": 0.05, "batch": 8, "augmentation": ""}
    made = pretrained.trained(network(2), source, network(5), runs, 0, **how)
    weights = pretrained.pretrain(network(2), images, generator=generator(0, "encoder"), **how)
    assert made.digest == Encoder(network(5), weights).digest and made.network.classes == 5 and "2 epochs on" in made.name
    kept = list((tmp_path / "artifacts").iterdir())
    assert pretrained.trained(network(2), source, network(7), runs, 0, **how).digest == made.digest
    assert list((tmp_path / "artifacts").iterdir()) == kept
    assert pretrained.trained(network(2), source, network(5), runs, 1, **how).digest != made.digest
    with refused("encoder_dataset", (1, 8, 8)):
        pretrained.trained(network(2), source, ConvNet((1, 16, 16), 5, width=4), runs, 0, **how)


def test_a_state_dict_of_pytorch(tmp_path, as_module):
    params = network().init(generator(0, "x"), 1)
    state = as_module(network(), params, 0).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "e.pth")
    found = pretrained.load(str(tmp_path / "e.pth"), network(5))
    assert torch.equal(found.weights["conv1.weight"], params["conv1.weight"])


def test_checkpoints_that_do_not_match(weights, tmp_path, refused):
    path = tmp_path / "e.safetensors"
    pretrained.save(path, network(), weights, {})
    with refused("conv0.weight", "(4, 1, 3, 3)", "(6, 1, 3, 3)"):
        pretrained.load(path, ConvNet((1, 8, 8), 3, width=6))
    with refused("missing", "conv2.weight"):
        pretrained.load(path, ConvNet((1, 8, 8), 3, width=4, depth=3))
    pretrained.save(path, network(), weights | {"conv0.bias": weights["conv0.bias"] / 0}, {})
    with refused("NaN", "conv0.bias"):
        pretrained.load(path, network())
    store.save_tensors(path, weights, {"kind": "scores"})
    with refused("holds no encoder"):
        pretrained.load(path, network())
    path.write_bytes(path.read_bytes()[:-7])
    with refused("e.safetensors"):
        pretrained.load(path, network())
    torch.save(nn.Linear(2, 2), tmp_path / "e.pth")  # a pickled module
    with refused("e.pth", "more than tensors"):
        pretrained.load(tmp_path / "e.pth", network())
    for content in ([1, 2], torch.zeros(2), {"state_dict": None}):
        torch.save(content, tmp_path / "e.pth")
        with refused("e.pth", "a state dict"):
            pretrained.load(tmp_path / "e.pth", network())
    with refused("none.pt"):
        pretrained.load(tmp_path / "none.pt", network())


HARM = {
    "a NoneType": lambda value: None,
    "a list": lambda value: value.tolist(),
    "complex64": lambda value: value.to(torch.complex64),
    "torch.sparse_coo": torch.Tensor.to_sparse,
    "qint8": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "NaN": lambda value: (value / 0).to(torch.float8_e5m2),
    "()": torch.Tensor.sum,
}


@pytest.mark.filterwarnings("ignore")  # torch, of quantized tensors
@pytest.mark.parametrize("found", HARM)
def test_weights_that_are_no_plain_numbers(weights, tmp_path, found, refused):
    state = {name: value[0] for name, value in weights.items()}
    torch.save(state | {"conv0.weight": HARM[found](state["conv0.weight"])}, tmp_path / "e.pth")
    with refused("conv0.weight", found):
        pretrained.load(tmp_path / "e.pth", network())
    torch.save(state | {"other": None}, tmp_path / "e.pth")  # what the network does not have is passed over
    assert pretrained.load(tmp_path / "e.pth", network()).digest == Encoder(network(), weights).digest


TUNING = FineTuning(epochs=4, lr=0.01, batch=10)


def test_fine_tuning_is_training_from_the_encoder(tiny, weights):
    encoder = Encoder(network(), weights)
    found = evaluate(network(), tiny, TUNING, tiny, generator(0, "e"), encoder=encoder)
    init, stream = split(generator(0, "e"), 2)
    sgd = Nesterov(0.01, 0.9, 1e-5, drops=(6, 9))  # 12 steps
    params, _ = train(network(), encoder.start(init, 1), tiny, optimizer=sgd, generator=stream, epochs=4, batch=10)
    assert torch.equal(found, accuracy(network(), params, tiny))


def test_equal_epochs_and_equal_steps(tiny, weights):
    encoder, half = Encoder(network(), weights), tiny.subset(torch.arange(0, 24, 2))
    for steps_of, steps in ((0, 8), (24, 12)):
        _, stats = fit(network(), half, TUNING, generator(0, "e"), encoder=encoder, steps_of=steps_of)
        assert stats.steps == steps
    published, steps = replace(TUNING, epochs=50, batch=128).optimizer(9000)
    assert TUNING.optimizer(24)[1] == 12 and (published.drops, steps) == ((1775, 2662), 3550)


def test_an_encoder_helps_where_data_are_few(tiny, weights):
    """One image a class: features trained on these classes against random ones, over ten classifiers."""
    few, protocol = tiny.subset(torch.tensor([0, 8, 16])), FineTuning(networks=10, epochs=10, lr=0.01)
    fresh = {k: v for k, v in network().init(generator(5, "x"), 1).items() if not k.startswith("head")}
    trained, random = (
        evaluate(network(), few, protocol, tiny, generator(0, "e"), encoder=Encoder(network(), w)).mean() for w in (weights, fresh)
    )
    assert trained > random


def test_batchnorm_encoders_keep_their_statistics(tiny):
    built = pool.build("ResNet18", (1, 8, 8), 3, 0.05, "batch")
    learned = pretrained.pretrain(built, tiny, 2, generator(0, "x"), batch=8)
    assert any(name.endswith("running_mean") for name in learned)
    encoder = Encoder(built, learned)
    assert torch.equal(encoder.start(generator(0, "y"), 1)["norm.running_mean"], learned["norm.running_mean"])
    embed(built, encoder.params, tiny)
    assert isinstance(built, ModuleNetwork)


def test_fine_tuning_without_an_encoder(tiny, refused):
    with refused("encoder"):
        evaluate(network(), tiny, TUNING, tiny, generator(0, "e"))
    with refused("equal", "minutes"):
        FineTuning(equal="minutes")
    with refused("epochs", 0):
        FineTuning(epochs=0)
