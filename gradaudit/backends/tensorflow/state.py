"""TensorFlow's global state around an audit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf
from tensorflow.python.ops import stateful_random_ops

__all__ = ["preserved"]


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the global `tf.random.Generator` as it was, also after an exception; nothing else global is touched.

    The old stateful operations (`tf.random.uniform` and its like) count their draws inside their kernels, where
    nothing can read or restore them; a pure loss uses none of them.
    """
    # tf.random.get_global_generator() would create the generator, which is a change of state; the attribute is private
    generator = getattr(stateful_random_ops, "global_generator", None)
    if generator is None:
        yield
        return
    before = generator.state.numpy().copy()
    try:
        yield
    finally:
        tf.random.set_global_generator(generator)
        generator.state.assign(before)
