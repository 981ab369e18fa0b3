"""Random generators and framework state: as before after an audit, and the same before every evaluation if asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import final

import numpy as np

from gradaudit.measure.around import Around
from gradaudit.protocols import Model, SupportsState

__all__ = ["SeedFixed", "preserved"]


@contextmanager
def preserved(model: Model) -> Iterator[None]:
    """Random generators and the framework's state are as before, also after an exception."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  # the user's legacy generator
    try:
        with model.preserved() if isinstance(model, SupportsState) else nullcontext():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@final
class SeedFixed(Around):
    """A model that draws the same random numbers at every evaluation: those of the audit's start.

    It works for generators that can be put back (NumPy's and Python's global ones, those that the framework's
    ``preserved`` covers); a generator that the loss keeps to itself goes on. Batches would draw other numbers, so there
    are none. What is held is recorded from the same draws; a float64 twin may draw others, and then its loss differs.
    """

    def _during(self) -> AbstractContextManager[None]:
        return preserved(self._model)
