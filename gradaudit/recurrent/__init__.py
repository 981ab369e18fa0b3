"""Recurrent layers as values: truncation, spec, seeded weights and data. Nothing here computes a network."""

from gradaudit.recurrent.spec import (
    Activation,
    Held,
    Problem,
    RecurrentSpec,
    SequenceData,
    initial_weights,
    random_sequences,
)
from gradaudit.recurrent.truncation import Truncation, chunks, none, tail, window

__all__ = [
    "Activation",
    "Held",
    "Problem",
    "RecurrentSpec",
    "SequenceData",
    "Truncation",
    "chunks",
    "initial_weights",
    "none",
    "random_sequences",
    "tail",
    "window",
]
