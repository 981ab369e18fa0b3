"""`gradaudit.audit_operator` on every backend that differentiates: right rules agree in every mode, wrong ones do not.

Functions are written once, in the words of `tests.backends.programs`.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict, audit_operator
from gradaudit.errors import AmbiguousBackendError, ModelContractError, OptionError
from tests import conftest
from tests.backends import programs

#: NumPy differentiates nothing, and what PyTensor differentiates has no values to be given.
DIFFERENTIATING = [name for name in conftest.tested() if name not in ("numpy", "pytensor")]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5))
Z = RNG.standard_normal(5) + 1j * RNG.standard_normal(5)


def given(name, array, dtype="float32"):
    """An array of the framework."""
    array = np.asarray(array, dtype)
    if name == "torch":
        import torch

        return torch.from_numpy(array.copy())
    if name == "jax":
        import jax

        with jax.enable_x64(dtype in ("float64", "complex128")):
            return jax.numpy.asarray(array)
    import tensorflow as tf

    return tf.constant(array)


def verdicts(report):
    return {part.target: part.verdict for part in report.parts}


@pytest.mark.parametrize("name", DIFFERENTIATING)
class TestOperators:
    __test__ = bool(DIFFERENTIATING)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_all_modes_agree(self, name, dtype):
        own = programs.words(name)
        report = audit_operator(lambda x: own.sin(x) * own.tanh(x), given(name, X, dtype))
        assert verdicts(report) == dict.fromkeys(["reverse", "forward", "second", "batched"], Verdict.AGREE), str(
            report
        )
        assert report.verdict is Verdict.AGREE
        assert report.remarks == ()
        assert report.evaluations == sum(p.evaluations for p in report.parts)
        source = "a float64 twin" if dtype == "float32" else "the float64 loss itself"
        assert {part.source for part in report.parts} == {source}

    def test_derivatives_at_the_small_end_of_the_format(self, name):
        """What is drawn for the second order is over their size; one over that would be infinite in float32."""
        own = programs.words(name)
        x = np.full(3, -3.2e7)
        report = audit_operator(lambda x: own.tanh(x * 1e-7) * 1e-42, given(name, x), modes=["reverse", "second"])
        assert report.verdict is not Verdict.DISAGREE

    def test_the_cost_is_exact(self, name):
        own = programs.words(name)
        report = audit_operator(lambda x, w: own.sin(x) * w, given(name, X), given(name, X[0]), modes=["reverse"])
        # twin 1, baseline 3; whole model 21; along the gradient and two tensors: 8 each
        assert report.evaluations == 1 + 3 + 21 + 8 * 3
        assert sorted(p.name for part in report.parts for p in part.parameters) == ["w", "x"]

    def test_a_wrong_rule_is_named_with_its_line(self, name):
        own = programs.words(name)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: 1.1 * g * own.cos(x))
        report = audit_operator(rule, given(name, X), modes=["reverse", "batched"])
        assert verdicts(report) == dict.fromkeys(["reverse", "batched"], Verdict.DISAGREE), str(report)
        assert report.part("reverse").findings[0].code == "GA501"
        assert "programs.py" in report.part("reverse").findings[0].title

    @pytest.mark.parametrize("wrong", [1, 5])
    def test_a_rule_tells_the_entries_of_a_small_tensor(self, name, wrong):
        """They are compared with those of the rule's replacement, and cost nothing."""
        own = programs.words(name)
        factor = np.where(np.arange(5) < wrong, 1.1, 1.0)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: g * own.cos(x) * own.constant(factor, x))
        report = audit_operator(rule, given(name, X[0], "float64"), modes=["reverse"])
        # baseline 3; the one input 21, and along a fresh direction 8
        assert report.evaluations == 3 + 21 + 8
        (result,) = report.parts[0].parameters
        assert [v is Verdict.DISAGREE for v in result.entries.verdict] == [i < wrong for i in range(5)], str(report)
        np.testing.assert_allclose(result.analytic / result.numeric, factor, rtol=1e-9)

    def test_a_rule_that_ignores_its_cotangent(self, name):
        """``sum`` hands over ones: only other cotangents show it."""
        own = programs.words(name)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: own.ones_like(g) * own.cos(x))
        assert audit_operator(rule, given(name, X), modes=["reverse"]).verdict is Verdict.DISAGREE

    def test_a_first_derivative_that_is_right_and_a_second_that_is_not(self, name):
        own = programs.words(name)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: g * own.stop(own.cos(x)))
        report = audit_operator(rule, given(name, X), modes=["reverse", "second"])
        assert verdicts(report) == {"reverse": Verdict.AGREE, "second": Verdict.DISAGREE}, str(report)

    def test_one_wrong_entry_of_ten_per_cent(self, name):
        own = programs.words(name)
        spoiled = np.ones_like(X)
        spoiled[1, 2] = 1.1
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: g * own.cos(x) * own.constant(spoiled, x))
        report = audit_operator(rule, given(name, X), modes=["reverse"])
        assert report.verdict is Verdict.DISAGREE, str(report)

    def test_containers_integers_and_several_outputs(self, name):
        own = programs.words(name)

        def function(inputs, n):
            x, w = inputs["x"], inputs["rest"][0]
            return {"a": own.sin(x) * n, "b": [own.tanh(w), 7]}

        inputs = {"x": given(name, X), "rest": [given(name, X[0]), None]}
        report = audit_operator(function, inputs, 3, modes=["reverse", "second"])
        assert report.verdict is Verdict.AGREE, str(report)
        names = {p.name for p in report.part("reverse").parameters}
        assert names == {"inputs.x", "inputs.rest.0"}

    def test_empty_outputs_and_inputs_count_nothing(self, name):
        own = programs.words(name)
        x, nothing = given(name, X[0]), given(name, np.zeros(0))
        report = audit_operator(lambda x, e: (x[:0], own.sin(x), own.sin(e)), x, nothing)
        assert report.verdict is Verdict.AGREE, str(report)
        assert [p.name for p in report.part("reverse").parameters] == ["x"]

    def test_an_output_of_another_size_is_not_drowned(self, name):
        own = programs.words(name)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: 1.1 * g * own.cos(x))
        report = audit_operator(
            lambda x, w: (1e6 * own.sin(x), rule(w)), given(name, X), given(name, X), modes=["reverse"]
        )
        assert report.verdict is Verdict.DISAGREE
        assert {p.name for p in report.parts[0].parameters if p.verdict is Verdict.DISAGREE} == {"w"}

    def test_kinked_functions_agree_off_their_kinks(self, name):
        own = programs.words(name)
        assert audit_operator(own.relu, given(name, X)).verdict is Verdict.AGREE

    def test_a_constant_whose_products_cancel(self, name):
        """Their rounding is no noise: it is small beside what is added up."""
        own = programs.words(name)
        ones = given(name, np.ones(30), "float64")
        x = given(name, np.random.default_rng(0).standard_normal(30), "float64")
        report = audit_operator(lambda x: own.where(x > -9, ones, x), x, modes=["reverse"])
        assert report.verdict is Verdict.AGREE, str(report)

    def test_complex_inputs(self, name):
        own = programs.words(name)
        right = lambda z: own.sin(z) * z  # noqa: E731
        report = audit_operator(right, given(name, Z, "complex64"), modes=["reverse", "second"])
        assert report.verdict is Verdict.AGREE, str(report)
        assert {p.name for p in report.part("reverse").parameters} == {"z.real", "z.imag"}

    def test_a_forgotten_conjugate(self, name):
        """The conventions differ: torch and TensorFlow conjugate in the rule of a product, JAX does not."""
        own = programs.words(name)
        conjugate = {"torch": lambda a: a.conj(), "jax": lambda a: a, "tensorflow": _conj}[name]
        other = {"torch": lambda a: a, "jax": lambda a: a.conj(), "tensorflow": lambda a: a}[name]
        for rule, verdict in ((conjugate, Verdict.AGREE), (other, Verdict.DISAGREE)):
            square = own.with_vjp(lambda own, z: z * z, lambda own, z, g, rule=rule: 2 * g * rule(z))
            report = audit_operator(square, given(name, Z, "complex64"), modes=["reverse"])
            assert report.verdict is verdict, str(report)

    def test_modes(self, name):
        own = programs.words(name)
        with pytest.raises(OptionError, match="no mode backward"):
            audit_operator(own.sin, given(name, X), modes=["backward"])
        with pytest.raises(OptionError, match="no mode to audit"):
            audit_operator(own.sin, given(name, X), modes=[])

    def test_nothing_to_differentiate(self, name):
        own = programs.words(name)
        with pytest.raises(ModelContractError, match="no output of the operator"):
            audit_operator(lambda x: own.sum(x) > 0, given(name, X))
        with pytest.raises(AmbiguousBackendError, match="cannot audit a function of int"):
            audit_operator(lambda x: x, 3)

    def test_the_report_has_a_row_for_each_mode(self, name):
        own = programs.words(name)
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: 1.1 * g * own.cos(x))
        lines = str(audit_operator(rule, given(name, X), name="rule")).splitlines()
        assert lines[0] == "DISAGREE   rule"
        assert lines[3].split()[:2] == ["reverse", "DISAGREE"]
        assert all(len(line) <= 100 for line in lines)
        agreeing = str(audit_operator(own.tanh, given(name, X), modes=["reverse"])).splitlines()
        assert len(agreeing) == 4  # headline, blank, head, row

    def test_the_report_survives_json(self, name):
        own = programs.words(name)
        report = audit_operator(own.tanh, given(name, X), modes=["reverse"])
        assert gradaudit.AuditReport.from_json(report.to_json()).to_json() == report.to_json()


