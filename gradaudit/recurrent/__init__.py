"""Recurrent networks as values: truncation, spec, seeded weights and data. Nothing here computes a network."""

from gradaudit.recurrent.problem import Crossing, Problem, Start
from gradaudit.recurrent.segments import one_way, segment_problems, segment_runs, spans, uncounted_steps
from gradaudit.recurrent.spec import Activation, Cell, RecurrentSpec, SequenceData, initial_weights, random_sequences
from gradaudit.recurrent.truncation import Truncation, chunks, none, randomised, tail, tbptt, window

__all__ = [
    "Activation",
    "Cell",
    "Crossing",
    "Problem",
    "RecurrentSpec",
    "SequenceData",
    "Start",
    "Truncation",
    "chunks",
    "initial_weights",
    "none",
    "one_way",
    "random_sequences",
    "randomised",
    "segment_problems",
    "segment_runs",
    "spans",
    "tail",
    "tbptt",
    "uncounted_steps",
    "window",
]
