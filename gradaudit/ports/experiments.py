"""What makes a port agree with the first model: a factor, a constant, or another arrangement of its parameters."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from gradaudit.conventions import gate_names
from gradaudit.mapping import Correspondence, corresponding
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Stop
from gradaudit.ports.computed import Computed, Gap, Handed, back
from gradaudit.rearrangements import Blocks, Rearrangement, rearrangements

__all__ = ["explained"]

#: Rearrangements that are tried, at most.
_MOST = 2000


def explained(name: str, first: Computed, port: Computed, *, derivative: bool) -> tuple[str, str]:
    """What would make the port agree with the first model, and how sure that is.

    Args:
        name: of the port.
        first: the first model.
        port: the port.
        derivative: both gradients are the derivatives of their losses, so that they too must agree.
    """
    factor = _factor(first, port) if derivative else None
    if factor is not None:
        return f"Its loss and its gradient are those times {factor:.6g}: a sum for a mean, a weight.", "proven"
    if derivative and first.loss != port.loss and Gap(first, replace(port, loss=first.loss)).agrees:
        return f"The gradients agree: its loss has {port.loss - first.loss:.6g} more, a constant.", "proven"
    fitting, n_tried = _fitting(first, port, gradients=derivative)
    if fitting is None:
        return f"None of {n_tried} other arrangements of its parameters makes them agree.", "unexplained"
    agreed = "losses and gradients agree" if derivative else "losses agree"
    evidence = f"{_words(fitting, port.handed)}, {agreed}: {name} reads them so, or its mapping is wrong."
    return evidence, "proven" if derivative else "consistent"


def _factor(first: Computed, port: Computed) -> float | None:
    """The factor that is all the difference, or None."""
    if first.loss == 0 or port.loss == 0:
        return None
    factor = port.loss / first.loss
    scaled = {n: g / factor for n, g in port.gradients.items()}
    return factor if Gap(first, replace(port, loss=first.loss, gradients=scaled)).agrees else None


def _fitting(first: Computed, port: Computed, *, gradients: bool) -> tuple[Rearrangement | None, int]:
    """The first rearrangement of the port's parameters with which it agrees, and how many were tried."""
    shapes = {n: p.shape for n, p in port.values.items()}
    n_tried = 0
    for candidate in itertools.islice(rearrangements(shapes), _MOST):
        try:
            port.budget.take(1, "port")
        except Stop:
            break
        n_tried += 1
        if _fits(candidate, first, port, gradients=gradients):
            return candidate, n_tried
    return None, n_tried


def _fits(candidate: Rearrangement, first: Computed, port: Computed, *, gradients: bool) -> bool:
    values = candidate.apply(port.values)
    native = port.handed.model
    with preserved(native), np.errstate(all="ignore"):
        loss = float(port.source.loss(values))
    if not Gap(first, replace(port, loss=loss)).losses_agree:
        return False
    if not gradients:
        return True
    port.budget.take(1, "gradient")
    with preserved(native):
        _, found = port.source.value_and_grad(values)
    moved = corresponding(candidate.apply, port.values, port.values, name="port").adjoint(found)
    return Gap(first, replace(port, loss=loss, gradients=back(port.handed.correspondence, moved))).agrees


def _words(fitting: Rearrangement, port: Handed) -> str:
    """What was rearranged, gates by their names where the first model's parameters have any."""
    *most, last = fitting.tensors
    tensors = f"{', '.join(most)} and {last}" if most else last
    gates = None if fitting.blocks is None else _gates(fitting.blocks, port.correspondence)
    if gates is None or fitting.blocks is None:
        return f"With {fitting.words.format(tensors)}"
    read = ", ".join(gates[k] for k in fitting.blocks.order)
    return f"With the gates {', '.join(gates)} of {tensors} read as {read}"


def _gates(blocks: Blocks, correspondence: Correspondence) -> str | None:
    """The gates of a port's blocks, in its order: found out from the first model's parameters that are there."""
    n_blocks = len(blocks.order)
    for target, axis in blocks.axes.items():
        for source, part in correspondence.parts[target].items():
            known = gate_names(source, n_blocks)
            if known is None:
                continue
            gates, source_axis = known
            starts = [np.split(part.index, n_blocks, axis=axis)[k].flat[0] for k in range(n_blocks)]
            shape = correspondence.shapes[source]
            places = [np.unravel_index(start, shape)[source_axis] * n_blocks // shape[source_axis] for start in starts]
            return "".join(gates[place] for place in places)
    return None
