"""Treatment effects: exact ones against the definition, probes, and the sampler that follows them."""

import math
from dataclasses import replace
from functools import partial, partialmethod

import pytest
import torch

from distillery.checks import InputError
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.matching.distribution import DistributionMatching
from distillery.matching.effects import treatment_effects, treatment_effects_plain, treatment_effects_probed
from distillery.matching.gradient import GradientMatching
from distillery.matching.step import StepContext
from distillery.methods.idc import FormationContext, MultiFormation
from distillery.methods.idm import QueueContext, QueueMatching
from distillery.networks import ConvNet
from distillery.recipe import Effect
from distillery.sampling import RealBatches, TreatmentEffect, Uniform
from distillery.seeds import generator
from distillery.training import dsa
from distillery.training.dsa import DSA

CLASSES, N = 3, 6
HOSTS = {"DM": DistributionMatching, "DC": GradientMatching, "IDM": QueueMatching, "IDC": partial(MultiFormation, formation="identity")}
MOMENTS = {
    "IDM": partial(QueueContext, train_mode=False, push=30.0),  # the cross-entropy has no effect
    "IDC": FormationContext,
}


def problem(host="DM", ipc=2, strategy="", formation="identity", dtype=torch.float64, **options):
    """(objective, context, synthetic set, real, weights): unequal weights, two of them zero."""
    stream = generator(0, "effects")
    net = ConvNet((2, 8, 8), CLASSES, width=4, depth=1, **options)
    objective = HOSTS[host](net)
    params = {name: value.to(dtype) for name, value in net.init(stream, 1).items()}
    drawn = dsa.draw(strategy, CLASSES, 1, generator(1, "draw"), siamese=True)
    context = MOMENTS.get(host, StepContext)(params, torch.arange(CLASSES), drawn)
    images = torch.randn(ipc * CLASSES, 2, 8, 8, generator=stream, dtype=dtype)
    made = Synthetic({"images": images, "targets": torch.arange(CLASSES).repeat(ipc)}, formation=formation)
    real = torch.randn(CLASSES, N, 2, 8, 8, generator=stream, dtype=dtype)
    weights = torch.rand(CLASSES, N, generator=stream, dtype=dtype)
    weights[0, 2] = weights[1, 0] = 0
    return objective, context, made, real, weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("formation", ["identity", "partition2"])
@pytest.mark.parametrize("strategy", ["", DSA, "color+crop+cutout"])
@pytest.mark.parametrize("host", HOSTS)
def test_exact_effects_are_the_definition(host, strategy, formation):
    given = problem(host, strategy=strategy, formation=formation)
    ours, plain = treatment_effects(*given), treatment_effects_plain(*given)
    assert ours.shape == (CLASSES, N) and ours[0, 2] == ours[1, 0] == 0
    assert (plain > 0).sum() == CLASSES * N - 2
    assert torch.allclose(ours, plain, rtol=1e-8, atol=1e-12)


def test_effects_of_all_rows_at_once_are_those_of_a_few(monkeypatch):
    given = problem("DC", ipc=1)
    whole = treatment_effects(*given)
    monkeypatch.setattr("distillery.matching.effects.ROWS", 2)
    assert torch.allclose(treatment_effects(*given), whole, rtol=1e-10)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_what_passes_of_another_shape_round_otherwise_is_no_effect(monkeypatch, rows):
    """In float32 a unit near zero may be on in a pass of one shape and off in a pass of another, which moves every gradient of it alike."""
    given = problem("DM", ipc=1)
    plain, gradient = treatment_effects_plain(*given), type(given[0]).pixel_gradient
    monkeypatch.setattr("distillery.matching.effects.ROWS", rows)
    monkeypatch.setattr(type(given[0]), "pixel_gradient", partialmethod(_moved, gradient))
    assert torch.allclose(treatment_effects(*given), plain, rtol=1e-8, atol=1e-12)


def _moved(self, gradient, context, stored, means, *more, **options):
    return gradient(self, context, stored, means, *more, **options) + 0.01 * len(means)


