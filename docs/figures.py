"""Draws the figures of the tutorial on truncation from what its own examples measure.

    python docs/figures.py

Needs the extra ``plot``. The figure of docs/bias.png is drawn by benchmarks/bias.py.
"""

from __future__ import annotations

from typing import Any

import examples

PAGE = examples.DOCS / "tutorials" / "truncated-rnn.md"
#: By the variable that holds what is drawn.
FIGURES = {"teeth": "steps.png", "view": "pairs.png", "curve": "curve.png"}


def main() -> None:
    """Run the page, and draw."""
    namespace: dict[str, Any] = {"__name__": "__example__"}
    for example in examples.examples(PAGE.read_text(encoding="utf-8")):
        if example.language == "python":
            examples.run(example, namespace)
    for name, figure in FIGURES.items():
        namespace[name].plot(PAGE.with_name(figure))


if __name__ == "__main__":
    main()
