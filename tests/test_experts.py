"""Experts: what is stored, refused, resumed and billed."""

import threading
from dataclasses import replace

import pytest
import torch

from distillery import experts as ex
from distillery import store
from distillery.data import fit_standardize
from distillery.lock import lock
from distillery.networks import ConvNet
from distillery.training.optimizers import GSAM, SGD, Adam, Nesterov

FLAT = GSAM(0.05, 0.0, 0.0, rho=0.02, alpha=0.3)


def network(width=4, **options):
    return ConvNet((1, 8, 8), 3, width=width, depth=1, **options)


def training(**options):
    return ex.Training(**{"experts": 3, "optimizer": FLAT, "batch": 10} | options)


def made(folder, images, epochs=3, net=None, **options):
    ex.make(folder, net or network(), images, training(**options), epochs)
    return ex.load(folder, net or network(), images, training(**options), epochs)


def same(first, second, **tolerance):
    return all(torch.allclose(first.weights[name], second.weights[name], **tolerance) for name in first.weights)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def test_bank_holds_every_expert_and_epoch(tiny, tmp_path):
    experts = made(tmp_path, tiny)
    assert (len(experts), experts.epochs) == (3, 3)
    assert experts.weights["conv0.weight"].shape == (3, 4, 4, 1, 3, 3)
    moved = (experts.weights["head.weight"].diff(dim=1).flatten(2).norm(dim=2) > 0).all()
    assert moved  # snapshots do not share storage
    assert experts.at(1, 2)["head.bias"].shape == (1, 3)
    heads = experts.weights["head.weight"][:, 0]
    assert not torch.allclose(heads[0], heads[1])


@pytest.mark.parametrize("epoch", [4, -1])
def test_an_epoch_beyond_the_stored_ones_is_refused(tiny, tmp_path, epoch, refused):
    experts = made(tmp_path, tiny)
    with refused(epoch, "0 to 3"):
        experts.at(0, epoch)


GOING_ON = {"GSAM": FLAT, "momentum": SGD(0.05, 0.9, 1e-3), "a drop": SGD(0.05, 0.9, drops=(4,)), "Adam": Adam(0.01)}


@pytest.mark.parametrize("optimizer", GOING_ON.values(), ids=GOING_ON)
def test_more_epochs_go_on_from_the_stored_ones_with_the_same_bits(tiny, tmp_path, optimizer):
    made(tmp_path / "parts", tiny, 1, optimizer=optimizer)
    parts = made(tmp_path / "parts", tiny, 4, optimizer=optimizer)
    whole = made(tmp_path / "whole", tiny, 4, optimizer=optimizer)
    assert same(parts, whole, rtol=0, atol=0)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_longer_bank_serves_who_needs_fewer_epochs(tiny, tmp_path):
    """Whoever asks: the id of a bank names no method and no length."""
    long = made(tmp_path, tiny, 4)
    before = files(tmp_path)
    bill, short = ex.bill(tmp_path, network(), tiny, training(), 2), ex.load(tmp_path, network(), tiny, training(), 2)
    assert (bill["samples"], bill["seconds"]) == (0, 0) and before == [name for name in files(tmp_path) if "bill" not in name]
    assert short.epochs == 2 and all(torch.equal(short.weights[name], long.weights[name][:, :3]) for name in short.weights)


def test_chunks_train_the_same_experts(tiny, tmp_path):
    """Expert i is the same in whatever chunk, and however many there are, up to rounding."""
    together = made(tmp_path, tiny, chunk=3)
    apart = made(tmp_path, tiny, chunk=1)
    assert same(together, apart, atol=1e-5)
    assert len(list(tmp_path.glob("experts-*"))) == 4
    two = made(tmp_path, tiny, experts=2, chunk=1)
    assert all(torch.equal(two.weights[name], apart.weights[name][:2]) for name in two.weights)


class Stop(Exception):
    pass


def test_optimizers_with_equal_numbers_have_banks_of_their_own(tiny, tmp_path):
    plain, ahead = (made(tmp_path, tiny, 1, optimizer=kind(0.05, 0.9, 0.0)) for kind in (SGD, Nesterov))
    assert len(list(tmp_path.glob("experts-*"))) == 2
    assert not same(plain, ahead)


def test_a_precision_has_a_bank_of_its_own_and_is_that_of_the_training(tiny, tmp_path, monkeypatch):
    """On a CPU the bits are the same; the first one is in no id."""
    seen, train = [], ex.train
    monkeypatch.setattr(ex, "train", lambda *args, **more: seen.append(torch.backends.cudnn.allow_tf32) or train(*args, **more))
    full, low = (made(tmp_path, tiny, 1, precision=precision) for precision in ex.PRECISIONS)
    assert len(list(tmp_path.glob("experts-*"))) == 2 and same(full, low, rtol=0, atol=0) and seen == [False, True]
    assert "precision" not in training().spec() and training(precision="tf32").spec()["precision"] == "tf32"


