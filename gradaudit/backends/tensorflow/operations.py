"""Operations whose derivative TensorFlow itself gets wrong at some points, and what they are the derivative of.

They are compared like the rules of users, on the inputs that a loss gives them, and named at the line that calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["OPERATIONS", "Operation"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        module: of TensorFlow, private, in which it is looked up at every call.
        name: there.
        primal: the same values, with derivatives that are right everywhere.
    """

    module: str
    name: str
    primal: Callable[..., Any]


def _cumprod(x: Any, axis: Any, exclusive: bool = False, reverse: bool = False, name: Any = None) -> Any:  # noqa: ARG001, FBT001, FBT002
    """Product by product; TensorFlow's rule divides by the input, and takes 0 / 0 for 0 (tensorflow#119430)."""
    items = tf.unstack(x, axis=int(axis))
    product, products = tf.ones_like(items[0]), []
    for item in reversed(items) if reverse else items:
        following = product * item
        products.append(product if exclusive else following)
        product = following
    return tf.stack(products[::-1] if reverse else products, axis=int(axis))


OPERATIONS = (Operation("ops.gen_math_ops", "cumprod", _cumprod),)
