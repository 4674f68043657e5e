"""Self-supervised teachers: views, losses, resumable training, targets and quality."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms

from distillery import store
from distillery.checks import InputError, RunFailed
from distillery.encoders import pretrained
from distillery.encoders import quality as quality_module
from distillery.encoders import teacher as teacher_module
from distillery.encoders.quality import deviation, effective_rank, nearest, quality
from distillery.encoders.regression_set import RegressionSet, teacher_targets
from distillery.encoders.teacher import SIMCLR, Cosine, Projected, TeacherTraining, _card, projector, resnet18, train_teacher, untrained
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.networks.precision import MixedPrecision
from distillery.seeds import generator
from distillery.training import squared_error, train
from distillery.training.contrastive import barlow_twins, barlow_twins_plain, simclr, simclr_plain
from distillery.training.losses import check_targets
from distillery.training.optimizers import Adam
from distillery.training.views import TwoViews, ViewDraw, Views, draw_views, two_views, view, view_plain
from made_up import blobs

QUICK = TeacherTraining(epochs=4, batch=8, warmup=1, width=6, views=Views(flip=0.0))
F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=dtype)


def pixels(n, shape, seed=0):
    return torch.rand(n, *shape, generator=generator(seed, "pixels"))


# Views


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 12, 7), (1, 8, 8), (2, 9, 9), (3, 2, 1)])
def test_views_of_a_batch_equal_those_one_by_one(shape):
    x = pixels(40, shape)
    drawn = draw_views(Views(), shape, 40, generator(1, "views"))
    expected = torch.stack([view_plain(x[i], drawn, i) for i in range(40)])
    out = view(x, drawn)
    assert torch.allclose(out, expected, atol=2e-5)
    assert 0 <= out.min() and out.max() <= 1 and not torch.allclose(out, x)


def test_nothing_is_left_of_an_image_that_is_not_changed():
    still = Views((1, 1), (1, 1), flip=0, jitter=0, gray=0)
    x = pixels(5, (3, 8, 8))
    assert torch.allclose(view(x, draw_views(still, (3, 8, 8), 5, generator(0, "v"))), x, atol=1e-6)
    mirrored = replace(still, flip=1.0)
    assert torch.allclose(view(x, draw_views(mirrored, (3, 8, 8), 5, generator(0, "v"))), x.flip(-1), atol=1e-6)
    gray = view(x, draw_views(replace(still, gray=1.0), (3, 8, 8), 5, generator(0, "v")))
    luma = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert torch.allclose(gray, luma[:, None].expand(-1, 3, -1, -1), atol=1e-6)


def test_a_crop_by_hand():
    """The left half of a row 0 1 2 3, doubled: 0 .25 .75 1, the crop's own border repeated."""
    drawn = ViewDraw(
        torch.tensor([[0, 0, 1, 2]]),
        *torch.zeros(2, 1, dtype=torch.bool),
        torch.arange(4)[None],
        torch.zeros(1, 4),
        torch.zeros(1, dtype=torch.bool),
    )
    row = torch.tensor([0.0, 1, 2, 3]).view(1, 1, 1, 4)
    assert torch.allclose(view(row, drawn).flatten(), torch.tensor([0, 0.25, 0.75, 1]), atol=1e-6)


@pytest.mark.parametrize("side", [(32, 32), (12, 40)])
def test_crops_are_distributed_as_those_of_torchvision(side):
    """Mean share of the area, and place, over 20000 crops; the narrow image takes the central one at times."""
    n = 20000
    boxes = draw_views(Views(), (3, *side), n, generator(0, "crops")).boxes.double()
    with torch.random.fork_rng():
        torch.random.default_generator.set_state(torch.Generator().manual_seed(0).get_state())
        crop = transforms.RandomResizedCrop.get_params
        image = torch.zeros(3, *side)
        theirs = torch.tensor([crop(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]).double()
    for which in range(4):
        ours, spread = boxes[:, which], theirs[:, which].std()
        assert abs(ours.mean() - theirs[:, which].mean()) < 4 * spread / 1500**0.5 + 1e-9
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(side)).all()