def test_effects_in_dm_have_a_closed_form_and_sum_to_zero():
    """ITE_i = -2 J^T (phi_i - m) w_i / (1 - w_i), J of the mean synthetic embedding; with equal weights the vectors sum to 0."""
    objective, context, made, real, _ = problem("DM")
    weights = torch.full((CLASSES, N), 1 / N, dtype=real.dtype)
    found = treatment_effects(objective, context, made, real, weights)
    for c in range(CLASSES):
        phi = objective.statistic(context, real[c], c)
        stored = made.tensors["images"][made.stored_by_class()[c]].requires_grad_()
        mean = objective.network.embed(context.params, stored)[0].mean(0)
        vectors = torch.stack([torch.autograd.grad(mean, stored, -2 * (row - phi.mean(0)) / (N - 1), retain_graph=True)[0] for row in phi])
        assert torch.allclose(found[c], vectors.flatten(1).norm(dim=1), rtol=1e-8)
        assert vectors.sum(0).abs().max() < 1e-12


def test_dc_does_not_see_the_length_of_the_mean():
    """[dG/dm] m = 0 up to the guard of 1e-6 in the distance."""
    objective, context, made, real, weights = problem("DC")
    stored = made.tensors["images"][made.stored_by_class()[0]]
    mean = weights[0] @ objective.statistic(context, real[0], 0)
    pulled = objective.pixel_gradient(context, stored, torch.stack([mean, 1.3 * mean]), 0, "identity")
    change = (pulled[0] - pulled[1]).norm() / pulled[0].norm()
    other = objective.pixel_gradient(context, stored, (mean + 0.3 * mean.flip(0))[None], 0, "identity")[0]
    assert change < 1e-3 < (other - pulled[0]).norm() / pulled[0].norm()


@pytest.mark.parametrize("strategy", ["", "rotate", "color"])
@pytest.mark.parametrize("host", HOSTS)
def test_first_order_is_second_order_close(host, strategy):
    """Probed effects with very many directions are the first-order ones: exact in DM, and close in DC."""
    objective, context, made, real, weights = problem(host, 1, strategy, "partition2")
    real = real[:, :1] + 0.02 * (real - real[:, :1])  # a small spread around one image
    exact = treatment_effects(objective, context, made, real, weights)
    probed = treatment_effects_probed(objective, context, made, real, weights, 1000, generator(0, "probes"))
    seen = exact > 0
    assert torch.allclose(probed[seen], exact[seen], rtol=0.12)


def first_order(given, monkeypatch):
    """Norms of first order: directions that span the pixels of a class, one image, instead of drawn ones estimate nothing."""
    pixels = given[2].tensors["images"][0].numel()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *shape, **_: pixels**0.5 * torch.eye(pixels, dtype=torch.float64).view(shape))
        return treatment_effects_probed(*given, pixels, generator(0, "unused"))


@pytest.mark.parametrize("host", HOSTS)
def test_the_error_of_first_order_is_of_second_order(host, monkeypatch):
    """Half the spread around one image makes it a quarter in DC, and distances that are squares have none. Of a smooth network: a ReLU jumps."""
    objective, context, made, real, weights = problem(host, 1, activation="swish")
    missed = []
    for spread in (0.04, 0.02):
        given = objective, context, made, real[:, :1] + spread * (real - real[:, :1]), weights
        plain = treatment_effects_plain(*given)
        missed.append(float((first_order(given, monkeypatch) - plain).abs().sum() / plain.sum()))
    if host == "DC":
        assert 1e-4 < missed[0] < 0.1 and missed[0] / missed[1] == pytest.approx(2, rel=0.1)  # of effects, which halve too
    else:
        assert max(missed) < 1e-9


@pytest.mark.parametrize("host", ["DC", "DM"])
def test_centred_and_uncentred_scores_agree_in_dc_alone(host, monkeypatch):
    """phi_i - m against phi_i, each a direction in which the mean moves the pull; ours are the centred ones."""
    objective, context, made, real, weights = given = problem(host, 1)
    found = first_order(given, monkeypatch)
    for c in range(CLASSES):
        phi, stored = objective.statistic(context, real[c], c), made.tensors["images"][c : c + 1]
        mean, share = weights[c] @ phi, (weights[c] / (1 - weights[c]))[:, None]
        scores = []
        for moves in (share * (phi - mean), share * phi):
            ahead, back = (objective.pixel_gradient(context, stored, mean + step * moves, c, "identity") for step in (1e-4, -1e-4))
            scores.append((ahead - back).flatten(1).norm(dim=1) / 2e-4)
        centred, uncentred = (one[weights[c] > 0] for one in scores)
        assert torch.allclose(found[c, weights[c] > 0], centred, rtol=1e-5)
        assert ((uncentred / centred - 1).abs().max() < 1e-3) == (host == "DC")


