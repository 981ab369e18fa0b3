"""How graphs are compiled here."""

from __future__ import annotations

from typing import Any

from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import OPT_FAST_COMPILE, Mode
from pytensor.graph.rewriting.basic import dfs_rewriter, node_rewriter
from pytensor.link.vm import VMLinker
from pytensor.scan.op import Scan
from pytensor.tensor.rewriting.ofg import inline_ofg_node

__all__ = ["LIGHT", "lighter"]


@node_rewriter([OpFromGraph])  # type: ignore[untyped-decorator]
def _inlined(fgraph: Any, node: Any) -> Any:
    """The graph within an operation, as softmax is one: left alone, it is compiled in the user's mode."""
    del fgraph
    return inline_ofg_node(node)


@node_rewriter([Scan])  # type: ignore[untyped-decorator]
def _lightened(fgraph: Any, node: Any) -> Any:
    """The same loop, its step compiled lightly, too: left alone, it is compiled by C."""
    del fgraph
    return lighter(node, node.inputs) or False


def lighter(node: Any, inputs: list[Any]) -> list[Any] | None:
    """A loop whose step is compiled lightly; None: it is none, or it is so already.

    A copy: where an operation is run as it is, as one side by side is, compiling its step rewrites the step in place,
    and the user could not differentiate it any more.
    """
    if not isinstance(node.op, Scan) or node.op.mode is LIGHT:
        return None
    op = node.op.clone()
    op.mode = LIGHT
    return list(op.make_node(*inputs).outputs)


#: NumPy behind each operation, with the rewrites that keep a graph numerically stable: neither a C compiler nor Numba.
#: An audit evaluates a graph about a hundred times, many points at once. For the seed case (10 x 10,000 steps) it is
#: ready after 0.3 s and takes 0.2 s a loss, 0.7 s a gradient and 0.6 s for 112 losses; Numba takes 0.01 s and 0.02 s
#: once it is ready, but that takes 20 s and 25 s; C 0.05 s and 0.09 s, after 8 s and 11 s.
LIGHT: Any = Mode(VMLinker(use_cloop=False, c_thunks=False), OPT_FAST_COMPILE.including("stabilize")).register(
    # before a loop is rewritten; and after rewrites that recognise a softmax, which would put it back
    (dfs_rewriter(_lightened), -0.02),
    (dfs_rewriter(_inlined), 10.5),
)
