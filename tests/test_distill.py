"""The one loop: any objective, any sampler, several learned tensors; checkpoints, killing, resuming."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillery.data.synthetic import Synthetic
from distillery.distill import SCHEDULES, Distilled, Optimizer, average_plain, distill
from distillery.evaluation import Probing, Protocol, evaluate, fit, probe
from distillery.experts import Experts
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.matching.step import gradient_by_classes
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching
from distillery.networks import ConvNet
from distillery.sampling import Uniform
from distillery.seeds import generator
from distillery.training.dsa import DSA
from made_up import Dropping, PixelsAndLabels, Weighted, blobs, first


def network(classes=3):
    return ConvNet((1, 8, 8), classes, width=4, depth=1)


def start(images, ipc=2, **tensors):
    indices = torch.cat([images.of_class(c)[:ipc] for c in range(len(images.classes))])
    real = {"images": images.batch(indices), "targets": images.targets[indices]}
    return Synthetic(real | tensors, images.classes)


def soft_start(images):
    return start(images).replace(scale=torch.tensor(1.0))


class Constant:
    """Gradient one everywhere, unless told otherwise."""

    name = "constant"

    def __init__(self, gradients=None):
        self.gradients = gradients

    def start(self, synthetic, generator):
        return {}

    def step(self, synthetic, state, draw, generator):
        ones = {"images": torch.ones_like(synthetic.tensors["images"])}
        return self.gradients(synthetic) if self.gradients else ones, state, {"loss": 1.0}


def go(synthetic, objective, images, optimizers=None, steps=6, sampler=None, seed=0, **options) -> Distilled:
    sampler = sampler or Uniform(images.targets)
    optimizers = optimizers or {"images": Optimizer(0.1, 0.5)}
    return distill(synthetic, objective, images, sampler, optimizers, steps, generator(seed, "d"), **options)


TWO = {"images": Optimizer(0.1, 0.5), "scale": Optimizer(0.05, kind="adam", schedule="cosine")}


class Stop(Exception):
    pass


def stopping(objective, at):
    """The same objective, interrupted when it is asked for its step number `at` (0 = the first)."""
    inner, asked = objective.step, iter(range(10**6))

    def step(*args):
        if next(asked) == at:
            raise Stop
        return inner(*args)

    objective.step = step
    return objective


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[name].nan_to_num(-1), second[name].nan_to_num(-1)) for name in first)


# A made-up objective and made-up samplers


def test_a_made_up_objective_runs(tiny):
    """Two learned tensors, each with its own optimizer; inner state; every third update skipped."""
    done = go(soft_start(tiny), PixelsAndLabels(network()), tiny, TWO, steps=9)
    assert done.cost["steps"] == 9 and done.cost["skipped"] == 3
    assert done.log["loss"].shape == (9,) and done.log["skip"].tolist() == [0, 0, 1] * 3
    assert done.log["rare"].isnan().tolist() == [i % 4 != 0 for i in range(9)]
    assert not torch.equal(done.last.tensors["images"], soft_start(tiny).tensors["images"])
    assert done.last.tensors["scale"] != 1
    assert torch.equal(done.last.tensors["targets"], soft_start(tiny).tensors["targets"])
    assert done.best is None and done.ema is None


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_it_resumes_with_the_same_bits(tiny, tmp_path, stop):
    def run(objective, **options):
        return go(
            soft_start(tiny),
            objective,
            tiny,
            TWO,
            9,
            Weighted(tiny.targets),
            ema=0.9,
            validate=lambda s, step: -float(s.tensors["images"].square().mean()),
            validate_every=2,
            **options,
        )

    whole = run(PixelsAndLabels(network()))
    disk = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0}
    with pytest.raises(Stop):
        run(stopping(PixelsAndLabels(network()), stop), **disk)
    asked = PixelsAndLabels(network())
    resumed = run(asked, **disk)
    assert asked.steps == 9 - stop  # nothing is computed twice
    assert same_bits(resumed.last.tensors, whole.last.tensors)
    assert same_bits(resumed.ema.tensors, whole.ema.tensors)
    assert same_bits(resumed.best.tensors, whole.best.tensors)
    assert same_bits(resumed.log, whole.log)
    assert (resumed.best_step, resumed.best_score) == (whole.best_step, whole.best_score)
    assert all(resumed.cost[name] == whole.cost[name] for name in ("steps", "samples", "skipped"))


def experts(network) -> Experts:
    """Three paths of three snapshots that lead somewhere."""
    first, way = (network.init(generator(seed, "experts"), 3) for seed in (0, 1))
    return Experts({name: torch.stack([v, v + 0.1 * way[name], v + 0.3 * way[name]], 1) for name, v in first.items()})


OBJECTIVES = {
    "DM": lambda net: DistributionMatching(net, batch=8, augmentation=DSA),
    "DC": lambda net: GradientMatching(net, updates=4, inner_epochs=2, batch=8),
    "DSA": lambda net: GradientMatching(net, updates=4, inner_epochs=2, batch=8, augmentation=DSA),
    "MTT": lambda net: TrajectoryMatching(net, experts(net), 3, 1, StartEpochs(0, 2), batch=4, augmentation=DSA, threshold=1.5),
}


def test_every_objective_resumes_with_the_same_bits(tiny, tmp_path):
    """Stopped in several steps, with what it keeps from one to the next: networks, their training, the rest of a pass."""
    first = start(tiny, step_size=torch.tensor(0.1))
    ends = []
    for name, made in OBJECTIVES.items():
        rates = {"images": Optimizer(0.1, 0.5)} | ({"step_size": Optimizer(1e-4, 0.5)} if name == "MTT" else {})
        whole = go(first, made(network()), tiny, rates, 8)
        disk = {"checkpoint": tmp_path / f"{name}.safetensors", "checkpoint_seconds": 0}
        for at in (1, 2, 3):  # from step 0 to 1, from 1 to 3, from 3 to 6, then to the end
            with pytest.raises(Stop):
                go(first, stopping(made(network()), at), tiny, rates, 8, **disk)
        resumed = go(first, made(network()), tiny, rates, 8, **disk)
        assert same_bits(resumed.last.tensors, whole.last.tensors) and same_bits(resumed.log, whole.log), name
        ends.append(whole.last.tensors["images"])
    assert not any(torch.equal(one, two) for i, one in enumerate(ends) for two in ends[:i])


def test_it_evaluates(tiny):
    done = go(soft_start(tiny), PixelsAndLabels(network()), tiny, TWO, steps=3)
    accuracies = evaluate(network(), done.last.source(), Protocol(networks=2, epochs=30), tiny, generator(0, "e"))
    assert accuracies.shape == (2,) and (accuracies > 0.5).all()  # chance is a third


@pytest.mark.parametrize("sampler", [Dropping, Weighted])
@pytest.mark.parametrize("objective", [GradientMatching, DistributionMatching])
def test_made_up_samplers(tiny, sampler, objective):
    """One drops samples inside a batch, one weighs them; both are refreshed before each step and change the result."""
    plain = go(start(tiny), objective(network()), tiny)
    made_up = sampler(tiny.targets)
    done = go(start(tiny), objective(network()), tiny, sampler=made_up)
    assert int(made_up.state["refreshed"]) == 6
    assert done.last.tensors["images"].isfinite().all()
    assert not torch.allclose(done.last.tensors["images"], plain.last.tensors["images"], atol=1e-4)


def test_dropping_a_sample_is_never_having_met_it(tiny):
    """DM with the dropped images replaced by noise ends with the same set."""
    kept = Dropping(tiny.targets)
    noise = tiny.pixels.clone()
    noise[kept.dropped] = 255 - noise[kept.dropped]
    other = type(tiny)(noise, tiny.targets, tiny.classes, tiny.transform)
    first, second = (
        go(start(tiny), DistributionMatching(network()), images, sampler=Dropping(tiny.targets)).last for images in (tiny, other)
    )
    assert torch.allclose(first.tensors["images"], second.tensors["images"], atol=1e-5)


def test_real_valued_targets_without_classes(tiny):
    """A set with targets (M, D), a sampler over all images, evaluation by a linear probe."""
    teacher = network(5)
    weights = teacher.init(generator(0, "teacher"))

    class Regress:
        name = "regress"

        def start(self, synthetic, generator):
            return {}

        def step(self, synthetic, state, draw, generator):
            images, _, _ = draw(None, 8)
            with torch.no_grad():
                wanted = teacher.apply(weights, images).logits[0].mean(0)
            return {"targets": synthetic.tensors["targets"] - wanted}, state, {}

    begin = Synthetic({"images": tiny.batch(torch.arange(0, 24, 4)), "targets": torch.zeros(6, 5)})
    done = go(begin, Regress(), tiny, {"targets": Optimizer(0.5)}, steps=20, sampler=Uniform(None, len(tiny)))
    mean = teacher.apply(weights, tiny.batch(torch.arange(24))).logits[0].mean(0)
    assert torch.allclose(done.last.tensors["targets"], mean.expand(6, 5), atol=0.2)
    assert done.log == {} and done.last.classes is None
    probing = Probing(networks=2, epochs=20, labels=(1.0,))
    params, _ = fit(network(5), done.last.source(), probing, generator(0, "e"))
    accuracies, _ = probe(network(5), params, tiny, tiny, probing, generator(0, "p"))
    assert accuracies.shape == (2, 1) and (accuracies > 0.8).all()


def test_a_decoder_in_the_loop(tiny):
    """One stored image, four used: gradients reach every stored pixel, all four quarters count."""
    packed = Synthetic(start(tiny).tensors, tiny.classes, "partition2")
    done = go(packed, DistributionMatching(network(), augmentation="color"), tiny, steps=2)
    moved = done.last.tensors["images"] - packed.tensors["images"]
    assert done.last.formation == "partition2" and moved.shape == (6, 1, 8, 8)
    for quarter in (moved[..., :4, :4], moved[..., :4, 4:], moved[..., 4:, :4], moved[..., 4:, 4:]):
        assert (quarter.abs().amax((1, 2, 3)) > 0).all()
    assert len(done.last.source()) == 24


# The loop itself


def test_sgd_with_momentum_by_hand(tiny):
    done = go(start(tiny), Constant(), tiny, {"images": Optimizer(0.1, 0.5)}, steps=3)
    moved = done.last.tensors["images"] - start(tiny).tensors["images"]
    assert torch.allclose(moved, torch.full_like(moved, -0.1 * (1 + 1.5 + 1.75)), atol=1e-5)


def test_bounds_hold_after_every_update(tiny):
    """Each channel has its own; what is not bounded goes where it goes."""
    low, high = torch.tensor([-0.5, 0.0])[:, None, None], torch.tensor([0.25, 1.0])[:, None, None]
    seen = []

    class Bounded:
        bounds = {"images": (low, high)}

        def start(self, synthetic, generator):
            return {}

        def step(self, synthetic, state, draw, generator):
            seen.append(synthetic.tensors["images"])
            noise = torch.randn(seen[-1].shape, generator=generator)
            return {"images": noise, "scale": torch.tensor(1.0)}, state, {}

    given = {"images": torch.full((3, 2, 4, 4), 5.0), "scale": torch.tensor(1.0)}
    made = Synthetic(given | {"targets": torch.arange(3)})
    optimizers = {"images": Optimizer(3.0), "scale": Optimizer(7.0)}
    done = distill(made, Bounded(), tiny, Uniform(tiny.targets), optimizers, 3, generator(0, "x"))
    first, *later = [*seen, done.last.tensors["images"]]
    assert torch.equal(first, given["images"])
    for images in later:
        assert (images >= low).all() and (images <= high).all()
        assert (images == low).any() and (images == high).any()
    assert done.last.tensors["scale"] == 1 - 3 * 7


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(tiny, schedule):
    factors = {
        "constant": [1, 1, 1, 1],
        "linear": [1, 0.75, 0.5, 0.25],
        "linear to a thousandth": [1, 1 - 0.999 / 4, 1 - 0.999 / 2, 1 - 0.999 * 3 / 4],
        "cosine to a tenth": [0.55 + 0.45 * math.cos(math.pi * i / 4) for i in range(4)],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4)],
    }[schedule]
    done = go(start(tiny), Constant(), tiny, {"images": Optimizer(0.1, schedule=schedule)}, steps=4)
    moved = done.last.tensors["images"] - start(tiny).tensors["images"]
    assert torch.allclose(moved, torch.full_like(moved, -0.1 * sum(factors)), atol=1e-5)


def test_moving_average(tiny):
    done = go(start(tiny), Constant(), tiny, {"images": Optimizer(1.0)}, steps=3, ema=0.5)
    first = start(tiny).tensors["images"]
    average = average_plain(first, [first - step for step in (1, 2, 3)], decay=0.5)
    assert torch.allclose(done.ema.tensors["images"], average, atol=1e-5)
    assert torch.allclose(average - first, torch.full_like(first, -0.125 * 1 - 0.25 * 2 - 0.5 * 3), atol=1e-5)
    assert torch.equal(done.ema.tensors["targets"], done.last.tensors["targets"])


def test_a_skipped_update_leaves_the_moving_average(tiny):
    answers = iter([True, False, False, True])
    some = Constant(lambda synthetic: {"images": torch.ones_like(synthetic.tensors["images"])} if next(answers) else None)
    done = go(start(tiny), some, tiny, {"images": Optimizer(1.0)}, steps=4, ema=0.5)
    first = start(tiny).tensors["images"]
    assert done.cost["skipped"] == 2
    assert torch.allclose(done.ema.tensors["images"], average_plain(first, [first - 1, first - 2], decay=0.5), atol=1e-5)


def test_best_by_validation_beside_the_last(tiny):
    begin, seen = start(tiny).tensors["images"], []

    def validate(synthetic, step):
        moved = float((begin - synthetic.tensors["images"]).mean())
        seen.append((step, round(moved, 4)))
        return -abs(moved - 0.35)

    done = go(start(tiny), Constant(), tiny, {"images": Optimizer(0.1)}, 7, validate=validate, validate_every=2)
    assert seen == [(2, 0.2), (4, 0.4), (6, 0.6), (7, 0.7)]
    assert done.best_step == 4 and done.best_score == pytest.approx(-0.05, abs=1e-4)
    assert torch.allclose(begin - done.best.tensors["images"], torch.tensor(0.4), atol=1e-5)
    assert torch.allclose(begin - done.last.tensors["images"], torch.tensor(0.7), atol=1e-5)


def test_of_equal_scores_the_first_is_best(tiny):
    scores = {1: 0.0, 2: 0.5, 3: 0.5, 4: 0.25}
    done = go(start(tiny), Constant(), tiny, {"images": Optimizer(0.1)}, 4, validate=lambda made, step: scores[step], validate_every=1)
    assert (done.best_step, done.best_score) == (2, 0.5)


def test_the_given_set_is_not_modified(tiny):
    begin = start(tiny)
    before = begin.tensors["images"].clone()
    done = go(begin, DistributionMatching(network()), tiny)
    assert torch.equal(begin.tensors["images"], before)
    assert not any(value.requires_grad for value in done.last.tensors.values())


def test_the_seed_decides(tiny):
    first, again, other = (go(start(tiny), DistributionMatching(network()), tiny, seed=seed).last.tensors["images"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-4)


@pytest.mark.parametrize("label", [None, 1])
def test_every_step_draws_anew(tiny, label):
    """Other real images and other numbers in each step, the same ones in a second run, whatever was drawn before."""

    class Drawing(Constant):
        def __init__(self, more):
            super().__init__()
            self.more, self.real, self.numbers = more, [], []

        def step(self, synthetic, state, draw, generator):
            self.real.append(draw(label, 6)[0].sum((1, 2, 3)))
            self.numbers.append(torch.randn(3 + self.more, generator=generator)[:3])
            return super().step(synthetic, state, draw, generator)

    first, again = Drawing(0), Drawing(2)
    for objective in (first, again):
        go(start(tiny), objective, tiny, steps=5)
    for ours, theirs in ((first.real, again.real), (first.numbers, again.numbers)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert len({tuple(one.tolist()) for one in ours}) == 5


def test_what_an_objective_draws_is_not_what_real_images_are_drawn_with(tiny):
    """Two streams in each step, also where nothing else is drawn."""
    seen = []

    class Looking(Constant):
        def step(self, synthetic, state, draw, generator):
            seen.append((draw.generator.initial_seed(), generator.initial_seed()))
            return super().step(synthetic, state, draw, generator)

    go(start(tiny), Looking(), tiny, steps=3)
    assert len({seed for pair in seen for seed in pair}) == 6


def test_a_finished_run_starts_no_second_time(tiny, tmp_path):
    """Without time for a checkpoint none is written; the last step never writes one."""
    path = tmp_path / "c.safetensors"
    go(start(tiny), Constant(), tiny, checkpoint=path, checkpoint_seconds=1000)
    assert not path.exists()
    go(start(tiny), Constant(), tiny, steps=1, checkpoint=path, checkpoint_seconds=0)
    assert not path.exists()


def test_state_that_shares_memory_is_checkpointed(tiny, tmp_path):
    """An objective may keep the set itself, and one tensor under two names."""

    class Keeping(Constant):
        def step(self, synthetic, state, draw, generator):
            images = synthetic.tensors["images"]
            before = state.get("previous", torch.zeros_like(images))
            return {"images": images - before}, {"previous": images, "again": images}, {}

    whole = go(start(tiny), Keeping(), tiny)
    disk = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0}
    with pytest.raises(Stop):
        go(start(tiny), stopping(Keeping(), 3), tiny, **disk)
    assert same_bits(go(start(tiny), Keeping(), tiny, **disk).last.tensors, whole.last.tensors)


# Refusals


def test_an_optimizer_without_a_tensor_is_refused(tiny, refused):
    with refused("step_size", "images, targets"):
        go(start(tiny), Constant(), tiny, {"step_size": Optimizer(0.1)})


def test_a_gradient_without_an_optimizer_is_refused(tiny, refused):
    both = Constant(lambda s: {name: torch.ones_like(s.tensors[name]) for name in ("images", "scale")})
    with refused("scale", "images"):
        go(soft_start(tiny), both, tiny)


@pytest.mark.parametrize("options", [{"kind": "lion"}, {"schedule": "step"}])
def test_unknown_optimizers_and_schedules_are_refused(options, refused):
    with refused(*options.values()):
        Optimizer(0.1, **options)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_are_positive_and_whole(tiny, steps, refused):
    with refused("steps", steps):
        go(start(tiny), Constant(), tiny, steps=steps)


class Failing(Constant):
    """Good for three steps, then the loss or the pixels leave the finite numbers."""

    def __init__(self, what):
        self.what, self.done = what, 0

    def step(self, synthetic, state, draw, generator):
        self.done += 1
        bad = math.nan if self.done > 3 else 1.0
        gradient = torch.full_like(synthetic.tensors["images"], bad if self.what == "pixels" else 1.0)
        return {"images": gradient}, state, {"loss": bad if self.what == "loss" else 1.0}


@pytest.mark.parametrize("what", ["loss", "pixels"])
def test_nan_is_refused_and_the_last_good_set_is_kept(tiny, tmp_path, what, refused):
    with refused("step"):
        go(start(tiny), Failing(what), tiny)
    path = tmp_path / "c.safetensors"
    with refused(path):
        go(start(tiny), Failing(what), tiny, checkpoint=path, checkpoint_seconds=0)
    good = go(start(tiny), Constant(), tiny, steps=6, checkpoint=path)
    assert good.last.tensors["images"].isfinite().all() and good.cost["steps"] == 6


@pytest.mark.parametrize(
    "change",
    [{"identity": "other"}, {"seed": 1}, {"steps": 7}, {"objective": DistributionMatching(network())}],
    ids=lambda change: next(iter(change)),
)
def test_the_checkpoint_of_another_run_is_refused(tiny, tmp_path, change, refused):
    path = tmp_path / "c.safetensors"
    same = {"objective": Constant(), "identity": "this", "steps": 6}

    def run(options):
        options = dict(options)
        return go(start(tiny), options.pop("objective"), tiny, checkpoint=path, checkpoint_seconds=0, **options)

    with pytest.raises(Stop):
        run(same | {"objective": stopping(Constant(), 3)})
    kept = path.read_bytes()
    with refused(path, "another run"):
        run(same | change)
    assert path.read_bytes() == kept
    assert run(same).cost["steps"] == 6


# Killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What `killing.py` reports: every objective distilled unbroken, and killed with SIGKILL over and over."""
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run([sys.executable, script, tmp_path_factory.mktemp("killed")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "objective, way",
    [("DM", "at random"), *(("made up", way) for way in ("at random", "while writing", "before renaming", "after renaming"))],
)
def test_killed_and_restarted_ends_with_the_same_bits(killed, objective, way):
    """kill -9 at random points, and in the middle of a checkpoint with half a file left behind."""
    outcome = killed[objective][way]
    assert outcome["kills"] >= (1 if way == "at random" else 3)
    assert outcome["digest"] == killed[objective]["unbroken"]
    assert outcome["leftovers"] > 0 or way in ("at random", "after renaming")


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_plain_descent_is_that_of_torch_to_the_bit(momentum):
    stream = generator(0, "descent")
    first, grads = torch.randn(4, 5, generator=stream), torch.randn(6, 4, 5, generator=stream)
    ours, theirs = first.clone().requires_grad_(), first.clone().requires_grad_()
    built = [Optimizer(0.3, momentum).build(ours), torch.optim.SGD([theirs], lr=0.3, momentum=momentum)]
    for i, gradient in enumerate(grads):
        for tensor, optimizer in zip((ours, theirs), built):
            optimizer.param_groups[0]["lr"] = 0.3 / (1 + i)
            tensor.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(ours, theirs)


class Classes:
    """A sum over three classes, a chunk each; dies at one of them."""

    name = "classes"

    def __init__(self, dies=-1):
        self.dies, self.seen = dies, []

    def start(self, synthetic, generator):
        return {}

    def step(self, synthetic, state, draw, generator):
        shift = torch.rand((), generator=generator)

        def loss(images, here):
            self.seen.append(here.start)
            if len(self.seen) == self.dies:
                raise KeyboardInterrupt
            return ((images - shift) ** 2).sum() * (here.start + 1)

        value, gradient = gradient_by_classes(synthetic, 1, loss, draw.parts)
        return {"images": gradient}, state, {"loss": value}


def test_a_step_that_is_killed_goes_on_within(tmp_path):
    real, begin = blobs(), first(blobs())

    def run(objective, path):
        sgd = {"images": Optimizer(0.1)}
        how = {"checkpoint": tmp_path / path, "checkpoint_seconds": 0.0, "identity": "one"}
        return distill(begin, objective, real, Uniform(real.targets), sgd, 3, generator(0, "distill"), **how)

    whole = run(Classes(), "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(Classes(dies=6), "b.safetensors")  # the last class of the second step
    again = Classes()
    rest = run(again, "b.safetensors")
    assert again.seen == [2, 0, 1, 2] and torch.equal(rest.last.tensors["images"], whole.last.tensors["images"])
    assert torch.equal(rest.log["loss"], whole.log["loss"])
    (tmp_path / "b.step").write_bytes(b"broken")
    assert torch.equal(run(Classes(), "b.safetensors").last.tensors["images"], whole.last.tensors["images"])
