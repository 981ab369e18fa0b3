"""Where a symbolic loss cuts the gradient: `disconnected_grad`, `zero_grad`, `scan` with ``truncate_gradient``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytensor
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
        whole = node.op.clone()
        whole.truncate_gradient = -1
        return copied_trace(node.outputs, whole.make_node(*inputs).outputs)

    return rebuilt(loss, {}, change)


def values_to_hold(loss: Any, cuts: Collection[Cut]) -> list[Any] | None:
    """The variables that these cuts cut off; None: one is a scan, of which only the last steps are cut off."""
    nodes = [node for node in io_toposort([], [loss]) if _kind(node.op) is not None and _cut(node) in cuts]
    return None if any(isinstance(node.op, Scan) for node in nodes) else [node.outputs[0] for node in nodes]


def held(loss: Any, values: Mapping[Any, Any]) -> Any:
    """The loss with constants in place of these variables."""
    return rebuilt(loss, values)


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
