"""Programs that other gradient checkers misjudge, each written once for all backends.

A program is written in a few words (sin, where, a custom rule ...) that every framework's `Words` translate: a wrong
derivative is planted with the framework's own means, ``torch.autograd.Function``, ``jax.custom_jvp`` and
``jax.custom_vjp``, ``tf.custom_gradient``. NumPy has no differentiation: there the gradient that the program claims is
written by hand, next to its loss.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

WORDS = {}

#: They list no rules: NumPy has none to list, PyTensor's are not looked for.
UNLISTED = ("numpy", "pytensor")


def words(name):
    """The words of the backend of that name; its framework is imported now."""
    return WORDS[name]()


def _for(name):
    def register(cls):
        WORDS[name] = cache(cls)
        return cls

    return register


@_for("numpy")
class NumpyWords:
    """Values only: what a rule says of derivatives is the business of the program's own gradient."""

    impure: Mapping[str, Any] = {}
    #: Whether an audit can put back the generator that ``dropout`` draws from.
    held = True

    def __init__(self):
        self.sin, self.cos, self.tanh, self.where, self.singular = np.sin, np.cos, np.tanh, np.where, np.sqrt
        self.ones_like, self.sum, self.mean = np.ones_like, np.sum, np.mean
        self._own = np.random.default_rng(0)
        self.kept = None

    def relu(self, x):
        return np.maximum(x, 0)

    def constant(self, array, like):
        """In the dtype of ``like``, but truth values stay what they are."""
        array = np.asarray(array)
        return array if array.dtype == bool else array.astype(like.dtype)

    def stop(self, x):
        return x

    def dropout(self, x, *, private):
        """The mask stays in ``kept``, for a gradient that follows."""
        self.kept = (self._own.random(x.shape) if private else np.random.random(x.shape)) < 0.5
        return 2 * x * self.kept

    def with_slope(self, function, slope):
        return lambda x: function(self, x)

    def with_vjp(self, function, vjp):
        return lambda x: function(self, x)


