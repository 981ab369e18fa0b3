"""The networks of every backend: one suite, the naive definition and the NumPy reference as witnesses."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.backends.numpy import backend as reference
from gradaudit.direction import Point, displace, random_direction
from gradaudit.protocols import (
    Model,
    SupportsAlong,
    SupportsEnvironment,
    SupportsFrozen,
    SupportsJvp,
    SupportsSizes,
    SupportsState,
    SupportsSteps,
    SupportsTruncation,
    SupportsTwin,
)
from gradaudit.recurrent import RecurrentSpec, initial_weights, none, random_sequences, tail
from tests.backends.naive import gradient_by_pairs

ACTIVATIONS = ["identity", "tanh", "relu", "sigmoid", "softmax"]
T = 7
#: Each compiles anew on some backends; NumPy has every k in test_truncations.py.
TAILS = [tail(k) for k in (1, 3, T - 1, T, T + 1)]


def case(activation="tanh", outputs="all", *, dtype="float64", learn=True, n_steps=T, seed=0):
    spec = RecurrentSpec(n_features=3, n_classes=4, activation=activation, learn_initial_state=learn, outputs=outputs)
    rng = np.random.default_rng(seed)
    weights = {name: (0.7 * rng.standard_normal(shape)).astype(dtype) for name, shape in spec.shapes().items()}
    return spec, weights, random_sequences(spec, n_sequences=3, n_steps=n_steps, seed=seed, dtype=dtype)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each tensor; raises on a missing name, a wrong shape or a NaN."""
    assert set(actual) == set(expected)
    for name, wanted in expected.items():
        assert actual[name] is not None, f"{name} is missing"
        assert actual[name].shape == wanted.shape, name
        difference = np.abs(np.asarray(actual[name], np.float64) - wanted).max()
        assert difference <= tolerance * np.abs(wanted).max(), f"{name}: {difference} off, {np.abs(wanted).max()} large"


@pytest.mark.parametrize(
    "bad", [{"W": None}, {"W": np.ones((2, 1))}, {"W": np.full((2,), np.nan)}, {}, {"W": np.ones(2) * 1.1}]
)
def test_the_comparison_raises(bad):
    with pytest.raises(AssertionError):
        assert_close(bad, {"W": np.ones(2)}, 1e-3)


