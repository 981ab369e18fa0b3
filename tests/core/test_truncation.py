"""The pair sets, their normal forms, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gradaudit.errors import OptionError
from gradaudit.recurrent import Truncation, chunks, none, randomised, tail, tbptt, window

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
        assert make(k).segments(T).tolist() == [[0, 1, T]]
    assert make(T - 1).cuts(T)


def test_pairs_outside_the_sequence_are_never_kept():
    for loss_step, use_step in [(0, 0), (1, 2), (T + 1, 1), (3, 0)]:
        assert not none().keeps(loss_step, use_step, T)


def truncations(n_steps):
    yield none()
    for k in range(1, n_steps + 3):
        yield from (tail(k), window(k), chunks(k), *(tbptt(k1, k) for k1 in range(1, k + 1)))


@pytest.mark.parametrize("n_steps", range(1, 14))
def test_the_normal_forms_are_the_pairs(n_steps):
    for truncation in truncations(n_steps):
        pairs = truncation.pairs(n_steps)
        steps = range(1, n_steps + 1)
        assert [[truncation.keeps(s, u, n_steps) for u in steps] for s in steps] == pairs.tolist()
        assert truncation.cuts(n_steps) == (pairs != none().pairs(n_steps)).any()
        counted = np.zeros((n_steps, n_steps), int)
        for before, first, last in truncation.segments(n_steps):
            for s in range(first, last + 1):
                counted[s - 1, before:s] += 1
        np.testing.assert_array_equal(counted, pairs, str(truncation))
        gates = truncation.gates(n_steps, 1)
        assert (gates is None) == (truncation.cuts(n_steps) and truncation.kind in ("window", "tbptt"))
        if gates is not None:
            passed = [[gates.output[s - 1] * gates.state[u:s, 0].prod() if u <= s else 0 for u in steps] for s in steps]
            np.testing.assert_array_equal(passed, pairs, str(truncation))


@pytest.mark.parametrize("n_steps", [7, 12])
def test_block_truncations_meet(n_steps):
    for k in range(1, n_steps + 1):
        np.testing.assert_array_equal(tbptt(1, k).pairs(n_steps), window(k).pairs(n_steps))
        same = (tbptt(k, k).pairs(n_steps) == chunks(k).pairs(n_steps)).all()
        assert same == (n_steps % k == 0)


def test_random_cuts_pass_the_gradient_on_average():
    passed = np.mean([randomised(0.3, seed).gates(6, 50).state for seed in range(400)], axis=(0, 2))
    np.testing.assert_allclose(passed, 1, atol=0.02)
    assert (randomised(0.3).gates(6, 5).state[0] == 1).all()
    np.testing.assert_array_equal(randomised(0.3, 7).gates(6, 5).state, randomised(0.3, 7).gates(6, 5).state)
    assert not np.array_equal(randomised(0.3, 7).gates(6, 5).state, randomised(0.3, 8).gates(6, 5).state)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", none()),
        ("tail:1", tail(1)),
        (" window:5 ", window(5)),
        ("chunks:20", chunks(20)),
        ("tbptt:5:20", tbptt(5, 20)),
        ("randomised:0.1", randomised(0.1)),
        ("randomised:0.1:7", randomised(0.1, 7)),
    ],
)
def test_parse(text, expected):
    assert Truncation.parse(text) == expected


def test_numbers_of_numpy_are_numbers():
    made = tail(np.int64(3)), tbptt(np.int32(2), np.uint8(5)), randomised(np.float32(0.5), np.int64(7))
    assert made == (tail(3), tbptt(2, 5), randomised(0.5, 7))
    assert [type(t.k or t.seed) for t in made] == [int] * 3
    assert json.loads(json.dumps([made[0].k, made[2].p])) == [3, 0.5]


def test_as_text():
    made = none(), tail(1), chunks(20), tbptt(5, 20), randomised(0.1, 7)
    assert [str(t) for t in made] == ["none()", "tail(1)", "chunks(20)", "tbptt(5, 20)", "randomised(0.1, 7)"]


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
                                             "Hint: one of none, tail, window, chunks, tbptt, randomised"),
        (lambda: tbptt(5, 3), "goes back k2 = 3 steps every k1 = 5 steps: less than one block"),
        (lambda: tbptt(0, 3), "needs a whole number of steps k1 >= 1, got k1 = 0"),
        (lambda: randomised(1.0), "needs a probability of a cut, 0 < p < 1, got p = 1.0"),
        (lambda: randomised(0.1, -1), "needs a seed, a whole number >= 0, got seed = -1"),
        (lambda: Truncation.parse("tail:1:2"), "truncation 'tail:1:2' has 2 numbers"),
    ],
)  # fmt: skip
def test_refused(make, message):
    with pytest.raises(OptionError) as error:
        make()
    assert message in str(error.value)
