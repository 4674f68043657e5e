"""Samples by sensitivity stay within what is proved, and far points ruin uniform ones."""

import numpy as np
import torch

from distillery.measure.guarantee import Sampling, cloud, compared, kernel_of, searched_mean, searched_ridge, toy
from distillery.scores import sensitivity
from distillery.scores.kmeans_sensitivity import one_means
from distillery.seeds import generator
from made_up import blobs


def test_the_bound_holds_and_far_points_ruin_uniform_draws():
    found = compared(200, 4, 5e-3, sizes=[100, 800], trials=6, failure=0.1, seed=0)
    ours, uniform = found["by sensitivity"], found["random"]
    assert ours.errors.shape == (2, 6) and (ours.within == 1).all()
    assert (ours.proved < uniform.proved).all() and ours.proved[1] < ours.proved[0]
    assert np.median(ours.errors[1]) < np.median(uniform.errors[1])


def test_brute_force_finds_the_formulas():
    feature, label = toy(30, 0)
    exact = sensitivity.ridge_exact(feature[:, None], label, 0.1)
    assert torch.allclose(searched_ridge(feature, label, 0.1), exact, rtol=1e-3)
    assert set(exact.topk(2).indices.tolist()) == {7, 29}  # the wrong label and the lone point
    points = torch.stack([feature, label], 1)
    seen, ones = searched_mean(points, generator(0, "centres")), one_means(points)
    assert (seen <= ones + 1e-9).all() and torch.allclose(seen, ones, rtol=0.05)


def test_without_far_points_the_cloud_is_the_same_but_for_them():
    near, far = (cloud(50, n, seed=1)[0] for n in (0, 5))
    assert (near != far).any(1).sum() == 5


def test_within_counts_each_size():
    found = Sampling(np.array([[1.0, 3.0], [1.0, 1.0]]), np.array([2.0, 2.0]))
    assert found.within.tolist() == [0.5, 1.0]


def test_the_kernel_is_of_as_many_images_of_each_class():
    kernel, labels = kernel_of(blobs(per_class=8, classes=3), 10, 0)
    assert kernel.shape == (9, 9) and torch.allclose(kernel, kernel.T)
    assert labels.argmax(1).bincount().tolist() == [3, 3, 3]
