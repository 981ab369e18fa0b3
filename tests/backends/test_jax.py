"""What only JAX has: 64-bit types in a scope, tracing and its limits, compilations that are shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from gradaudit.backends.numpy import backend as reference
from gradaudit.direction import Point, displace, random_direction
from gradaudit.errors import ModelContractError
from gradaudit.recurrent import RecurrentSpec, SequenceData, none, random_sequences, tail
from tests import conftest
from tests.backends.test_networks import assert_close

X = np.array([0.5, -1.5, 2.0], np.float32)


def case(n_steps, *, dtype="float64", activation="tanh", outputs="all", **options):
    sizes = {"n_features": 2, "n_classes": 3} | options
    spec = RecurrentSpec(**sizes, activation=activation, outputs=outputs)
    rng = np.random.default_rng(1)
    weights = {name: (0.7 * rng.standard_normal(shape)).astype(dtype) for name, shape in spec.shapes().items()}
    return spec, weights, random_sequences(spec, n_sequences=2, n_steps=n_steps, seed=1, dtype=dtype)


def points_along(parameters, n):
    direction = random_direction("all", dict.fromkeys(parameters, 0.1), 0)
    return [Point(direction, 0.01 * i) for i in range(n)]


def facts(backend):
    """Losses, gradients and dtypes of a few models, as JSON can hold them."""
    found = {}
    for dtype in ("float32", "float64"):
        spec, weights, data = case(9, dtype=dtype)
        model = backend.recurrent_model(spec, weights, data, tail(4))
        loss, gradients = model.value_and_grad(weights)
        losses = model.along(points_along(weights, 3))
        found[dtype] = {
            "numbers": [float(loss), *losses.tolist(), *(float(x) for g in gradients.values() for x in g.ravel())],
            "dtypes": [str(loss.dtype), str(losses.dtype), *(str(g.dtype) for g in gradients.values())],
        }
    return found


if "jax" in conftest.tested():
    import jax
    import jax.numpy as jnp
    from jax import lax

    from gradaudit.backends.jax import JaxModel, cells
    from gradaudit.backends.jax.state import preserved

    backend = registry.get("jax")

    def quadratic(p):
        return ((p["w"] * X).sum() - 1) ** 2 + p["b"]

    START = {"w": np.array([0.3, 0.2, -0.1], np.float32), "b": np.float32(0.25)}

    def wide(parameters):
        return {name: np.asarray(p, np.float64) for name, p in parameters.items()}

    # the configuration

    def test_no_evaluation_touches_the_configuration():
        before = dict(jax.config.values)
        spec, weights, data = case(9)
        for model in (JaxModel(quadratic, wide(START)), backend.recurrent_model(spec, weights, data, tail(2))):
            parameters = model.parameters()
            model.value_and_grad(parameters)
            model.jvp(parameters, parameters)
            model.along(points_along(parameters, 3))
            assert model.point_bytes > 0
        assert dict(jax.config.values) == before

    def test_an_exception_leaves_the_configuration_alone():
        def fails(p):
            assert p["w"].dtype == jnp.float64
            raise ZeroDivisionError

        before = dict(jax.config.values)
        start = wide(START)
        model = JaxModel(fails, start)
        for call in (lambda: model.loss(start), lambda: model.along(points_along(start, 2))):
            with pytest.raises(ZeroDivisionError):
                call()
        assert model.point_bytes > 0  # a question, not a call
        assert dict(jax.config.values) == before
        assert jnp.zeros(1).dtype == jnp.float32

    @pytest.mark.parametrize("error", [None, ZeroDivisionError])
    def test_preserved_restores_what_the_function_sets(error):
        before = dict(jax.config.values)
        try:
            with preserved():
                jax.config.update("jax_enable_x64", True)
                jax.config.update("jax_default_matmul_precision", "highest")
                if error is not None:
                    raise error
        except ZeroDivisionError:
            assert error is not None
        assert dict(jax.config.values) == before

    def test_float64_is_enabled_in_this_thread_and_scope_only():
        seen = {}

        def loss(p):
            other = threading.Thread(target=lambda: seen.update(elsewhere=jnp.zeros(1).dtype))
            other.start()
            other.join()
            seen["here"] = jnp.zeros(1).dtype
            return p["w"].sum() + jnp.zeros(1).sum()

        assert JaxModel(loss, wide(START)).loss(wide(START)).dtype == np.float64
        assert seen == {"here": jnp.float64, "elsewhere": jnp.float32}
        assert JaxModel(loss, START).loss(START).dtype == np.float32
        assert seen["here"] == jnp.zeros(1).dtype == jnp.float32

    def test_the_users_x64_setting_changes_no_result():
        script = (
            "import json, jax; from gradaudit.backends import registry; from tests.backends.test_jax import facts; "
            "found = facts(registry.get('jax')); print(json.dumps([jax.config.jax_enable_x64, found]))"
        )
        environment = os.environ | {
            "JAX_ENABLE_X64": "1",
            "GRADAUDIT_TEST_BACKENDS": "jax",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        enabled, theirs = json.loads(run.stdout)
        assert enabled is True
        for dtype, mine in facts(backend).items():
            assert set(mine["dtypes"]) == {dtype}
            assert theirs[dtype]["dtypes"] == mine["dtypes"]
            np.testing.assert_allclose(theirs[dtype]["numbers"], mine["numbers"], rtol=8 * np.finfo(dtype).eps)

    # functions

    @pytest.mark.parametrize("jit", [True, False], ids=["jax compiled", "jax op by op"])
    def test_a_function_model(jit):
        model = backend.function_model(quadratic, START, jit=jit)
        loss, gradients = model.value_and_grad(START)
        residual = START["w"] @ X - 1
        assert loss == pytest.approx(residual**2 + 0.25, rel=1e-6)
        assert_close(gradients, {"w": 2 * residual * X, "b": np.ones(())}, 1e-6)
        assert {g.dtype for g in gradients.values()} == {np.dtype("float32")}
        assert list(gradients) == list(model.parameters()) == ["w", "b"]
        tangents = {"w": np.array([1.0, -2.0, 0.5]), "b": 3.0}
        assert model.jvp(START, tangents) == pytest.approx(2 * residual * (tangents["w"] @ X) + 3, rel=1e-6)
        points = points_along(START, 5)
        np.testing.assert_allclose(
            model.along(points), [model.loss(displace(START, point)) for point in points], rtol=1e-6
        )

    def test_the_base_point_is_a_copy_nobody_can_write():
        start = {"w": np.ones(3), "b": jnp.zeros(())}
        model = JaxModel(quadratic, start)
        start["w"][0] = 7
        assert model.parameters()["w"][0] == 1
        with pytest.raises(ValueError, match="read-only"):
            model.parameters()["w"][0] = 7

    def test_jitted_or_not_is_the_same():
        plain, jitted = JaxModel(quadratic, START), JaxModel(jax.jit(quadratic), START)
        assert plain.value_and_grad(START)[0] == pytest.approx(jitted.value_and_grad(START)[0], rel=1e-6)
        np.testing.assert_allclose(plain.along(points_along(START, 4)), jitted.along(points_along(START, 4)), rtol=1e-6)

    def test_the_twin_is_the_same_function_in_float64():
        model = JaxModel(quadratic, START)
        twin = model.twin()
        loss, gradients = twin.value_and_grad(twin.parameters())
        assert loss.dtype == np.float64
        assert loss == (wide(START)["w"] @ X - 1) ** 2 + 0.25
        assert {g.dtype for g in gradients.values()} == {np.dtype("float64")}
        assert twin.twin() is None
        assert JaxModel(quadratic, START | {"b": np.float64(0.25)}).twin() is not None

    @pytest.mark.parametrize("draw", ["normal", "bernoulli", "uniform"])
    def test_the_twin_draws_what_the_model_draws(draw):
        """Of the default dtype, which is another one with 64-bit types."""

        def loss(p, spoil=lambda x: x):
            options = {"p": 0.7} if draw == "bernoulli" else {}
            drawn = getattr(jax.random, draw)(jax.random.key(0), **options, shape=(8, 3))
            return jnp.mean((drawn * spoil(p["w"]) - p["b"]) ** 2)

        report = gradaudit.audit(JaxModel(loss, START))
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.source == "a float64 twin"
        cut = gradaudit.audit(JaxModel(lambda p: loss(p, jax.lax.stop_gradient), START))
        assert cut.verdict is Verdict.DISAGREE
        assert [f.code for f in cut.findings] == ["GA101"]

    def test_what_computes_in_narrower_products(monkeypatch):
        """As on a GPU, whose formats are made of float32 here: ``benchmarks/accelerators.py`` is the real thing."""
        from gradaudit.backends.jax import narrow

        def lost(bits):
            digits = 23 - bits
            return lambda x, precision: float(lax.reduce_precision(jnp.float32(x), 8, digits))

        wide = JaxModel(lambda p: jnp.sum(jnp.sin(p["w"])), START)
        dense = JaxModel(lambda p: jnp.sum(jnp.ones((4, 3)) @ p["w"]), START)
        monkeypatch.setattr(narrow.jax, "default_backend", lambda: "gpu")
        for bits, eps in ((0, None), (13, 2.0**-10), (16, 2.0**-7)):
            monkeypatch.setattr(narrow, "_product", lost(bits))
            assert dense.narrow() == eps
            assert wide.narrow() is None

    def test_an_unused_parameter_has_gradient_zero():
        _, gradients = JaxModel(lambda p: p["b"] ** 2, START).value_and_grad(START)
        assert_close({"w": gradients["w"]}, {"w": np.zeros(3)}, 0)

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (lambda p: p["w"] ** 2, r"^the loss has shape \(3,\), but it must be one number.*\n\nHint: reduce it"),
            (lambda p: p["w"].astype(int).sum(), r"^the loss has dtype int32, but it must be a real floating-point"),
            (lambda p: (p["w"] + 0j).sum(), r"^the loss has dtype complex64, but it must be a real floating-point"),
            (lambda p: p["b"] > 0, r"^the loss has dtype bool, but"),
            (lambda p: None, r"^the loss is a NoneType, but it must be one number .*\n\nHint: return the loss alone"),
            (lambda p: (p["b"], {"aux": p["w"]}), r"^the loss is a tuple, but it must be one number"),
        ],
    )
    @pytest.mark.parametrize("jit", [True, False], ids=["jax compiled", "jax op by op"])
    def test_a_loss_that_is_not_one_real_number_is_our_error(result, message, jit):
        model = JaxModel(result, START, jit=jit)
        for call in (model.loss, model.value_and_grad, lambda p: model.jvp(p, p)):
            with pytest.raises(ModelContractError, match=message):
                call(START)

    def test_a_function_that_needs_values_runs_op_by_op():
        calls = []

        def branches(p):
            calls.append(1)
            return quadratic(p) if p["w"].sum() > 0 else p["b"]

        model = JaxModel(branches, START)
        points = points_along(START, 6)
        expected = JaxModel(quadratic, START).along(points)
        np.testing.assert_allclose(model.along(points), expected, rtol=1e-6)
        assert model.value_and_grad(START)[0] == pytest.approx(model.loss(START))
        calls.clear()
        model.along(points)
        assert len(calls) == 6  # it has learned that neither vmap nor jit is of use

    def test_a_function_without_a_batching_rule_is_visited_in_a_loop():
        def opaque(p):
            return jax.pure_callback(lambda b: np.float32(b * b), jax.ShapeDtypeStruct((), np.float32), p["b"])

        points = points_along(START, 3)
        losses = JaxModel(opaque, START).along(points)
        np.testing.assert_allclose(losses, [displace(START, point)["b"] ** 2 for point in points], rtol=1e-6)

    def test_without_jit_the_function_runs_each_time():
        model = JaxModel(lambda p: p["b"] + next(numbers), START, jit=False)
        numbers = iter(range(9))
        assert [float(model.loss(START)) for _ in range(3)] == [0.25, 1.25, 2.25]
        assert model.along([Point(random_direction("b", {"b": 1.0}, 0), 0.0)] * 2).tolist() == [3.25, 4.25]

    # compilations

    def test_one_compilation_serves_25_26_and_30_points():
        traces = []

        def loss(p):
            traces.append(1)
            return quadratic(p)

        model = JaxModel(loss, START)
        for n in (25, 26, 30):
            assert model.along(points_along(START, n)).shape == (n,)
        assert len(traces) == 1
        assert model.along([]).shape == (0,)

    def test_equal_networks_share_their_programs(monkeypatch):
        spec, weights, data = case(11)
        first = backend.recurrent_model(spec, weights, data, tail(3))
        for model in (first, first.with_truncation(none())):
            model.value_and_grad(weights)
            model.loss(weights)
        walks = []
        walk = cells.walk
        monkeypatch.setattr(cells, "walk", lambda *arguments: walks.append(1) or walk(*arguments))
        doubled = {name: 2 * w for name, w in weights.items()}
        other = SequenceData(features=-data.features, labels=data.labels)
        second = backend.recurrent_model(spec, doubled, other, tail(3))
        loss, _ = second.value_and_grad(doubled)
        assert loss != first.loss(weights)
        assert loss == pytest.approx(second.loss(doubled), rel=1e-14)
        assert second.with_truncation(tail(11)).value_and_grad(doubled)[0] == pytest.approx(loss, rel=1e-14)
        second.with_truncation(tail(6)).loss(doubled)  # the loss does not depend on the truncation
        assert not walks
        second.with_truncation(tail(6)).value_and_grad(doubled)
        assert walks

    # networks

    @pytest.mark.parametrize("learn", [True, False])
    @pytest.mark.parametrize("n_classes", [1, cells.FEW_UNITS, cells.FEW_UNITS + 1])
    def test_copies_side_by_side_or_mapped_are_a_loop(n_classes, learn):
        spec, weights, data = case(70, n_classes=n_classes, learn_initial_state=learn)
        points = points_along(weights, 5)
        held = backend.recurrent_model(spec, weights, data, tail(4)).frozen()
        for model in (
            held,
            backend.recurrent_model(spec, weights, data, none()),
            backend.dense_model(spec, weights, data),
        ):
            alone = [model.loss(displace(model.parameters(), point)) for point in points]
            np.testing.assert_allclose(model.along(points), alone, rtol=1e-14)

    @pytest.mark.parametrize("n_steps", [64, 521])
    def test_blocks_of_steps_are_seamless(n_steps):
        spec, weights, data = case(n_steps)
        for truncation in (none(), tail(5)):
            mine = backend.recurrent_model(spec, weights, data, truncation)
            theirs = reference.recurrent_model(spec, weights, data, truncation)
            loss, gradients = mine.value_and_grad(weights)
            expected_loss, expected = theirs.value_and_grad(weights)
            assert loss == pytest.approx(expected_loss, rel=1e-12)
            assert_close(gradients, expected, 1e-10)
        np.testing.assert_allclose(mine.step_losses(weights), theirs.step_losses(weights), rtol=1e-12)
        states = mine._network.states(weights)
        np.testing.assert_allclose(states, theirs._network.states(weights), rtol=1e-10)
        assert not states[0].any()

    def test_a_step_without_a_loss_adds_nothing_not_even_infinity():
        spec = RecurrentSpec(n_features=1, n_classes=2, outputs="last")
        weights = {"W": np.array([[200.0, -200.0]]), "R": np.zeros((2, 2)), "b": np.zeros(2)}
        data = SequenceData(features=np.array([[[9.0], [0.0]]]), labels=np.array([[1, 0]]))
        model = backend.recurrent_model(spec, weights, data)
        loss, gradients = model.value_and_grad(weights)
        assert loss == pytest.approx(np.log(2))
        assert model.step_losses(weights)[0] == 0
        assert all(np.isfinite(g).all() for g in gradients.values())

    @pytest.mark.parametrize("n_points", [7, 24, 29])
    def test_threads_share_points_in_order(n_points):
        model = JaxModel(quadratic, wide(START), n_threads=3)
        points = points_along(model.parameters(), n_points)
        alone = [float(model.loss(displace(model.parameters(), point))) for point in points]
        assert len(set(alone)) == n_points
        np.testing.assert_allclose(model.along(points), alone, rtol=1e-14)
