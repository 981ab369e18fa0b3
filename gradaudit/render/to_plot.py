"""What the lens measures, as figures; matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradaudit.errors import OptionError

if TYPE_CHECKING:
    from gradaudit.lens.by_pair import PairView
    from gradaudit.lens.by_step import StepView
    from gradaudit.lens.curves import BiasCurve

__all__ = ["bias_plot", "drawable", "pair_plot", "step_plot"]

#: Powers of ten that a picture of pairs tells apart.
_DECADES = 8


def bias_plot(curve: BiasCurve, path: Path) -> None:
    """Bias against k, both logarithmic: bold over all parameters that are cut, thin for each of them.

    Raises:
        OptionError: as `drawable`.
    """
    drawable(path)
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
        ax.plot(ks, [point.bias or None for point in one.points], "k.-", lw=2, label="together")
        ax.axhline(curve.delta, color="grey", ls=":")
        if one.k is not None:
            ax.axvline(one.k, color="grey", ls=":")
        title = one.kind if one.beta is None else f"{one.kind}, beta {one.beta:.3f}"
        ax.set(xscale="log", yscale="log", xlabel="k", title=f"{title}\n{_answer(one.k, one.horizon)}")
    axes[0].set(ylabel="bias" if curve.full else "bound of the bias", ylim=(bottom, None))
    axes[0].legend(fontsize="small")
    figure.set_size_inches(4 * len(axes), 4)
    figure.savefig(path, dpi=100)


def drawable(path: Path) -> None:
    """Whether a figure could be drawn to this path, asked before the work.

    Raises:
        OptionError: matplotlib is not installed, or does not know the ending; there is no such folder.
    """
    if path.suffix.removeprefix(".") not in _figure().canvas.get_supported_filetypes():
        msg = f"cannot save a plot to {path}"
        raise OptionError(msg, where="plot()", hint="a path that ends in .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        msg = f"there is no folder {path.parent}"
        raise OptionError(msg, where="plot()", hint="a path in a folder that exists")


def step_plot(view: StepView, path: Path) -> None:
    """The sizes of both derivatives by step, on a logarithmic axis, and below them their difference; wrong ones red.

    Raises:
        OptionError: as `drawable`.
    """
    drawable(path)
    figure = _figure()
    above, below = figure.subplots(2, 1, sharex=True)
    steps = np.arange(1, len(view.verdicts) + 1)
    analytic, numeric = np.abs(view.analytic), np.abs(view.numeric)
    # a bound of the numeric error is the smallest size that means anything
    above.plot(steps, np.where(numeric > view.bound, numeric, np.nan), "k.-", lw=0.8, label="numeric")
    above.plot(steps, np.where(analytic > 0, analytic, np.nan), "C0.", ms=4, label="analytic")
    above.set(yscale="log", ylabel="size", title=f"d loss / d {view.tensor}, along one direction within each step")
    above.legend(fontsize="small")
    wrong = view.wrong
    missing = np.abs(view.analytic - view.numeric) / np.where(numeric > view.bound, numeric, np.nan)
    floor = 1e-8
    below.plot(steps, np.maximum(missing, floor), "k-", lw=0.8)
    below.plot(steps[wrong], np.maximum(missing, floor)[wrong], "r.", ms=4, label="wrong")
    below.set(yscale="log", xlabel="step", ylabel="relative error")
    if wrong.any():
        below.legend(fontsize="small")
    figure.set_size_inches(8, 5)
    figure.savefig(path, dpi=100)


def pair_plot(view: PairView, path: Path) -> None:
    """The numeric derivatives and what the backward pass makes of them, side by side, by powers of ten; wrong ones red.

    Raises:
        OptionError: as `drawable`.
    """
    drawable(path)
    figure = _figure()
    axes = figure.subplots(1, 2, sharey=True)
    largest = np.abs(view.numeric)[np.isfinite(view.numeric)].max(initial=0.0) or 1.0
    image = None
    for ax, values, title in zip(axes, (view.numeric, view.analytic), ("there is", "passed back"), strict=True):
        sizes = np.abs(values) / largest
        shown = np.log10(np.where(sizes > 0, sizes, np.nan))
        image = ax.imshow(shown, vmin=-_DECADES, vmax=0, cmap="viridis", interpolation="nearest")
        ax.set(xlabel="state u", title=f"d loss_s / d h_u: {title}")
    s, u = np.nonzero(view.wrong)
    axes[1].plot(u, s, "rx", ms=3)
    ticks = np.unique(np.linspace(0, len(view.steps) - 1, 5).astype(int))
    axes[0].set(ylabel="loss s", yticks=ticks, yticklabels=view.steps[ticks])
    for ax in axes:
        ax.set(xticks=ticks, xticklabels=view.steps[ticks])
    figure.colorbar(image, ax=axes, label="log10 of the size, relative to the largest")
    figure.suptitle(str(view.truncation))
    figure.set_size_inches(9, 4)
    figure.savefig(path, dpi=100)


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
