"""A JAX function of pytrees of arrays, in and out: each way of differentiating it as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.jax.model import JaxModel
from gradaudit.backends.jax.state import precision
from gradaudit.backends.jax.trees import path_of
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
from gradaudit.errors import ModelContractError, NotOfferedError
from gradaudit.protocols import Model

__all__ = ["JaxOperator", "operator"]

Arrays: TypeAlias = dict[str, jax.Array]


def operator(function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> JaxOperator | None:
    """The operator at these inputs; None: none of them is, or holds, an array of JAX that can be differentiated by."""
    own = list(named(function, inputs))
    paths, structure = jax.tree_util.tree_flatten_with_path(tuple(inputs))  # not a dict: JAX sorts its keys
    leaves = [leaf for _, leaf in paths]
    if not any(isinstance(leaf, jax.Array) for leaf in leaves):
        return None
    names = {
        i: ".".join([own[path[0].idx], *path_of(path[1:])])
        for i, (path, leaf) in enumerate(paths)
        if _is_differentiable(leaf) and leaf.size
    }
    if not names:
        return None

    def of_named(x: Arrays) -> Any:
        given = [x[names[i]] if i in names else leaf for i, leaf in enumerate(leaves)]
        return function(*jax.tree_util.tree_unflatten(structure, given))

    return JaxOperator(of_named, {name: np.asarray(leaves[i]) for i, name in names.items()}, seed=seed)


@final
class JaxOperator:
    """See `gradaudit.protocols.Operator`.

    Complex inputs are audited by their real and imaginary parts. JAX's own complex gradient is ``dL/dRe - i dL/dIm``.

    Args:
        function: a dict of arrays -> a pytree of arrays.
        inputs: real or complex floating-point arrays by name.
        seed: of the cotangents.

    Raises:
        ModelContractError: no output is a floating-point or complex array.
    """

    def __init__(self, function: Callable[[Arrays], Any], inputs: Mapping[str, Array], *, seed: int) -> None:
        self._function = function
        self._seed = seed
        self._complex = {name for name, x in inputs.items() if np.iscomplexobj(x)}
        self._names = list(inputs)
        self._parts = apart(inputs)
        with precision(self._parts):
            outputs = [np.asarray(y) for y in self._outputs(self._joined(self._named()))]
        if not outputs:
            msg = "no output of the operator is a floating-point or complex array"
            raise ModelContractError(msg, where="audit_operator()", hint="nothing of it can be differentiated")
        self._cotangents = [cotangent(y, i, seed) for i, y in enumerate(outputs)]
        self._offset = offset(list(zip(outputs, self._cotangents, strict=True)))

    def remarks(self) -> Sequence[str]:
        """None: JAX changes nothing in place."""
        return ()

    def reverse(self) -> Model:
        """``Re <c, f(x)>``, differentiated by the vector-Jacobian product."""
        return JaxModel(self._paired, self._parts)

    def second(self) -> Model:
        """``Re <u, vjp(x, c)>`` over inputs and cotangents, differentiated by reverse over reverse.

        Raises:
            NotOfferedError: the backward pass cannot be differentiated.
        """
        like = next(iter(self._parts.values())).dtype
        cotangents = apart({of_output(i): c for i, c in enumerate(self._cotangents) if c.size})
        parameters = {**self._parts, **{n: c.astype(like) for n, c in cotangents.items()}}
        try:
            with precision(parameters):
                base = {n: jnp.asarray(p) for n, p in parameters.items()}
                found = [np.asarray(g) for g in jax.jit(self._products)(base)]
            weights = [cotangent(g, i, self._seed + 1) for i, g in enumerate(found)]
            model = JaxModel(lambda p: _paired(self._products(p), weights), parameters)
            model.value_and_grad(model.parameters())
        except Exception as error:
            # JAX says in many ways that a rule has no derivative of its own
            raise NotOfferedError(in_short(error), where="second order") from error
        return model

    def batched(self) -> Model:
        """As `reverse`; the gradient is one of two under vmap.

        Raises:
            NotOfferedError: the derivative has no batching rule.
        """
        model = WithGradient(JaxModel(self._paired, self._parts), self._batched)
        try:
            model.value_and_grad(model.parameters())
        except Exception as error:
            # as in `second`
            raise NotOfferedError(in_short(error), where="batched") from error
        return model

    def _named(self) -> Arrays:
        return {name: jnp.asarray(p) for name, p in self._parts.items()}

    def _joined(self, p: Mapping[str, jax.Array]) -> Arrays:
        return {
            name: jax.lax.complex(p[name + REAL], p[name + IMAGINARY]) if name in self._complex else p[name]
            for name in self._names
        }

    def _outputs(self, x: Arrays) -> list[jax.Array]:
        return [y for y in map(jnp.asarray, jax.tree.leaves(self._function(x))) if _is_differentiable(y)]

    def _paired(self, p: Arrays) -> jax.Array:
        return _paired(self._outputs(self._joined(p)), self._cotangents) + self._offset

    def _products(self, p: Arrays) -> list[jax.Array]:
        """The vector-Jacobian products of the inputs with the cotangents in p."""
        outputs, pullback = jax.vjp(self._outputs, self._joined({n: p[n] for n in self._parts}))
        weights = [self._weight(p, i, y) for i, y in enumerate(outputs)]
        return list(pullback(weights)[0].values())

    def _weight(self, p: Arrays, i: int, output: jax.Array) -> jax.Array:
        if not output.size:
            return jnp.zeros_like(output)
        key = of_output(i)
        if jnp.iscomplexobj(output):
            return jax.lax.complex(p[key + REAL], p[key + IMAGINARY]).astype(output.dtype)
        return p[key].astype(output.dtype)

    @cached_property
    def _under_vmap(self) -> Any:
        return jax.jit(jax.vmap(jax.value_and_grad(self._paired)))

    def _batched(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        with precision(parameters):
            stacked = {n: jnp.stack([jnp.asarray(p)] * 2) for n, p in parameters.items()}
            losses, gradients = self._under_vmap(stacked)
            loss = as_scalar(np.asarray(losses)[1], "value_and_grad()")
            return loss, {n: np.asarray(g)[1] for n, g in gradients.items()}


def _is_differentiable(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray)) and bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _paired(outputs: Sequence[jax.Array], weights: Sequence[Array]) -> jax.Array:
    total = 0.0
    for y, weight in zip(outputs, weights, strict=True):
        c = jnp.asarray(weight, y.dtype)
        total = total + ((c.real * y.real + c.imag * y.imag).sum() if jnp.iscomplexobj(y) else (c * y).sum())
    return jnp.asarray(total)
