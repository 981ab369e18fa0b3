"""The pair sets, their normal forms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.errors import OptionError, UnsupportedTruncationError
from gradaudit.recurrent import Truncation, chunks, none, tail, window

T = 7


@pytest.mark.parametrize("k", range(1, T + 3))
def test_pairs_are_the_definitions(k):
    s, u = np.meshgrid(np.arange(1, T + 1), np.arange(1, T + 1), indexing="ij")
    causal = u <= s
    np.testing.assert_array_equal(none().pairs(T), causal)
    np.testing.assert_array_equal(tail(k).pairs(T), causal & (u > T - k))
    np.testing.assert_array_equal(window(k).pairs(T), causal & (s - u < k))
    np.testing.assert_array_equal(chunks(k).pairs(T), causal & ((s - 1) // k == (u - 1) // k))


@pytest.mark.parametrize("make", [tail, window, chunks])
def test_k_as_long_as_the_sequence_keeps_everything(make):
    for k in (T, T + 1, 10 * T):
        np.testing.assert_array_equal(make(k).pairs(T), none().pairs(T))
        assert not make(k).cuts(T)
        assert make(k).n_cut_steps(T) == 0
    assert make(T - 1).cuts(T)


def test_pairs_outside_the_sequence_are_never_kept():
    for loss_step, use_step in [(0, 0), (1, 2), (T + 1, 1), (3, 0)]:
        assert not none().keeps(loss_step, use_step, T)


def test_cut_steps():
    assert none().n_cut_steps(T) == 0
    assert [tail(k).n_cut_steps(T) for k in range(1, T + 2)] == [6, 5, 4, 3, 2, 1, 0, 0]
    with pytest.raises(UnsupportedTruncationError, match=r"do not implement window\(2\) yet \(in truncation\)"):
        window(2).n_cut_steps(T)


@pytest.mark.parametrize(
    ("text", "expected"), [("none", none()), ("tail:1", tail(1)), (" window:5 ", window(5)), ("chunks:20", chunks(20))]
)
def test_parse(text, expected):
    assert Truncation.parse(text) == expected


def test_as_text():
    assert [str(t) for t in (none(), tail(1), chunks(20))] == ["none()", "tail(1)", "chunks(20)"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tail(0), "truncation tail needs a whole number of steps k >= 1, got k = 0 (in truncation)\n\n"
                          "Hint: tail:1 keeps one step; none keeps all of them"),
        (lambda: chunks(-3), "truncation chunks needs a whole number of steps k >= 1, got k = -3"),
        (lambda: window(1.5), "got k = 1.5"),
        (lambda: tail(True), "got k = True"),
        (lambda: Truncation("none", 3), "truncation none takes no k, got k = 3"),
        (lambda: Truncation.parse("tail"), "got k = None"),
        (lambda: Truncation.parse("tail:x"), "cannot read the number of steps in truncation 'tail:x'"),
        (lambda: Truncation.parse("head:1"), "unknown truncation 'head' (in truncation)\n\n"
                                             "Hint: one of none, tail, window, chunks"),
    ],
)  # fmt: skip
def test_refused(make, message):
    with pytest.raises(OptionError) as error:
        make()
    assert message in str(error.value)
