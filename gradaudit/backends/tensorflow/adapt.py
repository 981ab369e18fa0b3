"""What TensorFlow users have: a function of tensors in containers, a Keras model or a `tf.Module` and a loss of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gradaudit.backends.containers import flattened
from gradaudit.backends.keras import keras_function, keras_of
from gradaudit.backends.tensorflow.model import TensorflowModel
from gradaudit.errors import ModelContractError

__all__ = ["adapted", "inlined", "variables_of"]


def adapted(target: Any, at: Any, *, loss: Callable[..., Any] | None) -> TensorflowModel | None:
    """A Keras model or `tf.Module` with a loss, or a function of the tensors that ``at`` holds; None: neither.

    Raises:
        ModelContractError: a model without a loss, or without a variable that is trained.
    """
    keras = keras_of(target, "tensorflow")
    if keras is not None and at is None:
        function, variables = keras_function(keras, target, loss)
        return TensorflowModel(function, {path: variable.numpy() for path, variable in variables.items()})
    if isinstance(target, tf.Module) and at is None:
        return _of_module(target, loss)
    found = flattened(at, _is_trained) if callable(target) and loss is None else None
    if found is None:
        return None
    leaves, rebuilt = found
    return TensorflowModel(lambda p: target(rebuilt(p)), leaves)


def _is_trained(x: Any) -> bool:
    return isinstance(x, (tf.Tensor, tf.Variable)) and x.dtype.is_floating


def _of_module(module: tf.Module, loss: Callable[..., Any] | None) -> TensorflowModel:
    """The module's trainable variables under the paths of their attributes: ``layers.0.w``."""
    name = type(module).__name__
    if loss is None:
        msg = f"a {name} alone has no loss"
        hint = "audit(module, loss=lambda module: tf.reduce_mean((module(x) - y) ** 2))"
        raise ModelContractError(msg, where="audit()", hint=hint)
    variables = _variables(module)
    trained = variables_of(module)
    if not trained:
        msg = f"no variable of the {name} is trainable (was it built?)"
        raise ModelContractError(
            msg, where="audit()", hint="call it once on its input; tf.Variable(..., trainable=True)"
        )
    state = _State([v for path, v in variables.items() if path not in trained])
    of_module = loss

    def function(p: Mapping[str, tf.Tensor]) -> Any:
        wide = all(value.dtype == tf.float64 for value in p.values())
        instead = state.fresh(wide=wide) | {id(variable): p[path] for path, variable in trained.items()}
        with _holding(module, instead), inlined():
            return of_module(module)

    return TensorflowModel(function, {path: variable.numpy() for path, variable in trained.items()})


def _variables(module: tf.Module) -> dict[str, tf.Variable]:
    # what `variables` is made of, with the paths
    found = module._flatten(predicate=lambda x: isinstance(x, tf.Variable), with_path=True)  # noqa: SLF001
    return {".".join(map(str, path)): variable for path, variable in found}


def variables_of(target: Any) -> dict[str, Any]:
    """The variables of a Keras model or module that are trained, by the names that `adapted` gives them."""
    if keras_of(target, "tensorflow") is not None:
        return {variable.path: variable for variable in target.trainable_variables}
    return {path: v for path, v in _variables(target).items() if v.trainable and v.dtype.is_floating}


class _State:
    """Copies of variables that are not trained, for the module to write to; every evaluation starts them anew."""

    def __init__(self, variables: list[tf.Variable]) -> None:
        self._variables = variables
        self._copies: dict[bool, list[tf.Variable]] = {}

    def fresh(self, *, wide: bool) -> dict[int, tf.Variable]:
        """The copies by the identity of their originals, set to the originals' values; in float64 if ``wide``."""
        if wide not in self._copies:
            with tf.init_scope():
                self._copies[wide] = [tf.Variable(_cast(v, wide=wide), trainable=False) for v in self._variables]
        for variable, copy in zip(self._variables, self._copies[wide], strict=True):
            copy.assign(_cast(variable, wide=wide))
        return {id(v): copy for v, copy in zip(self._variables, self._copies[wide], strict=True)}


def _cast(variable: tf.Variable, *, wide: bool) -> tf.Tensor:
    return tf.cast(variable, tf.float64 if wide and variable.dtype.is_floating else variable.dtype)


@contextmanager
def _holding(module: tf.Module, instead: Mapping[int, Any]) -> Iterator[None]:
    """Meanwhile the module's attributes hold these in place of variables, by identity."""
    before = []
    for inner in (module, *module.submodules):
        held = vars(inner)
        for attribute, value in held.items():
            if attribute not in inner._TF_MODULE_IGNORED_PROPERTIES and any(  # noqa: SLF001
                id(leaf) in instead for leaf in tf.nest.flatten(value)
            ):
                before.append((held, attribute, value))
    try:
        for held, attribute, value in before:
            # past __setattr__, which would track what is put there
            held[attribute] = tf.nest.map_structure(lambda leaf: instead.get(id(leaf), leaf), value)
        yield
    finally:
        for held, attribute, value in before:
            held[attribute] = value


@contextmanager
def inlined() -> Iterator[None]:
    """Meanwhile each `tf.function` runs as the Python that it is: traced before, it holds the module's variables."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # noqa: FBT003  # its only form
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