def _cubed(x):
    return x**3


def _conj(a):
    import tensorflow as tf

    return tf.math.conj(a)


def test_arrays_of_numpy_have_no_derivatives():
    with pytest.raises(AmbiguousBackendError, match="audit_operator"):
        audit_operator(np.sin, X)


class TestTorch:
    __test__ = "torch" in DIFFERENTIATING

    def test_what_changes_its_input_is_told(self):
        x = given("torch", X)
        before = x.clone()
        report = audit_operator(lambda x: x.add_(1).sin(), x)
        assert report.verdict is Verdict.AGREE
        assert report.remarks == ("The operator changes x in place; it was given copies.",)
        assert (x == before).all()
        assert x._version == 0

    def test_what_is_not_offered_is_told(self):
        import torch

        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return g * x.cos()

        report = audit_operator(Once.apply, given("torch", X))
        assert report.verdict is Verdict.AGREE
        assert [remark.split(" (")[0] for remark in report.remarks] == ["Not offered: forward", "Not offered: second"]
        assert "once_differentiable" in report.remarks[1]
        with pytest.raises(OptionError, match="once_differentiable"):
            audit_operator(Once.apply, given("torch", X), modes=["second"])

    def test_a_custom_operator_of_torch_library(self):
        import torch

        cubed = torch.library.custom_op(
            "gradaudit_tests::cubed", _cubed, mutates_args=(), schema="(Tensor x) -> Tensor"
        )
        for factor, verdict in ((3, Verdict.AGREE), (2, Verdict.DISAGREE)):
            torch.library.register_autograd(
                "gradaudit_tests::cubed",
                lambda ctx, g, factor=factor: g * factor * ctx.saved_tensors[0] ** 2,
                setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
            )
            assert audit_operator(cubed, given("torch", X), modes=["reverse"]).verdict is verdict

    def test_sparse_inputs_and_outputs(self):

        sparse = given("torch", X).relu().to_sparse()
        dense = given("torch", X.T)
        report = audit_operator(lambda s, d: s @ d, sparse, dense, modes=["reverse"])
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.parts[0]["s"].shape == (sparse._nnz(),)
        with warnings.catch_warnings(action="ignore"):  # PyTorch calls compressed layouts a beta
            compressed = audit_operator(lambda s: (s @ dense).sin(), sparse.to_sparse_csr(), modes=["reverse"])
        assert compressed.verdict is Verdict.AGREE


