"""A bias curve as a figure; matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradaudit.errors import OptionError

if TYPE_CHECKING:
    from gradaudit.lens.curves import BiasCurve

__all__ = ["bias_plot"]


def bias_plot(curve: BiasCurve, path: Path) -> None:
    """Bias against k, both logarithmic: bold over all parameters, thin for each of them.

    Raises:
        OptionError: matplotlib is not installed, or does not know the ending of the path.
    """
    figure = _figure()
    axes = figure.subplots(1, len(curve.curves), sharey=True, squeeze=False)[0]
    biases = [point.bias for one in curve.curves for point in one.points if point.bias > 0]
    # a curve that ends at rounding would leave no room for the rest
    bottom = max(min([curve.delta, *biases]), curve.delta / 100) / 3
    for ax, one in zip(axes, curve.curves, strict=True):
        ks = [point.k for point in one.points]
        for name in one.points[0].parameters:
            if max(point.parameters[name] for point in one.points) < bottom:
                continue  # nothing is missing but roundings, for example of a readout
            ax.plot(ks, [point.parameters[name] or None for point in one.points], lw=0.8, label=name)
        ax.plot(ks, [point.bias or None for point in one.points], "k.-", lw=2, label="all")
        ax.axhline(curve.delta, color="grey", ls=":")
        if one.k is not None:
            ax.axvline(one.k, color="grey", ls=":")
        title = one.kind if one.beta is None else f"{one.kind}, beta {one.beta:.3f}"
        ax.set(xscale="log", yscale="log", xlabel="k", title=f"{title}\n{_answer(one.k, one.horizon)}")
    axes[0].set(ylabel="bias" if curve.full else "bound of the bias", ylim=(bottom, None))
    axes[0].legend(fontsize="small")
    figure.set_size_inches(4 * len(axes), 4)
    _save(figure, path)


def _answer(k: int | None, horizon: int) -> str:
    return f"k = {k}" if k is not None else f"horizon {horizon} too short"


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        msg = "a plot needs matplotlib, which is not installed"
        raise OptionError(msg, where="plot()", hint="pip install 'gradaudit[plot]'") from None
    # a figure of its own: pyplot's global state stays what it is
    return Figure(layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=100)
    except ValueError as error:
        msg = f"cannot save a plot to {path}: {error}"
        raise OptionError(msg, where="plot()", hint="a path that ends in .png, .svg or .pdf") from None
