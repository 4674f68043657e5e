"""Mining by prototypes: by hand, image by image; the five rows of omni-supervised learning and what each of them holds."""

from dataclasses import replace

import pytest
import torch

from distillery.data import Splits
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.methods.omnifer import ADDED, mined, mined_plain, on
from distillery.networks import ConvNet
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.runs import Runs
from made_up import blobs, normal

SETTINGS = {"labelled": 3, "keep": 0.5}
STEPS = {"steps": 3, "batch": 4}


def test_mining_by_hand():
    """Prototypes along both axes; the first axis is nearest to images 0, 2 and 3, of which the half rounded up are 3 and 0."""
    labelled, labels = torch.tensor([[2.0, 0.0], [1.0, 0.5], [1.0, -0.5], [0.0, 3.0]]), torch.tensor([4, 4, 4, 7])
    others = torch.tensor([[5.0, 1.0], [0.1, 0.2], [1.0, 0.9], [0.2, 0.0]])
    found = mined(labelled, labels, others, 0.5)
    assert found.classes.tolist() == [4, 7, 4, 4] and found.chosen.tolist() == [3, 0, 1]
    assert found.confidence[[0, 1, 3]].tolist() == pytest.approx([5 / 26**0.5, 2 / 5**0.5, 1])


@pytest.mark.parametrize("n, classes, keep", [(40, 3, 0.1), (25, 2, 0.34), (12, 4, 1.0), (10, 3, 0.2)])
def test_mining_is_that_of_the_definition(n, classes, keep):
    labelled, labels, others = normal(4 * classes, 5, seed=1), torch.arange(classes).repeat(4), normal(n, 5, seed=2)
    found = mined(labelled, labels, others, keep)
    expected = mined_plain(labelled.tolist(), labels.tolist(), others.tolist(), keep)
    assert list(zip(found.chosen.tolist(), found.classes[found.chosen].tolist(), strict=True)) == expected