@_for("torch")
class TorchWords:
    """Rules are autograd.Functions."""

    impure: Mapping[str, Any] = {}
    held = True

    def __init__(self):
        import torch

        self._torch = torch
        self.sin, self.cos, self.tanh, self.relu = torch.sin, torch.cos, torch.tanh, torch.relu
        self.where, self.singular = torch.where, torch.sqrt
        self.ones_like, self.sum, self.mean = torch.ones_like, torch.sum, torch.mean
        self._own = torch.Generator().manual_seed(0)

    def constant(self, array, like):
        array = self._torch.as_tensor(array)
        return array if array.dtype == self._torch.bool else array.to(like.dtype)

    def stop(self, x):
        return x.detach()

    def dropout(self, x, *, private):
        if private:
            return 2 * x * (self._torch.rand(x.shape, generator=self._own) < 0.5)
        return self._torch.nn.functional.dropout(x)

    def with_slope(self, function, slope):
        return self.with_vjp(function, lambda own, x, g: g * slope(own, x))

    def with_vjp(self, function, vjp):
        class Rule(self._torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(x):
                return function(self, x)

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(*inputs)

            @staticmethod
            def backward(ctx, g):
                return vjp(self, *ctx.saved_tensors, g)

        return Rule.apply


@_for("jax")
class JaxWords:
    """A slope is a custom_jvp, a VJP a custom_vjp."""

    #: A compiled function would draw its random numbers once.
    impure: Mapping[str, Any] = {"jit": False}
    held = True

    def __init__(self):
        import jax
        from jax import numpy as jnp

        self._jax, self._jnp = jax, jnp
        self.sin, self.cos, self.tanh, self.relu = jnp.sin, jnp.cos, jnp.tanh, jax.nn.relu
        self.where, self.singular = jnp.where, jnp.sqrt
        self.ones_like, self.sum, self.mean = jnp.ones_like, jnp.sum, jnp.mean
        self.stop = jax.lax.stop_gradient
        self._draws = itertools.count()

    def constant(self, array, like):
        array = np.asarray(array)
        return self._jnp.asarray(array if array.dtype == bool else array.astype(like.dtype))

    def dropout(self, x, *, private):
        """JAX has no generator of its own: a key for each call, or NumPy's."""
        if private:
            return 2 * x * self._jax.random.bernoulli(self._jax.random.key(next(self._draws)), 0.5, x.shape)
        return 2 * x * (np.random.random(x.shape) < 0.5)

    def with_slope(self, function, slope):
        rule = self._jax.custom_jvp(lambda x: function(self, x))
        rule.defjvp(lambda primals, tangents: (rule(*primals), tangents[0] * slope(self, *primals)))
        return rule

    def with_vjp(self, function, vjp):
        rule = self._jax.custom_vjp(lambda x: function(self, x))
        rule.defvjp(lambda x: (function(self, x), x), lambda x, g: (vjp(self, x, g),))
        return rule


@_for("tensorflow")
class TensorflowWords:
    """Rules are custom_gradients."""

    impure: Mapping[str, Any] = {}
    #: The draws of stateful operations are counted inside their kernels.
    held = False

    def __init__(self):
        import tensorflow as tf

        self._tf = tf
        self.sin, self.cos, self.tanh, self.relu, self.where = tf.sin, tf.cos, tf.tanh, tf.nn.relu, tf.where
        #: TensorFlow's rule for sqrt makes 0 of a zero that comes down to it; that of log makes NaN.
        self.singular = tf.math.log
        self.ones_like, self.sum, self.mean = tf.ones_like, tf.reduce_sum, tf.reduce_mean
        self.stop = tf.stop_gradient
        self._own = tf.random.Generator.from_seed(0)

    def constant(self, array, like):
        array = self._tf.constant(array)
        return array if array.dtype == self._tf.bool else self._tf.cast(array, like.dtype)

    def dropout(self, x, *, private):
        if private:
            return 2 * x * self._tf.cast(self._own.uniform(x.shape) < 0.5, x.dtype)
        return self._tf.nn.dropout(x, 0.5)

    def with_slope(self, function, slope):
        return self.with_vjp(function, lambda own, x, g: g * slope(own, x))

    def with_vjp(self, function, vjp):
        return self._tf.custom_gradient(lambda x: (function(self, x), lambda g: vjp(self, x, g)))


@_for("pytensor")
class PytensorWords:
    """Rules are pullbacks of an OpFromGraph."""

    impure: Mapping[str, Any] = {}
    held = True

    def __init__(self):
        import pytensor
        from pytensor import tensor as pt

        self._pytensor, self._pt = pytensor, pt
        self.sin, self.cos, self.tanh, self.where, self.singular = pt.sin, pt.cos, pt.tanh, pt.switch, pt.sqrt
        self.ones_like, self.sum, self.mean = pt.ones_like, pt.sum, pt.mean
        self._generator = pytensor.shared(np.random.default_rng(0))
        own = np.random.default_rng(0)

        class Private(pytensor.graph.op.Op):
            """A mask from a generator that nobody else can see."""

            def make_node(self, x):
                return pytensor.graph.basic.Apply(self, [x], [x.type()])

            def perform(self, node, inputs, outputs):
                outputs[0][0] = (own.random(inputs[0].shape) < 0.5).astype(inputs[0].dtype)

            def connection_pattern(self, node):
                return [[False]]

        self._private = Private()

    def relu(self, x):
        return self._pt.maximum(x, self._pt.zeros_like(x))

    def constant(self, array, like):
        array = np.asarray(array)
        return self._pt.constant(array if array.dtype == bool else array.astype(like.dtype))

    def stop(self, x):
        return self._pytensor.gradient.disconnected_grad(x)

    def dropout(self, x, *, private):
        """A graph is built once: what draws is an operation of it."""
        if private:
            return 2 * x * self._private(x)
        updated, drawn = self._pt.random.bernoulli(0.5, size=x.shape, rng=self._generator, return_next_rng=True)
        with warnings.catch_warnings():
            # the other way, updates given to pytensor.function, is not part of a loss
            warnings.simplefilter("ignore", DeprecationWarning)
            self._generator.default_update = updated
        return 2 * x * drawn

    def with_slope(self, function, slope):
        return self.with_vjp(function, lambda own, x, g: g * slope(own, x))

    def with_vjp(self, function, vjp):
        from pytensor.compile.builders import OpFromGraph

        def pullback(inputs, outputs, cotangents):
            return [vjp(self, *inputs, *cotangents)]

        def rule(x):
            inner = x.type()
            return OpFromGraph([inner], [function(self, inner)], pullback=pullback)(x)

        return rule


@dataclass(frozen=True)
class Program:
    """A loss over named arrays and the gradient that it claims to have.

    Attributes:
        loss: (words, parameters) -> one number.
        gradient: NumPy parameters -> NumPy gradients, by hand, with the same fault if there is one.
        parameters: the base point.
        pure: False where each call gives another number.
    """

    loss: Callable[[Any, Mapping[str, Any]], Any]
    gradient: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    parameters: Mapping[str, Any]
    pure: bool = True

    def on(self, backend):
        """The program as a model of one backend."""
        own = words(backend.name)
        options = {} if self.pure else dict(own.impure)
        if backend.name != "numpy":
            return backend.function_model(lambda p: self.loss(own, p), self.parameters, **options)
        return backend.function_model(
            lambda p: self.loss(own, p), self.parameters, gradient=self.gradient, any_dtype=True
        )


class WithoutTwin:
    """The same model, its float64 twin hidden."""

    def __init__(self, model):
        self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad
        self.along, self.point_bytes = model.along, model.point_bytes


# the shapes of programs


def summed(function, slope, x, *, rule=True, scale=1.0, offset=0.0):
    """``offset + scale * sum(function(x))``, whose gradient claims that the derivative of ``function`` is ``slope``.

    Args:
        function: (words, x) -> array of the same shape.
        slope: (words, x) -> array of the same shape.
        x: the base point.
        rule: differentiate by a custom rule made of ``slope``; otherwise by the framework's own derivatives.
        scale: of the sum.
        offset: a constant part of the loss.
    """

    def loss(own, p):
        f = own.with_slope(function, slope)(p["x"]) if rule else function(own, p["x"])
        return offset + scale * own.sum(f)

    return Program(loss, lambda p: {"x": scale * slope(words("numpy"), p["x"])}, {"x": x})


def reduced(function, vjp, x):
    """A function of one array with one number as its result, and a VJP rule of its own.

    Args:
        function: (words, x) -> one number.
        vjp: (words, x, cotangent) -> array like x.
        x: the base point.
    """
    return Program(
        lambda own, p: own.with_vjp(function, vjp)(p["x"]),
        lambda p: {"x": vjp(words("numpy"), p["x"], np.float64(1.0))},
        {"x": x},
    )


# the programs


def sin(own, x):
    return own.sin(x)


def cos(own, x):
    return own.cos(x)


def spoiled_cos(n, entry, error):
    """The derivative of sin, one entry of n off by a relative error."""
    factor = np.ones(n)
    factor[entry] += error
    return lambda own, x: own.cos(x) * own.constant(factor, x)


def mean_square(own, x):
    return own.mean(x * x)


def zero(own, x, g):
    return 0.0 * g * own.ones_like(x)


def relu(x):
    """``sum(relu(x))``, right: 0 or 1 at 0, as the framework likes; 0 here."""
    return summed(lambda own, x: own.relu(x), lambda own, x: (x > 0).astype(x.dtype), x, rule=False)


def unselected_branch(x, mask):
    """``sum(where(mask, root(mask * x), x))``: where the mask is off, the root is taken of 0 and not used."""

    def loss(own, p):
        x = p["x"]
        inside = own.constant(mask.astype(float), x) * x
        return own.sum(own.where(own.constant(mask, x), own.singular(inside), x))

    def gradient(p):
        with np.errstate(divide="ignore", invalid="ignore"):
            down = np.where(mask, 1.0, 0.0)
            return {"x": down * (0.5 / np.sqrt(mask * p["x"])) * mask + (1 - down)}

    return Program(loss, gradient, {"x": x})


def partly_detached(x):
    """``sum(x * detach(sin(x)))``: one of the two ways to the loss is cut."""
    return Program(
        lambda own, p: own.sum(p["x"] * own.stop(own.sin(p["x"]))), lambda p: {"x": np.sin(p["x"])}, {"x": x}
    )


def detached(w, x):
    """``sum(sin(x) * detach(w)**2)``: w gets nothing, x gets what it should."""
    return Program(
        lambda own, p: own.sum(own.sin(p["x"]) * own.stop(p["w"]) ** 2),
        lambda p: {"w": None, "x": np.cos(p["x"]) * p["w"] ** 2},
        {"w": w, "x": x},
    )


def random_mask(x, *, private):
    """``mean(dropout(x)**2)``, with a new mask at every call.

    Args:
        x: the base point.
        private: draw from a generator that the program keeps to itself; otherwise from a global one.
    """
    return Program(
        lambda own, p: own.mean(own.dropout(p["x"], private=private) ** 2),
        lambda p: {"x": 8 * p["x"] * words("numpy").kept / p["x"].size},
        {"x": x},
        pure=False,
    )


def mlp(activation, *, factor=1.0, sizes=(64, 256, 256, 64), n_samples=64, seed=0):
    """A float32 network of two hidden layers with a mean squared error; 98,880 parameters with these sizes.

    Args:
        activation: tanh or relu.
        factor: the gradient of W1 is wrong by it.
        sizes: of the layers, the inputs first.
        n_samples: of random data.
        seed: of weights and data.
    """
    rng = np.random.default_rng(seed)
    parameters = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        parameters[f"W{i}"] = (rng.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(np.float32)
        parameters[f"b{i}"] = (0.1 * rng.standard_normal(n_out)).astype(np.float32)
    inputs = rng.standard_normal((n_samples, sizes[0])).astype(np.float32)
    targets = rng.standard_normal((n_samples, sizes[-1])).astype(np.float32)
    n_layers = len(sizes) - 1

    def loss(own, p):
        if factor != 1:
            p = p | {"W1": own.with_slope(lambda own, w: 1.0 * w, lambda own, w: factor * own.ones_like(w))(p["W1"])}
        h = own.constant(inputs, p["W0"])
        for i in range(n_layers):
            h = h @ p[f"W{i}"] + p[f"b{i}"]
            if i < n_layers - 1:
                h = getattr(own, activation)(h)
        return own.mean((h - own.constant(targets, h)) ** 2)

    def gradient(p):
        dtype = p["W0"].dtype
        hidden = [inputs.astype(dtype)]
        for i in range(n_layers):
            a = hidden[-1] @ p[f"W{i}"] + p[f"b{i}"]
            hidden.append(a if i == n_layers - 1 else np.tanh(a) if activation == "tanh" else np.maximum(a, 0))
        down = 2 * (hidden[-1] - targets.astype(dtype)) / targets.size
        gradients = {}
        for i in reversed(range(n_layers)):
            gradients[f"b{i}"], gradients[f"W{i}"] = down.sum(axis=0), hidden[i].T @ down
            slope = 1 - hidden[i] ** 2 if activation == "tanh" else (hidden[i] > 0).astype(dtype)
            down = (down @ p[f"W{i}"].T) * slope
        return gradients | {"W1": (factor * gradients["W1"]).astype(dtype)}

    return Program(loss, gradient, parameters)
