"""Causes of place: some entries are wrong, the others right."""

from __future__ import annotations

from gradaudit.diagnose.evidence import Evidence
from gradaudit.measure.localise import Located
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["wrong_block", "wrong_entries"]

_MOST_SHOWN = 5


def wrong_entries(evidence: Evidence) -> Finding | None:
    """GA405: single entries are wrong."""
    found = _of_kind(evidence, ("entries",))
    if not found:
        return None
    return Finding(
        code="GA405",
        title="wrong entries",
        confidence="consistent",
        sentence=" ".join(_entries_sentence(evidence, name, place) for name, place in found.items()),
        remedy="Look for an index off by one, an entry overwritten or left out, a mask with a hole.",
        parameters=tuple(found),
        numbers={"entries": float(sum(len(place.entries) for place in found.values()))},
    )


def wrong_block(evidence: Evidence) -> Finding | None:
    """GA406: rows, columns or a block are wrong, and the rest is right."""
    found = _of_kind(evidence, ("rows", "columns", "block"))
    if not found:
        return None
    return Finding(
        code="GA406",
        title="wrong block",
        confidence="consistent",
        sentence=" ".join(
            f"{name}: {place.where}; {'the rest is right' if place.complete else 'there may be more'}."
            f"{_zeros(evidence, name)}"
            for name, place in found.items()
        ),
        remedy="Look at what makes this part different: a gate, a head, a shard, a slice written twice or not at all, "
        "rows that are frozen on purpose (a mask, padding_idx).",
        parameters=tuple(found),
    )


def _zeros(evidence: Evidence, name: str) -> str:
    """In how many rows the gradient is exactly zero, a sentence; empty where that is so in none, or in all."""
    gradient = evidence.baseline.gradients[name]
    assert gradient is not None  # as in `_entries_sentence`
    rows = gradient.reshape(len(gradient), -1)
    n, of = int((~rows.any(axis=1)).sum()), len(rows)
    return f" Its gradient is exactly zero in {n} of {of:,} rows." if 0 < n < of else ""


def _of_kind(evidence: Evidence, kinds: tuple[str, ...]) -> dict[str, Located]:
    places = {name: evidence.place(name) for name in evidence.wrong()}
    return {name: place for name, place in places.items() if place is not None and place.kind in kinds}


def _entries_sentence(evidence: Evidence, name: str, place: Located) -> str:
    gradient = evidence.baseline.gradients[name]
    assert gradient is not None  # a missing gradient has its own rule, which runs before
    shown = [
        f"{index or ''} analytic {number(float(gradient[index]))}, numeric {number(float(gradient[index]) - error)}"
        for index, error in list(zip(place.entries, place.errors, strict=True))[:_MOST_SHOWN]
    ]
    more = f", and {len(place.entries) - _MOST_SHOWN} more" if len(place.entries) > _MOST_SHOWN else ""
    rest = "the others are right" if place.complete else "there may be others"
    return f"{name}, {len(place.entries)} of {gradient.size:,} entries: {'; '.join(shown)}{more}; {rest}."