@pytest.mark.parametrize("outputs", ["all", "last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_truncated_gradients_are_the_pair_sum(backend, activation, outputs):
    spec, weights, data = case(activation, outputs)
    for truncation in [none(), *TAILS]:
        loss, expected = gradient_by_pairs(
            weights,
            data.features,
            data.labels,
            activation=activation,
            outputs=outputs,
            keeps=lambda s, u, truncation=truncation: truncation.keeps(s, u, T),
        )
        model = backend.recurrent_model(spec, weights, data, truncation)
        value, gradients = model.value_and_grad(weights)
        assert value.dtype == np.float64
        assert abs(value - loss) <= 1e-10 * abs(loss)
        assert abs(model.loss(weights) - loss) <= 1e-10 * abs(loss)
        assert_close(gradients, expected, 1e-10)


@pytest.mark.parametrize("truncation", [none(), tail(1), tail(3)], ids=str)
def test_forward_mode_is_the_truncated_gradient(backend, truncation):
    for activation in ACTIVATIONS:
        spec, weights, data = case(activation)
        model = backend.recurrent_model(spec, weights, data, truncation)
        tangents = {n: np.random.default_rng(5).standard_normal(w.shape) for n, w in weights.items()}
        _, gradients = model.value_and_grad(weights)
        expected = sum((gradients[n] * t).sum() for n, t in tangents.items())
        assert model.jvp(weights, tangents) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_is_a_loop(backend, dtype):
    spec, weights, data = case("softmax", dtype=dtype)
    direction = random_direction("all", dict.fromkeys(weights, 1.0), 3)
    points = [Point(direction, t) for t in (-0.3, 0.0, 1e-3, 0.5, 2.0)]
    for model in (
        backend.recurrent_model(spec, weights, data, tail(2)),
        backend.recurrent_model(spec, weights, data, tail(2)).frozen(),
        backend.dense_model(spec, weights, data),
    ):
        together = model.along(points)
        alone = [model.loss(displace(model.parameters(), point)) for point in points]
        assert together.shape == (5,)
        assert together.dtype == dtype == alone[0].dtype
        np.testing.assert_allclose(together, alone, rtol=8 * np.finfo(dtype).eps)
        assert model.point_bytes > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_step_losses_sum_to_the_loss(backend, dtype):
    for outputs in ("all", "last"):
        spec, weights, data = case("softmax", outputs, dtype=dtype)
        for model in (backend.recurrent_model(spec, weights, data, tail(2)), backend.dense_model(spec, weights, data)):
            steps = model.step_losses(model.parameters())
            assert steps.shape == (T,)
            assert steps.dtype == dtype
            assert steps.sum() == pytest.approx(float(model.loss(model.parameters())), rel=1e-6)
            assert (steps != 0).sum() == (T if outputs == "all" else 1)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_frozen_objective_has_the_truncated_gradient(backend, k):
    for activation in ACTIVATIONS:
        spec, weights, data = case(activation)
        model = backend.recurrent_model(spec, weights, data, tail(k))
        frozen = model.frozen()
        loss, gradients = model.value_and_grad(weights)
        frozen_loss, frozen_gradients = frozen.value_and_grad(weights)
        assert frozen_loss == pytest.approx(loss, rel=1e-14)
        assert_close(frozen_gradients, gradients, 1e-12)
        # and it is the ordinary derivative of that objective: sixth-order central differences
        direction = random_direction("all", dict.fromkeys(weights, 1.0), k)
        h = 2e-3
        values = dict(zip(range(-3, 4), frozen.along([Point(direction, i * h) for i in range(-3, 4)]), strict=True))
        slope = sum(c * (values[i] - values[-i]) for i, c in ((1, 45), (2, -9), (3, 1))) / (60 * h)
        assert slope == pytest.approx(direction.dot(gradients), rel=1e-7, abs=1e-9)


def test_nothing_is_cut_nothing_is_frozen(backend):
    spec, weights, data = case()
    for truncation in (none(), tail(T), tail(T + 1)):
        assert backend.recurrent_model(spec, weights, data, truncation).frozen() is None
    assert backend.dense_model(spec, weights, data).frozen() is None


def test_the_twin_is_the_same_model_in_float64(backend):
    spec, weights, data = case("softmax", dtype="float32")
    for model in (
        backend.recurrent_model(spec, weights, data, tail(2)),
        backend.recurrent_model(spec, weights, data, tail(2)).frozen(),
        backend.dense_model(spec, weights, data),
    ):
        twin = model.twin()
        loss, gradients = model.value_and_grad(model.parameters())
        twin_loss, twin_gradients = twin.value_and_grad(twin.parameters())
        assert (loss.dtype, twin_loss.dtype) == (np.float32, np.float64)
        assert {p.dtype for p in twin.parameters().values()} == {np.dtype("float64")}
        assert {g.dtype for g in twin_gradients.values()} == {np.dtype("float64")}
        assert {g.dtype for g in gradients.values()} == {np.dtype("float32")}
        assert twin_loss == pytest.approx(float(loss), rel=1e-6)
        assert_close(gradients, twin_gradients, 1e-5)
        assert twin.twin() is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_backend_is_the_reference(backend, dtype):
    spec, weights, data = case("softmax", dtype=dtype, n_steps=300)
    for mine, theirs in (
        (backend.dense_model(spec, weights, data), reference.dense_model(spec, weights, data)),
        (backend.recurrent_model(spec, weights, data, none()), reference.recurrent_model(spec, weights, data, none())),
        (
            backend.recurrent_model(spec, weights, data, tail(9)),
            reference.recurrent_model(spec, weights, data, tail(9)),
        ),
    ):
        loss, gradients = mine.value_and_grad(mine.parameters())
        expected_loss, expected = theirs.value_and_grad(theirs.parameters())
        tight = dtype == "float64"
        assert loss == pytest.approx(expected_loss, rel=1e-12 if tight else 1e-6)
        assert_close(gradients, expected, 1e-10 if tight else 1e-5)


def test_zero_recurrent_weights_make_the_networks_one_function(backend):
    spec = RecurrentSpec(n_features=2, n_classes=2)
    weights = initial_weights(spec, seed=0, dtype="float64")
    data = random_sequences(spec, n_sequences=4, n_steps=50, seed=0, dtype="float64")
    dense = backend.dense_model(spec, weights, data)
    recurrent = backend.recurrent_model(spec, weights, data, none())
    loss, gradients = dense.value_and_grad(dense.parameters())
    recurrent_loss, recurrent_gradients = recurrent.value_and_grad(weights)
    assert recurrent_loss == pytest.approx(loss, rel=1e-14)
    assert_close({n: recurrent_gradients[n] for n in gradients}, gradients, 1e-12)


def test_capabilities_and_facts(backend):
    spec, weights, data = case()
    model = backend.recurrent_model(spec, weights, data, tail(2))
    for protocol in (
        Model,
        SupportsAlong,
        SupportsJvp,
        SupportsSteps,
        SupportsTruncation,
        SupportsFrozen,
        SupportsTwin,
        SupportsSizes,
        SupportsState,
        SupportsEnvironment,
    ):
        assert isinstance(model, protocol), protocol
    assert model.truncation == tail(2)
    assert model.sizes() == {"sequences": 3, "steps": T}
    assert model.environment()["backend"] == backend.name
    assert model.environment() == backend.environment()
    assert list(model.parameters()) == ["W", "R", "b", "h0"]
    for array in model.parameters().values():
        assert not array.flags.writeable


def test_ten_thousand_steps_are_no_trouble(backend):
    spec = RecurrentSpec(n_features=2, n_classes=2)
    weights = initial_weights(spec, seed=0)
    data = random_sequences(spec, n_sequences=10, n_steps=10_000, seed=0)
    model = backend.recurrent_model(spec, weights, data, tail(1))
    loss, gradients = model.value_and_grad(weights)
    expected_loss, expected = reference.recurrent_model(spec, weights, data, tail(1)).value_and_grad(weights)
    assert loss == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(gradients, expected, 1e-5)
