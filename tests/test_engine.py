"""The engine: Ray gives what the local loop gives, in the same order and bits, and survives the death of its workers."""

import os
import pickle
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch

from distillery import engine, store
from distillery.checks import InputError
from distillery.data import LazyImages
from distillery.data.cache import Building, Shards
from distillery.evaluation import Protocol
from distillery.experiment import Compute, Experiment, Presets
from distillery.matching.distribution import DistributionMatching
from distillery.networks import ConvNet
from distillery.networks.precision import float32_matmul
from distillery.notebook import parameters, types
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.runs import Runs
from distillery.scores.cached import ScoreSettings
from distillery.training.dsa import DSA_NO_FLIP

SHORT = {"steps": 2, "batch": 8}
RECIPES = [
    Recipe("DM", 1, 0, Prune(0.5), settings=SHORT),
    Recipe("herding", 1, 0),
    Recipe("DM", 1, 0, Prune(0.5), settings=SHORT, evaluate=Evaluate(network="LeNet")),
    Recipe("DSA", 1, 0, start="herding", settings=SHORT),
]


@pytest.fixture(scope="module")
def splits():
    from distillery.data import load

    return load("digits", per_class=30)


def experiment(splits, folder, classes="local", **options):
    network, protocol = ConvNet(splits.train.shape, 10, width=8), Protocol(2, 4)
    runs = Runs(folder, **options)
    parts = {"scores": ScoreSettings((2, 1)), "compute": Compute(class_engine=classes)}
    return Experiment(
        splits, network, protocol, runs, augmentation=DSA_NO_FLIP, presets=Presets("cifar10", {"steps": 3, "batch": 8}), **parts
    )


def test_local_is_a_loop(refused):
    told = []
    assert engine.map(str, [7, 8], ended=lambda *one: told.append(one)) == ["7", "8"] and told == [(0, "7"), (1, "8")]
    assert engine.map(lambda x: x * x, range(4)) == [0, 1, 4, 9]
    with refused("'cluster'", "local, ray"):
        engine.map(str, [1], "cluster")


