"""Gates that are closed where nothing can be tested."""

from dataclasses import replace

import pytest
import torch

from distillery.data import Splits
from distillery.data.synthetic import Synthetic
from distillery.encoders.quality import embedded
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.evaluation.protocol import fit
from distillery.experiment import Experiment, Presets
from distillery.matching.trajectory import sweep_plain
from distillery.measure.gates import Gates, matching_losses, repeated
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.recipe import Recipe
from distillery.runs import Runs
from distillery.seeds import generator, split
from made_up import blobs

CHANGES = {
    "experts": 3, "expert_lr": 0.5, "expert_batch": 8, "student_steps": 4, "expert_epochs": 1, "max_start_epoch": 2, "student_batch": 4,
    "step_size": 0.05, "iterations": 1,
    "KRR-ST": {"width": 4, "pool": 1, "age": 3, "batch": 8, "iterations": 1, "lr": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    images = blobs(per_class=8)
    net = ConvNet(images.shape, 6, width=4, depth=1)
    teacher = Encoder(net, {n: v for n, v in net.init(generator(7, "t"), 1).items() if n not in head_names(net)}, "teacher")
    real = RegressionSet.of(teacher, images)
    network = ConvNet(images.shape, real.targets.shape[1], width=4, depth=1)
    validation, test = blobs(6, seed=4), replace(blobs(4, seed=5), targets=torch.zeros(12, dtype=torch.int64))  # no label of a test image
    task = Splits(images, validation, test)
    protocol = Probing(2, 2, 0.05, batch=4, labels=(0.25, 0.5))
    runs = Runs(tmp_path_factory.mktemp("runs"))
    experiment = Experiment(real, network, protocol, runs, presets=Presets("cifar10", CHANGES), tasks={"own": task})
    gates = Gates(experiment, task, range(2))
    gates.untrained(network), gates.encoder("teacher", teacher)
    return experiment, gates, teacher


def row(experiment, method, **changes):
    recipes = [Recipe(method, 5, seed, **changes) for seed in (0, 1)]
    return [experiment.job(one) for one in recipes], [experiment.synthetic(experiment.run(one)) for one in recipes]


def test_the_teacher_is_asked_against_what_rows_start_from(here):
    experiment, gates, teacher = here
    assert [len(gates.found["teacher"][part]) for part in ("0.25", "0.5")] == [4, 4]
    means = {name: {part: sum(values) / 4 for part, values in gates.found[name].items()} for name in ("teacher", "no pre-training")}
    gap = min(means["teacher"][part] - means["no pre-training"][part] for part in ("0.25", "0.5"))
    assert gates.teacher(gap - 1e-9) == "" and "teacher: " in gates.teacher(gap + 1e-9)
    start = split(generator(1, "pre-training"), 2)[0]  # what `none` of seed 1 is
    drawn = gates.probes("again", experiment.network, lambda seed: experiment.network.init(start, 2) if seed else repeated(teacher, 2))
    assert drawn["0.5"][2:] == gates.found["no pre-training"]["0.5"][2:]


def test_the_ceiling_is_all_images_in_the_steps_of_a_set(here):
    experiment, gates, _ = here
    assert gates.ceiling(5, -1.0) == "" and "all images, as many steps: " in gates.ceiling(5, 1.0)
    found = gates.found["all images, as many steps"]
    assert [len(values) for values in found.values()] == [4, 4]

    def trained(steps_of):
        network, protocol = experiment.network, experiment.protocol
        return lambda seed: fit(network, experiment.real, protocol, generator(seed, "gate"), steps_of=steps_of)[0]

    assert gates.probes("by itself", experiment.network, trained(5)) == found
    assert gates.probes("by itself", experiment.network, trained(0)) != found


def test_matching_losses_are_those_of_each_set_at_its_step_size(here):
    experiment, _, _ = here
    (job, _), (made, _) = row(experiment, "MKDT")
    objective, found = job.method.matching(job), matching_losses(job, [(made, 0.05), (made, 0.4)], experts=2)
    assert set(found) == {0, 1}
    for epoch, values in found.items():
        for value, rate in zip(values, (0.05, 0.4)):
            one = made.replace(step_size=torch.tensor(rate))
            each = [objective.loss_at(one, i, epoch, job.stream("gate", epoch, i)) for i in (0, 1)]
            assert value == pytest.approx(sum(each) / 2, rel=1e-12)
    assert found[0][0] != found[0][1]


def test_matching_that_moves_nothing_is_closed(here):
    experiment, gates, _ = here
    jobs, sets = row(experiment, "MKDT", settings={"lr_images": 0.0})
    assert "from epoch 0 on the matching loss" in gates.matching(jobs, sets)
    for before, after in gates.found["matching loss"].values():
        assert before == after
    assert gates.matching([], []) == "nothing has been distilled"


def test_matching_that_fell_asks_for_its_experts(here, monkeypatch):
    experiment, gates, _ = here
    jobs, sets = row(experiment, "MKDT")
    monkeypatch.setattr("distillery.measure.gates.FALL", -9.0)
    monkeypatch.setattr("distillery.measure.gates.EXPERT", 2.0)
    assert gates.matching(jobs, sets).startswith("the matched expert: ")
    monkeypatch.setattr("distillery.measure.gates.EXPERT", -2.0)
    assert gates.matching(jobs, sets) == ""


def test_the_loss_of_a_segment_is_that_of_the_sweep(here):
    experiment, _, _ = here
    (job, _), (made, _) = row(experiment, "MKDT")
    objective, stream = job.method.matching(job), generator(3, "x")
    draws = objective.draws(made, *split(stream, 2))
    tensors = {name: made.tensors[name] for name in objective.learns}
    wanted, _ = sweep_plain(objective.step_loss(made, {}), *objective._segment(1, 1), tensors, draws)
    assert objective.loss_at(made, 1, 1, generator(3, "x")) == pytest.approx(float(wanted), rel=1e-5)


def test_a_regression_has_to_move_or_to_predict(here):
    experiment, gates, teacher = here
    jobs, sets = row(experiment, "KRR-ST")
    assert gates.regression(jobs, sets, teacher).startswith("KRR-ST moved pixels by 0.00 deviations")
    far = [one.replace(images=one.tensors["images"] + 0.2) for one in sets]
    assert gates.regression(jobs, [Synthetic(one.tensors, None, one.formation, old.card) for one, old in zip(far, sets)], teacher) == ""
    before, after = gates.found["KRR-ST"]["error"]
    objective, first = jobs[0].method.regression(jobs[0]), jobs[0].first()
    held = embedded(teacher, gates.task.validation)
    found = objective.outputs(first, objective.fresh(first, jobs[0].stream("gate")), gates.task.validation)
    assert min(before, after) > 0 and float((found - held).square().mean()) < 2 * before


def test_a_regression_on_components_is_asked_for_components(here, tmp_path):
    experiment, gates, teacher = here
    real = experiment.real.components(3)
    network = ConvNet(real.shape, 3, width=4, depth=1)
    changed = Experiment(real, network, experiment.protocol, Runs(tmp_path), presets=experiment.presets, tasks=experiment.tasks)
    other = Gates(changed, gates.task, gates.seeds)
    jobs, sets = row(changed, "KRR-ST")
    assert other.regression(jobs, sets, teacher).startswith("KRR-ST moved pixels by 0.00 deviations")
    assert min(other.found["KRR-ST"]["error"]) > 0
