"""Specs, seeded weights and data, problems."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.errors import ModelContractError, OptionError
from gradaudit.recurrent import Problem, RecurrentSpec, SequenceData, initial_weights, random_sequences, tail

SPEC = RecurrentSpec(n_features=3, n_classes=2)


def test_the_seed_fixes_weights_and_data():
    one, other = (initial_weights(SPEC, seed=3) for _ in range(2))
    assert {n: w.tolist() for n, w in one.items()} == {n: w.tolist() for n, w in other.items()}
    assert not np.array_equal(one["W"], initial_weights(SPEC, seed=4)["W"])
    assert not one["R"].any()
    assert not one["b"].any()
    data, again = (random_sequences(SPEC, n_sequences=4, n_steps=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(data.features, again.features)
    np.testing.assert_array_equal(data.labels, again.labels)
    assert data.features.shape == (4, 5, 3)
    assert data.features.dtype == np.float32
    assert set(np.unique(data.labels)) <= {0, 1}


def test_float64_is_the_unrounded_float32():
    single, double = (initial_weights(SPEC, seed=3, dtype=d)["W"] for d in ("float32", "float64"))
    np.testing.assert_array_equal(single, double.astype("float32"))


def problem(**changes):
    fields = {
        "spec": SPEC,
        "weights": initial_weights(SPEC, seed=0),
        "data": random_sequences(SPEC, n_sequences=4, n_steps=5, seed=0),
    }
    return Problem(**(fields | changes))


def test_a_problem_has_its_sizes():
    p = problem(truncation=tail(2))
    assert (p.n_sequences, p.n_steps, p.dtype) == (4, 5, "float32")
    assert p.inputs().shape == (5, 4, 3)
    assert p.labels().shape == (5, 4)
    assert p.loss_weights().shape == (5, 4)
    assert p.loss_weights().sum() == pytest.approx(1)
    assert not p.weights["W"].flags.writeable


def test_lists_are_sequences():
    data = SequenceData(features=[[[1.0], [2.0]]], labels=[[0, 1]], mask=[[True, False]], state=[[0.0, 0.0]])
    assert (data.features.shape, data.labels.shape, data.mask.dtype, data.state.shape) == (
        (1, 2, 1),
        (1, 2),
        bool,
        (1, 2),
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: RecurrentSpec(n_features=0, n_classes=2),
            OptionError,
            "n_features must be a whole number, at least 1, got 0",
        ),
        (lambda: RecurrentSpec(n_features=2.5, n_classes=2), OptionError, "at least 1, got 2.5"),
        (lambda: RecurrentSpec(n_features=2, n_classes=2, activation="gelu"), OptionError, "unknown activation 'gelu'"),
        (lambda: RecurrentSpec(n_features=2, n_classes=2, outputs="first"), OptionError, "unknown outputs 'first'"),
        (
            lambda: random_sequences(SPEC, n_sequences=1, n_steps=0, seed=0),
            OptionError,
            "n_steps must be at least 1, got 0",
        ),
        (
            lambda: SequenceData(features=np.zeros((2, 3, 1)), labels=np.zeros((2, 2), int)),
            ModelContractError,
            "features have shape (2, 3, 1) and labels (2, 2) (in SequenceData)\n\nHint: features (N, T, D)",
        ),
        (
            lambda: SequenceData(features=np.zeros((2, 3, 1)), labels=np.zeros((2, 3))),
            ModelContractError,
            "labels have dtype float64 (in SequenceData)\n\nHint: labels.astype('int64')",
        ),
        (
            lambda: SequenceData(features=np.full((2, 3, 1), "a"), labels=np.zeros((2, 3), int)),
            ModelContractError,
            "features have dtype <U1",
        ),
        (
            lambda: problem(weights={name: w.astype(int) for name, w in initial_weights(SPEC, seed=0).items()}),
            ModelContractError,
            "weights have dtype int64 (in weights)\n\nHint: w.astype('float32')",
        ),
        (
            lambda: problem(weights={"W": np.zeros((3, 2))}),
            ModelContractError,
            "Hint: this spec wants {'W': (3, 2), 'R'",
        ),
        (
            lambda: problem(weights=initial_weights(SPEC, seed=0) | {"b": np.zeros(2)}),
            ModelContractError,
            "weights have different dtypes: float32, float64",
        ),
        (
            lambda: problem(data=SequenceData(features=np.zeros((2, 3, 1)), labels=np.zeros((2, 3), int))),
            ModelContractError,
            "the features have 1 dimensions (in data)\n\nHint: this spec wants 3",
        ),
        (
            lambda: problem(data=SequenceData(features=np.zeros((2, 3, 3)), labels=np.full((2, 3), 2))),
            ModelContractError,
            "the labels run from 2 to 2 (in data)\n\nHint: this spec wants 0 to 1",
        ),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)
