"""A TensorFlow function of tensors in any containers, in and out: each way of differentiating it as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.containers import flattened
from gradaudit.backends.operands import (
    IMAGINARY,
    REAL,
    WithGradient,
    apart,
    cotangent,
    in_short,
    named,
    of_output,
    offset,
)
from gradaudit.backends.tensorflow.model import TensorflowModel
from gradaudit.errors import ModelContractError, NotOfferedError
from gradaudit.protocols import Model

__all__ = ["TensorflowOperator", "operator"]

Tensors: TypeAlias = dict[str, Any]


def operator(function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> TensorflowOperator | None:
    """The operator at these inputs; None: none of them is a floating-point or complex tensor or variable."""
    found = flattened(named(function, inputs), lambda x: _is_differentiable(x) and 0 not in x.shape)
    if found is None:
        return None
    leaves, rebuilt = found
    return TensorflowOperator(lambda x: function(*rebuilt(x).values()), leaves, seed=seed)


@final
class TensorflowOperator:
    """See `gradaudit.protocols.Operator`.

    Complex inputs are audited by their real and imaginary parts. TensorFlow's own complex gradient is
    ``dL/dRe + i dL/dIm``.

    Args:
        function: a dict of tensors -> tensors in any containers.
        inputs: real or complex floating-point tensors by name.
        seed: of the cotangents.

    Raises:
        ModelContractError: no output is a floating-point or complex tensor.
    """

    def __init__(self, function: Callable[[Tensors], Any], inputs: Mapping[str, Any], *, seed: int) -> None:
        self._function = function
        self._seed = seed
        arrays = {name: np.asarray(x) for name, x in inputs.items()}
        self._complex = {name for name, x in arrays.items() if np.iscomplexobj(x)}
        self._names = list(arrays)
        self._parts = apart(arrays)
        outputs = self._outputs(self._joined({n: tf.constant(p) for n, p in self._parts.items()}))
        if not outputs:
            msg = "no output of the operator is a floating-point or complex tensor"
            raise ModelContractError(msg, where="audit_operator()", hint="nothing of it can be differentiated")
        found = [np.asarray(y) for y in outputs]
        self._cotangents = [cotangent(y, i, seed) for i, y in enumerate(found)]
        self._offset = offset(list(zip(found, self._cotangents, strict=True)))

    def remarks(self) -> Sequence[str]:
        """None: TensorFlow changes no tensor in place."""
        return ()

    def reverse(self) -> Model:
        """``Re <c, f(x)>``, differentiated by the vector-Jacobian product."""
        return TensorflowModel(self._paired, self._parts)

    def second(self) -> Model:
        """``Re <u, vjp(x, c)>`` over inputs and cotangents, differentiated by reverse over reverse.

        Raises:
            NotOfferedError: the backward pass cannot be differentiated, or the first derivative is zero everywhere.
        """
        like = next(iter(self._parts.values())).dtype
        cotangents = apart({of_output(i): c for i, c in enumerate(self._cotangents) if c.size})
        parameters = {**self._parts, **{n: c.astype(like) for n, c in cotangents.items()}}
        try:
            found = self._products({n: tf.constant(p) for n, p in parameters.items()})
            weights = {n: cotangent(np.asarray(g), i, self._seed + 1) for i, (n, g) in enumerate(found.items())}
            if not weights:
                msg = "the outputs do not depend on the inputs"
                raise NotOfferedError(msg, where="second order")
            model = TensorflowModel(lambda p: _paired(self._products(p).values(), weights.values()), parameters)
            model.value_and_grad(model.parameters())
        except LookupError as error:  # TensorFlow's way to say that an operation has no gradient
            raise NotOfferedError(in_short(error), where="second order") from error
        return model

    def batched(self) -> Model:
        """As `reverse`; the gradient is one of two under `tf.vectorized_map`.

        Raises:
            NotOfferedError: an operation of the backward pass has no rule for that.
        """
        model = WithGradient(TensorflowModel(self._paired, self._parts), self._batched)
        try:
            model.value_and_grad(model.parameters())
        except Exception as error:
            # no one type says that there is no rule
            raise NotOfferedError(in_short(error), where="batched") from error
        return model

    def _joined(self, p: Mapping[str, Any]) -> Tensors:
        return {
            name: tf.complex(p[name + REAL], p[name + IMAGINARY]) if name in self._complex else p[name]
            for name in self._names
        }

    def _outputs(self, x: Tensors) -> list[Any]:
        found = flattened(self._function(x), _is_output)
        return [] if found is None else [_dense(y) for y in found[0].values()]

    def _paired(self, p: Tensors) -> Any:
        return _paired(self._outputs(self._joined(p)), self._cotangents) + self._offset

    def _products(self, p: Tensors) -> Tensors:
        """The vector-Jacobian products with the cotangents in p, by input; without those that no output depends on."""
        x = self._joined(p)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(x.values()))
            outputs = self._outputs(x)
        weights = [self._weight(p, i, y) for i, y in enumerate(outputs)]
        found = tape.gradient(outputs, list(x.values()), output_gradients=weights)
        return {n: tf.convert_to_tensor(g) for n, g in zip(x, found, strict=True) if g is not None}

    def _weight(self, p: Tensors, i: int, output: Any) -> Any:
        if not self._cotangents[i].size:
            return tf.zeros_like(output)
        key = of_output(i)
        if output.dtype.is_complex:
            return tf.cast(tf.complex(p[key + REAL], p[key + IMAGINARY]), output.dtype)
        return tf.cast(p[key], output.dtype)

    def _batched(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        missing: set[str] = set()

        def one(p: Tensors) -> tuple[Any, Tensors]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(p.values()))
                loss = self._paired(p)
            found = dict(zip(p, tape.gradient(loss, list(p.values())), strict=True))
            missing.update(name for name, g in found.items() if g is None)
            return loss, {n: tf.zeros_like(p[n]) if g is None else tf.convert_to_tensor(g) for n, g in found.items()}

        stacked = {n: tf.stack([tf.constant(p)] * 2) for n, p in parameters.items()}
        losses, gradients = tf.vectorized_map(one, stacked, fallback_to_while_loop=False)
        loss = as_scalar(np.asarray(losses)[1], "value_and_grad()")
        return loss, {n: None if n in missing else np.asarray(g)[1] for n, g in gradients.items()}


def _is_differentiable(x: Any) -> bool:
    return isinstance(x, (tf.Tensor, tf.Variable)) and (x.dtype.is_floating or x.dtype.is_complex)


def _is_output(x: Any) -> bool:
    sparse = isinstance(x, (tf.SparseTensor, tf.IndexedSlices)) and (x.dtype.is_floating or x.dtype.is_complex)
    return sparse or _is_differentiable(x)


def _dense(x: Any) -> Any:
    return tf.sparse.to_dense(x) if isinstance(x, tf.SparseTensor) else tf.convert_to_tensor(x)


def _paired(outputs: Any, weights: Any) -> Any:
    total = []
    for y, weight in zip(outputs, weights, strict=True):
        c = tf.cast(tf.constant(weight), y.dtype)
        both = y.dtype.is_complex
        total.append(tf.reduce_sum(tf.math.real(tf.math.conj(c) * y) if both else c * y))
    return tf.add_n(total)
