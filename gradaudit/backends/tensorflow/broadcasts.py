"""Where a TensorFlow loss is taken over pairs: see `gradaudit.backends.broadcasts`. The loss runs eagerly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradaudit.arrays import NamedArrays
from gradaudit.backends.broadcasts import Following, Kind, Value, may_pair
from gradaudit.backends.tensorflow.eager import EagerFunction, evaluate
from gradaudit.backends.tensorflow.origin import callback, word
from gradaudit.backends.tensorflow.sites import caller
from gradaudit.sites import Broadcast

__all__ = ["over_pairs"]

_PAIRING = {"Sub", "Mul", "RealDiv", "SquaredDifference"}
_ADDING = {"Sum", "Mean"}
_TAKING = {"StridedSlice", "Slice", "Split", "SplitV", "Unpack", "GatherV2", "GatherNd"}
_SHAPING = {
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "Transpose",
    "BroadcastTo",
    "Identity",
    "Cast",
    "StopGradient",
    "Snapshot",
}
_ELEMENTWISE = {
    *(
        "Add",
        "AddV2",
        "BiasAdd",
        "Neg",
        "Abs",
        "Sign",
        "Square",
        "Sqrt",
        "Rsqrt",
        "Pow",
        "Exp",
        "Expm1",
        "Log",
        "Log1p",
    ),
    *("Sigmoid", "Tanh", "Softplus", "Relu", "LeakyRelu", "Elu", "Selu", "Sin", "Cos", "Erf", "Maximum", "Minimum"),
    *("ClipByValue", "Select", "SelectV2", "DivNoNan", "MulNoNan"),
}


def over_pairs(function: EagerFunction, parameters: NamedArrays) -> list[Broadcast]:
    """The accidental broadcasts of a loss, in the order of their sums.

    Raises:
        Exception: the function's own, where it is for graphs only.
    """
    seen: list[tuple[Kind, list[Value], list[Value], Broadcast | None]] = []

    def note(
        name: str | bytes, inputs: Any, attrs: Any, outputs: Any, op_name: str | None = None, graph: Any = None
    ) -> None:
        del op_name
        if graph is not None or not inputs:
            return
        name = name.decode() if isinstance(name, bytes) else name
        kind = _kind(name, dict(zip(attrs[::2], attrs[1::2], strict=False)) if attrs else {})
        # what follows in the others is an axis, a shape, an index
        given = [_value(x) for x in (inputs if kind in ("pairing", "elementwise", "other") else inputs[:1])]
        site = _site(name, given) if may_pair(kind, given) else None
        seen.append((kind, given, [_value(x) for x in outputs], site))

    with callback(note):
        evaluation = evaluate(function, parameters)
    following = Following([_value(tensor).key for tensor in evaluation.tensors.values()])
    for kind, inputs, outputs, site in seen:
        for output in outputs:
            following.note(kind, inputs, output, site)
    return following.found


def _kind(name: str, attributes: Mapping[str, Any]) -> Kind:
    if attributes.get("keep_dims"):
        return "keeping"
    if name in _PAIRING:
        return "pairing"
    if name in _ADDING:
        return "adding"
    if name in _SHAPING or attributes.get("new_axis_mask"):
        return "shaping"
    if name in _TAKING:
        return "taking"
    return "elementwise" if name in _ELEMENTWISE else "other"


def _value(x: Any) -> Value:
    return Value(x._id, tuple(x.shape))  # noqa: SLF001  # the tape's own key, of no other tensor


def _site(name: str, inputs: Sequence[Value]) -> Broadcast | None:
    at = caller()
    if not {"site-packages", "dist-packages"}.isdisjoint(Path(at.path).parts):
        return None
    shapes = tuple(x.shape for x in inputs)
    return Broadcast(operation=word(name), shapes=shapes, path=at.path, line=at.line, function=at.function)
