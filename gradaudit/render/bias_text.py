"""A bias curve as text: for each kind of truncation the answer, then a row a length."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gradaudit.render.to_text import number, table

if TYPE_CHECKING:
    from gradaudit.lens.curves import BiasCurve, BiasPoint, SemanticsCurve

__all__ = ["bias_text"]

_WIDTH = 100


def bias_text(curve: BiasCurve) -> str:
    """All of it; at most 100 columns."""
    cost = f"{curve.gradients} gradients, the steps of {number(curve.work)} full ones, {curve.seconds:.2f} s"
    if curve.full_seconds is not None:
        cost += f"; a full one takes {curve.full_seconds:.3f} s"
    against = "the full gradient" if curve.full else "the longest window and a geometric remainder, a bound"
    lines = [f"{curve.target}: bias of truncated gradients over {curve.n_steps:,} steps against {against}", f"  {cost}"]
    for one in curve.curves:
        lines += ["", *textwrap.wrap(_answer(one, curve), _WIDTH), "", *_points(one)]
    return "\n".join(lines)


def _answer(one: SemanticsCurve, curve: BiasCurve) -> str:
    delta, beta = number(curve.delta), one.beta
    uncut = [name for name in one.points[0].parameters if name not in one.parameters]
    of = f" (of {', '.join(one.parameters)}; the others are not cut)" if uncut else ""
    falls = "" if beta is None else f" Far pairs of steps contribute {number(beta)} times as much with each step."
    if one.k is not None:
        bias = next(point.bias for point in one.points if point.k == one.k)
        return f"{one.named(one.k)}: bias {number(bias)}{of}, and below {delta} from there on.{falls}"
    last = number(one.points[-1].bias)
    there = f"{one.kind}: the horizon of {one.horizon} steps is too short; the bias{of} is {last} there"
    if one.extrapolated is None:
        return f"{there}, not below {delta}.{falls} That says nothing of longer ones: a longer horizon does."
    return f"{there}, not below {delta}.{falls} If that goes on, it takes about {one.named(one.extrapolated)}."


def _points(one: SemanticsCurve) -> list[str]:
    shown = _shown(one)
    rows = [["k", "bias", "worst parameter", "", "steps run", "states held", "side by side", "seconds"]]
    rows += [_row(point, chosen=point.k == one.k) for point in shown]
    lines = table(rows, right=(0, 1, 3, 4, 5, 6, 7))
    if hidden := len(one.points) - len(shown):
        lines.append(f"  ... and {hidden} lengths between them")
    return lines


def _shown(one: SemanticsCurve) -> list[BiasPoint]:
    """The doublings, the answer and its neighbours, and the longest."""
    ks = [point.k for point in one.points]
    around = {ks.index(one.k) + i for i in (-1, 0, 1)} if one.k in ks else set()
    return [p for i, p in enumerate(one.points) if p.k & (p.k - 1) == 0 or i in around or p.k == ks[-1]]


def _row(point: BiasPoint, *, chosen: bool) -> list[str]:
    worst = max(point.parameters, key=lambda name: point.parameters[name])
    measured = number(point.bias), worst, number(point.parameters[worst])
    seconds = "" if point.seconds is None else f"{point.seconds:.3f} s"
    steps = f"x {number(point.work)}", f"{point.held:,}", f"{point.together:,}"
    return [str(point.k), *measured, *steps, seconds + (" <" if chosen else "")]
