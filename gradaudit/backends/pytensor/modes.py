"""How graphs are compiled here."""

from __future__ import annotations

from typing import Any

from pytensor.compile.mode import OPT_FAST_COMPILE, Mode
from pytensor.link.vm import VMLinker

__all__ = ["LIGHT"]

#: NumPy behind each operation, with the rewrites that keep a graph numerically stable: neither a C compiler nor Numba.
#: An audit evaluates a graph about a hundred times, many points at once. For the seed case (10 x 10,000 steps) it is
#: ready after 0.3 s and takes 0.2 s a loss, 0.7 s a gradient and 0.6 s for 112 losses; Numba takes 0.01 s and 0.02 s
#: once it is ready, but that takes 20 s and 25 s; C 0.05 s and 0.09 s, after 8 s and 11 s.
LIGHT: Any = Mode(VMLinker(use_cloop=False, c_thunks=False), OPT_FAST_COMPILE.including("stabilize"))
