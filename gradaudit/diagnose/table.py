"""The one table of rules: the docs, `gradaudit explain` and the tests come from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files

from gradaudit.diagnose import arrangement, custom, cut, factor, point, precision, rearranged, repeat, step, time
from gradaudit.diagnose.evidence import Evidence
from gradaudit.errors import OptionError
from gradaudit.report import Finding

__all__ = ["ENTRY_POINTS", "RULES", "Rule", "page", "registered", "rules"]

#: The group under which installed packages register rules of their own.
ENTRY_POINTS = "gradaudit.rules"


@dataclass(frozen=True, slots=True)
class Rule:
    """One diagnosis.

    Attributes:
        code: stable and never reused.
        title: what it finds.
        check: evidence -> finding or None.
        explains: a finding accounts for its tensors, so that later rules do not look at them.
        page: what `gradaudit explain CODE` shows of a rule that somebody registered.
    """

    code: str
    title: str
    check: Callable[[Evidence], Finding | None]
    explains: bool = True
    page: str = ""


#: In the order they run: what makes the rest meaningless first, proofs before patterns, "unexplained" last.
RULES: tuple[Rule, ...] = (
    Rule("GA801", "the loss does not repeat itself", repeat.random_loss),
    Rule("GA803", "gradient of the call before", repeat.lagging),
    Rule("GA802", "the gradient does not repeat itself", repeat.random_gradient),
    Rule("GA604", "gradient not finite", point.non_finite),
    Rule("GA602", "not continuous here: a jump", point.jump, explains=False),
    Rule("GA601", "not differentiable here: a kink", point.kink, explains=False),
    Rule("GA102", "truncated in time, as declared", time.truncated_as_declared),
    Rule("GA103", "not the gradient of the declared truncation", time.not_as_declared, explains=False),
    Rule("GA805", "zero_grad() forgotten", step.forgotten),
    Rule("GA806", "left in .grad before the step", step.leftover),
    Rule("GA307", "clipped in the step", step.clipped),
    Rule("GA302", "mean of means over unequal micro-batches", step.unequal),
    Rule("GA703", "wrong in this precision only", precision.single_only),
    Rule("GA104", "truncated in time", time.truncated),
    Rule("GA101", "cut at a line", cut.at_line),
    Rule("GA501", "wrong hand-written rule", custom.wrong_rule),
    Rule("GA201", "missing gradient", cut.missing),
    Rule("GA603", "the loss stands still, its gradient does not", point.straight_through),
    Rule("GA303", "opposite sign", factor.sign),
    Rule("GA304", "clipped by norm", factor.clipped_by_norm),
    Rule("GA301", "constant factor", factor.constant_ratio),
    Rule("GA305", "clipped by value", factor.clipped_by_value),
    Rule("GA306", "weight decay on one side only", factor.decayed),
    Rule("GA401", "transposed", rearranged.transposed),
    Rule("GA402", "gradients of two parameters swapped", rearranged.swapped),
    Rule("GA403", "blocks in another order", rearranged.permuted),
    Rule("GA404", "shifted or reversed", rearranged.shifted),
    Rule("GA407", "summed over an axis", rearranged.summed),
    Rule("GA804", "gradient that does not follow the parameters", repeat.kept),
    Rule("GA405", "wrong entries", arrangement.wrong_entries),
    Rule("GA406", "wrong block", arrangement.wrong_block),
    Rule("GA901", "unexplained", precision.unexplained),
    Rule("GA704", "the loss does not depend on the parameters", point.constant, explains=False),
    Rule("GA702", "low precision inside the loss", precision.low_precision_inside, explains=False),
    Rule("GA701", "not resolved at this precision", precision.unresolved, explains=False),
)


@cache
def entries() -> tuple[EntryPoint, ...]:
    """What installed packages register; read once, since it reads the metadata of every package."""
    return tuple(sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name))


def registered() -> tuple[Rule, ...]:
    """The rules of installed packages.

    Raises:
        OptionError: what is registered is no `Rule`, or its code is taken.
    """
    found: list[Rule] = []
    for entry in entries():
        rule = entry.load()
        if not isinstance(rule, Rule) or rule.code in {known.code for known in (*RULES, *found)}:
            what = f"the code {rule.code}, which is taken" if isinstance(rule, Rule) else f"a {type(rule).__name__}"
            msg = f"the entry point {entry.name!r} ({entry.value}) registers {what}"
            raise OptionError(msg, where=ENTRY_POINTS, hint="a gradaudit.diagnose.table.Rule with a code of its own")
        found.append(rule)
    return tuple(found)


def rules() -> tuple[Rule, ...]:
    """All rules in the order in which they run; those of installed packages before GA901, "unexplained"."""
    last = next(i for i, rule in enumerate(RULES) if rule.code == "GA901")
    return (*RULES[:last], *registered(), *RULES[last:])


def page(code: str) -> str:
    """The page of a code: what it means, a minimal wrong program, how to mend it.

    Raises:
        OptionError: no such code.
    """
    known = {rule.code: rule for rule in rules()}
    if code not in known:
        msg = f"unknown code {code!r}"
        raise OptionError(msg, where="explain", hint=f"one of {', '.join(sorted(known))}")
    if known[code].page:
        return known[code].page
    path = files("gradaudit.diagnose") / "pages" / f"{code}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {code}: {known[code].title}\n"