def test_without_the_extra(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused("'ray'", 'pip install "distillery[ray]"'):
        engine.map(str, [1], "ray")
    with refused("'ray'"):
        parameters.check({"engine": types.Engine}, {"engine": "ray"})


class Unwilling:
    """A stand-in for Ray whose first starts fail."""

    def __init__(self, failures):
        self.failures, self.asked = failures, []

    def is_initialized(self):
        return False

    def shutdown(self):
        pass

    def init(self, **options):
        self.asked.append(options)
        if len(self.asked) <= self.failures:
            raise Exception("The current node timed out during startup")


def test_a_start_that_fails_is_tried_again(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    late, never = Unwilling(2), Unwilling(9)
    monkeypatch.setattr(engine, "_ray", lambda: late)
    assert engine.start(num_cpus=2) is late and len(late.asked) == 3
    assert late.asked[0]["address"] == "local" and late.asked[0]["include_dashboard"] is False
    monkeypatch.setattr(engine, "_ray", lambda: never)
    with pytest.raises(RuntimeError, match="3 attempts: The current node timed out"):
        engine.start()


def test_the_address_of_no_ray(monkeypatch, refused):
    monkeypatch.setattr(engine, "_ray", lambda: Unwilling(9))
    for address in ("127.0.0.1:1", "127.0.0.1:99999", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with refused("RAY_ADDRESS", address):
            engine.start()


def test_order_is_kept(ray):
    def slow_first(i):
        time.sleep(0.3 * (i == 0))
        return i, os.getpid()

    answers = engine.map(slow_first, range(6), "ray")
    assert [i for i, _ in answers] == list(range(6)) and os.getpid() not in {pid for _, pid in answers}
    assert engine.map(slow_first, [], "ray") == []


@pytest.mark.parametrize("threads, precision", [(1, "float32"), (2, "tf32")])
def test_the_callers_threads_and_precision_and_so_its_bits(ray, threads, precision):
    def product(seed):
        stream = torch.Generator().manual_seed(seed)
        a = torch.randn(8, 16, 40, 40, generator=stream)
        kernel = torch.randn(32, 16, 3, 3, generator=stream)
        cudnn, cuda = (getattr(torch.backends, name) for name in ("cudnn", "cuda"))  # spelt out they would be pickled
        how = torch.get_num_threads(), cudnn.allow_tf32, cuda.matmul.allow_tf32
        return how, torch.nn.functional.conv2d(a, kernel).sum((0, 2, 3))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with float32_matmul(precision):
            here, there = engine.map(product, [1, 2]), engine.map(product, [1, 2], "ray")
    finally:
        torch.set_num_threads(before)
    for (n, one), (m, two) in zip(here, there):
        assert n == m == (threads, *2 * [precision == "tf32"]) and torch.equal(one, two)


def test_an_experiment_gives_the_same_bits_and_computes_nothing_twice(ray, splits, tmp_path):
    here, there = experiment(splits, tmp_path / "local"), experiment(splits, tmp_path / "ray")
    local, remote = here.run_all(RECIPES), there.run_all(RECIPES, "ray")
    for one, two in zip(local, remote):
        assert all(one[key] == two[key] for key in ("accuracies", "loss", "artifact", "samples"))
    for one in local:
        if one["artifact"]:
            same, tensors = here.synthetic(one).tensors, there.synthetic(one).tensors
            assert same.keys() == tensors.keys() and all(torch.equal(same[k], tensors[k]) for k in same)
    assert there.runs.computed == here.runs.computed == 4 + 3 and not there.runs.missing
    scores = [next((tmp_path / name / "artifacts").glob("scores-*")) for name in ("local", "ray")]
    digests = [store.tensor_digest(store.load_tensors(path)[0]) for path in scores]
    assert digests[0] == digests[1] and there.scores.costs.keys() == here.scores.costs.keys() == {("loss", 0)}
    assert not [*tmp_path.rglob("*.lock"), *tmp_path.rglob(".*.tmp")]
    assert there.run_all(RECIPES, "ray") == remote and there.runs.computed == 7


def test_a_spent_budget_goes_with_the_experiment(ray, splits, tmp_path):
    late = experiment(splits, tmp_path, budget_minutes=1e-9)
    assert late.run_all(RECIPES[1:2], "ray") == [None]
    assert [one["method"] for one in late.runs.missing] == ["herding"]


def test_a_pickled_deadline_is_wall_clock(tmp_path):
    copy = pickle.loads(pickle.dumps(Runs(tmp_path, budget_minutes=2)))
    assert 119 < copy.deadline - time.time() <= 120 and copy.wait
    assert pickle.loads(pickle.dumps(Runs(tmp_path))).deadline == float("inf")


def test_images_on_disk_are_read_by_workers(ray, splits, tmp_path, refused):
    train = splits.train
    built = Building(train.pixels.shape, tmp_path / "pixels").fill(train.pixels.numpy())
    built.note()
    pixels = LazyImages(Shards(tmp_path / "pixels"), torch.arange(len(train)))
    mapped = replace(splits, train=replace(train, pixels=pixels))
    there, here = experiment(mapped, tmp_path / "there"), experiment(splits, tmp_path / "here")
    assert there.run_all(RECIPES[:2], "ray")[1]["accuracies"] == here.run_all(RECIPES[:2])[1]["accuracies"]
    content = pickle.dumps(pixels)
    (tmp_path / "pixels").rename(tmp_path / "elsewhere")
    with refused("all machines share"):
        pickle.loads(content)


def test_classes_of_a_step_on_workers_have_the_same_bits(ray, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(DistributionMatching, "map_limit", 1)  # a chunk each
    made = []
    for where in ("local", "ray"):
        here = experiment(splits, tmp_path / where, classes=where)
        result = here.run(Recipe("DM", 1, 0))
        made.append((result["loss"], here.synthetic(result).tensors["images"]))
    assert made[0][0] == made[1][0] and torch.equal(made[0][1], made[1][1])


def test_what_no_machine_has_is_refused(ray, refused):
    with refused("3 CPUs", "0.5 GPUs"):
        engine.map(str, [1], "ray", cpus=3, gpus=0.5)


def test_a_killed_worker_is_replaced(ray, tmp_path):
    def dies_once(i):
        mark = tmp_path / str(i)
        if i == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert engine.map(dies_once, range(3), "ray") == [0, 1, 2]


def test_a_worker_that_always_dies(ray, tmp_path):
    def dies(i):
        with open(tmp_path / str(i), "a") as file:
            file.write("x")
        if i == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)

    with pytest.raises(engine.WorkerDied, match=r"shard 1 of 3: its worker died 2 time"):
        engine.map(dies, range(3), "ray", max_retries=1)
    assert [len((tmp_path / str(i)).read_text()) for i in range(3)] == [1, 2, 1]  # the others were finished


def test_its_own_exception_is_raised_and_not_retried(ray, tmp_path):
    def fails(i):
        with open(tmp_path / str(i), "a") as file:
            file.write("x")
        if i == 1:
            raise InputError("ipc: 7 is not accepted; accepted: less")

    with pytest.raises(InputError) as caught:
        engine.map(fails, range(4), "ray")
    assert type(caught.value) is InputError and str(caught.value) == "ipc: 7 is not accepted; accepted: less"
    assert "shard 1 of 4" in caught.value.__notes__[0]
    assert [len((tmp_path / str(i)).read_text()) for i in range(4)] == [1, 1, 1, 1]


def test_a_worker_killed_within_a_run_leaves_no_lock_behind(ray, tmp_path):
    def run(i):
        mark = tmp_path / "died"

        def compute(key):
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.3)
            (tmp_path / f"computed by {i}").touch()
            return {"accuracy": 0.5}

        copy = pickle.loads(pickle.dumps(Runs(tmp_path)))
        return copy.get("p", 1, {}, "data", compute)

    assert engine.map(run, range(3), "ray") == [{"accuracy": 0.5}] * 3
    assert len(list(tmp_path.glob("computed by *"))) == 1
    assert not list(tmp_path.rglob("*.lock"))