def test_rates_of_the_draws():
    drawn = draw_views(Views(), (3, 8, 8), 20000, generator(0, "rates"))
    for found, wanted in ((drawn.flipped, 0.5), (drawn.jittered, 0.8), (drawn.gray, 0.2)):
        assert abs(found.double().mean() - wanted) < 0.015
    assert len(drawn.order.unique(dim=0)) == 24
    assert torch.allclose(drawn.factors.amin(0), torch.tensor([0.6, 0.6, 0.6, -0.1], dtype=F64), atol=1e-3)
    assert torch.allclose(drawn.factors.amax(0), torch.tensor([1.4, 1.4, 1.4, 0.1], dtype=F64), atol=1e-3)


def test_two_views_differ_and_repeat():
    x = pixels(6, (3, 8, 8)).view(2, 3, 3, 8, 8)
    out = two_views(x, Views(), generator(0, "two"))
    assert out.shape == (2, 6, 3, 8, 8) and not torch.allclose(out[:, :3], out[:, 3:])
    assert torch.equal(out, two_views(x, Views(), generator(0, "two")))


def test_views_of_a_step_do_not_depend_on_those_before(tiny):
    at = torch.arange(8)[None]
    source = TwoViews(tiny, Views(), 0)
    both = source.batch(at), source.batch(at)
    assert not torch.equal(*both) and torch.equal(TwoViews(tiny, Views(), 0, step=1).batch(at), both[1])


@pytest.mark.parametrize(
    "name, value", [("flip", 1.5), ("gray", -0.1), ("hue", 0.7), ("scale", (0.5, 0.2)), ("scale", (0.5, 2.0)), ("jitter", math.nan)]
)
def test_views_are_checked(refused, name, value):
    with refused(name, value):
        Views(**{name: value})


# Losses


@pytest.mark.parametrize("n, d", [(2, 3), (5, 2), (7, 4)])
def test_losses_equal_their_definitions(n, d):
    a, b = normal(2, n, d), normal(2, n, d, seed=1)
    ours = barlow_twins(a, b, 0.3), simclr(a, b, 0.7)
    for k in range(2):
        assert torch.allclose(ours[0][k], barlow_twins_plain(a[k], b[k], 0.3), rtol=1e-9)
        assert torch.allclose(ours[1][k], simclr_plain(a[k], b[k], 0.7), rtol=1e-9)


def test_barlow_twins_by_hand():
    """Outputs (1, 1, -1, -1) and (1, -1, 1, -1): uncorrelated, so equal views give 0; swapped ones 2 + 2 lam."""
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=F64)
    assert barlow_twins(z, z, 0.1).item() == pytest.approx(0, abs=1e-12)
    assert barlow_twins(z, z.flip(1), 0.1).item() == pytest.approx(2.2)
    assert barlow_twins(z, -z, 0.1).item() == pytest.approx(8)  # two correlations of -1
    assert barlow_twins(3 * z + 5, z, 0.1).item() == pytest.approx(0, abs=1e-12)
    both = z[:, :1].expand(-1, 2)  # the same output twice
    assert barlow_twins(both, both, 0.1).item() == pytest.approx(0.2)


def test_constant_outputs_correlate_with_nothing():
    z = torch.ones(4, 3, requires_grad=True)
    loss = barlow_twins(z, z, 0.1)
    loss.backward()
    assert loss.item() == 3 and z.grad.isfinite().all()


def test_simclr_by_hand():
    """Two images on two axes: each view sees its positive at cosine 1 and two others at 0."""
    z = torch.eye(2, dtype=F64)
    for t in (0.5, 1.0):
        wanted = math.log(math.exp(1 / t) + 2) - 1 / t
        assert simclr(z, 7 * z, t).item() == pytest.approx(wanted)
    same = torch.ones(3, 2, dtype=F64)
    assert simclr(same, same, 0.5).item() == pytest.approx(math.log(5))  # nothing tells images apart


@pytest.mark.parametrize("loss, name", [(barlow_twins, "lam"), (simclr, "temperature")])
def test_losses_refuse(refused, loss, name):
    z = normal(4, 2)
    with refused("(4, 2)", "(3, 2)"):
        loss(z, z[:3])
    with refused("(1, 2)"):
        loss(z[:1], z[:1])
    for value in (0.0, math.nan, -1.0):
        with refused(name, value):
            loss(z, z, value)


