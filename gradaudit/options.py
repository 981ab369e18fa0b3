"""What a user may choose. The knobs say what matters, not how numerics works: there is no eps, atol or rtol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from gradaudit.errors import OptionError
from gradaudit.recurrent import Truncation

__all__ = ["AuditOptions", "Options", "options_of"]


class Options(TypedDict, total=False):
    """The same as keyword arguments, see `AuditOptions`."""

    significant: float | None
    false_alarm: float
    max_evaluations: int
    seed: int
    parameters: str
    truncation: Truncation | None
    intended: Sequence[str]
    entries: bool
    batch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The options of one audit.

    Attributes:
        significant: the smallest relative error that matters: AGREE promises that one this large would have been
            seen. A smaller difference that is proven is reported all the same. By default 1e-3, and 1e-2 where
            float32 losses are all there is, 5e-2 under `torch.autocast`.
        false_alarm: accepted probability, an audit, that a right gradient is called wrong.
        max_evaluations: forward passes at most; an audit that needs more reports what it has.
        seed: of the probing directions; the same seed probes the same on every backend.
        parameters: glob over parameter names, for example ``"encoder.*"``.
        truncation: a truncation that the user accepts: a model declaring it is judged against its frozen gradient.
        intended: globs (or one) over cuts that the user means, by line (``"model.py:57"``) or function (``"target"``):
            the gradient is judged with the values there held.
        entries: read the entries of small tensors also where the tensor agrees.
        batch_bytes: memory for evaluating many points at once.

    Raises:
        OptionError: an option out of its range.
    """

    significant: float | None = None
    false_alarm: float = 1e-6
    max_evaluations: int = 20_000
    seed: int = 0
    parameters: str = "*"
    truncation: Truncation | None = None
    intended: Sequence[str] = ()
    entries: bool = False
    batch_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name, hint in (("significant", "significant=1e-3"), ("false_alarm", "false_alarm=1e-6")):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                msg = f"{name} must lie between 0 and 1, got {share}"
                raise OptionError(msg, where="options", hint=hint)
        for name, least in (("max_evaluations", 3), ("batch_bytes", 1), ("seed", 0)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                msg = f"{name} must be a whole number, at least {least}, got {value!r}"
                raise OptionError(msg, where="options", hint=f"leave {name} out, or give a larger number")
        given = (self.intended,) if isinstance(self.intended, str) else tuple(self.intended)
        if not all(isinstance(glob, str) for glob in given):
            msg = f"intended must be globs, got {self.intended!r}"
            raise OptionError(msg, where="options", hint='intended=["model.py:57"]')
        object.__setattr__(self, "intended", given)
        if self.truncation is not None and not isinstance(self.truncation, Truncation):
            msg = f"truncation must be a Truncation, got {self.truncation!r}"
            raise OptionError(msg, where="options", hint="gradaudit.tail(1), or Truncation.parse('tail:1')")


def options_of(given: Options) -> AuditOptions:
    """The options from keyword arguments.

    Raises:
        OptionError: an unknown one, or one out of its range.
    """
    known = Options.__annotations__
    unknown = [name for name in given if name not in known]
    if unknown:
        msg = f"unknown option{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}"
        tuned = {"eps", "atol", "rtol", "tol", "delta"} & set(unknown)
        hint = "there is no step or tolerance to tune; significant=1e-3 is the smallest relative error that matters"
        raise OptionError(msg, where="options", hint=hint if tuned else f"one of {', '.join(known)}")
    return AuditOptions(**given)
