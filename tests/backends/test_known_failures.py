"""What other gradient checkers get wrong, and gradaudit must not: one test body a case, for all backends.

The cases and the checkers that fail them are those of the project's survey of rivals; each docstring names some. The
arrays are normally distributed. A test states how many evaluations its audit may take.
"""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests.backends import programs
from tests.backends.programs import WithoutTwin

#: Evaluations that an audit of one tensor in float64 may take: right, wrong, and wrong in a place that is looked for.
RIGHT, WRONG, LOCATED = 80, 160, 400
#: Of a network of six tensors: by its float64 twin, and in float32 alone.
TWIN, ALONE = 120, 4000


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def codes(report):
    return [finding.code for finding in report.findings]


def condemned(program, backend, code=None, *, at_most=WRONG, planted=True):
    """The report of a program that is wrong, whose first finding is ``code`` if given, or that the rule is planted."""
    report = gradaudit.audit(program.on(backend))
    assert report.verdict is Verdict.DISAGREE, str(report)
    assert report.evaluations <= at_most
    if planted and code is not None and backend.name not in programs.UNLISTED:
        code = "GA501"  # it is a rule of the program's own, and found out
    assert code in (None, *codes(report)[:1]), str(report)
    assert report.findings
    return report


def cleared(program, backend, *expected, at_most=RIGHT):
    """The report of a program that is right, with these findings and no other."""
    report = gradaudit.audit(program.on(backend))
    assert report.verdict is Verdict.AGREE, str(report)
    assert report.evaluations <= at_most
    assert codes(report) == list(expected), str(report)
    assert max(p.resolution for p in report.parameters) <= 1e-3
    return report


# tolerances that grow with the array


@pytest.mark.parametrize("n", [100_000, 1_000_000])
def test_half_the_derivative_of_a_large_array(backend, n):
    """``check_grads(modes=("fwd",))`` of JAX accepts it: its tolerance is multiplied by n.

    With a million entries an audit takes 0.9 s to 1.7 s, depending on the backend, on two quiet cores.
    """
    program = programs.summed(programs.sin, lambda own, x: 0.5 * own.cos(x), normal(n))
    report = condemned(program, backend)
    assert report["x"].ratio == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_gradient_of_zeros(backend, n):
    """``chex.assert_numerical_grads`` accepts it from n = 100 on: its tolerance is multiplied by n."""
    report = condemned(programs.reduced(programs.mean_square, programs.zero, normal(n)), backend, "GA201")
    assert len(codes(report)) == 1
    assert report.findings[0].parameters == ("x",)


# absolute tolerances


def test_a_gradient_of_zeros_of_a_small_loss(backend):
    """``autograd.test_util`` accepts it: any two numbers within 1e-6 are equal there."""
    program = programs.reduced(lambda own, x: 1e-7 * own.sum(x * x), programs.zero, normal(100))
    condemned(program, backend, "GA201")


def test_twice_the_gradient_of_a_small_loss(backend):
    """Accepted by gradcheck, slow and fast, check_grads, compute_gradient, check_grad, verify_grad and autograd."""
    program = programs.summed(programs.sin, lambda own, x: 2 * own.cos(x), normal(100), scale=1e-7)
    report = condemned(program, backend)
    assert report["x"].ratio == pytest.approx(2, rel=1e-6)


# one entry among many


