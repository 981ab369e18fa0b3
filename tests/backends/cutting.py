"""What the tests of cuts share: a base point, and the lines that a program marks."""

from __future__ import annotations

import inspect

import numpy as np


def base(dtype="float64"):
    """W (3, 3) and b (3,)."""
    rng = np.random.default_rng(1)
    return {"W": (0.5 * rng.standard_normal((3, 3))).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}


def marked(function, marker="# CUT"):
    """The numbers of a function's lines that end with the marker."""
    lines, start = inspect.getsourcelines(function)
    return [start + i for i, line in enumerate(lines) if line.rstrip().endswith(marker)]