class TestJax:
    __test__ = "jax" in DIFFERENTIATING

    def test_a_kernel_of_pallas(self):
        import jax
        from jax import numpy as jnp
        from jax.experimental import pallas as pl

        def kernel(x, y):
            y[...] = jnp.sin(x[...])

        @jax.custom_vjp
        def sine(x):
            return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

        sine.defvjp(lambda x: (sine(x), x), lambda x, g: (g * jnp.cos(x),))
        report = audit_operator(sine, given("jax", X), modes=["reverse"])
        assert report.verdict is Verdict.AGREE, str(report)

    def test_a_forward_rule(self):
        import jax
        from jax import numpy as jnp

        wrong = jax.custom_jvp(jnp.sin)
        wrong.defjvp(lambda primals, tangents: (jnp.sin(*primals), 1.1 * jnp.cos(*primals) * tangents[0]))
        many = given("jax", np.random.default_rng(0).standard_normal((10, 10)))
        for x in (given("jax", X), many):  # entry by entry, and along directions
            assert audit_operator(wrong, x, modes=["forward"]).verdict is Verdict.DISAGREE
            assert audit_operator(jnp.sin, x, modes=["forward"]).verdict is Verdict.AGREE


class TestTensorflow:
    __test__ = "tensorflow" in DIFFERENTIATING

    @pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE)])
    def test_functions_slices_and_variables(self, factor, verdict):
        """The gradient of gather is sparse, IndexedSlices; ``rule`` follows in another `tf.function`."""
        import tensorflow as tf

        rows = tf.constant([0, 2, 2])
        table = tf.Variable(given("tensorflow", X))
        before = table.numpy()
        own = programs.words("tensorflow")
        rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: factor * g * own.cos(x))
        inner = tf.function(rule)
        audited = tf.function(lambda t: inner(tf.gather(t, rows))[:, 1:])
        report = audit_operator(audited, table, modes=["reverse", "forward", "batched"])
        assert verdicts(report) == dict.fromkeys(["reverse", "forward", "batched"], verdict), str(report)
        assert (table.numpy() == before).all()

    @pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE)])
    def test_a_rule_that_returns_sparse_slices(self, factor, verdict):
        import tensorflow as tf

        rows = tf.constant([0, 2, 2])

        @tf.custom_gradient
        def gathered(t):
            return tf.gather(t, rows), lambda g: tf.IndexedSlices(factor * g, rows, tf.shape(t))

        report = audit_operator(lambda t: tf.sin(gathered(t)), given("tensorflow", X), modes=["reverse"])
        assert report.verdict is verdict, str(report)

    @pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE)])
    def test_a_custom_gradient_with_variables(self, factor, verdict):
        """The variable is the layer's own, held at its value: the input is audited."""
        import tensorflow as tf

        weight = tf.Variable(given("tensorflow", X[0]))

        @tf.custom_gradient
        def scaled(x):
            def backward(g, variables=()):
                sums = [tf.reduce_sum(g * x, axis=0) for _ in variables]
                return factor * g * weight, sums

            return weight * x, backward

        report = audit_operator(lambda x: tf.sin(scaled(x)), given("tensorflow", X), modes=["reverse"])
        assert report.verdict is verdict, str(report)
        assert [p.name for p in report.parts[0].parameters] == ["x"]

    def test_a_second_derivative_that_is_not_offered_is_told(self):
        """TensorFlow has a gradient of crop_and_resize, and none of that gradient."""
        import tensorflow as tf

        boxes = tf.constant([[0.1, 0.2, 0.8, 0.9]])
        resized = lambda x: tf.image.crop_and_resize(x, boxes, [0], [3, 3])  # noqa: E731
        self.assert_not_offered(resized, given("tensorflow", X.reshape(1, 4, 5, 1)), "second", "CropAndResizeGradImage")

    def test_a_backward_that_cannot_be_batched_is_told(self):
        import tensorflow as tf

        @tf.custom_gradient
        def sine(x):
            cosine = lambda g, x: (g * np.cos(x)).astype(g.dtype)  # noqa: E731
            return tf.sin(x), lambda g: tf.numpy_function(cosine, [g, x], g.dtype)

        self.assert_not_offered(sine, given("tensorflow", X), "batched", "PyFunc")

    @staticmethod
    def assert_not_offered(function, x, mode, why):
        report = audit_operator(function, x)
        assert report.part("reverse").verdict is Verdict.AGREE, str(report)
        assert mode not in verdicts(report)
        (remark,) = [remark for remark in report.remarks if remark.startswith(f"Not offered: {mode} (")]
        assert why in remark
        with pytest.raises(OptionError, match=mode):
            audit_operator(function, x, modes=[mode])
