"""Counted work against what can be worked out by hand."""

import torch

from distillery.measure.roofline import Machine, Work, count, measure_machine, seconds

CPU = torch.device("cpu")


def test_a_product_by_hand():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    work = count(lambda: a @ b)
    assert work.flops == 2 * 3 * 5 * 7
    assert work.moved == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert work.kept == 0


def test_views_move_nothing_and_graphs_keep_storages_once():
    a = torch.ones(8, 4, requires_grad=True)
    assert count(lambda: a.detach().view(4, 8).transpose(0, 1)[1:]).moved == 0
    # a product keeps both factors, here one storage; a sum keeps nothing
    assert count(lambda: (a * a).sum()).kept == 8 * 4 * 4


def test_backward_is_counted():
    x, w = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert count(lambda: (x @ w).sum().backward()).flops == 2 * 2 * 3 * 5 * 7


def test_the_larger_need_bounds():
    machine = Machine(bandwidth=10.0, float32=100.0, bfloat16=1000.0)
    assert machine.least(Work(1000, 20, 0)) == (10.0, "arithmetic")
    assert machine.least(Work(1000, 20, 0), "bfloat16") == (2.0, "bytes")


def test_seconds_are_counted_after_a_first_call():
    calls = []
    assert len(seconds(lambda: calls.append(1), rounds=3)) == 3 and len(calls) == 4


def test_a_machine_has_positive_rates():
    machine = measure_machine(CPU, side=64, rounds=1)
    assert min(machine.bandwidth, machine.float32, machine.bfloat16) > 0