# Networks and training


def test_the_encoder_is_the_small_image_resnet():
    full = resnet18((3, 32, 32)).skeleton
    named = dict(full.named_modules())
    assert named["conv"].kernel_size == (3, 3) and named["conv"].padding == (1, 1) and named["conv"].stride == (1, 1)
    assert not any(isinstance(one, torch.nn.MaxPool2d) for one in named.values())
    assert sum(value.numel() for name, value in full.named_parameters() if "head" not in name) == 11168832
    narrow = resnet18((1, 8, 8), 1 / 16)
    params = narrow.init(generator(0, "x"))
    assert narrow.embed(params, pixels(2, (1, 8, 8))[None], False).shape == (1, 2, 32)


def test_projectors_of_the_table():
    sizes = lambda head: {n: tuple(v.shape) for n, v in head.skeleton.state_dict().items() if v.ndim}  # noqa: E731
    barlow, contrastive = sizes(projector("barlow-twins", 512, 1024)), sizes(projector("simclr", 512, 128))
    assert barlow["0.weight"] == (512, 512) and barlow["3.weight"] == (1024, 512) and barlow["3.bias"] == (1024,)
    assert "0.bias" not in barlow and not any(name.startswith("4") for name in barlow)
    assert contrastive["3.weight"] == (128, 512) and contrastive["4.weight"] == (128,)


def test_each_view_has_its_own_statistics():
    """As two calls of one module in training mode, running statistics included."""
    network = Projected(resnet18((1, 8, 8), 1 / 32), projector("barlow-twins", 16, 5))
    params = network.init(generator(0, "x"))
    x = normal(1, 12, 1, 8, 8, dtype=torch.float32)
    out = network.apply(params, x)
    encoder, head = network.encoder.build(), network.head.build()
    encoder.load_state_dict({n.removeprefix("encoder."): v[0] for n, v in params.items() if n.startswith("enc")}, strict=False)
    head.load_state_dict({n.removeprefix("projector."): v[0] for n, v in params.items() if n.startswith("proj")})
    encoder.head = torch.nn.Identity()
    wanted = [head(encoder(part)) for part in x[0].chunk(2)]
    assert torch.allclose(out.logits[0], torch.cat(wanted), atol=1e-5)
    for name, value in out.buffers.items():
        module = encoder if name.startswith("encoder") else head
        assert torch.allclose(value[0].double(), module.state_dict()[name.split(".", 1)[1]].double(), atol=1e-6)


def test_rates_rise_and_fall():
    rates = [Cosine(2.0, warmup=4, steps=12).rate(step) for step in range(12)]
    assert rates[:5] == [0, 0.5, 1.0, 1.5, 2.0]
    assert rates[8] == pytest.approx(2 * (0.5 + 0.001 * 0.5)) and rates[4:] == sorted(rates[4:], reverse=True)
    assert isinstance(QUICK.optimizer(24), Adam) and QUICK.optimizer(25).steps == 4 * 3


def test_the_last_batch_is_left_out(tiny, refused):
    """21 images in batches of 8: two steps an epoch, no smaller one, as a loop over whole batches."""
    part = tiny.subset(torch.arange(21))
    seen = []

    def loss(output, target):
        seen.append(target.shape[1])
        return squared_error(output, F.one_hot(target, 3).float()).mean(1)

    network = ConvNet((1, 8, 8), 3, width=4)
    params = network.init(generator(0, "x"))
    _, stats = train(network, params, part, loss, generator=generator(1, "x"), epochs=3, batch=8, whole_batches=True)
    assert seen == [8] * 6 and stats.steps == 6
    with refused(25, 21):
        train(network, params, part, generator=generator(1, "x"), epochs=1, batch=25, whole_batches=True)
    with refused("plan"):
        train(network, params, part, generator=generator(1, "x"), epochs=1, batch=8, whole_batches=True, plan=lambda *_: None)


@pytest.fixture(scope="module")
def small():
    return blobs(per_class=8)


@pytest.fixture(scope="module")
def narrow():
    return resnet18((1, 8, 8), 1 / 32)


