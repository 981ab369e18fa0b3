"""Causes in time: the backward pass covers fewer steps than the forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradaudit.arrays import Gradients, global_norm
from gradaudit.compare import Verdict
from gradaudit.diagnose.cut import MEANT, Blamed, accepted, blame, if_meant, times
from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.order import in_order
from gradaudit.diagnose.reach import Reach, reach, steps_of
from gradaudit.measure.plan import scales
from gradaudit.recurrent import Truncation
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["not_as_declared", "truncated", "truncated_as_declared"]

#: With fewer steps a zero beside a number is no cliff.
_LEAST_STEPS = 3
#: More parameters than this are counted, not named.
_NAMED = 8
_INSTEAD = {
    "tail": "cut the state only, every k steps (chunks(k))",
    "randomised": "a smaller p; the mean over many seeds has no bias",
}
#: What the kinds without a cliff keep.
_KEPT = {
    "window": "Each loss goes back {k}",
    "chunks": "The backward pass ends at the state before every block of {k}",
    "tbptt": "The losses of every {k1} go back {k} from the last of them",
    "tail": "The backward pass covers the last {k} only",
}
_ACCEPTED = "You accepted this truncation; the verdict is that of the gradient given its cuts."


def truncated_as_declared(evidence: Evidence) -> Finding | None:
    """GA102: the gradient is that of the truncation which the model declares, and of nothing else."""
    frozen, total, truncation = evidence.frozen, evidence.total, evidence.truncation
    if frozen is None or total is None or truncation is None or frozen.verdict is not Verdict.AGREE:
        return None
    full = evidence.lifted_gradients
    if full is None or total.verdict is Verdict.AGREE:
        return None
    steps = evidence.sizes.get("steps")
    costs, size = _missing(evidence.baseline.gradients, full, evidence.wrong())
    numbers = costs | {"k": float(truncation.k or 0)}
    sentence = f"{_cut_off(truncation, steps)}{size}"
    if steps and truncation.kind == "tail":
        numbers["k_over_steps"] = (truncation.k or 0) / steps
        sentence += f" For comparison, k / steps is {number(numbers['k_over_steps'])}."
    lifted = evidence.lifted
    assert lifted is not None  # total and lifted_gradients are there
    proven = lifted.verdict is Verdict.AGREE
    shown = f"and with the truncation lifted they agree with it whole ({number(lifted.resolution)})" if proven else ""
    return Finding(
        code="GA102",
        title=f"truncated in time, {truncation}, as declared",
        confidence="proven" if proven else "consistent",
        sentence=sentence,
        evidence=f"With the {_held(truncation)} held at the base point, analytic and numeric agree: an error above "
        f"{number(frozen.resolution)} would have been seen{'; ' + shown if shown else ''}.",
        remedy=_ACCEPTED
        if evidence.options.truncation == truncation
        else f"If this is meant: pass truncation={truncation}, and the report judges the truncated gradient and shows "
        f"its bias. If not: declare none(), or {_INSTEAD.get(truncation.kind, 'a larger k')}.",
        parameters=tuple(evidence.wrong()),
        numbers=numbers,
    )


def _missing(kept: Gradients, full: Gradients, names: Sequence[str]) -> tuple[dict[str, float], str]:
    """How much of the gradient of these tensors is left out, in numbers and as a sentence.

    Of others, as a readout, the gradient is whole: together with them the bias would look smaller than it is.
    """
    among = names or list(kept)
    left = {n: g if (f := full[n]) is None or (g := kept[n]) is None else g - f for n in among}
    whole = global_norm({n: full[n] for n in among})
    ratio, bias = (
        global_norm(part) / whole if whole > 0 else float("nan") for part in ({n: kept[n] for n in among}, left)
    )
    named = ", ".join(among) if len(among) <= _NAMED else f"{len(among)} of {len(kept)} parameters"
    of = "The" if len(among) == len(kept) else f"Over {named}, the"
    sentence = f" {of} gradient's norm is {number(ratio)} of the full one; its bias is {_percent(bias)}."
    return {"bias": bias, "norm_ratio": ratio}, sentence


def _cut_off(truncation: Truncation, steps: int | None) -> str:
    """What the backward pass leaves out, a sentence."""
    k, of = truncation.k, f" of {steps:,}" if steps else ""
    many = f"one step{of}" if k == 1 else f"{k}{of} steps"
    match truncation.kind:
        case "tail":
            covered = f"the last step{of}" if k == 1 else f"the last {k}{of} steps"
            return f"The backward pass covers only {covered}; losses at earlier steps contribute nothing."
        case "chunks":
            return f"The gradient does not cross from one block of {many} to the block before."
        case "tbptt":
            return f"In blocks of {truncation.k1}, losses go back {many} at most, counted from the end of their block."
        case "randomised":
            return (
                f"The gradient that crosses a step is cut with probability {number(truncation.p or 0.0)}, and scaled "
                f"up where it is not: right on average over seeds, not for one."
            )
    return f"Every loss goes back {many} at most."


def _held(truncation: Truncation) -> str:
    return "earlier steps" if truncation.kind == "tail" else "states that are cut"


def not_as_declared(evidence: Evidence) -> Finding | None:
    """GA103: a truncation is declared, and the gradient is not that of this truncation."""
    frozen, truncation = evidence.frozen, evidence.truncation
    if frozen is None or truncation is None or frozen.verdict is not Verdict.DISAGREE:
        return None
    wrong = [name for name, verdict in frozen.verdicts.items() if verdict is Verdict.DISAGREE]
    return Finding(
        code="GA103",
        title=f"not the gradient of {truncation}, which is declared",
        confidence="consistent",
        sentence=f"Even with the {_held(truncation)} held at the base point, the gradient of {', '.join(wrong)} is not "
        f"the derivative: the declared truncation does not explain it.",
        remedy="Correct the declaration, or look for an error in the backward pass itself.",
        parameters=tuple(wrong),
    )


def truncated(evidence: Evidence) -> Finding | None:
    """GA104: the gradient by time is that of truncated back-propagation: right in the last steps only.

    Seen where a tensor with an axis of time, for example the inputs, is audited as a parameter. Truncation of the
    last k steps (Theano's ``truncate_gradient``) makes a cliff of exact zeros; a gradient that vanishes makes a slope.
    Others show in which inputs the gradient of a step depends on, to the last bit.
    """
    wrong = evidence.wrong()
    cliffs = {name: cliff for name in wrong if (cliff := _cliff(evidence, name)) is not None}
    axes = {name: axis for name, (_, _, axis) in cliffs.items()}
    if cliffs and len({cliff[:2] for cliff in cliffs.values()}) == 1 and _is_time(evidence, wrong, axes):
        return _at_the_end(evidence, wrong, list(cliffs), *next(iter(cliffs.values()))[:2])
    found = None if cliffs or not wrong else reach(evidence, wrong)
    if found is None or (found.is_tail and not _is_time(evidence, wrong, {found.name: found.axis})):
        return None
    return _in_between(evidence, wrong, found)


def _at_the_end(evidence: Evidence, wrong: list[str], names: list[str], k: int, n_steps: int) -> Finding:
    blamed = blame(evidence, wrong)
    costs, size = _cost(evidence, blamed)
    last, of_k = ("in the last one", "step") if k == 1 else (f"in the last {k:,}", f"{k:,} steps")
    return Finding(
        code="GA104",
        title=f"truncated in time, tail, k = {k}{_at(blamed)}",
        confidence="consistent" if blamed is None else "proven",
        sentence=f"The gradient of {', '.join(names)} is exactly zero in the first {n_steps - k:,} of {n_steps:,} "
        f"steps, where the loss does depend on it, and right {last}: the backward pass covers the last {of_k} "
        f"only.{_cut_by(blamed)}{size}",
        evidence="A cliff, not the slope of a gradient that vanishes." if blamed is None else blamed.shown,
        remedy=_remedy(
            evidence,
            blamed,
            "remember that losses at earlier steps contribute nothing (if only the last step has a loss, it is any "
            "truncation after k steps)",
            "let the backward pass cover all steps, or cut the state only, every k steps (chunks(k))",
        ),
        parameters=tuple(wrong if blamed is None else blamed.names),
        numbers={"k": float(k), "steps": float(n_steps)} | costs,
    )


def _in_between(evidence: Evidence, wrong: list[str], found: Reach) -> Finding:
    blamed = blame(evidence, wrong)
    first = found.fit[0]
    costs, size = _cost(evidence, blamed)
    numbers = {"steps": float(found.n_steps)} | costs
    if len(found.fit) == 1:
        numbers |= {"k": float(first.k or 0)} | ({} if first.k1 is None else {"k1": float(first.k1)})
        what = f"{first.kind}, {'' if first.k1 is None else f'k1 = {first.k1}, '}k = {first.k}"
        kept = _KEPT[first.kind].format(k=_steps(first.k or 1), k1=_steps(first.k1 or 1))
    else:
        what = " or ".join(map(str, found.fit))
        kept = "What tells these apart is below rounding here"
    return Finding(
        code="GA104",
        title=f"truncated in time, {what}{_at(blamed)}",
        confidence="consistent" if blamed is None else "proven",
        sentence=f"The gradient of {found.name} is right in the last of {found.n_steps:,} steps and wrong before them: "
        f"it does not contain later losses that do depend on it. {kept}.{_cut_by(blamed)}{size}",
        evidence="With later inputs replaced, the gradients of exactly those steps change for which this truncation "
        "keeps a later loss."
        if blamed is None
        else blamed.shown,
        remedy=_remedy(
            evidence,
            blamed,
            "know its bias: what reaches further back does not count",
            "let the backward pass cover all steps, or more of them",
        ),
        parameters=tuple(wrong if blamed is None else blamed.names),
        numbers=numbers,
    )


def _cost(evidence: Evidence, blamed: Blamed | None) -> tuple[dict[str, float], str]:
    """What is left out, where the gradient without the cuts is known."""
    if blamed is None or blamed.full is None:
        return {}, ""
    return _missing(evidence.baseline.gradients, blamed.full, blamed.names)


def _remedy(evidence: Evidence, blamed: Blamed | None, known: str, otherwise: str) -> str:
    if blamed is not None and accepted(evidence, blamed.cuts):
        return MEANT
    accept = "" if blamed is None else f"; {if_meant(blamed.cuts)}"
    return f"If this is meant, {known}{accept}. If not: {otherwise}."


def _steps(k: int) -> str:
    return "step" if k == 1 else f"{k:,} steps"


def _at(blamed: Blamed | None) -> str:
    return "" if blamed is None else f", cut at {', '.join(dict.fromkeys(cut.place for cut in blamed.cuts))}"


def _cut_by(blamed: Blamed | None) -> str:
    return "" if blamed is None else f" The backward pass is cut by {', '.join(map(times, blamed.cuts))}."


def _is_time(evidence: Evidence, wrong: Sequence[str], axes: Mapping[str, int]) -> bool:
    """Whether these axes are time, and not the rows of a weight or an embedding, some of which are frozen.

    The model says how many steps there are; or what all steps share is wrong, too, for it lacks the earlier ones; or
    the loss tells.
    """
    shared = any(name not in axes for name in wrong)
    return "steps" in evidence.sizes or shared or any(in_order(evidence, name, axis) for name, axis in axes.items())


def _cliff(evidence: Evidence, name: str) -> tuple[int, int, int] | None:
    """How many last steps of how many have a gradient, along the first axis where that is so and is right; that axis.

    Rows of anything look like that.
    """
    gradient = evidence.baseline.gradients[name]
    if gradient is None or not np.isfinite(gradient).all():
        return None
    for axis in steps_of(evidence, gradient.shape, _LEAST_STEPS):
        n = gradient.shape[axis]
        alive = np.any(gradient != 0, axis=tuple(i for i in range(gradient.ndim) if i != axis))
        first = int(np.argmax(alive))
        if not first > 0 or not alive[first:].all():
            continue
        shape = [n if i == axis else 1 for i in range(gradient.ndim)]
        late = (np.arange(n) >= first).astype(float).reshape(shape)
        size = scales({name: evidence.model.parameters()[name]})[name]
        looks = evidence.along([{name: size * (1 - late)}, {name: size * late}])
        if len(looks) == 2 and looks[0].verdict is Verdict.DISAGREE and looks[1].verdict is Verdict.AGREE:
            return n - first, n, axis
    return None


def _percent(share: float) -> str:
    percent = 100 * share
    # 99.996 % must not read as 100 %: something is left
    digits = next((d for d in range(1, 8) if round(percent, d) not in (0.0, 100.0)), 1)
    return f"{percent:.{max(digits, 2)}f} %"