@pytest.mark.parametrize("writes", range(6))
def test_a_kill_loses_at_most_the_epoch_under_way(tiny, tmp_path, monkeypatch, writes):
    whole = made(tmp_path / "whole", tiny, chunk=2)
    write, left = store.write_bytes, iter(range(writes))

    def killed(path, content):
        if next(left, None) is None:
            raise Stop
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", killed)
        with pytest.raises(Stop):
            made(tmp_path / "killed", tiny, chunk=2)
    assert len(files(tmp_path / "killed")) == writes
    assert same(made(tmp_path / "killed", tiny, chunk=2), whole, rtol=0, atol=0)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tiny, tmp_path, monkeypatch, refused):
    made(tmp_path, tiny, 1)
    before = files(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with refused("No space left on device"):
            made(tmp_path, tiny, 3)
    assert files(tmp_path) == before
    assert made(tmp_path, tiny, 3).epochs == 3


def test_experts_that_are_not_stored_are_refused(tiny, tmp_path, refused):
    made(tmp_path, tiny)
    brighter = replace(tiny, transform=fit_standardize(tiny.subset(torch.arange(4))))
    other = training(optimizer=replace(FLAT, alpha=1.0))
    asked = [(network(), tiny.subset(torch.arange(21)), training()), (network(), brighter, training()), (network(), tiny, other)]
    asked += [(network(8), tiny, training()), (network(), tiny, training(optimizer=SGD(0.05, 0.0, 0.0)))]
    for one in asked:
        with refused("0 of 4 epochs"):
            ex.load(tmp_path, *one, 3)
    with refused("4 of 5 epochs"):
        ex.load(tmp_path, network(), tiny, training(), 4)


def test_files_of_other_experts_under_the_asked_name_are_refused(tiny, tmp_path, refused):
    made(tmp_path, tiny)
    (path,) = tmp_path.glob("experts-*")
    made(tmp_path / "other", tiny, seed=1)
    (other,) = (tmp_path / "other").glob("experts-*")
    (path / "002.safetensors").write_bytes((other / "002.safetensors").read_bytes())
    with refused("seed differs", "1 instead of 0", "002"):
        ex.load(tmp_path, network(), tiny, training(), 3)
    (path / "002.safetensors").write_bytes((path / "001.safetensors").read_bytes())
    with refused("epoch differs"):
        ex.load(tmp_path, network(), tiny, training(), 3)
    content = bytearray((path / "001.safetensors").read_bytes())
    content[-3] ^= 1
    (path / "001.safetensors").write_bytes(content)
    with refused("corrupt"):
        ex.load(tmp_path, network(), tiny, training(), 3)


def test_cost_is_known_before(tiny, tmp_path):
    told = ex.cost(tmp_path, network(), tiny, training(chunk=2), 3)
    assert told["steps"] == 2 * 3 * 3 and told["seconds"] > 0
    lines = []
    ex.make(tmp_path, network(), tiny, training(chunk=2), 3, log=lines.append)
    (line,) = lines
    assert "3 experts" in line and "18 steps" in line
    stored = sum(value.numel() * 4 for value in ex.load(tmp_path, network(), tiny, training(chunk=2), 3).weights.values())
    assert told["bytes"] == stored
    left = ex.cost(tmp_path, network(), tiny, training(chunk=2), 5)
    assert left["steps"] == 2 * 2 * 3 and left["bytes"] == stored // 4 * 2
    nothing = ex.cost(tmp_path, network(), tiny, training(chunk=2), 3)
    assert nothing["seconds"] == nothing["bytes"] == 0


def test_the_sum_of_chunks_covers_the_experts_on_any_shape(tiny):
    class Source:
        shape, device = (3, 32, 32), torch.device("cuda")

        def __len__(self):
            return 50000

    assert ex._chunk(Source(), ex.Training(100)) == 1  # one fills a GPU
    assert ex._chunk(Source(), ex.Training(100, batch=16)) == 100
    assert ex._chunk(tiny, training()) == 3
    assert ex._chunk(tiny, training(chunk=2)) == 2


def test_statistics_of_batch_norm_are_stored_too(tiny, tmp_path):
    experts = made(tmp_path, tiny, net=network(normalization="batch"))
    assert not torch.allclose(*experts.weights["norm0.running_mean"][0, :2])


def test_a_bank_is_billed_once(tiny, tmp_path):
    """What another bank trained before is on that one's bill."""
    first = ex.bill(tmp_path, network(), tiny, training(), 2)
    assert first["samples"] == 3 * 2 * 24 and first["seconds"] > 0
    assert ex.bill(tmp_path, network(), tiny, training(), 2) == first
    more = ex.bill(tmp_path, network(), tiny, training(), 3)
    assert more["id"] != first["id"] and more["samples"] == 3 * 24
    assert ex.bill(tmp_path, network(), tiny, training(), 2) == first


def test_a_bill_has_a_digest_and_those_from_before_are_read(tiny, tmp_path, refused):
    first = ex.bill(tmp_path, network(), tiny, training(), 2)
    (path,) = tmp_path.glob("bill-*.safetensors")
    path.write_bytes(path.read_bytes().replace(b'samples\\":144', b'samples\\":145'))
    with refused(path, "corrupt"):
        ex.bill(tmp_path, network(), tiny, training(), 2)
    path.unlink()
    store.write_json(tmp_path / f"{first['id']}.json", first)
    assert ex.bill(tmp_path, network(), tiny, training(), 2) == first and not path.exists()


def test_a_bank_that_another_process_makes_is_waited_for(tiny, tmp_path):
    made(tmp_path, tiny, 1)
    (path,) = tmp_path.glob("experts-*")
    release = threading.Event()

    def hold() -> None:
        with lock(path.with_suffix(".lock")):
            held.set()
            release.wait(10)

    held = threading.Event()
    threading.Thread(target=hold, daemon=True).start()
    held.wait(10)
    threading.Timer(0.3, release.set).start()
    assert made(tmp_path, tiny, 2).epochs == 2 and release.is_set()
