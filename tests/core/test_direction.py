"""Directions: the same everywhere, and displaced parameters rounded in one place."""

from __future__ import annotations

import numpy as np

from gradaudit.direction import Direction, Point, argument_rounding, displace, entry_direction, random_direction, stack

RNG = np.random.default_rng(0)
P = {"a": RNG.standard_normal((3, 2)).astype("float32"), "b": RNG.standard_normal(4)}
G = {"a": RNG.standard_normal((3, 2)).astype("float32"), "b": RNG.standard_normal(4)}


def test_a_seed_is_a_direction():
    one, same, other = (random_direction("x", {"a": 2.0, "b": 0.5}, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.block("a", (3, 2)), same.block("a", (3, 2)))
    assert not np.array_equal(one.block("a", (3, 2)), other.block("a", (3, 2)))
    size = np.abs(one.block("a", (3, 2)))
    assert (size >= 1).all()
    assert (size <= 3).all()


def test_a_tensor_does_not_depend_on_its_neighbours():
    both, alone = random_direction("x", {"a": 1.0, "b": 1.0}, 1), random_direction("x", {"b": 1.0}, 1)
    np.testing.assert_array_equal(both.block("b", (4,)), alone.block("b", (4,)))
    assert alone.block("a", (3, 2)) is None


def test_products():
    d = random_direction("x", {"a": 1.0, "b": 1.0}, 1)
    products = np.concatenate([(G[n].astype("float64") * d.block(n, G[n].shape)).ravel() for n in G])
    assert np.isclose(d.dot(G), products.sum(), rtol=1e-14)
    assert np.isclose(d.norm(G), np.linalg.norm(products), rtol=1e-14)
    assert d.dot({"a": None, "b": None}) == 0


def test_an_entry():
    d = entry_direction("a", (2, 1), 0.5)
    assert d.label == "a[2, 1]"
    assert entry_direction("a", (), 0.5).label == "a"
    assert d.dot(G) == 0.5 * float(G["a"][2, 1])
    assert np.isclose(d.reach(G), 0.5 * np.linalg.norm(G["a"].astype("float64")))
    assert d.reach({"a": None}) == 0


def test_along_signs():
    d = Direction(label="g", scales={"a": 1.0}, seed=1, signs={"a": np.sign(G["a"])})
    assert d.dot(G) > 0.5 * np.abs(G["a"]).sum()


def test_stacked_and_displaced_are_equal_to_the_last_bit():
    points = [Point(random_direction("x", {"a": 1.0}, 1), 0.1), Point(entry_direction("b", (3,), 1.0), -1e-9)]
    stacked = stack(P, points)
    for k, point in enumerate(points):
        moved = displace(P, point)
        for name in P:
            assert stacked[name].dtype == moved[name].dtype == P[name].dtype
            np.testing.assert_array_equal(stacked[name][k], moved[name])
    assert displace(P, points[0])["b"] is not P["b"]


def test_argument_rounding_is_the_first_order_effect():
    d = random_direction("x", {"a": 1.0, "b": 1.0}, 1)
    points = [Point(d, 1e-6)]
    moved = displace(P, points[0])
    wanted = sum(
        (G[n].astype("float64") * (moved[n].astype("float64") - P[n] - 1e-6 * d.block(n, P[n].shape))).sum() for n in P
    )
    np.testing.assert_allclose(argument_rounding(P, points, G), [wanted], rtol=1e-12)
    assert wanted != 0
    np.testing.assert_array_equal(argument_rounding(P, points, {"a": None, "b": np.full(4, np.nan)}), [0])