def test_a_part_of_nothing_is_refused(refused):
    with refused("keep", 0):
        mined(normal(2, 3), torch.arange(2), normal(4, 3), 0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """An experiment and the result of each row."""
    here = experiment(tmp_path_factory.mktemp("runs"))
    return here, {added: here.run(recipe(added)) for added in ADDED}


def experiment(folder, **changes):
    images = blobs(per_class=12)
    targets = images.targets.clone()
    targets[::6] = (targets[::6] + 1) % 3  # so that predicted classes are not always the true ones
    splits = Splits(replace(images, targets=targets), blobs(4, seed=0), blobs(6, seed=0))
    network = ConvNet(splits.train.shape, 3, width=8, depth=1)
    return Experiment(splits, network, Protocol(2, 20), Runs(folder), presets=Presets("cifar10", SETTINGS | STEPS | changes))


def recipe(added, **changes):
    return Recipe("omni-supervised", 2, 0, settings={"added": added} | changes)


def test_what_each_row_holds(rows):
    """The same labelled images come first; what is added has predicted classes."""
    here, found = rows
    made = {added: here.synthetic(one) for added, one in found.items()}
    images = {added: one.tensors["images"] for added, one in made.items()}
    targets = {added: one.tensors["targets"] for added, one in made.items()}
    assert all(torch.equal(one[:9], images["nothing"]) for one in images.values()) and len(images["nothing"]) == 9
    assert all(one[:9].tolist() == 3 * [0] + 3 * [1] + 3 * [2] for one in targets.values())
    real = here.real.batch(torch.arange(36))

    def places(added):
        return [next((i for i in range(36) if torch.equal(real[i], one)), None) for one in images[added]]

    known, mine, some = places("nothing"), places("mined")[9:], places("some mined")[9:]
    assert set(known).isdisjoint(mine) and len(set(mine)) == len(mine) == found["mined"]["mined"]
    right = [here.real.targets[i] == label for i, label in zip(mine, targets["mined"][9:], strict=True)]
    assert sum(right) / len(right) == pytest.approx(found["mined"]["precision"]) and not all(right)
    assert set(some) < set(mine) and targets["some mined"][9:].tolist() == [0, 0, 1, 1, 2, 2]
    for added in ADDED[3:]:
        assert len(images[added]) == 15 and not any(i is not None for i in places(added)[9:])  # learned ones
    assert "precision" not in found["distilled, true labels"] and not torch.equal(images[ADDED[3]], images[ADDED[4]])


def test_distilled_images_are_those_of_the_host_on_what_was_mined(rows):
    here, found = rows
    job = here.job(recipe("distilled"))
    known = here.synthetic(found["nothing"]).tensors["images"]
    other = torch.tensor([i for i in range(36) if not any(torch.equal(here.real.batch(torch.tensor(i)), one) for one in known)])
    labelled = here.real.subset(torch.tensor([i for one in known for i in range(36) if torch.equal(here.real.batch(torch.tensor(i)), one)]))
    images, _ = job.method.mine(job, labelled, here.real.subset(other))
    apart = on(here, images)
    host = apart.synthetic(apart.run(Recipe("DM", 2, 0)))
    assert torch.equal(here.synthetic(found["distilled"]).tensors["images"][9:], host.tensors["images"])
    assert apart.labels.tolist() == images.targets.tolist() and len(here.labels) == 36


def test_learned_labels_of_a_host_stand_beside_one_hot_ones(tmp_path):
    few = {
        "experts": 2,
        "expert_batch": 6,
        "student_steps": 2,
        "expert_epochs": 1,
        "max_start_epoch": 2,
        "expert_training_epochs": 20,
        "expert_lr": 0.1,
    }
    here = experiment(
        tmp_path, **few, lr_images=1.0, step_size=0.05, student_batch=0, threshold=0, initial_max_start_epoch=0, expansion_steps=0
    )
    made = here.synthetic(here.run(Recipe("omni-supervised", 1, 0, settings={"host": "DATM", "added": "distilled, true labels"})))
    labels = made.tensors["targets"]
    assert torch.equal(labels[:9], torch.eye(3).repeat_interleave(3, 0)) and (labels[9:] > 0).all()
    assert torch.allclose(labels.sum(1), torch.ones(12))


def test_all_rows_train_for_equal_steps(rows):
    here, _ = rows
    steps = {METHODS["omni-supervised"].protocol(here.job(recipe(added)), here.protocol, None)[1] for added in ADDED}
    assert steps == {3 * (3 + 2)}


def test_what_mines_and_what_distils_is_in_the_id(rows, tmp_path):
    here, _ = rows
    longer, faster = here.under(Protocol(2, 21)), experiment(tmp_path, lr=3.0)
    for added in ADDED:
        assert (here.set_id(recipe(added)) == longer.set_id(recipe(added))) == (added == "nothing")
        assert (here.set_id(recipe(added)) == faster.set_id(recipe(added))) == (not added.startswith("distilled"))
    judged = Recipe("omni-supervised", 2, 0, settings={"added": "distilled"}, evaluate=Evaluate(labels="hard"))
    assert here.set_id(judged) == here.set_id(recipe("distilled"))


def test_a_class_of_which_too_little_is_mined_is_listed(tmp_path):
    here = experiment(tmp_path, keep=0.01)
    assert here.run(recipe("distilled")) is None and "mined, fewer than 2" in here.runs.missing[-1]["stopped"]
    assert here.run(recipe("mined"))["mined"] <= 3


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"settings": {"host": "random"}}, ("host", "random", "DM")),
        ({"settings": {"host": "FRePo"}}, ("host", "FRePo", "DSA")),
        ({"settings": {"added": "all"}}, ("added", "all", "some mined")),
        ({"settings": {"keep": 1.5}}, ("keep", 1.5)),
        ({"settings": {"labelled": 0}}, ("labelled", 0)),
        ({"settings": {"labelled": 11}}, ("13",)),
        ({"prune": Prune(4)}, ("at least 5",)),
    ],
)
def test_what_is_refused(tmp_path, refused, changes, words):
    with refused(*words):
        experiment(tmp_path).run(Recipe(**{"method": "omni-supervised", "size": 2, "seed": 0} | changes))