def test_probes_have_the_spread_of_a_chi_square():
    """The squared norm is unbiased; its relative deviation is at most sqrt(2 / K), reached where one direction counts."""
    given = problem("DM", ipc=1)
    exact = treatment_effects(*given)
    seen = exact > 0
    draws = torch.stack([treatment_effects_probed(*given, 8, generator(seed, "probes"))[seen] ** 2 for seed in range(200)])
    ratio = draws / exact[seen] ** 2
    assert ratio.mean() == pytest.approx(1, abs=0.06)
    assert 0.05 < ratio.std(0).max() < 1.2 * math.sqrt(2 / 8)


def test_coupled_networks_are_refused():
    objective, context, *rest = problem()
    coupled = replace(context, params=context.params | {"norm0.running_mean": torch.zeros(1, 4)})
    with pytest.raises(InputError, match="BatchNorm.*accepted"):
        treatment_effects(objective, coupled, *rest)


def test_an_image_that_is_alone_has_no_effect():
    objective, context, made, real, _ = problem()
    weights = torch.zeros(CLASSES, N, dtype=real.dtype)
    weights[:, 1] = 1
    assert treatment_effects(objective, context, made, real, weights).abs().max() == 0


# The sampler


def judged(norms, drop=0.2, tails="both", weights=None, **how):
    """The weights a batch of one class leaves with."""
    n = norms.shape[-1]
    sampler = TreatmentEffect(torch.zeros(n, dtype=torch.int64), drop, tails=tails, **how)
    weights = torch.full((1, n), 1 / n) if weights is None else weights
    return sampler, sampler.weigh(torch.tensor([0]), torch.arange(n)[None], weights, lambda: norms[None])


RULES = pytest.mark.parametrize("rule", ["rank", "normal"])


@RULES
def test_equal_tails_of_normal_norms_lose_half_each(rule):
    norms = 5 + torch.randn(20_000, generator=generator(0, "norms"))
    _, weights = judged(norms, rule=rule)
    kept = weights[0] > 0
    assert float(kept.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((norms[~kept] < 5).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert weights.sum() == pytest.approx(1)
    assert norms[kept].max() < norms[~kept][norms[~kept] > 5].min()


@RULES
@pytest.mark.parametrize("tails, sign", [("low", 1), ("high", -1)])
def test_one_tail_loses_the_whole_share(tails, sign, rule):
    norms = 5 + torch.randn(20_000, generator=generator(0, "norms"))
    kept = judged(norms, tails=tails, rule=rule)[1][0] > 0
    assert float(kept.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert (sign * norms[kept]).min() > (sign * norms[~kept]).max()


def test_images_of_weight_zero_are_not_judged():
    norms = torch.tensor([1.0, 1.1, 0.9, 1.0, 50.0])
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0]])
    sampler, left = judged(norms, drop=0.01, weights=weights, rule="normal")
    assert torch.allclose(left, weights) and float(sampler.state["mean"]) == pytest.approx(1.0)
    sampler, left = judged(norms, drop=0.25, tails="high", weights=weights)
    assert left.tolist() == [pytest.approx([1 / 3, 0, 1 / 3, 1 / 3, 0])]
    assert sampler.state["rank"][:4].tolist() == [0.375, 0.875, 0.125, 0.625]


@pytest.mark.parametrize("rule, state, expected", [("normal", "dropped", [0, 0, 0, 1]), ("rank", "rank", [0.5, 1 / 6, 0.5, 5 / 6])])
def test_what_fills_up_a_class_does_not_change_its_first_image(rule, state, expected):
    sampler = TreatmentEffect(torch.tensor([0, 0, 0, 0]), 0.3, tails="high", rule=rule)
    indices, weights = torch.tensor([[3, 1, 2, 3, 3]]), torch.tensor([[1.0, 1, 1, 0, 0]]) / 3
    sampler.weigh(torch.tensor([0]), indices, weights, lambda: torch.tensor([[9.0, 1, 1, 0, 0]]))
    assert sampler.state[state].tolist() == pytest.approx(expected)