@pytest.mark.parametrize(("n", "error"), [(10_000, 1e-2), (1000, 1e-3)])
def test_one_bad_entry(backend, n, error):
    """gradcheck and check_grads accept 1e-3 in one entry of 1000; gradcheck's fast mode accepts 50 % there."""
    x = normal(n)
    entry = int(np.argsort(np.abs(np.cos(x)))[n // 2])  # one whose derivative is neither large nor small
    program = programs.summed(programs.sin, programs.spoiled_cos(n, entry, error), x)
    report = condemned(program, backend, "GA405", at_most=LOCATED)
    (wrong,) = report["x"].wrong
    assert wrong.index == (entry,)
    assert wrong.analytic / wrong.numeric - 1 == pytest.approx(error, rel=1e-3)


# right gradients that are hard to measure


@pytest.mark.parametrize("n", [10, 1000])
def test_a_large_constant_part(backend, n):
    """``1e8 + sum(sin(x))``: refused by gradcheck, slow and fast, check_grad, verify_grad and autograd."""
    program = programs.summed(programs.sin, programs.cos, normal(n), rule=False, offset=1e8)
    report = cleared(program, backend, at_most=2 * RIGHT)
    # the offset has eaten eight digits, and the report says so
    assert 1e-5 < report["x"].resolution <= 1e-3


@pytest.mark.parametrize("n", [10, 1000])
def test_a_fast_oscillation(backend, n):
    """``sum(sin(3000 x)) / 3000``: refused by check_grads, compute_gradient, check_grad and verify_grad."""
    program = programs.summed(
        lambda own, x: own.sin(3000.0 * x),
        lambda own, x: 3000.0 * own.cos(3000.0 * x),
        normal(n),
        rule=False,
        scale=1 / 3000,
    )
    cleared(program, backend)


@pytest.mark.parametrize("n_others", [0, 30])
def test_a_hairs_breadth_from_a_kink(backend, n_others):
    """``relu`` at 3e-8 and -5e-7: refused by gradcheck, check_grads, compute_gradient and autograd."""
    cleared(programs.relu(np.concatenate([[3e-8, -5e-7], normal(n_others)])), backend)


@pytest.mark.parametrize("n_others", [0, 30])
def test_on_a_kink(backend, n_others):
    """``relu`` at 0: refused by gradcheck, check_grads, compute_gradient and check_grad; it is a subgradient."""
    program = programs.relu(np.concatenate([[0.0, 0.0], normal(n_others)]))
    report = cleared(program, backend, "GA601", at_most=2 * RIGHT)
    for seed in range(1, 6):
        assert gradaudit.audit(program.on(backend), seed=seed).verdict is Verdict.AGREE
    low, analytic, high = (report.findings[0].numbers[name] for name in ("low", "analytic", "high"))
    rounding = 1e-6 * (high - low)
    assert low - rounding <= analytic <= high + rounding
    assert "and allowed" in report.findings[0].sentence


@pytest.mark.parametrize("seed", range(4))
def test_on_a_kink_in_float32(backend, seed):
    """The same with a float64 twin where the backend offers one; without, float32 may leave it open."""
    program = programs.relu(np.concatenate([[0.0, 0.0], normal(30)]).astype(np.float32))
    report = gradaudit.audit(program.on(backend), seed=seed)
    if report.source == "a float64 twin":
        assert report.verdict is Verdict.AGREE, str(report)
    assert gradaudit.audit(WithoutTwin(program.on(backend)), seed=seed).verdict is not Verdict.DISAGREE


def test_the_planted_rules_are_all_that_is_wrong(backend):
    """The same programs, their rules right, agree."""
    twice = programs.summed(programs.sin, programs.cos, normal(100), scale=1e-7)
    spoiled = programs.summed(programs.sin, programs.spoiled_cos(1000, 7, 0.0), normal(1000))
    mean = programs.reduced(programs.mean_square, lambda own, x, g: 2 / 1000 * g * x, normal(1000))
    for program in (twice, spoiled, mean):
        cleared(program, backend)


# float32


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_float32_network_with_its_twin(backend, activation):
    """Refused by gradcheck, slow and fast, check_grad and autograd, which want float64."""
    report = cleared(programs.mlp(activation), backend, at_most=TWIN)
    assert sum(np.prod(p.shape) for p in report.parameters) == 98_880
    assert (report.dtype, report.source) == ("float32", "a float64 twin")


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_float32_network_alone(backend, activation):
    """Without a twin it may be open, never wrong."""
    report = gradaudit.audit(WithoutTwin(programs.mlp(activation).on(backend)))
    assert report.source == "the float32 loss itself"
    assert report.verdict is not Verdict.DISAGREE, str(report)
    assert codes(report) == ([] if report.verdict is Verdict.AGREE else ["GA701"]), str(report)
    assert report.evaluations <= ALONE


def test_a_wrong_float32_network(backend):
    """And one per cent in one of its tensors is seen."""
    report = condemned(programs.mlp("relu", factor=1.01), backend, at_most=2 * TWIN)
    verdicts = {p.name: p.verdict for p in report.parameters}
    assert verdicts.pop("W1") is Verdict.DISAGREE
    assert set(verdicts.values()) == {Verdict.AGREE}


# causes that no other checker names


def test_a_missing_division_by_n(backend):
    program = programs.reduced(programs.mean_square, lambda own, x, g: 2 * g * x, normal(1000))
    finding = condemned(program, backend, "GA301").findings[0]
    assert "the derivative times 1e+03" in finding.sentence
    assert finding.parameters == ("x",)
    if backend.name in programs.UNLISTED:
        assert finding.numbers["factor"] == pytest.approx(1000, rel=1e-6)
        assert finding.title == "constant factor 1e+03"


def test_a_loss_with_random_numbers_of_its_own(backend):
    """Every other checker calls it wrong; it has no derivative."""
    report = gradaudit.audit(programs.random_mask(normal(100), private=True).on(backend))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert codes(report) == ["GA801"]
    assert report.evaluations <= 10


def test_dropout_that_is_on(backend):
    """Drawn from a global generator it is judged with the same draws every time, where these can be put back."""
    report = gradaudit.audit(programs.random_mask(normal(100), private=False).on(backend))
    held = programs.words(backend.name).held
    assert report.verdict is (Verdict.AGREE if held else Verdict.INCONCLUSIVE), str(report)
    assert codes(report) == ["GA801"]
    assert report.evaluations <= (RIGHT if held else 10)


def test_a_branch_that_is_not_selected(backend):
    """NaN where the derivative is 1: ``verify_grad`` accepts it, the others do not say why they refuse."""
    mask = np.arange(20) % 2 == 0
    report = condemned(programs.unselected_branch(0.1 + np.abs(normal(20)), mask), backend, "GA604", planted=False)
    assert codes(report) == ["GA604"]
    assert "x (10 of 20)" in report.findings[0].sentence
    assert "The numeric derivative is finite there." in report.findings[0].sentence


def test_one_of_two_ways_is_detached(backend):
    # no pattern fits, so it is asked where the tensor is wrong
    condemned(programs.partly_detached(normal(100)), backend, at_most=LOCATED)


def test_a_parameter_is_detached(backend):
    """A framework that can list its cuts names the line; NumPy has none to list."""
    code = "GA201" if backend.name == "numpy" else "GA101"
    report = condemned(programs.detached(normal(100), normal(100, seed=2)), backend, code, planted=False)
    assert codes(report) == [code]
    assert report.findings[0].parameters == ("w",)
    assert (report["w"].verdict, report["x"].verdict) == (Verdict.DISAGREE, Verdict.AGREE)
