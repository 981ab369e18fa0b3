"""Bias curves as data: what `gradaudit.bias_curve` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradaudit.errors import OptionError
from gradaudit.recurrent import Truncation
from gradaudit.render import to_json, to_plot
from gradaudit.render.bias_text import bias_text

__all__ = ["BiasCurve", "BiasPoint", "SemanticsCurve", "smallest", "truncation_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasPoint:
    """One truncation: what it leaves out, and what it costs.

    Attributes:
        k: its length in steps.
        bias: ``||g - g_k|| / ||g||`` over `SemanticsCurve.parameters`, g the full gradient; where `BiasCurve.full` is
            False, a bound of it.
        parameters: the same of each parameter tensor.
        work: steps that its gradient runs forward and backward, all segments together, over those of the full gradient;
            built-in networks of few units need less for a long window.
        held: steps whose states its gradient keeps if segments run one after the other: those of the longest; the full
            gradient keeps all T.
        together: steps whose states it keeps if all segments run side by side, which is faster; built-in networks run
            as many side by side as make two million numbers.
        seconds: how long this gradient took here; of a built-in network the second time, of any other model the first,
            with whatever is compiled then. None: it was made of others.
    """

    k: int
    bias: float
    parameters: Mapping[str, float]
    work: float
    held: int
    together: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticsCurve:
    """The bias of one kind of truncation at growing lengths.

    Attributes:
        kind: window, chunks, tail, or tbptt:K1.
        parameters: those that this kind changes, whose bias together is `BiasPoint.bias`.
        points: by k.
        k: the smallest one measured from which on the bias stays below delta; None: the horizon is too short.
        horizon: the largest k that was measured.
        beta: the factor by which pairs one step further apart contribute less, fitted at the far end; windows only.
            None: nothing was left there above rounding.
        extrapolated: where k is None, the k at which the bias would be delta if it went on falling by beta a step.
            None: it does not fall.
    """

    kind: str
    parameters: tuple[str, ...]
    points: tuple[BiasPoint, ...]
    k: int | None
    horizon: int
    beta: float | None
    extrapolated: int | None

    def named(self, k: int) -> Truncation:
        """The truncation of this kind at a length."""
        return truncation_of(self.kind, k)

    def smallest(self, delta: float, parameter: str | None = None) -> int | None:
        """The smallest k measured from which on the bias, in all or of one parameter, stays below ``delta``.

        None where it does not up to the horizon. Between the k measured nothing is known: only for the curve's own
        delta, and in all, the neighbours of the answer are.
        """
        return smallest(self.points, delta, parameter)


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCurve:
    """How biased a truncated gradient is, against its length; ``str()`` is a table.

    Attributes:
        target: what was measured.
        delta: the bias to stay below.
        n_steps: T.
        full: the reference is the full gradient; otherwise the longest window, and a geometric remainder.
        curves: one for each kind that was asked for.
        gradients: how many gradients were computed.
        work: what they ran, in full gradients: the sum of the points' `BiasPoint.work`, and the full one.
        seconds: what all took.
        full_seconds: how long the full gradient took, as `BiasPoint.seconds`; None: it was not computed.
        schema_version: of the JSON.
    """

    target: str
    delta: float
    n_steps: int
    full: bool
    curves: tuple[SemanticsCurve, ...]
    gradients: int
    work: float
    seconds: float
    full_seconds: float | None
    schema_version: int = 1

    @property
    def answered(self) -> bool:
        """Whether every kind has a k whose bias stays below delta."""
        return all(curve.k is not None for curve in self.curves)

    def __getitem__(self, kind: str) -> SemanticsCurve:
        """The curve of one kind.

        Raises:
            OptionError: it was not measured.
        """
        for curve in self.curves:
            if curve.kind == kind:
                return curve
        msg = f"{kind!r} was not measured"
        raise OptionError(msg, where="kinds", hint=f"one of {', '.join(curve.kind for curve in self.curves)}")

    def __str__(self) -> str:
        return bias_text(self)

    def to_json(self) -> str:
        """All of it as JSON text."""
        return to_json.dumps(self)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Bias against k, drawn to a file: PNG, SVG or PDF by its ending. Needs the extra ``plot``.

        Raises:
            OptionError: matplotlib is not installed, or does not know the ending.
        """
        to_plot.bias_plot(self, Path(path))


def truncation_of(kind: str, k: int) -> Truncation:
    """Of a kind as curves name it: window, chunks, tail, or tbptt:K1."""
    return Truncation.parse(f"{kind}:{k}")


def smallest(points: Sequence[BiasPoint], delta: float, parameter: str | None = None) -> int | None:
    """The first k from which on all points are below delta."""
    found = None
    for point in reversed(points):
        if not (point.bias if parameter is None else point.parameters[parameter]) < delta:
            break
        found = point.k
    return found
