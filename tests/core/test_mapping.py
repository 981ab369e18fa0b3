"""How parameters of a port are made of the first model's, and gradients go back."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.errors import OptionError
from gradaudit.mapping import corresponding

RNG = np.random.default_rng(0)
FIRST = {"w": RNG.standard_normal((6, 4)), "u": RNG.standard_normal(6), "v": RNG.standard_normal(6), "s": np.array(2.0)}
RECIPES = {
    "a": "w.T",
    "b": lambda p: p["u"] + 2 * p["v"],
    "c": lambda p: np.concatenate([p["w"][3:], p["w"][:3]]).reshape(2, 3, 4)[:, ::-1],
    "d": lambda p: np.stack([-p["u"], np.full(6, 7.0)]),
    "s": "s",
}


def made(recipes, first=FIRST):
    return {n: np.asarray(first[r] if isinstance(r, str) and r in first else first["w"].T if r == "w.T" else r(first))
            for n, r in recipes.items()}  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_it_applies_and_its_adjoint_is_the_transposed(whole):
    port = made(RECIPES)
    mapping = (lambda p: made(RECIPES, dict(p))) if whole else RECIPES
    found = corresponding(mapping, FIRST, port, name="port")
    for name, value in found.apply(FIRST).items():
        np.testing.assert_array_equal(value, port[name])
    gradients = {n: RNG.standard_normal(p.shape) for n, p in port.items()}
    moves = {n: RNG.standard_normal(p.shape) for n, p in FIRST.items()}
    moved = found.apply({n: FIRST[n] + moves[n] for n in FIRST})
    forward = sum(float((gradients[n] * (moved[n] - port[n])).sum()) for n in port)
    back = found.adjoint(gradients)
    assert forward == pytest.approx(sum(float((back[n] * moves[n]).sum()) for n in FIRST))
    assert found.unused() == {}


def test_a_missing_gradient_adds_nothing():
    found = corresponding(RECIPES, FIRST, made(RECIPES), name="port")
    back = found.adjoint({"b": None, "s": np.array(3.0)})
    assert back["s"] == 3
    assert [n for n, g in back.items() if g is None] == ["w", "u", "v"]


def test_what_no_recipe_uses():
    found = corresponding({"a": lambda p: p["w"][1:]}, FIRST, {"a": np.ones((5, 4))}, name="port")
    left = found.unused()
    assert set(left) == set(FIRST)
    np.testing.assert_array_equal(np.flatnonzero(left["w"]), range(4))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("w", "has shape"),
        ("x.T", "the recipe for 'a' is 'x.T'"),
        (lambda p: p["x"], "the first model has no parameter 'x'"),
        (lambda p: p["w"].T @ p["w"] @ p["w"].T, "does not rearrange"),
        (lambda p: np.exp(p["w"].T), "does not rearrange"),
        (lambda p: p["w"].T - p["w"].T.mean(), "does not rearrange"),
    ],
)
def test_a_recipe_that_is_none(recipe, words):
    with pytest.raises(OptionError, match=words) as caught:
        corresponding({"a": recipe}, FIRST, {"a": np.ones((4, 6))}, name="jax")
    assert caught.value.where == "mapping['jax']"
    assert caught.value.hint


def test_a_parameter_without_a_recipe_or_a_recipe_without_a_parameter():
    with pytest.raises(OptionError, match=r"no recipe for 'kernel'.* but w, u, v, s"):
        corresponding(None, FIRST, {"kernel": np.ones(3)}, name="port")
    with pytest.raises(OptionError, match="'port' has no parameter 'b'"):
        corresponding({"b": "w"}, FIRST, {"w": FIRST["w"]}, name="port")
    with pytest.raises(OptionError, match="nothing for 'a', only for b"):
        corresponding(lambda p: {"b": p["w"]}, FIRST, {"a": np.ones(3)}, name="port")
