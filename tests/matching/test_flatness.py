"""The identity of the accumulated error on a toy, and the top Hessian eigenvalue against the whole matrix."""

import pytest
import torch

from distillery.matching.flatness import hessian_product, loss_parts, top_eigenvalue, top_eigenvalue_plain, trajectory_errors
from distillery.matching.trajectory import Flat, student
from distillery.networks import ConvNet, ModuleNetwork
from distillery.seeds import generator
from distillery.training import cross_entropy


def toy(segments, steps):
    """A tanh network, an expert that drifts at random, and a student on six images."""
    stream = generator(0, "toy")
    net = ModuleNetwork(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    path = [{name: value.double() for name, value in net.init(stream, 1).items()}]
    for _ in range(segments):
        path.append({n: v + 0.1 * torch.randn(v.shape, generator=stream, dtype=v.dtype) for n, v in path[-1].items()})
    tensors = {"images": torch.randn(6, 1, 2, 2, generator=stream, dtype=torch.float64), "step_size": torch.tensor(0.5).double()}
    draws = [[torch.randperm(6, generator=stream)[:4] for _ in range(steps)] for _ in range(segments)]

    def loss(params, tensors, indices):
        return cross_entropy(net.apply(params, tensors["images"][indices][None]).logits, (indices % 3)[None]).mean()

    return loss, path, tensors, draws


@pytest.mark.parametrize("segments, steps", [(1, 1), (4, 1), (3, 7)])
def test_error_identity(segments, steps):
    """epsilon_{k+1} = epsilon_k + I_k + delta_k for any number of steps (FTD, Eq. 6-11)."""
    loss, path, tensors, draws = toy(segments, steps)
    errors = trajectory_errors(loss, path, tensors, draws)
    e, i, d = errors.accumulated, errors.initialization, errors.matching
    assert e.shape == (segments + 1, len(Flat(path[0]).vector(path[0]))) and (e[0] == 0).all()
    assert torch.allclose(e[1:], e[:-1] + i + d, rtol=0, atol=1e-13)
    assert (i[0] == 0).all() and all(value.norm() > 0 for value in i[1:])
    assert len(errors.squared()["matching"]) == segments


def test_errors_by_hand():
    """The accumulated error is where a student that never returns to the expert ends."""
    loss, path, tensors, draws = toy(2, 3)
    errors = trajectory_errors(loss, path, tensors, draws)
    flat = Flat(path[0])
    own = student(loss, path[0], tensors, draws[0] + draws[1])[-1]
    assert torch.allclose(errors.accumulated[2], own - flat.vector(path[2]), atol=1e-14)
    on_expert = student(loss, path[1], tensors, draws[1])[-1]
    assert torch.allclose(errors.matching[1], on_expert - flat.vector(path[2]), atol=1e-14)


def test_a_student_equal_to_the_expert_has_no_error():
    loss, path, tensors, draws = toy(3, 2)
    ends = [path[0]]
    for drawn in draws:
        ends.append(Flat(path[0]).params(student(loss, ends[-1], tensors, drawn)[-1]))
    errors = trajectory_errors(loss, ends, tensors, draws)
    assert all((value == 0).all() for value in vars(errors).values())


def test_segments_need_their_ends(refused):
    loss, path, tensors, draws = toy(2, 1)
    with refused(2, 3):
        trajectory_errors(loss, path[:2], tensors, draws + draws[:1])
    with refused("segments", 0):
        trajectory_errors(loss, path, tensors, [])


def tiny_network(tiny, dtype=torch.float64, seed=0):
    net = ConvNet((1, 8, 8), 3, width=2, depth=1, activation="swish")
    params = {name: value.to(dtype) for name, value in net.init(generator(seed, "init"), 1).items()}

    class Source:
        targets = tiny.targets
        batch = staticmethod(lambda indices: tiny.batch(indices).to(dtype))

    return net, params, Source


@pytest.mark.parametrize("seed", range(3))
def test_power_iteration_finds_the_top_eigenvalue(tiny, seed):
    net, params, source = tiny_network(tiny, seed=seed)
    parts = loss_parts(net, source, torch.arange(24), batch=10)
    assert len(parts) == 3
    expected = top_eigenvalue_plain(parts, params)
    value, used = top_eigenvalue(parts, params, generator(1, "power"), tolerance=1e-7, iterations=2000)
    assert value == pytest.approx(expected, rel=1e-3) and used > 2
    single = {name: weight.float() for name, weight in params.items()}
    rough, fewer = top_eigenvalue(loss_parts(net, tiny, torch.arange(24)), single, generator(1, "power"))
    assert rough == pytest.approx(expected, rel=0.05) and fewer < used


def test_hessian_product_is_that_of_the_whole_matrix(tiny):
    net, params, source = tiny_network(tiny)
    parts, flat = loss_parts(net, source, torch.arange(24), batch=7), Flat(params)
    vector = torch.randn(len(flat.vector(params)), generator=generator(0, "v"), dtype=torch.float64)
    whole = torch.autograd.functional.hessian(lambda theta: sum(part(flat.params(theta)) for part in parts), flat.vector(params))
    assert torch.allclose(hessian_product(parts, params, vector), whole @ vector, atol=1e-10)


@pytest.mark.parametrize("diagonal, expected", [([3.0, -7.0, 1.0], 3.0), ([-2.0, -5.0, -1.0], -1.0), ([0.0, 0.0, 0.0], 0.0)])
def test_the_largest_eigenvalue_where_another_is_larger_in_size(diagonal, expected):
    matrix = torch.tensor(diagonal, dtype=torch.float64)
    parts = [lambda params: (params["w"].square() * matrix).sum() / 2]
    value, _ = top_eigenvalue(parts, {"w": torch.zeros(1, 3).double()}, generator(0, "x"), 1e-9, 5000)
    assert value == pytest.approx(expected, abs=1e-6)
