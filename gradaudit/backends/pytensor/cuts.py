"""Where a symbolic loss cuts the gradient: `disconnected_grad`, `zero_grad`, `scan` with ``truncate_gradient``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytensor
from pytensor import tensor as pt
from pytensor.gradient import DisconnectedGrad, ZeroGrad
from pytensor.graph.traversal import ancestors, io_toposort
from pytensor.scan.op import Scan

from gradaudit.backends.pytensor.graphs import copied_trace, rebuilt
from gradaudit.sites import Cut

__all__ = ["found", "held", "removed", "values_to_hold"]

_KINDS = {DisconnectedGrad: "disconnected_grad", ZeroGrad: "zero_grad"}
_OWN = str(Path(pytensor.__file__).parent)


def found(loss: Any, parameters: Sequence[Any]) -> list[Cut]:
    """The cuts between the parameters and the loss, in the order of the graph; those inside a scan's step are not."""
    nodes = [node for node in io_toposort([], [loss]) if _kind(node.op) is not None and _depends(node, parameters)]
    counts = Counter(map(_cut, nodes))
    return [_cut(node, count) for node, count in {_cut(n): (n, counts[_cut(n)]) for n in nodes}.values()]


def removed(loss: Any, cuts: Collection[Cut]) -> Any:
    """The loss, whose gradient flows through these cuts."""

    def change(node: Any, inputs: list[Any]) -> list[Any] | None:
        if _kind(node.op) is None or _cut(node) not in cuts:
            return None
        if not isinstance(node.op, Scan):
            return inputs
        return copied_trace(node.outputs, _whole(node.op, inputs))

    return rebuilt(loss, {}, change)


def values_to_hold(loss: Any, cuts: Collection[Cut]) -> list[Any] | None:
    """The variables that these cuts cut off, wholly or in the first steps; None: that of a scan is not known."""
    nodes = [node for node in io_toposort([], [loss]) if _kind(node.op) is not None and _cut(node) in cuts]
    if any(isinstance(node.op, Scan) and not _can_start_late(node.op.info) for node in nodes):
        return None
    scans = (node for node in nodes if isinstance(node.op, Scan))
    return [v for node in nodes for v in node.outputs] + [scan.inputs[0] for scan in scans]


def held(loss: Any, values: Mapping[Any, Any]) -> Any:
    """The loss with these variables held at these values; of a truncated scan its first steps are."""

    def change(node: Any, inputs: list[Any]) -> list[Any] | None:
        if isinstance(node.op, Scan) and node.outputs[0] in values:
            return copied_trace(node.outputs, _started_late(node, inputs, values))
        return None

    instead = {v: pt.constant(x) for v, x in values.items() if v.owner is not None and type(v.owner.op) in _KINDS}
    return rebuilt(loss, instead, change)


def _can_start_late(info: Any) -> bool:
    """Whether its steps are as many as were asked for, and its states and outputs are all that it keeps."""
    return not (info.as_while or info.n_mit_mot or info.n_untraced_sit_sot)


def _started_late(node: Any, inputs: list[Any], values: Mapping[Any, Any]) -> list[Any]:
    """The outputs of a scan whose first steps are numbers, and whose last k go on from there."""
    op, n_steps = node.op, int(values[node.inputs[0]])
    k = op.truncate_gradient
    if k >= n_steps:
        return _whole(op, inputs)
    first = n_steps - k
    # how many states before the first step each recurrent output begins with
    before = [-min(taps) for taps in (*op.info.mit_sot_in_slices, *op.info.sit_sot_in_slices)]
    known = [values[output] for output in node.outputs]
    buffers = [
        pt.concatenate([pt.constant(x[first : first + n]), pt.zeros((k, *x.shape[1:]), dtype=x.dtype)])
        for x, n in zip(known, before, strict=False)
    ]
    late = (
        pt.constant(k, dtype=node.inputs[0].dtype),
        *(sequence[first:] for sequence in op.outer_seqs(inputs)),
        *buffers,
        *(pt.constant(k, dtype=length.dtype) for length in op.outer_nitsot(inputs)),
        *op.outer_non_seqs(inputs),
    )
    outputs = _whole(op, late)
    starts = [*before, *[0] * (len(outputs) - len(before))]
    return [
        pt.concatenate([pt.constant(x[: first + n]), output[n:]]).astype(x.dtype)
        for x, output, n in zip(known, outputs, starts, strict=True)
    ]


def _whole(op: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a scan that is not truncated."""
    whole = op.clone()
    whole.truncate_gradient = -1
    return list(whole.make_node(*inputs).outputs)


def _kind(op: Any) -> str | None:
    if isinstance(op, Scan) and op.truncate_gradient != -1:
        return f"truncate_gradient={op.truncate_gradient}"
    return _KINDS.get(type(op))


def _depends(node: Any, parameters: Sequence[Any]) -> bool:
    return any(v in parameters for v in ancestors(node.inputs))


def _cut(node: Any, executions: int = 1) -> Cut:
    traces = getattr(node.outputs[0].tag, "trace", None) or [[]]
    frames = [frame for frame in traces[0] if not str(frame[0]).startswith(_OWN)]
    path, line, function, *_ = frames[-1] if frames else ("", 0, "")
    kind = _kind(node.op)
    assert kind is not None  # asked before
    return Cut(
        kind=kind, path=path, line=line, function=function, executions=executions, library="site-packages" in path
    )
