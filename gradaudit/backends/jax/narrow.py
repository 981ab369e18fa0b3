"""In which format narrower than float32 a traced function multiplies: TF32 on a GPU, bfloat16 on a TPU.

What JAX's default precision means there depends on the device and on the configuration, so it is not read but tried, on
the device, with numbers that need more digits than the narrower formats have.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradaudit.backends.jax.cuts import Function, walk

__all__ = ["narrowest"]

_PRODUCTS = ("dot_general", "conv_general_dilated")

#: By how much more than one a number must be: fewer digits than TF32 needs, fewer than bfloat16.
_LOST = {2.0**-13: 2.0**-10, 2.0**-9: 2.0**-7}


def narrowest(function: Function, *arguments: Any) -> float | None:
    """Machine epsilon of the coarsest format that float32 products are computed in; None: in none but float32.

    Raises:
        Exception: JAX's or the function's own, where it cannot be traced.
    """
    if jax.default_backend() == "cpu":
        return None
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    precisions = {
        equation.params["precision"]
        for equation, _, _ in walk(jaxpr)
        if equation.primitive.name in _PRODUCTS and equation.invars[0].aval.dtype == jnp.float32
    }
    return max(map(_eps, precisions), default=0.0) or None


def _eps(precision: Any) -> float:
    """Of the format in which products of this precision are computed; 0: of float32."""
    return max((eps for more, eps in _LOST.items() if abs(_product(1 + more, precision) - 1) < more / 2), default=0.0)


def _product(value: float, precision: Any) -> float:
    """A sum of 64 products, each of ``value`` and 1/64."""
    one, other = (jnp.full((64, 64), number, jnp.float32) for number in (value, 1 / 64))
    return float(lax.dot(one, other, precision=precision)[0, 0])