@pytest.fixture(scope="module")
def finished(small, narrow, tmp_path_factory):
    """A folder with a teacher trained unbroken, and the teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    return folder, train_teacher(folder, narrow, small, QUICK)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_teacher_that_stops_goes_on_bit_for_bit(small, narrow, finished, tmp_path, monkeypatch):
    """Interrupted after every epoch, and begun again each time."""
    _, whole = finished
    write = teacher_module._write

    def write_and_stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_module, "_write", write_and_stop)
    for _ in range(QUICK.epochs):
        with pytest.raises(KeyboardInterrupt):
            train_teacher(tmp_path, narrow, small, QUICK)
    found = train_teacher(tmp_path, narrow, small, QUICK)
    assert equal(found.weights, whole.weights) and torch.equal(found.losses, whole.losses)
    assert found.digest == whole.digest and len(whole.losses) == 4
    files = [store.load_tensors(next(folder.glob("*.safetensors")))[0] for folder in (finished[0], tmp_path)]
    assert equal(*files)


def test_a_teacher_that_is_killed_goes_on_bit_for_bit(small, narrow, finished, tmp_path):
    """SIGKILL in the second epoch, out of the training itself."""
    program = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
torch.set_num_threads(1)
from distillery.encoders import teacher
from distillery.encoders.teacher import TeacherTraining
from distillery.training.views import Views
from made_up import blobs
inner, calls = teacher.barlow_twins, []
def dying(*arguments):
    calls.append(0)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*arguments)
teacher.barlow_twins = dying
teacher.train_teacher({str(tmp_path)!r}, teacher.resnet18((1, 8, 8), 1 / 32), blobs(per_class=8), {QUICK!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    tensors, _ = store.load_tensors(next(tmp_path.glob("*.safetensors")))
    assert len(tensors["losses"]) == 1
    assert equal(train_teacher(tmp_path, narrow, small, QUICK).weights, finished[1].weights)


def test_every_choice_makes_another_teacher(small, narrow, finished, tmp_path):
    """None of them finds the checkpoint of another."""
    folder, whole = finished
    others = [
        (narrow, small, replace(QUICK, seed=1)),
        (narrow, small, replace(QUICK, lam=0.5)),
        (narrow, small, replace(QUICK, views=Views(flip=0.5))),
        (narrow, blobs(per_class=8, seed=1), QUICK),
        (narrow, replace(small, transform=None), QUICK),
        (resnet18((1, 8, 8), 1 / 16), small, QUICK),
    ]
    cards = [_card(*other) for other in [(narrow, small, QUICK), *others]]
    assert len({store.canonical(card) for card in cards}) == 7
    one = train_teacher(tmp_path, narrow, small, replace(QUICK, seed=1, epochs=2))
    assert one.digest != whole.digest
    # a checkpoint under another's name
    name = next(folder.glob("*.safetensors")).name
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / name)
    with pytest.raises(ValueError, match="another teacher"):
        train_teacher(tmp_path, narrow, small, QUICK)


def test_training_lowers_the_loss_of_both_kinds(tmp_path):
    """On color images."""
    images = blobs(per_class=8, shape=(3, 8, 8))
    for recipe in (QUICK, replace(SIMCLR, batch=8, warmup=1, width=6)):
        recipe = replace(recipe, epochs=16, lr=5e-3, views=Views(scale=(0.6, 1)))
        losses = train_teacher(tmp_path, ConvNet((3, 8, 8), 3, width=8), images, recipe).losses
        assert losses[-3:].mean() < losses[:3].mean()


def test_a_teacher_is_an_encoder(small, finished, tmp_path):
    """It is saved, loaded under another classifier, and what it embeds does not depend on its projector."""
    _, teacher = finished
    assert isinstance(teacher, Encoder) and not head_names(teacher.network) & set(teacher.weights)
    pretrained.save(tmp_path / "t.safetensors", teacher.network, teacher.weights, {})
    loaded = pretrained.load(tmp_path / "t.safetensors", resnet18((1, 8, 8), 1 / 32, classes=3))
    assert loaded.digest == teacher.digest
    assert torch.equal(teacher_targets(loaded, small), teacher_targets(teacher, small))


def test_teachers_refuse(refused, small, narrow, tmp_path):
    with refused(256, 24):
        train_teacher(tmp_path, narrow, small, replace(QUICK, batch=256))
    for name, value in (("loss", "byol"), ("epochs", 0), ("batch", 1), ("warmup", 4), ("lr", math.nan), ("weight_decay", -1)):
        with refused(name, value):
            replace(QUICK, **{name: value})
    with pytest.raises(RunFailed, match="loss nan"):
        train_teacher(tmp_path, ConvNet((1, 8, 8), 3, width=4), small, replace(QUICK, lr=1e30))
    assert not list(tmp_path.glob("*.safetensors"))


def test_low_precision_trains_the_same_encoder(small, narrow, tmp_path):
    found = train_teacher(tmp_path, MixedPrecision(narrow, "bfloat16"), small, replace(QUICK, epochs=2))
    assert found.network is narrow and all(value.dtype != torch.bfloat16 for value in found.weights.values())


# Targets and quality


def test_targets_are_embeddings_before_the_projector(small, finished):
    _, teacher = finished
    found = teacher_targets(teacher, small)
    everything = small.batch(torch.arange(len(small)))
    wanted = [teacher.network.embed(teacher.params, x[None, None], train=False)[0, 0] for x in everything]
    assert found.shape == (24, 16) and found.dtype == torch.float32
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)


def test_targets_are_computed_once(small, finished, tmp_path, monkeypatch):
    _, teacher = finished
    path = tmp_path / "targets.safetensors"
    first = teacher_targets(teacher, small, path)
    monkeypatch.setattr(quality_module, "embed", None)
    assert torch.equal(teacher_targets(teacher, small, path), first)


def test_targets_of_others_are_refused(refused, small, narrow, finished, tmp_path):
    _, teacher = finished
    path = tmp_path / "targets.safetensors"
    found = teacher_targets(teacher, small, path)
    with refused("data set"):
        teacher_targets(teacher, blobs(per_class=8, seed=1), path)
    with refused("preprocessing"):
        teacher_targets(teacher, replace(small, transform=None), path)
    with refused("teacher"):
        teacher_targets(untrained(narrow, small, QUICK), small, path)
    store.save_tensors(path, {"targets": found[:5]}, store.load_tensors(path)[1])
    with refused("(5, 16)", 24):
        teacher_targets(teacher, small, path)
    with refused("(24, 16)", 512):
        check_targets(found, small, 512)
    found[3, 2] = math.nan
    with refused("targets", 1):
        check_targets(found, small)
    path.write_bytes(path.read_bytes()[:-9])
    with refused(path):
        teacher_targets(teacher, small, path)


def test_broken_and_collapsed_teachers_are_refused(refused, small, finished):
    _, teacher = finished
    broken = {name: value * math.nan for name, value in teacher.weights.items()}
    with refused("embeddings of teacher", "NaN"):
        teacher_targets(replace(teacher, weights=broken), small)
    flat = {name: torch.zeros_like(value) for name, value in teacher.weights.items()}
    with refused("deviation", "collapsed"):
        teacher_targets(replace(teacher, weights=flat), small)


def test_deviation_by_hand():
    assert deviation(torch.tensor([[1.0, 0], [-1, 0]])) == 1
    assert deviation(torch.tensor([[1.0, 1], [1, -1]])) == pytest.approx(0.5**0.5)
    assert deviation(torch.ones(4, 3)) == 0 == deviation(torch.zeros(4, 3))


def test_effective_rank_by_hand():
    """Singular values 3, 1: entropy of (3/4, 1/4). All features of an orthonormal frame, centred, fill one direction fewer."""
    assert effective_rank(torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])) == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + math.log(4) / 4)
    )
    assert effective_rank(torch.eye(5) + 7) == pytest.approx(4)
    assert effective_rank(torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2, 3]]) + 1) == pytest.approx(1, abs=1e-5)


def test_collapse_onto_a_line_is_refused(refused, small, finished, monkeypatch):
    """Barlow Twins fails by dimensional collapse, which leaves a deviation."""
    _, teacher = finished
    line = torch.arange(float(len(small)))[:, None] * torch.ones(1, 16)
    assert deviation(line) > 0.1
    monkeypatch.setattr(quality_module, "embedded", lambda *_: line)
    monkeypatch.setattr("distillery.encoders.regression_set.embedded", lambda *_: line)
    with refused("effective rank", "collapsed"):
        teacher_targets(teacher, small)
    with refused("effective rank", "collapsed"):
        quality(teacher, small, small)


def nearest_plain(known, labels, asked, neighbours, temperature):
    """One feature after another."""
    found = []
    for x in asked:
        cosine = F.cosine_similarity(x[None], known).tolist()
        votes = dict.fromkeys(labels.tolist(), 0.0)
        for i in sorted(range(len(known)), key=lambda i: -cosine[i])[:neighbours]:
            votes[int(labels[i])] += math.exp(cosine[i] / temperature)
        found.append(max(votes, key=votes.get))
    return torch.tensor(found)


def test_nearest_neighbours_equal_their_definition():
    known, asked = normal(30, 4), normal(17, 4, seed=1)
    labels = torch.randint(3, (30,), generator=generator(0, "labels"))
    for k, t in ((1, 0.5), (5, 0.1), (30, 1.0)):
        wanted = nearest_plain(known, labels, asked, k, t)
        assert torch.equal(nearest(known, labels, asked, k, t), wanted)


def test_neighbours_by_hand():
    """The nearest of class 0 is outvoted by two of class 1, but not at a low temperature."""
    known = torch.tensor([[1.0, 0], [0, 1], [0, 2]])
    labels, asked = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 1]])
    assert nearest(known, labels, asked, 3, 10.0).tolist() == [1]
    assert nearest(known, labels, asked, 3, 0.1).tolist() == [0]


def test_a_teacher_of_digits_is_better_than_its_start(digits, tmp_path):
    network = resnet18((1, 8, 8), 1 / 16)
    views = Views(scale=(0.5, 1), flip=0.0)
    recipe = replace(SIMCLR, epochs=8, batch=64, lr=5e-3, warmup=1, width=64, views=views)
    part = digits.train.subset(torch.arange(0, len(digits.train), 3))
    teacher = train_teacher(tmp_path, network, part, recipe)
    start = untrained(network, part, recipe)
    found, base = (quality(one, part, digits.test, neighbours=10) for one in (teacher, start))
    assert found.knn > base.knn + 0.03 and found.probe > base.probe + 0.03 and found.rank > 2 and found.deviation > 0.1


def test_principal_components_of_targets():
    """By the singular values of the centred targets, in float64: they are centred, uncorrelated, in order, and of mean square 1."""
    images, stream = blobs(per_class=8), generator(0, "components")
    targets = torch.randn(len(images), 9, generator=stream) @ torch.randn(9, 9, generator=stream) + 5.0
    whole = RegressionSet(images, targets, images.digest)
    found = whole.components(4)
    centred = targets.double() - targets.double().mean(0)
    values = torch.linalg.svdvals(centred)[:4]
    gram = found.targets.double().T @ found.targets.double()
    scale = float(values.square().sum() / (4 * len(images)))
    assert torch.allclose(gram, torch.diag(values.square() / scale), atol=1e-3) and found.targets.dtype == targets.dtype
    assert float(found.targets.mean(0).abs().max()) < 1e-5 and float(found.targets.square().mean()) == pytest.approx(1, rel=1e-5)
    back = torch.linalg.lstsq(found.targets.double(), centred).solution  # nothing is left of the directions that are kept
    assert float((centred - found.targets.double() @ back).square().sum()) == pytest.approx(
        float(torch.linalg.svdvals(centred)[4:].square().sum()), rel=1e-4
    )
    assert whole.components(9).targets.shape == targets.shape and found.images is images
    assert torch.allclose(found.as_targets(targets), found.targets, atol=1e-5) and torch.equal(whole.as_targets(targets), targets)
    assert torch.allclose(found.subset(torch.tensor([3, 1])).as_targets(targets[[3, 1]]), found.targets[[3, 1]], atol=1e-5)
    for wrong in (0, 10):
        with pytest.raises(InputError, match=f"components: {wrong} "):
            whole.components(wrong)