@RULES
def test_a_batch_never_loses_everything(rule):
    sampler, weights = judged(torch.tensor([1.0, 3.0]), drop=0.99, rule=rule)
    assert weights.sum() == pytest.approx(1) and (weights > 0).any()
    assert judged(torch.tensor([3.0]), drop=0.99, rule=rule)[1].tolist() == [[1]]


def test_running_statistics_follow_their_definition():
    sampler, _ = judged(torch.tensor([1.0, 3.0]), rule="normal", momentum=0.75)
    uniform, index = torch.full((1, 2), 0.5), torch.arange(2)[None]
    sampler.weigh(torch.tensor([0]), index, uniform, lambda: torch.tensor([[6.0, 6.0]]))
    assert float(sampler.state["mean"]) == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert float(sampler.state["square"]) == pytest.approx(0.75 * (1 + 9) / 2 + 0.25 * 36)


def test_ranks_are_averaged_over_networks_whatever_the_scale_of_their_norms():
    """Two looks whose norms differ a thousandfold count alike; a drop between looks goes by the mean of both."""
    sampler = TreatmentEffect(torch.zeros(4, dtype=torch.int64), 0.25, tails="high")
    index, uniform = torch.arange(4)[None], torch.full((1, 4), 0.25)
    for norms in ([1.0, 2, 3, 4], [4000.0, 1000, 3000, 2000]):
        sampler.weigh(torch.tensor([0]), index, uniform, lambda norms=norms: torch.tensor([norms]))
    assert sampler.state["rank"].tolist() == [0.5, 0.25, 0.625, 0.625]
    sampler.due = False
    assert sampler.weigh(torch.tensor([0]), index, uniform, None).tolist() == [pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])]


@pytest.mark.parametrize("n", [64, 45])
@pytest.mark.parametrize("tails", ["both", "low", "high"])
def test_every_batch_loses_the_share_whatever_the_norms(tails, n):
    """Skewed norms whose scale differs from look to look, images never judged and those judged long ago: within 2 points of 20%."""
    sampler, stream = TreatmentEffect(torch.zeros(450, dtype=torch.int64), 0.2, every=3, tails=tails), generator(0, "batches")
    for step in range(12):
        index = torch.randperm(450, generator=stream)[None, :n]
        norms = torch.randn(1, n, generator=stream).mul(2).exp() * 10 ** (step % 5)
        sampler.refresh(step, None, {}, None)
        weights = sampler.weigh(torch.tensor([0]), index, torch.full((1, n), 1 / n), lambda norms=norms: norms)
        assert float((weights == 0).float().mean()) == pytest.approx(0.2, abs=0.02)


def test_verdicts_are_kept_between_looks():
    sampler = TreatmentEffect(torch.zeros(4, dtype=torch.int64), 0.3, every=2, tails="high")
    labels, index, uniform = torch.tensor([0]), torch.arange(4)[None], torch.full((1, 4), 0.25)
    looks = []

    def effects():
        looks.append(sampler.due)
        return torch.tensor([[1.0, 1.0, 9.0, 1.0]])

    for step in range(4):
        sampler.refresh(step, None, {}, None)
        weights = sampler.weigh(labels, index, uniform, effects)
        assert torch.allclose(weights, torch.tensor([[1, 1, 0, 1]]) / 3)
    assert looks == [True, True]
    fewer = sampler.weigh(labels, torch.tensor([[0, 2, 1]]), torch.full((1, 3), 1 / 3), effects)
    assert fewer.tolist() == [pytest.approx([0.5, 0, 0.5])]


def test_only_the_rule_by_ranks_has_ids_of_its_own():
    """Sets of the rule 'normal' were made before there was another."""
    assert Effect(0.2, 10, "low", "normal").spec() == {"drop": 0.2, "every": 10, "tails": "low"}
    assert Effect(0.2).spec() == {"drop": 0.2, "rule": "rank"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 0.0},
        {"drop": 1.0},
        {"drop": 1.5},
        {"drop": 0.2, "every": 0},
        {"drop": 0.2, "tails": "left"},
        {"drop": 0.2, "rule": "gaussian"},
        {"drop": 0.2, "momentum": 1.0},
    ],
    ids=str,
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError, match="accepted"):
        TreatmentEffect(torch.zeros(4, dtype=torch.int64), **wrong)


