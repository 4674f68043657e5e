"""The reverse sweep against the unrolled loop, TESLA's formula and finite differences; the objective built on it."""

import math
from functools import partial

import pytest
import torch

from distillery import store
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.experts import Experts
from distillery.matching import trajectory
from distillery.matching.trajectory import Flat, StartEpochs, TrajectoryMatching, student, sweep, sweep_plain
from distillery.networks import ConvNet, ModuleNetwork
from distillery.sampling import Uniform
from distillery.seeds import generator, split
from distillery.training import cross_entropy, dsa, squared_error, train
from distillery.training.dsa import DSA, Draw
from distillery.training.optimizers import SGD
from made_up import most_graphs

CLASSES, M, SHAPE = 3, 6, (2, 6, 7)
KINDS = ("hard", "soft", "regression", "contrastive")


def network(**options):
    return ConvNet(SHAPE, CLASSES, **{"width": 4, "depth": 1, "activation": "swish"} | options)


def problem(kind="soft", n=3, seed=0, net=None, dtype=torch.float64, step_size=0.1, strategy=DSA):
    """Arguments of `sweep`: batches of four of six images, so that each is used in several steps."""
    stream = generator(seed, "problem")
    net = net or network()
    theta0 = {name: value.to(dtype) for name, value in net.init(stream, 1).items()}
    target = {name: value + 0.05 * torch.randn(value.shape, generator=stream, dtype=dtype) for name, value in theta0.items()}
    tensors = {"images": torch.randn(M, *SHAPE, generator=stream, dtype=dtype), "step_size": torch.tensor(step_size, dtype=dtype)}
    values = torch.randn(M, CLASSES, generator=stream, dtype=dtype)
    if kind == "soft":
        tensors["label_logits"] = values
    if kind == "regression":
        tensors["targets"] = values
    draws = []
    for _ in range(n):
        indices = torch.randperm(M, generator=stream)[:4]
        draws.append((indices, *(dsa.draw(strategy, 1, 4, stream) for _ in range(2))))

    def loss(params, tensors, drawn):
        indices, *augmentations = drawn
        views = [dsa.augment(tensors["images"][indices][None], a) for a in augmentations]  # (1, 4, C, H, W)
        output = net.apply(params, views[0]).logits
        if kind == "hard":
            return cross_entropy(output, (indices % CLASSES)[None]).mean()
        if kind == "soft":
            return cross_entropy(output, tensors["label_logits"][indices][None].softmax(-1)).mean()
        if kind == "regression":
            return squared_error(output, tensors["targets"][indices][None]).mean()
        first, second = (torch.nn.functional.normalize(o[0], dim=-1) for o in (output, net.apply(params, views[1]).logits))
        return torch.nn.functional.cross_entropy(first @ second.T / 0.2, torch.arange(4))  # NT-Xent, one side

    return loss, theta0, target, tensors, draws


def error(ours, expected):
    return float((ours - expected).norm() / expected.norm())


# The sweep


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_sweep_is_the_gradient_through_the_unrolled_loop(kind, n):
    """Pixels, step size, label logits and real-valued targets."""
    given = problem(kind, n)
    value, ours = sweep(*given)
    expected_value, expected = sweep_plain(*given)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-12)
    assert set(ours) == set(given[3])
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and error(ours[name], gradient) < 1e-8, name
    assert not any(gradient.requires_grad for gradient in ours.values())


@pytest.mark.parametrize("options", [{"normalization": "batch"}, {"depth": 2, "activation": "relu"}])
def test_sweep_through_other_networks(options):
    net = network(**options)
    loss, theta0, target, tensors, draws = problem(net=net, n=4)
    buffers = {name: value for name, value in theta0.items() if "running" in name}
    theta0, target = ({n: v for n, v in p.items() if n not in buffers} for p in (theta0, target))

    def with_buffers(params, *rest):
        return loss(buffers | params, *rest)

    given = with_buffers, theta0, target, tensors, draws
    (_, ours), (_, expected) = sweep(*given), sweep_plain(*given)
    assert all(error(ours[name], expected[name]) < 1e-8 for name in expected)


