"""How far each loss reaches back: what the backward pass passes to every earlier state, against what it owes to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array
from gradaudit.compare import Verdict
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.lens.reach import SupportsReach
from gradaudit.lens.slopes import NODES, richardson
from gradaudit.measure.state import preserved
from gradaudit.protocols import Model, SupportsSizes, SupportsTwin
from gradaudit.recurrent import Truncation
from gradaudit.render import to_plot
from gradaudit.render.pair_text import pair_text, picture

__all__ = ["PairView", "by_pair"]

#: Steps in one table: numbers and evaluations grow with their square.
_MOST_STEPS = 256
#: Of the size of the states: fewer kinks lie between, and less of a chaotic net's folding, than in a move of that size.
_MOVE = 2.0**-4
#: An entry is right within so many errors of the differences (thousands of pairs are judged by one look each), and
#: roundings of the backward pass relative to its terms.
_ERRORS, _ROUNDING = 60.0, 1e-6
#: Differences whose error is this share of them say nothing; twice in a row, none later does: the moves have grown.
_LOST = 0.1
#: States whose differences tell the rounding of a loss.
_NEAREST = 7
_SEED = 41


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairView:
    """The derivatives of single losses by single states, analytic and numeric; ``str()`` is a table and a picture.

    Entry [i, j] is the derivative of what step s = ``steps[i]`` adds to the loss by the state after step u =
    ``steps[j]``, along one random direction of that state in each sequence; 0 above the diagonal.

    Attributes:
        target: what was looked at.
        truncation: as declared.
        n_steps: T.
        steps: (n,), s and u.
        analytic: (n, n), what the truncated backward pass passes on.
        numeric: (n, n), what there is: derivatives of the losses by differences.
        expected: (n, n), what the truncation leaves of the numeric ones.
        bound: (n, n), of the gap between analytic and expected; 0 where a pair is cut, inf where nothing can be told.
        evaluations: forward passes, each from a moved state on.
    """

    target: str
    truncation: Truncation
    n_steps: int
    steps: Array
    analytic: Array
    numeric: Array
    expected: Array
    bound: Array
    evaluations: int

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(n, n), the pairs that the declared truncation keeps: `Truncation.keeps`."""
        return _kept(self.truncation, self.steps, self.n_steps)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(n, n), where the backward pass passes on what it should not: beyond the bound, or not 0 where it is cut."""
        # a number that is none is wrong where the differences are numbers
        return np.asarray(~(np.abs(self.analytic - self.expected) <= self.bound) & ~self.unresolved, bool)

    @property
    def unresolved(self) -> NDArray[np.bool_]:
        """(n, n), where the differences say nothing, for example of what a chaotic net has forgotten."""
        return np.asarray(np.isinf(self.bound), bool)

    @property
    def verdict(self) -> Verdict:
        """Of all pairs, given the truncation: AGREE where kept pairs are right and all others exactly 0."""
        if self.wrong.any():
            return Verdict.DISAGREE
        return Verdict.INCONCLUSIVE if self.unresolved.any() else Verdict.AGREE

    def __str__(self) -> str:
        return pair_text(self)

    def picture(self) -> str:
        """A sign for each pair of at most 40 losses (rows) and states (columns), with the number of the loss.

        A digit says how many powers of ten below the largest is what was passed back; ``.`` cut, ``!`` wrong, ``?`` not
        resolved, a blank where a loss depends on nothing.
        """
        return picture(self)

    def plot(self, path: str | Path) -> None:
        """Both tables as pictures, drawn to a file: PNG, SVG or PDF by its ending. Needs the extra ``plot``.

        Raises:
            OptionError: matplotlib is not installed, or does not know the ending.
        """
        to_plot.pair_plot(self, Path(path))


def by_pair(model: Any, *, steps: Collection[int] | None = None, seed: int = 0, name: str | None = None) -> PairView:
    """How far does each loss reach back? A band is a window, steps are chunks, a cliff is a tail, a slope vanishes.

    For the loss of every step s and the state h_u after every step u: what the truncated backward pass passes from the
    one to the other, ``<r_u, d loss_s / d h_u>`` with a random r_u, against central differences of loss_s with h_u
    moved along r_u, 6 n + 1 losses for n steps, all of them sequences of a batch. The backward pass is the one of the
    truncation's segments, of which the network's gradient is made, taken one step at a time (but for PyTensor's own
    ``truncate_gradient``, which is inside its scan; `audit` compares the two). A float32 network is looked at as its
    float64 twin.

    Args:
        model: one that shows its states, see `gradaudit.lens.reach.SupportsReach`: the built-in networks of every
            backend that run one way, or your own. The states of other models are not known; see `by_step` and
            `identify_truncation` for those.
        steps: those whose losses and states are looked at, from 1 to T; by default all. The cost is that of the steps
            between the first and the last, times their number.
        seed: of the directions.
        name: of the model in the result.

    Raises:
        ModelContractError: the model does not show its states.
        OptionError: more than 256 steps, or some that are none; the network runs both ways, or has no state.
    """
    if not isinstance(model, SupportsReach) or not isinstance(model, SupportsSizes):
        msg = f"the states of a {type(model).__name__} are not known"
        hint = "a built-in network; for another model by_step() shows the gradient of a tensor along time"
        raise ModelContractError(msg, where="by_pair()", hint=hint)
    n_steps = model.sizes()["steps"]
    chosen = _chosen(steps, n_steps)
    assert isinstance(model, Model)
    with preserved(model), np.errstate(all="ignore"):
        twin = model.twin() if isinstance(model, SupportsTwin) else None
        lens = twin if isinstance(twin, SupportsReach) else model
        return _view(lens, chosen, n_steps, seed, name or type(model).__name__)


def _chosen(steps: Collection[int] | None, n_steps: int) -> Array:
    chosen = np.arange(1, n_steps + 1) if steps is None else np.unique(np.asarray(list(steps), np.int64))
    if not len(chosen) or chosen[0] < 1 or chosen[-1] > n_steps:
        msg = f"the steps run from {chosen[0]} to {chosen[-1]}" if len(chosen) else "there are no steps"
        raise OptionError(msg, where="by_pair()", hint=f"some of 1 to {n_steps}, for example steps=range(1, 41)")
    if len(chosen) > _MOST_STEPS:
        msg = f"a table of {len(chosen):,} steps has {len(chosen) ** 2:,} pairs"
        hint = f"at most {_MOST_STEPS} steps: the last, steps=range({n_steps - _MOST_STEPS + 1}, {n_steps + 1}), or "
        raise OptionError(msg, where="by_pair()", hint=f"{hint}every {-(-n_steps // _MOST_STEPS)}th")
    return chosen


def _view(model: SupportsReach, steps: Array, n_steps: int, seed: int, name: str) -> PairView:
    states = model.states_after(steps)
    rng = np.random.default_rng([seed, _SEED])
    directions = rng.uniform(0.5, 1.5, states.shape) * rng.choice(np.array([-1.0, 1.0]), states.shape)
    analytic, reach = model.passed(steps, directions)
    # each state by its own size: they may grow without bound
    sizes = np.sqrt(np.mean(np.square(states), axis=(1, 2), keepdims=True))
    lengths = _MOVE * np.where(sizes > 0, sizes, 1.0)
    slopes, errors = (a / lengths[:, :, 0] for a in _slopes(model, steps, lengths * directions))
    weights = _weights(model.truncation, steps, n_steps, states.shape[1])
    numeric, bound = slopes.sum(axis=2), _ERRORS * (np.abs(weights) * errors).sum(axis=2)
    return PairView(
        target=name,
        truncation=model.truncation,
        n_steps=n_steps,
        steps=steps,
        analytic=analytic,
        numeric=numeric,
        expected=np.where(weights == 0, 0, weights * slopes).sum(axis=2),
        # what is cut is exactly 0, whatever can be known of the losses
        bound=np.where(weights.any(axis=2), bound + _ROUNDING * np.maximum(reach, np.abs(numeric)), 0.0),
        evaluations=len(NODES) * len(steps) + 1,
    )


def _slopes(model: SupportsReach, steps: Array, moves: Array) -> tuple[Array, Array]:
    """The derivatives of the losses by sequence, along the moves of the states, and their errors: (n, n, N)."""
    losses = model.moved(steps, steps, np.multiply.outer(NODES, moves)).astype(np.float64)
    still = model.moved(steps, steps[:1], np.zeros_like(moves[None, :1])).astype(np.float64)[0]
    # a loss of exactly 0 has been rounded to that: then its neighbours, or those before, tell how large its terms are
    sizes = np.maximum.accumulate(np.abs(still), axis=0)
    usual = np.median(sizes[sizes > 0]) if sizes.any() else 1.0
    rounding = np.finfo(np.float64).eps * np.maximum(np.abs(losses).max(axis=0), np.maximum(sizes, usual))
    (best, errors), (_, least) = richardson(losses, rounding), richardson(np.zeros_like(losses), rounding)
    # at a kink both sides together change as they do at no smooth point: in proportion to the move
    both = (losses[::2] + losses[1::2] - 2 * still) / NODES[::2].reshape(-1, 1, 1, 1)
    errors = errors - least + np.abs(2 * both[:-1] - both[1:]).max(axis=0)
    # a cross-entropy can be a small difference of large numbers: what its nearest states show is rounding, or worse
    least += np.stack([np.median(of_loss[max(0, i - _NEAREST) : i + 1], axis=0) for i, of_loss in enumerate(errors)])[
        :, None
    ]
    later = (steps <= steps[:, None])[:, :, None]
    known = np.isfinite(best) & np.isfinite(errors) & ~_lost(best, errors, least)
    return np.where(later, best, 0.0), np.where(later, np.where(known, errors + least, np.inf), 0.0)


def _lost(best: Array, errors: Array, rounding: Array) -> NDArray[np.bool_]:
    """Where the differences (n, n, N) say nothing: (n, n, 1); of losses before the state anything."""
    rough = ~(errors.sum(axis=2) <= _LOST * np.abs(best).sum(axis=2) + _ERRORS * rounding.sum(axis=2))
    # once may be a kink, or a derivative that is zero by chance
    twice = rough[1:] & rough[:-1] & (np.tri(*rough[1:].shape) > 0)
    rough[1:] |= np.logical_or.accumulate(twice, axis=0)
    return np.asarray(rough[:, :, None])


def _weights(truncation: Truncation, steps: Array, n_steps: int, n_sequences: int) -> Array:
    """What the truncation makes of a pair in each sequence, (n, n, N): 0 or 1; for `randomised` what was drawn."""
    gates = truncation.gates(n_steps, n_sequences) if truncation.kind == "randomised" else None
    if gates is None:
        kept = _kept(truncation, steps, n_steps).astype(float)
        return np.repeat(kept[:, :, None], n_sequences, axis=2)
    weights = np.zeros((len(steps), len(steps), n_sequences))
    for i, u in enumerate(steps):
        crossed = np.cumprod(np.concatenate([np.ones((1, n_sequences)), gates.state[u : steps[-1]]]), axis=0)
        weights[i:, i] = crossed[steps[i:] - u]
    return weights


def _kept(truncation: Truncation, steps: Array, n_steps: int) -> NDArray[np.bool_]:
    """The pairs that it keeps, (n, n), as `Truncation.keeps`."""
    reach = truncation.reach(n_steps)[steps - 1]
    return np.asarray((steps <= steps[:, None]) & (steps[:, None] <= reach), bool)