def run(tiny, sampler, host="DM", steps=4, **options):
    net = ConvNet((1, 8, 8), 3, width=4, depth=1)
    start = Synthetic({"images": tiny.batch(torch.tensor([0, 8, 16])), "targets": torch.arange(3)})
    return distill(start, HOSTS[host](net, batch=6), tiny, sampler, {"images": Optimizer(0.1)}, steps, generator(0, "run"), **options)


@pytest.mark.parametrize("tails", ["both", "low", "high"])
@pytest.mark.parametrize("host", HOSTS)
def test_distillation_follows_effects(tiny, host, tails):
    """Every step of every host loses the same number of images: here two of six."""
    plain = run(tiny, Uniform(tiny.targets), host)
    ours = run(tiny, TreatmentEffect(tiny.targets, 0.33, every=2, tails=tails), host)
    assert not torch.equal(plain.last.tensors["images"], ours.last.tensors["images"])
    assert "effective_batch" not in plain.log and ours.log["effective_batch"].tolist() == [4, 4, 4, 4]
    assert plain.cost["samples"] == ours.cost["samples"]


def test_one_step_uses_the_batch_that_it_judged(tiny):
    """With a look in every step the first update is that of the surviving images alone."""
    done = run(tiny, TreatmentEffect(tiny.targets, 0.4), steps=1)

    class Survivors(TreatmentEffect):
        def weigh(self, labels, indices, weights, effects):
            low, high = effects().sort(1).values[:, [1, 4]].T  # of six two go
            norms = effects()
            left = weights * ((norms >= low[:, None]) & (norms <= high[:, None]))
            return left / left.sum(1, keepdim=True)

    by_hand = run(tiny, Survivors(tiny.targets, 0.4), steps=1)
    assert torch.allclose(done.last.tensors["images"], by_hand.last.tensors["images"], atol=1e-6)


@RULES
def test_a_look_in_every_step_is_not_lazy(tiny, rule):
    """With period 1 what was found of an image in earlier steps changes nothing; with period 3 it does."""

    class Forgetful(TreatmentEffect):
        def refresh(self, step, *more):
            fresh = TreatmentEffect(tiny.targets, self.drop, rule=rule).state
            self.state |= {name: value for name, value in fresh.items() if len(value) == len(tiny)}  # not the running moments of a class
            return super().refresh(step, *more)

    for every in (1, 3):
        lazy, forgetful = (run(tiny, one(tiny.targets, 0.4, every, rule=rule)).last for one in (TreatmentEffect, Forgetful))
        assert torch.equal(lazy.tensors["images"], forgetful.tensors["images"]) == (every == 1)


def test_a_killed_run_goes_on_with_its_verdicts(tiny, tmp_path, monkeypatch):
    whole = run(tiny, TreatmentEffect(tiny.targets, 0.4, every=3), steps=5)
    path = tmp_path / "checkpoint.safetensors"
    calls = []
    step = DistributionMatching.step

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(DistributionMatching, "step", dies)
    options = {"steps": 5, "checkpoint": path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        run(tiny, TreatmentEffect(tiny.targets, 0.4, every=3), **options)
    again = run(tiny, TreatmentEffect(tiny.targets, 0.4, every=3), **options)
    assert torch.equal(whole.last.tensors["images"], again.last.tensors["images"])
    assert torch.equal(whole.log["effective_batch"], again.log["effective_batch"])


def test_real_batches_ask_for_effects_of_what_was_drawn(tiny):
    asked = []

    def effects(real, weights):
        asked.append((real.shape, weights.sum(1).tolist()))
        return torch.rand(weights.shape, generator=generator(0, "effects"))

    draw = RealBatches(tiny, TreatmentEffect(tiny.targets, 0.4), generator(0, "x"))
    _, weights = draw.classes(torch.arange(3), 6, effects)
    assert asked == [((3, 6, 1, 8, 8), pytest.approx([1, 1, 1]))]
    assert float(draw.effective) == pytest.approx(float((weights > 0).sum()) / 3)