def test_sweep_through_a_module():
    net = ModuleNetwork(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(84, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    given = problem(net=net, n=4)
    (_, ours), (_, expected) = sweep(*given), sweep_plain(*given)
    assert all(error(ours[name], expected[name]) < 1e-8 for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sweep_equals_finite_differences(kind):
    loss, theta0, target, tensors, draws = problem(kind, 3)
    _, gradients = sweep(loss, theta0, target, tensors, draws)
    stream = generator(1, "directions")
    for name, tensor in tensors.items():
        direction = torch.randn(tensor.shape, generator=stream, dtype=torch.float64)
        h = 1e-5
        up, down = (sweep(loss, theta0, target, tensors | {name: tensor + s * h * direction}, draws)[0] for s in (1, -1))
        assert float((gradients[name] * direction).sum()) == pytest.approx(float(up - down) / (2 * h), rel=1e-5), name


def test_float32_is_close_to_float64():
    given = problem(n=10)
    single = [{n: v.float() for n, v in p.items()} for p in given[1:4]]
    (_, exact), (_, ours) = sweep(*given), sweep(given[0], *single, given[4])
    assert all(error(ours[name].double(), exact[name]) < 1e-3 for name in exact)


def tesla(loss, theta0, target, tensors, draws):
    """TESLA's two passes as its paper writes them: sum the gradients, then differentiate each against the sum."""
    flat, eta = Flat(theta0), tensors["step_size"]
    tensors = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    theta, starts, total = flat.vector(theta0), [], 0
    for drawn in draws:
        leaf = theta.clone().requires_grad_()
        starts.append(leaf)
        gradient = torch.autograd.grad(loss(flat.params(leaf), tensors, drawn), leaf)[0]
        theta, total = theta - eta * gradient, total + gradient
    start, goal = flat.vector(theta0), flat.vector(target)
    distance = (start - goal).square().sum()
    constant = eta * (goal - start) + eta**2 * total
    names, grads = [name for name in tensors if name != "step_size"], {}
    for leaf, drawn in zip(starts, draws):
        g_i = torch.autograd.grad(loss(flat.params(leaf), tensors, drawn), leaf, create_graph=True)[0]
        parts = torch.autograd.grad(2 / distance * (constant @ g_i), [tensors[name] for name in names])
        for name, part in zip(names, parts):
            grads[name] = grads.get(name, 0) + part
    grads["step_size"] = -2 / distance * ((start - eta * total - goal) @ total)
    return (start - eta * total - goal).square().sum() / distance, grads


@pytest.mark.parametrize("n", [1, 3, 10])
def test_frozen_sweep_is_tesla(n):
    """To rounding; exact at N = 1 and not beyond."""
    given = problem(n=n)
    value, ours = sweep(*given, frozen=True)
    expected_value, expected = tesla(*given)
    assert value.item() == pytest.approx(float(expected_value), rel=1e-10)
    assert all(error(ours[name], expected[name]) < 1e-10 for name in expected)
    _, exact = sweep(*given)
    gaps = [error(ours[name], exact[name]) for name in exact]
    assert max(gaps) < 1e-10 if n == 1 else min(gaps) > 1e-3


def test_tesla_departs_from_the_truth_as_steps_grow():
    def cosine(step_size):
        given = problem(n=10, step_size=step_size)
        (_, ours), (_, exact) = sweep(*given, frozen=True), sweep(*given)
        return torch.nn.functional.cosine_similarity(ours["images"].flatten(), exact["images"].flatten(), dim=0)

    cosines = [float(cosine(step_size)) for step_size in (0.001, 0.03, 0.3)]
    assert cosines[0] > 0.9999 and cosines[0] > cosines[1] > cosines[2]


def test_loss_of_a_student_that_does_nothing_is_one():
    value, gradients = sweep(*problem(step_size=0.0))
    assert value == 1
    assert (gradients["images"] == 0).all() and gradients["step_size"] != 0


@pytest.mark.parametrize("n", [1, 5])
def test_a_target_made_by_the_same_steps_is_reached(n):
    """L = 0 and zero gradients up to rounding, without 0 / 0."""
    loss, theta0, _, tensors, draws = problem(n=n)
    made = Flat(theta0).params(student(loss, theta0, tensors, draws)[-1])
    value, gradients = sweep(loss, theta0, made, tensors, draws)
    assert value < 1e-28 and all(gradient.abs().max() < 1e-12 for gradient in gradients.values())


def test_division_by_the_number_of_weights_cancels():
    loss, theta0, target, tensors, draws = problem()
    value, _ = sweep(loss, theta0, target, tensors, draws)
    path, goal = student(loss, theta0, tensors, draws), Flat(theta0).vector(target)
    n = len(goal)
    mean = ((path[-1] - goal).square().sum() / n) / ((path[0] - goal).square().sum() / n)
    assert value.item() == pytest.approx(mean.item(), rel=1e-12)


def test_images_that_no_step_uses_have_gradient_zero():
    loss, theta0, target, tensors, draws = problem(n=1)
    _, gradients = sweep(loss, theta0, target, tensors, draws)
    unused = [i for i in range(M) if i not in draws[0][0].tolist()]
    assert (gradients["images"][unused] == 0).all() and (gradients["images"] != 0).any()


def test_the_sweep_keeps_as_many_graphs_as_it_may():
    """Without bytes for them weights alone are kept: what the loss saw in one step is gone in the next."""
    loss, theta0, target, tensors, draws = problem(n=6)
    one, _ = trajectory.held_bytes(lambda: trajectory.graph_of(loss, Flat(theta0), Flat(theta0).vector(theta0), tensors, draws[0]))
    found = []
    for kept, most in ((0, 1), (3 * one, 4), (2**31, 5)):  # of 6 steps, the one under way not counted
        way = partial(sweep, keep=kept)
        assert most_graphs(way, loss, "images", theta0, target, tensors, draws) <= most
        found.append(way(loss, theta0, target, tensors, draws)[1])
    assert most_graphs(sweep_plain, loss, "images", theta0, target, tensors, draws) == 5
    for name in tensors:
        for other in found[1:]:
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-10, atol=1e-14)


def test_bad_problems_are_refused(refused):
    loss, theta0, target, tensors, draws = problem()
    for method in (sweep, sweep_plain):
        with refused("steps", 0):
            method(loss, theta0, target, tensors, [])
        with refused("step_size"):
            method(loss, theta0, target, {"images": tensors["images"]}, draws)
        with refused("head.bias"):
            method(loss, theta0, {n: v for n, v in target.items() if n != "head.bias"}, tensors, draws)


# Start epochs


def test_the_range_of_start_epochs_grows():
    """U is T at step 0, never above T+, never falls."""
    starts = StartEpochs(0, 20, initial_max_start_epoch=10, expansion_steps=1000)
    bounds = [starts.bound(step) for step in range(0, 3000, 10)]
    assert bounds[0] == 10 and bounds[-1] == 20 and bounds == sorted(bounds)
    assert starts.bound(999) == 19 and starts.bound(1000) == 20 and starts.bound(100) == 11
    assert StartEpochs(40, 60).bound(0) == 60
    stream = generator(0, "x")
    assert {StartEpochs(4, 7).draw(0, stream) for _ in range(100)} == {4, 5, 6}
    assert {starts.draw(150, stream) for _ in range(300)} == set(range(11))


@pytest.mark.parametrize("options", [(3, 3), (-1, 3), (0, 5, 6, 10), (2, 5, 2, 10), (0, 5, 3), (0, 5, 0, 10)])
def test_ranges_that_are_none_are_refused(options, refused):
    with refused("start epochs"):
        StartEpochs(*options)


# The objective


def trained(images, epochs=4, k=3, net=None):
    """Experts in memory."""
    net = net or small()
    params, stats = train(
        net,
        net.init(generator(0, "experts"), k),
        images,
        optimizer=SGD(0.1, 0.0, 0.0),
        generator=generator(0, "train"),
        epochs=epochs,
        batch=8,
        snapshots=range(epochs + 1),
        chunk=k,
    )
    return Experts({name: torch.stack([stats.snapshots[e][name] for e in range(epochs + 1)], 1) for name in params})


def small(**options):
    return ConvNet((1, 8, 8), 3, width=4, depth=1, **options)


def first(images, ipc=2, step_size=0.05, **tensors):
    indices = torch.cat([images.of_class(c)[:ipc] for c in range(3)])
    real = {"images": images.batch(indices), "targets": images.targets[indices]}
    return Synthetic(real | {"step_size": torch.tensor(step_size)} | tensors, images.classes)


def objective(images, experts=None, **options):
    given = {"student_steps": 4, "expert_epochs": 2, "start_epochs": StartEpochs(0, 3), "augmentation": DSA} | options
    return TrajectoryMatching(small(), experts or trained(images), **given)


RATES = {"images": Optimizer(1.0, 0.5), "step_size": Optimizer(1e-4, 0.5)}


def run(made, start, images, steps=6, rates=RATES, **options):
    return distill(start, made, images, Uniform(images.targets), rates, steps, generator(0, "distill"), **options)


def test_step_is_the_sweep_on_what_it_drew(tiny):
    """Its gradient is that of the unrolled loop on the same generator; TESLA's is another."""
    experts, start = trained(tiny), first(tiny)
    found = {}
    for gradient in ("exact", "unrolled", "frozen"):
        made = objective(tiny, experts, gradient=gradient, batch=4)
        state = made.start(start, generator(0, "start"))
        found[gradient], after, log = made.step(start, state, None, generator(3, "step"))
    assert set(found["exact"]) == {"images", "step_size"} and set(log) == {"loss", "step_size", "start"}
    assert (int(after["used"]), int(after["step"])) == (1, 1)
    assert error(found["exact"]["images"], found["unrolled"]["images"]) < 1e-4
    assert error(found["frozen"]["images"], found["unrolled"]["images"]) > 1e-4


def test_the_student_of_the_objective_by_hand(tiny):
    """Expert, start, batches and loss written out for one step."""
    experts, start = trained(tiny), first(tiny)
    made = objective(tiny, experts, start_epochs=StartEpochs(2, 3), batch=4, augmentation="", student_steps=3)
    state = made.start(start, generator(0, "start"))
    _, _, log = made.step(start, state, None, generator(3, "step"))
    assert log["start"] == 2
    *_, order, _ = split(generator(3, "step"), 4)
    permutations = [torch.randperm(6, generator=order) for _ in range(2)]
    batches = [permutations[0][:4], permutations[0][4:], permutations[1][:4]]
    expert = int(state["order"][0])
    module = small().module()
    module.load_state_dict({name: value[0] for name, value in experts.at(expert, 2).items()})
    sgd = torch.optim.SGD(module.parameters(), 0.05)
    for indices in batches:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(module(start.tensors["images"][indices]), start.tensors["targets"][indices]).backward()
        sgd.step()
    end, target, begin = dict(module.named_parameters()), experts.at(expert, 4), experts.at(expert, 2)
    squares = [sum((a[n].detach() - target[n][0]).square().sum() for n in end) for a in (end, {n: v[0] for n, v in begin.items()})]
    assert float(log["loss"]) == pytest.approx(float(squares[0] / squares[1]), rel=1e-4)


def test_every_pass_uses_every_image_and_every_round_every_expert(tiny):
    made = objective(tiny, batch=4, student_steps=6)
    start = first(tiny)
    drawn = made.draws(start, generator(0, "a"), generator(0, "b"))
    assert [len(indices) for indices, _ in drawn] == [4, 2, 4, 2, 4, 2]
    assert all(len(d.uniforms[0]) == len(indices) and len(d.families) == 1 for indices, d in drawn)
    for at in (0, 2, 4):
        assert sorted(torch.cat([drawn[at][0], drawn[at + 1][0]]).tolist()) == list(range(6))
    assert len({tuple(drawn[at][0].tolist()) for at in (0, 2, 4)}) > 1
    assert len({tuple(d.uniforms.flatten().tolist()) for _, d in drawn}) == 6  # drawn anew in every step
    whole = objective(tiny, batch=0, student_steps=2).draws(start, generator(0, "a"), generator(0, "b"))
    assert [len(indices) for indices, _ in whole] == [6, 6]

    state, used = made.start(start, generator(0, "start")), []
    for i in range(9):
        used.append(int(state["order"][int(state["used"])]) if int(state["used"]) < 3 else None)
        _, state, _ = made.step(start, state, None, generator(i, "step"))
        used[-1] = int(state["order"][int(state["used"]) - 1])
    assert all(sorted(used[at : at + 3]) == [0, 1, 2] for at in (0, 3, 6))
    assert len({tuple(used[at : at + 3]) for at in (0, 3, 6)}) > 1  # in another order


def test_distillation_moves_pixels_and_step_size_towards_the_experts(tiny):
    made = objective(tiny, start_epochs=StartEpochs(0, 1), augmentation="", student_steps=8)
    rates = {"images": Optimizer(2.0, 0.5), "step_size": Optimizer(1e-3, 0.5)}
    done = run(made, first(tiny), tiny, 60, rates)
    losses = done.log["loss"]
    assert losses[-10:].mean() < 0.9 * losses[:10].mean() and done.cost["samples"] == 0
    assert done.last.tensors["step_size"] != 0.05


@pytest.mark.parametrize("labels", [False, True], ids=["hard labels", "learned labels"])
def test_an_interrupted_run_ends_with_the_same_bits(tiny, tmp_path, labels):
    experts, start = trained(tiny), first(tiny)
    rates = dict(RATES)
    if labels:
        start = start.replace(label_logits=torch.nn.functional.one_hot(start.tensors["targets"], 3).float() * 4)
        rates["label_logits"] = Optimizer(0.5, 0.9)
    whole = run(objective(tiny, experts, batch=4, labels=labels), start, tiny, 9, rates, ema=0.9)
    path = tmp_path / "c.safetensors"

    class Stop(Exception):
        pass

    for stop in (4, 7):
        stopping = objective(tiny, experts, batch=4, labels=labels)
        step, count = stopping.step, iter(range(stop))

        def limited(*args, step=step, count=count):
            if next(count, None) is None:
                raise Stop
            return step(*args)

        stopping.step = limited
        if stop == 4:
            with pytest.raises(Stop):
                run(stopping, start, tiny, 9, rates, ema=0.9, checkpoint=path, checkpoint_seconds=0)
        else:
            parts = run(stopping, start, tiny, 9, rates, ema=0.9, checkpoint=path, checkpoint_seconds=0)
    for name in whole.last.tensors:
        assert torch.equal(parts.last.tensors[name], whole.last.tensors[name]), name
        assert torch.equal(parts.ema.tensors[name], whole.ema.tensors[name]), name
    assert torch.equal(parts.log["loss"], whole.log["loss"])


def test_learned_labels_stay_with_their_images_and_are_what_networks_train_on(tiny):
    start = first(tiny)
    logits = torch.nn.functional.one_hot(start.tensors["targets"], 3).float() * 4
    start = start.replace(label_logits=logits)
    done = run(objective(tiny, batch=4, labels=True), start, tiny, 5, RATES | {"label_logits": Optimizer(5.0, 0.9)})
    learned = done.last.tensors["label_logits"]
    assert not torch.allclose(learned, logits, atol=1e-3)
    some = torch.tensor([4, 1])
    assert torch.equal(done.last.decode(some)[1], learned[some].softmax(-1))
    assert torch.equal(done.last.source().targets, learned.softmax(-1))


def test_the_average_is_that_of_the_images(tiny):
    """ema_n = gamma^n S_0 + (1 - gamma) sum_k gamma^(n-k) S_k; the present step size goes with it."""
    experts, gamma, sets = trained(tiny), 0.8, [first(tiny).tensors["images"]]
    made = objective(tiny, experts)
    step = made.step

    def seen(synthetic, *rest):
        sets.append(synthetic.tensors["images"])
        return step(synthetic, *rest)

    made.step = seen
    done = run(made, first(tiny), tiny, 5, ema=gamma)
    sets = [*sets[1:], done.last.tensors["images"]]  # S_0 .. S_5
    expected = gamma**5 * sets[0] + (1 - gamma) * sum(gamma ** (5 - k) * sets[k] for k in range(1, 6))
    assert torch.allclose(done.ema.tensors["images"], expected, atol=1e-5)
    assert torch.equal(done.ema.tensors["step_size"], done.last.tensors["step_size"])
    assert not torch.equal(done.ema.tensors["step_size"], torch.tensor(0.05))


def test_partitioned_images_are_matched_as_they_are_used(tiny):
    start = first(tiny)
    start = Synthetic(start.tensors, start.classes, "partition2")
    made = objective(tiny, batch=4)
    drawn = made.draws(start, generator(0, "a"), generator(0, "b"))
    assert [d.uniforms.shape[1] for _, d in drawn] == [16, 8, 16, 8]
    assert run(made, start, tiny, 2).last.tensors["images"].isfinite().all()


@pytest.mark.parametrize("threshold, skipped", [(math.inf, 0), (1e9, 0), (1e-9, 5)])
def test_updates_above_the_threshold_are_skipped(tiny, threshold, skipped):
    done = run(objective(tiny, threshold=threshold), first(tiny), tiny, 5)
    assert done.cost["skipped"] == skipped
    assert torch.equal(done.last.tensors["images"], first(tiny).tensors["images"]) == (skipped == 5)


def test_skipped_updates_count_as_steps_and_use_their_expert(tiny):
    """The range of start epochs grows with the steps, whether or not they update anything."""
    made, start = objective(tiny, threshold=1e-9), first(tiny)
    gradients, after, _ = made.step(start, made.start(start, generator(0, "start")), None, generator(3, "step"))
    assert gradients is None and (int(after["used"]), int(after["step"])) == (1, 1)


def test_a_step_size_that_leaves_the_positive_numbers_stops_the_run(tiny, tmp_path, refused):
    """The step is named, and the checkpoint holds the set of before."""
    experts, path = trained(tiny), tmp_path / "c.safetensors"

    def failing():
        made, count = objective(tiny, experts), iter(range(4))
        step = made.step

        def pushed(*args):
            grads, state, log = step(*args)
            if next(count, None) is None:
                grads["step_size"] = torch.tensor(1e5)
            return grads, state, log

        made.step = pushed
        return made

    with refused("positive", "step_size = -", "step 5"):
        run(failing(), first(tiny), tiny, 40)
    with refused("positive", "step_size = -", "step 5", path):
        run(failing(), first(tiny), tiny, 40, checkpoint=path, checkpoint_seconds=0)
    kept, card = store.load_tensors(path)
    assert card["counters"]["step"] == 4
    assert kept["tensors.step_size"] > 0 and kept["tensors.images"].isfinite().all()


def test_a_loss_that_leaves_the_finite_numbers_stops_the_run(tiny, refused):
    with refused("finite", "loss", "step 0"):
        run(objective(tiny), first(tiny, step_size=1e30), tiny, 3)


def test_impossible_problems_are_refused_before_compute(tiny, refused):
    experts = trained(tiny)
    with refused("start epoch 3", "epoch 2"):
        objective(tiny, experts, start_epochs=StartEpochs(0, 4))
    resting = Experts({name: value[:, :1].repeat(1, 5, *[1] * (value.ndim - 2)) for name, value in experts.weights.items()})
    with refused("expert 0", "move"):
        objective(tiny, resting)


def test_a_batch_larger_than_the_set_is_all_of_it(tiny):
    drawn = objective(tiny, batch=1000).draws(first(tiny), generator(0, "a"), generator(0, "b"))
    assert all(sorted(indices.tolist()) == list(range(6)) for indices, _ in drawn)


def test_real_valued_targets_without_classes(tiny):
    """Regression students: targets (M, D) may be learned or fixed."""
    start = first(tiny).replace(targets=torch.randn(6, 3, generator=generator(0, "targets")))
    done = run(objective(tiny, loss=squared_error), start, tiny, 3)
    assert done.last.tensors["images"].isfinite().all()
    assert not torch.equal(done.last.tensors["images"], start.tensors["images"])


def test_statistics_of_batch_norm_come_from_the_expert(tiny):
    net = small(normalization="batch")
    made = TrajectoryMatching(net, trained(tiny, net=net), 3, 2, StartEpochs(0, 2), augmentation=DSA)
    assert run(made, first(tiny), tiny, 3).last.tensors["images"].isfinite().all()


def test_augmented_batches_are_formed_again_from_the_same_draw():
    """A `Draw` is all that a step keeps of its augmentation."""
    loss, theta0, target, tensors, draws = problem(n=2)
    assert all(isinstance(a, Draw) for _, *drawn in draws for a in drawn)
    assert sweep(loss, theta0, target, tensors, draws)[0] == sweep(loss, theta0, target, tensors, draws)[0]
