"""The `tf.custom_gradient`s of a TensorFlow loss, each compared with the derivative of its own primal, or replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from types import CodeType
from typing import Any, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.tensorflow.comparison import UNKNOWN, Comparison, Error, dense, relative_error
from gradaudit.backends.tensorflow.eager import (
    EagerFunction,
    EagerModel,
    Evaluation,
    Rewritten,
    RuleCall,
    Twin,
    evaluate,
)
from gradaudit.sites import CustomRule

__all__ = ["RuleExperiments"]

#: How many functions made by the same line are told apart, by what they close over.
_MAKES = 32
#: An error that explains nothing.
_NEGLIGIBLE = 1e-4


@final
class RuleExperiments:
    """The rules of one function at one base point: `gradaudit.protocols.SupportsRules`.

    Args:
        function: from a dict of named tensors to one number.
        parameters: the base point.
    """

    def __init__(self, function: EagerFunction, parameters: NamedArrays) -> None:
        self._function = function
        self._parameters = parameters
        self._listed: tuple[CustomRule, ...] | None = None

    def rules(self) -> tuple[CustomRule, ...]:
        """The rules, in the order of their first execution; empty if the function cannot run eagerly."""
        if self._listed is None:
            try:
                self._listed = self._compared()
            except Exception:  # noqa: BLE001  # no one type says "in a graph only" or "not in this TensorFlow"
                self._listed = ()
        return self._listed

    def replacing(self, rules: Collection[CustomRule], twin: Twin) -> EagerModel | None:
        """The function with the derivatives of these rules' primals; None where one is not listed."""
        if not set(rules) <= set(self.rules()):
            return None
        return EagerModel(self._function, self._parameters, twin, replaced=frozenset(rules))

    def _compared(self) -> tuple[CustomRule, ...]:
        seen: dict[CustomRule, list[RuleCall]] = {}
        evaluation = self._evaluated(watcher=lambda call, _: seen.setdefault(call.rule, []).append(call))
        if not seen:
            return ()
        gradients = _gradients(evaluation)
        chosen = {rule: set(_chosen([_make(call.function) for call in calls])) for rule, calls in seen.items()}
        upstream = {rule: [call.upstream[:1] for call in calls] for rule, calls in seen.items()}
        seen.clear()  # what an execution made is not needed any more
        runs: Counter[CustomRule] = Counter()
        found: dict[CustomRule, list[Error]] = {rule: [] for rule in chosen}

        def compare(call: RuleCall, run: Rewritten) -> None:
            n = runs[call.rule]
            if n in chosen.get(call.rule, ()):
                found[call.rule].append(Comparison(call, run, *upstream[call.rule][n]).error())
            runs[call.rule] += 1

        self._evaluated(watcher=compare)
        return tuple(
            replace(rule, executions=len(upstream[rule]), error=worst.error, argument=worst.argument)
            for rule in chosen
            for worst in [self._with_captured(rule, found[rule], gradients)]
            # an operation that is right here is none of the user's rules
            if rule.kind != "operation" or worst.error > _NEGLIGIBLE
        )

    def _with_captured(self, rule: CustomRule, errors: Sequence[Error], gradients: Sequence[Any] | None) -> Error:
        """The worst; what a rule leaves out altogether is a full error, if it makes a difference to the gradient."""
        worst = max(errors, key=Error.rank, default=UNKNOWN)
        captured = max((e.captured for e in errors), default=0)
        if not captured or worst.error > _NEGLIGIBLE or gradients is None:
            return worst
        true = _gradients(self._evaluated(replaced=frozenset([rule])))
        pairs = [] if true is None else [(g, t) for g, t in zip(gradients, true, strict=True) if t is not None]
        missing = any(relative_error(np.zeros_like(t) if g is None else g, t) > _NEGLIGIBLE for g, t in pairs)
        return worst._replace(error=1.0, argument=captured) if missing else worst

    def _evaluated(self, **options: Any) -> Evaluation:
        return evaluate(self._function, self._parameters, **options)


def _gradients(evaluation: Evaluation) -> list[Array | None] | None:
    """None if a rule raises."""
    try:
        found = evaluation.tape.gradient(tf.convert_to_tensor(evaluation.loss), list(evaluation.tensors.values()))
    except Exception:  # noqa: BLE001  # whatever the user's rule raises
        return None
    return [dense(g) for g in found]


# --- which executions are compared ---


def _make(value: Any, depth: int = 3) -> Any:
    """What tells functions of the same line apart: what they close over, with numbers and texts by their value."""
    if isinstance(value, bool | int | float | str | None):
        return type(value), value
    code = getattr(value, "__code__", None)
    if not depth or not isinstance(code, CodeType):
        return id(value)
    closed = [*map(_content, getattr(value, "__closure__", None) or ()), *(getattr(value, "__defaults__", None) or ())]
    return code, id(getattr(value, "__self__", None)), *(_make(one, depth - 1) for one in closed)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _chosen(makes: Sequence[Any]) -> Iterator[int]:
    """The first, the middle and the last execution of each make."""
    of: dict[Any, list[int]] = {}
    for n, make in enumerate(makes):
        of.setdefault(make if make in of or len(of) < _MAKES else "others", []).append(n)
    for numbers in of.values():
        yield from (numbers[0], numbers[len(numbers) // 2], numbers[-1])
