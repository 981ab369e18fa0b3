"""Functions whose directional derivative is known: a fixed set, fresh random ones, and those that estimators get wrong.

    python benchmarks/problems.py        # problems per family, and how accurate the truths are

Every function is written once, over arrays with any leading axes, and computes in the dtype of what it is given. In
float64 or float32 that is the loss. In 80-bit complex numbers, one step of 1e-100 along the imaginary axis gives the
derivative to 1e-18 times the condition of the function: the truth. It has no difference of nearby values in it, so it
has no step size to get wrong. Where SciPy has no complex kernel the truth comes from mpmath, or from a closed form.

Data and constants are rounded to the dtype first and belong to the function: the truth is the derivative of the
function with the *rounded* constants at the *rounded* point, evaluated without further rounding. (On machines whose
long double is a double, truths are good to about 1e-15 times the condition only.)

The analytic gradients are rounded to the dtype, as a framework would hand them over.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
from scipy import special

from gradaudit.direction import Direction, Point, argument_rounding, displace, random_direction
from gradaudit.measure.plan import scales

__all__ = [
    "Problem",
    "directions",
    "fixed",
    "fresh",
    "hidden_single",
    "jumps",
    "kinks",
    "relu_nets",
    "saturating_offset",
    "staircases",
]

Arrays = dict[str, np.ndarray]
#: Arrays of one dtype, real or complex, with leading axes -> losses over those axes.
Function = Callable[[Mapping[str, np.ndarray]], Any]
#: Rounds data to the dtype of the problem.
Data = Callable[..., np.ndarray]

_WIDE = np.clongdouble
_IMAGINARY = 1e-100
KINDS = ("abs", "relu", "leaky", "ties", "clip")


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One loss at one point along one direction.

    Attributes:
        name: unique within its set.
        family: what makes it hard.
        loss: named arrays -> NumPy scalar of the problem's dtype.
        parameters: the point.
        gradient: as an analytic gradient would be, rounded to the dtype of the parameters.
        direction: a random one over all tensors, scaled as the auditor scales it.
        truth: the derivative along it; the mean of both sides at a kink, without the jump at a jump.
        along: the derivative along any other direction.
        sides: the slopes left and right of the point, where they differ.
        amplitude: of the signal, in units of the last place of the loss.
    """

    name: str
    family: str
    loss: Callable[[Mapping[str, np.ndarray]], Any]
    parameters: Arrays
    gradient: Arrays
    direction: Direction
    truth: float
    along: Callable[[Direction], float]
    sides: tuple[float, float] | None = None
    amplitude: float | None = None


@dataclass(frozen=True, slots=True)
class _Case:
    """A function at a point, before a direction is chosen; ``exact`` is the gradient where it is known otherwise."""

    name: str
    family: str
    function: Function
    parameters: Arrays
    exact: Arrays | None = None


# --- truths -----------------------------------------------------------------------------------------------------------


def _slopes(function: Function, parameters: Arrays, tangents: Arrays, wide: type = _WIDE) -> np.ndarray:
    """Derivatives along tangents with one leading axis (K, *shape), by a complex step: (K,)."""
    step = wide(1j * _IMAGINARY)
    moved = {n: p.astype(wide) + step * tangents[n] if n in tangents else p.astype(wide) for n, p in parameters.items()}
    return np.asarray(function(moved)).imag / _IMAGINARY


def _gradient(function: Function, parameters: Arrays) -> Arrays:
    """The gradient to double precision, all entries at once."""
    total = sum(p.size for p in parameters.values())
    tangents, start = {}, 0
    for name, p in parameters.items():
        rows = np.zeros((total, p.size))
        rows[start : start + p.size] = np.eye(p.size)
        tangents[name] = rows.reshape(total, *p.shape)
        start += p.size
    flat = np.broadcast_to(_slopes(function, parameters, tangents, np.complex128), total)
    gradient, start = {}, 0
    for name, p in parameters.items():
        gradient[name] = flat[start : start + p.size].reshape(p.shape)
        start += p.size
    return gradient


def _blocks(parameters: Arrays, direction: Direction) -> Arrays:
    blocks = {n: direction.block(n, p.shape) for n, p in parameters.items()}
    return {n: v for n, v in blocks.items() if v is not None}


def _stepped(function: Function, parameters: Arrays, direction: Direction, wide: type = _WIDE) -> float:
    tangents = {n: v[None] for n, v in _blocks(parameters, direction).items()}
    return float(np.ravel(_slopes(function, parameters, tangents, wide))[0])


def _dotted(exact: Arrays, parameters: Arrays, direction: Direction) -> float:
    return float(sum((exact[n] * v.astype(np.longdouble)).sum() for n, v in _blocks(parameters, direction).items()))


def _loss(function: Function) -> Callable[[Mapping[str, np.ndarray]], Any]:
    return lambda p: np.asarray(function(p))[()]


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _problem(case: _Case) -> Problem:
    """Add a direction (seeded by the name), the gradient and the truth."""
    p = case.parameters
    direction = random_direction("whole model", scales(p), _seed(case.name))
    gradient = case.exact if case.exact is not None else _gradient(case.function, p)
    along = partial(_dotted, case.exact, p) if case.exact is not None else partial(_stepped, case.function, p)
    return Problem(
        name=case.name,
        family=case.family,
        loss=_loss(case.function),
        parameters=p,
        gradient={n: np.asarray(gradient[n]).astype(p[n].dtype) for n in p},
        direction=direction,
        truth=along(direction),
        along=along,
    )


def _usable(problem: Problem) -> bool:
    """A finite loss with a finite derivative that has not underflowed: there is something to estimate."""
    dtype = next(iter(problem.parameters.values())).dtype
    finite = all(np.isfinite(g).all() for g in problem.gradient.values()) and np.isfinite(problem.truth)
    visible = 1e6 * float(np.finfo(dtype).tiny)
    return bool(np.isfinite(problem.loss(problem.parameters)) and finite and abs(problem.truth) > visible)


def directions(problem: Problem) -> list[Direction]:
    """Further directions, of the kinds the auditor asks: the whole model, along the gradient's signs, one tensor."""
    lengths = scales(problem.parameters)
    seed = problem.direction.seed + 1
    found = [random_direction("whole model", lengths, seed)]
    signs = {n: np.sign(g) for n, g in problem.gradient.items() if g.any()}
    if signs:
        found.append(Direction(label="signs", scales={n: lengths[n] for n in signs}, seed=seed, signs=signs))
    if len(lengths) > 1:
        name = list(lengths)[seed % len(lengths)]
        found.append(random_direction(name, {name: lengths[name]}, seed + 1))
    return found


# --- functions for real and complex numbers ---------------------------------------------------------------------------


def _lifted(real: Callable[..., Any], slope: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """A real function on complex numbers, to first order in the imaginary part."""
    if not np.iscomplexobj(x):
        return real(x)
    return real(x.real) + 1j * (x.imag * slope(x.real))


def _absolute(x: np.ndarray) -> np.ndarray:
    return _lifted(np.abs, np.sign, x)


def _erf_real(x: np.ndarray) -> np.ndarray:
    return special.erf(x.astype(np.float64)) if x.dtype == np.longdouble else special.erf(x)


def _erf(x: np.ndarray) -> np.ndarray:
    """Only where it is the value of erf that matters, not its slope, is this a double instead of 80 bits."""
    return _lifted(_erf_real, lambda u: 2 / math.sqrt(math.pi) * np.exp(-u * u), x)


def _expit(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    size = _absolute(x)
    return (x + size) / 2 + np.log1p(np.exp(-size))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + _erf(x * math.sqrt(0.5))) / 2


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    top = logits.real.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return (total - logits[..., np.arange(len(labels)), labels]).mean(axis=-1)


def _mse(out: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rest = out - wanted
    return (rest * rest).mean(axis=(-2, -1))


# --- More, Garbow & Hillstrom 1981: sums of squares -------------------------------------------------------------------
# Residuals take x (..., n) and give (..., m). Numbers in comments are those of the paper.


def _columns(x: np.ndarray) -> list[np.ndarray]:
    return [x[..., i, None] for i in range(x.shape[-1])]


def _join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=-1)


def _row(first: int, last: int) -> np.ndarray:
    return np.arange(first, last + 1, dtype=np.float64)


def _rosenbrock(_: Data, n: int) -> tuple[Function, Sequence[float]]:  # 1, 21
    def residuals(x):
        odd, even = x[..., ::2], x[..., 1::2]
        return _join(10 * (even - odd * odd), 1 - odd)

    return residuals, [-1.2, 1.0] * (n // 2)


def _freudenstein_roth(_: Data) -> tuple[Function, Sequence[float]]:  # 2
    def residuals(x):
        a, b = _columns(x)
        return _join(-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b)

    return residuals, [0.5, -2.0]


def _powell_badly_scaled(d: Data) -> tuple[Function, Sequence[float]]:  # 3
    c = d(1.0001)

    def residuals(x):
        a, b = _columns(x)
        return _join(1e4 * a * b - 1, np.exp(-a) + np.exp(-b) - c)

    return residuals, [0.0, 1.0]


def _brown_badly_scaled(d: Data) -> tuple[Function, Sequence[float]]:  # 4
    small = d(2e-6)

    def residuals(x):
        a, b = _columns(x)
        return _join(a - 1e6, b - small, a * b - 2)

    return residuals, [1.0, 1.0]


def _beale(_: Data) -> tuple[Function, Sequence[float]]:  # 5
    def residuals(x):
        a, b = _columns(x)
        return _join(1.5 - a * (1 - b), 2.25 - a * (1 - b * b), 2.625 - a * (1 - b * b * b))

    return residuals, [1.0, 1.0]


def _jennrich_sampson(d: Data) -> tuple[Function, Sequence[float]]:  # 6
    i = d(_row(1, 10))

    def residuals(x):
        a, b = _columns(x)
        return 2 + 2 * i - (np.exp(i * a) + np.exp(i * b))

    return residuals, [0.3, 0.4]


def _helical_valley(d: Data) -> tuple[Function, Sequence[float]]:  # 7
    turn, half = d(1 / (2 * math.pi)), d(0.5)

    def residuals(x):
        a, b, c = _columns(x)
        angle = turn * np.arctan(b / a) + half * (a.real < 0)
        return _join(10 * (c - 10 * angle), 10 * (np.sqrt(a * a + b * b) - 1), c)

    return residuals, [-1.0, 0.0, 0.0]


def _bard(d: Data) -> tuple[Function, Sequence[float]]:  # 8
    y = d([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39])
    u, v = d(_row(1, 15)), d(16 - _row(1, 15))
    w = np.minimum(u, v)

    def residuals(x):
        a, b, c = _columns(x)
        return y - (a + u / (v * b + w * c))

    return residuals, [1.0, 1.0, 1.0]


def _gaussian(d: Data) -> tuple[Function, Sequence[float]]:  # 9
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    y, t = d([*half, 0.3989, *half[::-1]]), d((8 - _row(1, 15)) / 2)

    def residuals(x):
        a, b, c = _columns(x)
        return a * np.exp(-b * (t - c) * (t - c) / 2) - y

    return residuals, [0.4, 1.0, 0.0]


def _meyer(d: Data) -> tuple[Function, Sequence[float]]:  # 10
    y = d([34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872])
    t = d(45 + 5 * _row(1, 16))

    def residuals(x):
        a, b, c = _columns(x)
        return a * np.exp(b / (t + c)) - y

    return residuals, [0.02, 4000.0, 250.0]


def _gulf(d: Data) -> tuple[Function, Sequence[float]]:  # 11
    t = _row(1, 99) / 100
    y, t = d(25 + (-50 * np.log(t)) ** (2 / 3)), d(t)

    def residuals(x):
        a, b, c = _columns(x)
        return np.exp(-np.exp(c * np.log(_absolute(y - b))) / a) - t

    return residuals, [5.0, 2.5, 0.15]


def _box(d: Data) -> tuple[Function, Sequence[float]]:  # 12
    t = 0.1 * _row(1, 10)
    known, t = d(np.exp(-t) - np.exp(-10 * t)), d(t)

    def residuals(x):
        a, b, c = _columns(x)
        return np.exp(-t * a) - np.exp(-t * b) - c * known

    return residuals, [0.0, 10.0, 20.0]


def _powell_singular(d: Data, n: int) -> tuple[Function, Sequence[float]]:  # 13, 22
    five, ten = d(math.sqrt(5)), d(math.sqrt(10))

    def residuals(x):
        a, b, c, e = (x[..., k::4] for k in range(4))
        return _join(a + 10 * b, five * (c - e), (b - 2 * c) * (b - 2 * c), ten * (a - e) * (a - e))

    return residuals, [3.0, -1.0, 0.0, 1.0] * (n // 4)


def _wood(d: Data) -> tuple[Function, Sequence[float]]:  # 14
    ninety, ten = d(math.sqrt(90)), d(math.sqrt(10))

    def residuals(x):
        a, b, c, e = _columns(x)
        last = ten * (b + e - 2), (b - e) / ten
        return _join(10 * (b - a * a), 1 - a, ninety * (e - c * c), 1 - c, *last)

    return residuals, [-3.0, -1.0, -3.0, -1.0]


def _kowalik_osborne(d: Data) -> tuple[Function, Sequence[float]]:  # 15
    y = d([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])
    u = d([4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])

    def residuals(x):
        a, b, c, e = _columns(x)
        return y - a * (u * u + u * b) / (u * u + u * c + e)

    return residuals, [0.25, 0.39, 0.415, 0.39]


def _brown_dennis(d: Data) -> tuple[Function, Sequence[float]]:  # 16
    t = _row(1, 20) / 5
    up, sine, cosine, t = d(np.exp(t)), d(np.sin(t)), d(np.cos(t)), d(t)

    def residuals(x):
        a, b, c, e = _columns(x)
        one, two = a + t * b - up, c + e * sine - cosine
        return one * one + two * two

    return residuals, [25.0, 5.0, -5.0, -1.0]


_OSBORNE_1 = """.844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558 .538 .522 .506
.490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"""
_OSBORNE_2 = """1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 .626 .651 .724
.649 .649 .694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372 .391 .396 .405 .428 .429 .523 .562 .607 .653
.672 .708 .633 .668 .645 .632 .591 .559 .597 .625 .739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054"""


def _osborne_1(d: Data) -> tuple[Function, Sequence[float]]:  # 17
    y, t = d(np.array(_OSBORNE_1.split(), float)), d(10 * _row(0, 32))

    def residuals(x):
        a, b, c, e, f = _columns(x)
        return y - (a + b * np.exp(-t * e) + c * np.exp(-t * f))

    return residuals, [0.5, 1.5, -1.0, 0.01, 0.02]


def _biggs(d: Data) -> tuple[Function, Sequence[float]]:  # 18
    t = 0.1 * _row(1, 13)
    y, t = d(np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)), d(t)

    def residuals(x):
        a, b, c, e, f, g = _columns(x)
        return c * np.exp(-t * a) - e * np.exp(-t * b) + g * np.exp(-t * f) - y

    return residuals, [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def _osborne_2(d: Data) -> tuple[Function, Sequence[float]]:  # 19
    y, t = d(np.array(_OSBORNE_2.split(), float)), d(0.1 * _row(0, 64))

    def residuals(x):
        c = _columns(x)
        peaks = [c[k] * np.exp(-((t - c[k + 7]) * (t - c[k + 7])) * c[k + 4]) for k in (1, 2, 3)]
        return y - (c[0] * np.exp(-t * c[4]) + peaks[0] + peaks[1] + peaks[2])

    return residuals, [1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5]


def _watson(d: Data) -> tuple[Function, Sequence[float]]:  # 20
    t, j = _row(1, 29)[:, None] / 29, _row(1, 6)
    value, slope = d((t ** (j - 1)).T), d(((j - 1) * t ** np.maximum(j - 2, 0)).T)

    def residuals(x):
        inner = x @ value
        return _join(x @ slope - inner * inner - 1, x[..., :1], x[..., 1:2] - x[..., :1] * x[..., :1] - 1)

    return residuals, [0.0] * 6


def _penalty_1(d: Data) -> tuple[Function, Sequence[float]]:  # 23
    a = d(math.sqrt(1e-5))

    def residuals(x):
        return _join(a * (x - 1), (x * x).sum(axis=-1, keepdims=True) - 0.25)

    return residuals, _row(1, 10)


def _penalty_2(d: Data) -> tuple[Function, Sequence[float]]:  # 24
    n = 8
    a, i = d(math.sqrt(1e-5)), _row(2, n)
    y, known, weights, first = d(np.exp(i / 10) + np.exp((i - 1) / 10)), d(np.exp(-0.1)), d(_row(1, n)[::-1]), d(0.2)

    def residuals(x):
        e = np.exp(x / 10)
        total = (weights * x * x).sum(axis=-1, keepdims=True) - 1
        return _join(x[..., :1] - first, a * (e[..., 1:] + e[..., :-1] - y), a * (e[..., 1:] - known), total)

    return residuals, [0.5] * n


def _variably_dimensioned(d: Data) -> tuple[Function, Sequence[float]]:  # 25
    j = d(_row(1, 10))

    def residuals(x):
        total = (j * (x - 1)).sum(axis=-1, keepdims=True)
        return _join(x - 1, total, total * total)

    return residuals, 1 - _row(1, 10) / 10


def _trigonometric(d: Data) -> tuple[Function, Sequence[float]]:  # 26
    n = 10
    i = d(_row(1, n))

    def residuals(x):
        return n - np.cos(x).sum(axis=-1, keepdims=True) + i * (1 - np.cos(x)) - np.sin(x)

    return residuals, [1 / n] * n


def _brown_almost_linear(_: Data) -> tuple[Function, Sequence[float]]:  # 27
    n = 10

    def residuals(x):
        linear = x + x.sum(axis=-1, keepdims=True) - (n + 1)
        return _join(linear[..., :-1], x.prod(axis=-1, keepdims=True) - 1)

    return residuals, [0.5] * n


def _boundary_value(d: Data) -> tuple[Function, Sequence[float]]:  # 28
    n = 10
    h, t = 1 / (n + 1), _row(1, n) / (n + 1)
    half, shifted = d(h * h / 2), d(t + 1)

    def residuals(x):
        zero = np.zeros_like(x[..., :1])
        cube = (x + shifted) * (x + shifted) * (x + shifted)
        return 2 * x - _join(zero, x[..., :-1]) - _join(x[..., 1:], zero) + half * cube

    return residuals, t * (t - 1)


def _integral_equation(d: Data) -> tuple[Function, Sequence[float]]:  # 29
    n = 10
    t = _row(1, n) / (n + 1)
    low = np.tril(np.ones((n, n))) * (1 - t)[:, None] * t
    high = np.triu(np.ones((n, n)), 1) * t[:, None] * (1 - t)
    kernel, shifted = d(((low + high) / (2 * (n + 1))).T), d(t + 1)

    def residuals(x):
        return x + ((x + shifted) * (x + shifted) * (x + shifted)) @ kernel

    return residuals, t * (t - 1)


def _broyden_tridiagonal(_: Data) -> tuple[Function, Sequence[float]]:  # 30
    def residuals(x):
        zero = np.zeros_like(x[..., :1])
        return (3 - 2 * x) * x - _join(zero, x[..., :-1]) - 2 * _join(x[..., 1:], zero) + 1

    return residuals, [-1.0] * 10


def _broyden_banded(d: Data) -> tuple[Function, Sequence[float]]:  # 31
    n = 10
    i, j = np.indices((n, n))
    band = d((i != j) & (j >= i - 5) & (j <= i + 1)).T

    def residuals(x):
        return x * (2 + 5 * x * x) + 1 - (x * (1 + x)) @ band

    return residuals, [-1.0] * n


def _linear_full_rank(d: Data) -> tuple[Function, Sequence[float]]:  # 32
    two_over_m = d(2 / 20)

    def residuals(x):
        mean = two_over_m * x.sum(axis=-1, keepdims=True)
        return _join(x - mean - 1, np.repeat(-mean - 1, 10, axis=-1))

    return residuals, [1.0] * 10


def _linear_rank_1(d: Data, inner: int) -> tuple[Function, Sequence[float]]:  # 33; inner = 1: 34
    n, m = 10, 20
    i, j = _row(1, m) - inner, _row(1, n)
    if inner:
        i[[0, -1]] = 0
        j[[0, -1]] = 0
    i, j = d(i), d(j)

    def residuals(x):
        return i * (j * x).sum(axis=-1, keepdims=True) - 1

    return residuals, [1.0] * n


def _chebyquad(d: Data) -> tuple[Function, Sequence[float]]:  # 35
    n = 8
    i = _row(1, n)
    integrals = d(np.where(i % 2 == 0, -1 / np.maximum(i * i - 1, 1), 0.0))

    def residuals(x):
        z = 2 * x - 1
        before, now, means = np.ones_like(z), z, []
        for _ in range(n):
            means.append(now.mean(axis=-1, keepdims=True))
            before, now = now, 2 * z * now - before
        return _join(*means) - integrals

    return residuals, _row(1, n) / (n + 1)


_MGH: dict[str, Callable[[Data], tuple[Function, Sequence[float]]]] = {
    "Rosenbrock": partial(_rosenbrock, n=2),
    "Freudenstein-Roth": _freudenstein_roth,
    "Powell badly scaled": _powell_badly_scaled,
    "Brown badly scaled": _brown_badly_scaled,
    "Beale": _beale,
    "Jennrich-Sampson": _jennrich_sampson,
    "helical valley": _helical_valley,
    "Bard": _bard,
    "Gaussian": _gaussian,
    "Meyer": _meyer,
    "Gulf": _gulf,
    "Box": _box,
    "Powell singular": partial(_powell_singular, n=4),
    "Wood": _wood,
    "Kowalik-Osborne": _kowalik_osborne,
    "Brown-Dennis": _brown_dennis,
    "Osborne 1": _osborne_1,
    "Biggs": _biggs,
    "Osborne 2": _osborne_2,
    "Watson": _watson,
    "extended Rosenbrock": partial(_rosenbrock, n=10),
    "extended Powell": partial(_powell_singular, n=12),
    "penalty 1": _penalty_1,
    "penalty 2": _penalty_2,
    "variably dimensioned": _variably_dimensioned,
    "trigonometric": _trigonometric,
    "Brown almost linear": _brown_almost_linear,
    "boundary value": _boundary_value,
    "integral equation": _integral_equation,
    "Broyden tridiagonal": _broyden_tridiagonal,
    "Broyden banded": _broyden_banded,
    "linear full rank": _linear_full_rank,
    "linear rank 1": partial(_linear_rank_1, inner=0),
    "linear rank 1 zeros": partial(_linear_rank_1, inner=1),
    "Chebyquad": _chebyquad,
}


def _mgh(d: Data, name: str, label: str, rng: np.random.Generator | None, spread: float = 0.1) -> _Case:
    """At the standard starting point, or near it."""
    residuals, start = _MGH[name](d)
    x = np.array(start, np.float64)
    if rng is not None:
        size = np.where(x == 0, max(1.0, float(np.abs(x).max())), np.abs(x))
        x += spread * size * rng.standard_normal(x.shape)

    def function(p):
        r = residuals(p["x"])
        return (r * r).sum(axis=-1)

    return _Case(f"mgh {name} {label}", "mgh", function, {"x": d(x)})


# --- special functions: weighted sums, truth by mpmath ----------------------------------------------------------------

_mp = mpmath.mp.clone()
_mp.dps = 30


def _erfcx_slope(x):
    return 2 * x * _mp.exp(x * x) * _mp.erfc(x) - 2 / _mp.sqrt(_mp.pi)


def _dawson_slope(x):
    return 1 - 2 * x * _mp.sqrt(_mp.pi) / 2 * _mp.exp(-x * x) * _mp.erfi(x)


def _omega_slope(x):
    w = _mp.lambertw(_mp.exp(x)).real
    return w / (1 + w)


#: Name: function, its derivative in mpmath, range of arguments.
_SPECIAL: dict[str, tuple[Callable[..., Any], Callable[[Any], Any], float, float]] = {
    "erf": (special.erf, lambda x: 2 / _mp.sqrt(_mp.pi) * _mp.exp(-x * x), -3, 3),
    "erfc": (special.erfc, lambda x: -2 / _mp.sqrt(_mp.pi) * _mp.exp(-x * x), -2, 6),
    "erfcx": (special.erfcx, _erfcx_slope, -1, 8),
    "ndtr": (special.ndtr, _mp.npdf, -6, 3),
    "log_ndtr": (special.log_ndtr, lambda x: _mp.npdf(x) / _mp.ncdf(x), -12, 3),
    "expit": (special.expit, lambda x: 1 / (2 + 2 * _mp.cosh(x)), -12, 8),
    "log_expit": (special.log_expit, lambda x: 1 / (1 + _mp.exp(x)), -12, 8),
    "gamma": (special.gamma, lambda x: _mp.gamma(x) * _mp.psi(0, x), 0.2, 12),
    "gamma negative": (special.gamma, lambda x: _mp.gamma(x) * _mp.psi(0, x), -2.9, -2.1),
    "gammaln": (special.gammaln, lambda x: _mp.psi(0, x), 0.1, 60),
    "rgamma": (special.rgamma, lambda x: -_mp.psi(0, x) / _mp.gamma(x), 0.1, 6),
    "digamma": (special.psi, lambda x: _mp.psi(1, x), 0.1, 20),
    "beta": (
        lambda x: special.beta(x, 2.5),
        lambda x: _mp.beta(x, 2.5) * (_mp.psi(0, x) - _mp.psi(0, x + 2.5)),
        0.2,
        9,
    ),
    "gammainc": (lambda x: special.gammainc(2.5, x), lambda x: x**1.5 * _mp.exp(-x) / _mp.gamma(2.5), 0.1, 12),
    "betainc": (
        lambda x: special.betainc(2.5, 1.5, x),
        lambda x: x**1.5 * _mp.sqrt(1 - x) / _mp.beta(2.5, 1.5),
        0.1,
        0.9,
    ),
    "J0": (special.j0, lambda x: -_mp.besselj(1, x), 0.1, 30),
    "J1": (special.j1, lambda x: (_mp.besselj(0, x) - _mp.besselj(2, x)) / 2, 0.1, 30),
    "J2.5": (lambda x: special.jv(2.5, x), lambda x: (_mp.besselj(1.5, x) - _mp.besselj(3.5, x)) / 2, 0.3, 20),
    "Y0": (special.y0, lambda x: -_mp.bessely(1, x), 0.2, 20),
    "Y1": (special.y1, lambda x: (_mp.bessely(0, x) - _mp.bessely(2, x)) / 2, 0.2, 20),
    "I0": (special.i0, lambda x: _mp.besseli(1, x), 0.1, 12),
    "I1": (special.i1, lambda x: (_mp.besseli(0, x) + _mp.besseli(2, x)) / 2, 0.1, 12),
    "K0": (special.k0, lambda x: -_mp.besselk(1, x), 0.1, 10),
    "K1": (special.k1, lambda x: -(_mp.besselk(0, x) + _mp.besselk(2, x)) / 2, 0.1, 10),
    "Ei": (special.expi, lambda x: _mp.exp(x) / x, 0.2, 9),
    "E1": (special.exp1, lambda x: -_mp.exp(-x) / x, 0.1, 9),
    "Dawson": (special.dawsn, _dawson_slope, -5, 5),
    "zeta": (lambda x: special.zeta(x, 1.0), lambda x: _mp.zeta(x, 1, 1), 1.2, 9),
    "elliptic K": (special.ellipk, lambda m: (_mp.ellipe(m) / (1 - m) - _mp.ellipk(m)) / (2 * m), 0.05, 0.95),
    "elliptic E": (special.ellipe, lambda m: (_mp.ellipe(m) - _mp.ellipk(m)) / (2 * m), 0.05, 0.95),
    "dilogarithm": (special.spence, lambda x: _mp.log(x) / (1 - x), 0.1, 0.9),
    "sine integral": (lambda x: special.sici(x)[0], lambda x: _mp.sin(x) / x, 0.2, 25),
    "Fresnel S": (lambda x: special.fresnel(x)[0], lambda x: _mp.sin(_mp.pi * x * x / 2), 0.2, 5),
    "Airy": (lambda x: special.airy(x)[0], lambda x: _mp.airyai(x, derivative=1), -8, 4),
    "Wright omega": (special.wrightomega, _omega_slope, -3, 10),
    "Kummer": (lambda x: special.hyp1f1(0.5, 1.5, x), lambda x: _mp.hyp1f1(1.5, 2.5, x) / 3, -4, 3),
    "entropy": (special.entr, lambda x: -_mp.log(x) - 1, 0.01, 3),
}


def _exactly(slope: Callable[[Any], Any], x: float) -> np.longdouble:
    return np.longdouble(_mp.nstr(slope(_mp.mpf(float(x))), 25))


def _special(d: Data, name: str, label: str, rng: np.random.Generator) -> _Case:
    f, slope, low, high = _SPECIAL[name]
    x, w = d(rng.uniform(low, high, 3)), d(rng.uniform(0.5, 1.5, 3))
    exact = {"x": np.array([_exactly(slope, u) for u in x]) * w}

    def function(p):  # a few of SciPy's functions answer float64 whatever they are asked in
        return (w * f(p["x"]).astype(w.dtype)).sum()

    return _Case(f"special {name} {label}", "special", function, {"x": x}, exact)


# --- losses of machine learning ---------------------------------------------------------------------------------------


def _weights(d: Data, rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    """Normal, divided by the root of the fan-in; vectors (biases) are small."""
    size = {n: 1 / math.sqrt(s[-2]) if len(s) > 1 else 0.1 for n, s in shapes.items()}
    return {n: d(size[n] * rng.standard_normal(s)) for n, s in shapes.items()}


def _dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return x @ w + b[..., None, :]


def _mlp(d: Data, rng: np.random.Generator, squash: Callable[[Any], Any], classes: int) -> tuple[Function, Arrays]:
    """Two layers; with a squared error where there are no classes."""
    x, y = d(rng.standard_normal((12, 4))), d(rng.standard_normal((12, 2)))
    labels = rng.integers(0, max(classes, 1), 12)

    def function(p):
        out = _dense(squash(_dense(x, p["first"], p["bias"])), p["second"], p["shift"])
        return _cross_entropy(out, labels) if classes else _mse(out, y)

    outputs = classes or 2
    return function, _weights(d, rng, first=(4, 6), bias=(6,), second=(6, outputs), shift=(outputs,))


def _logistic(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    x, sign = d(rng.standard_normal((20, 5))), d(rng.choice([-1.0, 1.0], (20, 1)))

    def function(p):
        penalty = (p["w"] * p["w"]).sum(axis=(-2, -1)) / 128
        return _softplus(-sign * _dense(x, p["w"], p["b"])).mean(axis=(-2, -1)) + penalty

    return function, _weights(d, rng, w=(5, 1), b=(1,))


def _softmax_regression(d: Data, rng: np.random.Generator, gain: float = 1.0) -> tuple[Function, Arrays]:
    x, labels = d(rng.standard_normal((15, 6))), rng.integers(0, 4, 15)
    parameters = {n: d(gain * p) for n, p in _weights(d, rng, w=(6, 4), b=(4,)).items()}
    return lambda p: _cross_entropy(_dense(x, p["w"], p["b"]), labels), parameters


def _poisson(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    x, counts = d(rng.standard_normal((20, 4))), d(rng.poisson(3.0, (20, 1)))

    def function(p):
        rate = _dense(x, p["w"], p["b"])
        return (np.exp(rate) - counts * rate).mean(axis=(-2, -1))

    return function, _weights(d, rng, w=(4, 1), b=(1,))


def _elman(d: Data, rng: np.random.Generator, steps: int) -> tuple[Function, Arrays]:
    x, y = d(rng.standard_normal((steps, 3, 2))), d(rng.standard_normal((3, 2)))

    def function(p):
        h = np.zeros_like(p["U"][..., :3, :])
        for frame in x:
            h = np.tanh(_dense(frame, p["W"], p["b"]) + h @ p["U"])
        return _mse(h @ p["V"], y)

    return function, _weights(d, rng, W=(2, 4), U=(4, 4), b=(4,), V=(4, 2))


def _gru(d: Data, rng: np.random.Generator, steps: int) -> tuple[Function, Arrays]:
    x, y = d(rng.standard_normal((steps, 3, 2))), d(rng.standard_normal((3, 2)))

    def function(p):
        h = np.zeros_like(p["U"][..., :3, :3])
        for frame in x:
            a, b = _dense(frame, p["W"], p["b"]), h @ p["U"]
            gate, reset = _expit(a[..., :3] + b[..., :3]), _expit(a[..., 3:6] + b[..., 3:6])
            h = (1 - gate) * np.tanh(a[..., 6:] + reset * b[..., 6:]) + gate * h
        return _mse(h @ p["V"], y)

    return function, _weights(d, rng, W=(2, 9), U=(3, 9), b=(9,), V=(3, 2))


def _lstm(d: Data, rng: np.random.Generator, steps: int) -> tuple[Function, Arrays]:
    x, labels = d(rng.standard_normal((steps, 3, 2))), rng.integers(0, 3, 3)

    def function(p):
        h = c = np.zeros_like(p["U"][..., :3, :3])
        for frame in x:
            a = _dense(frame, p["W"], p["b"]) + h @ p["U"]
            i, f, o = (_expit(a[..., k : k + 3]) for k in (0, 3, 6))
            c = f * c + i * np.tanh(a[..., 9:])
            h = o * np.tanh(c)
        return _cross_entropy(_dense(h, p["V"], p["e"]), labels)

    return function, _weights(d, rng, W=(2, 12), U=(3, 12), b=(12,), V=(3, 3), e=(3,))


def _attention(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    x, y = d(rng.standard_normal((5, 4))), d(rng.standard_normal((5, 2)))

    def function(p):
        q, k, v = x @ p["Q"], x @ p["K"], x @ p["V"]
        weights = _softmax(q @ np.swapaxes(k, -1, -2) / 2)
        return _mse(weights @ v @ p["O"], y)

    return function, _weights(d, rng, Q=(4, 4), K=(4, 4), V=(4, 4), O=(4, 2))


def _layer_norm(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    x, y, tiny = d(rng.standard_normal((8, 4))), d(rng.standard_normal((8, 2))), d(1e-5)

    def function(p):
        a = _dense(x, p["W"], p["b"])
        a = a - a.mean(axis=-1, keepdims=True)
        a = a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + tiny)
        out = np.tanh(a * p["gain"][..., None, :] + p["shift"][..., None, :]) @ p["V"]
        return _mse(out, y)

    parameters = _weights(d, rng, W=(4, 6), b=(6,), gain=(6,), shift=(6,), V=(6, 2))
    return function, parameters | {"gain": parameters["gain"] + 1}


def _vae(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    x, noise = d(rng.standard_normal((8, 5))), d(rng.standard_normal((8, 2)))

    def function(p):
        code = np.tanh(_dense(x, p["encoder"], p["bias"])) @ p["head"]
        mean, log_variance = code[..., :2], code[..., 2:]
        z = mean + np.exp(log_variance / 2) * noise
        rest = np.tanh(z @ p["decoder"]) @ p["out"] - x
        divergence = (np.exp(log_variance) + mean * mean - 1 - log_variance).sum(axis=(-2, -1)) / 2
        return ((rest * rest).sum(axis=(-2, -1)) + divergence) / 8

    return function, _weights(d, rng, encoder=(5, 6), bias=(6,), head=(6, 4), decoder=(2, 6), out=(6, 5))


def _cosine(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    """Contrastive: each row of one view finds its partner among those of the other."""
    x, y, labels = d(rng.standard_normal((6, 4))), d(rng.standard_normal((6, 4))), np.arange(6)

    def unit(a):
        return a / np.sqrt((a * a).sum(axis=-1, keepdims=True))

    def function(p):
        similarity = unit(x @ p["left"]) @ np.swapaxes(unit(y @ p["right"]), -1, -2)
        return _cross_entropy(10 * similarity, labels)

    return function, _weights(d, rng, left=(4, 3), right=(4, 3))


def _neural_ode(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    """Forty Euler steps."""
    x, y, step = d(rng.standard_normal((4, 3))), d(rng.standard_normal((4, 3))), d(0.05)

    def function(p):
        z = x + p["start"][..., None, :]
        for _ in range(40):
            z = z + step * np.tanh(_dense(z, p["A"], p["b"])) @ p["B"]
        return _mse(z, y)

    return function, _weights(d, rng, start=(3,), A=(3, 4), b=(4,), B=(4, 3))


def _mixture(d: Data, rng: np.random.Generator) -> tuple[Function, Arrays]:
    """The likelihood of a mixture of three normal distributions."""
    x = d(rng.standard_normal((15, 1)) * 2)

    def function(p):
        z = (x - p["mean"][..., None, :]) * np.exp(-p["log_scale"][..., None, :])
        logs = p["logit"][..., None, :] - p["log_scale"][..., None, :] - z * z / 2
        top = logs.real.max(axis=-1, keepdims=True)
        joint = (np.log(np.exp(logs - top).sum(axis=-1)) + top[..., 0]).mean(axis=-1)
        return np.log(np.exp(p["logit"]).sum(axis=-1)) - joint

    parameters = _weights(d, rng, mean=(3,), log_scale=(3,), logit=(3,))
    return function, parameters | {"mean": d([-2.0, 0.3, 1.7])}


_ML: dict[str, Callable[[Data, np.random.Generator], tuple[Function, Arrays]]] = {
    "mlp tanh mse": partial(_mlp, squash=np.tanh, classes=0),
    "mlp gelu mse": partial(_mlp, squash=_gelu, classes=0),
    "mlp tanh ce": partial(_mlp, squash=np.tanh, classes=3),
    "mlp gelu ce": partial(_mlp, squash=_gelu, classes=3),
    "mlp softplus ce": partial(_mlp, squash=_softplus, classes=4),
    "logistic": _logistic,
    "softmax regression": _softmax_regression,
    "softmax confident": partial(_softmax_regression, gain=6.0),
    "poisson": _poisson,
    "elman 10": partial(_elman, steps=10),
    "elman 50": partial(_elman, steps=50),
    "gru 12": partial(_gru, steps=12),
    "lstm 10": partial(_lstm, steps=10),
    "lstm 30": partial(_lstm, steps=30),
    "attention": _attention,
    "layer norm": _layer_norm,
    "vae": _vae,
    "cosine": _cosine,
    "neural ode": _neural_ode,
    "mixture": _mixture,
}


def _ml(d: Data, name: str, label: str, rng: np.random.Generator) -> _Case:
    function, parameters = _ML[name](d, rng)
    return _Case(f"ml {name} {label}", "ml", function, parameters)


# --- plain functions in difficult places ------------------------------------------------------------------------------

#: Signals of order one over x (..., n), x of order one.
_SIGNALS: dict[str, Callable[[Any], Any]] = {
    "sin": lambda x: np.sin(x).sum(axis=-1),
    "quadratic": lambda x: (x * x).sum(axis=-1) / 2 + x[..., 0] * x[..., -1],
    "exp": lambda x: np.exp(x / 2).sum(axis=-1),
    "tanh": lambda x: np.tanh(x.sum(axis=-1)) + np.log1p((x * x).sum(axis=-1)),
    "rational": lambda x: 1 / (1 + (x * x).sum(axis=-1)),
    "product": lambda x: np.cos(x).prod(axis=-1) + np.sin(3 * x[..., 0]),
}


def _offset(d: Data, signal: str, size: float, rng: np.random.Generator) -> _Case:
    f, away = _SIGNALS[signal], d(size)
    return _Case(f"offset {size:g} {signal}", "offset", lambda p: away + f(p["x"]), {"x": d(rng.standard_normal(4))})


def _vanishing(d: Data, signal: str, factor: float, rng: np.random.Generator) -> _Case:
    f, small = _SIGNALS[signal], d(factor)
    name = f"vanishing {factor:g} {signal}"
    return _Case(name, "vanishing", lambda p: small * f(p["x"]), {"x": d(rng.standard_normal(4))})


def _large(d: Data, kind: str, label: str, rng: np.random.Generator) -> _Case:
    """Losses or parameters near 1e30."""
    big, x = d(1e30), rng.uniform(0.5, 1.5, 3)
    if kind in _SIGNALS:
        f = _SIGNALS[kind]
        return _Case(f"large loss {kind} {label}", "large", lambda p: big * f(p["x"]), {"x": d(x)})
    functions: dict[str, tuple[Function, np.ndarray]] = {
        "exp": (lambda p: np.exp(p["x"]).sum(axis=-1), 65 * x / 1.5),
        "log": (lambda p: np.log(p["x"]).sum(axis=-1), 1e30 * x),
        "sqrt": (lambda p: np.sqrt(p["x"]).sum(axis=-1), 1e30 * x),
        "ratio": (lambda p: p["x"][..., 0] / (p["x"][..., 1] + p["x"][..., 2]), 1e30 * x),
        "linear": (lambda p: (p["x"] / 7).sum(axis=-1), 1e30 * x),
        "power": (lambda p: (p["x"] ** 15).sum(axis=-1), 50 * x),
    }
    function, x = functions[kind]
    return _Case(f"large {kind} parameters {label}", "large", function, {"x": d(x)})


def _oscillating(d: Data, kind: str, frequency: float, rng: np.random.Generator) -> _Case:
    w, phase = d(frequency), d(rng.uniform(0, 6, 3))
    functions: dict[str, Function] = {
        "sum": lambda p: (np.sin(w * p["x"]) / w).sum(axis=-1),
        "trend": lambda p: (np.sin(w * p["x"] + phase) + p["x"] * p["x"]).sum(axis=-1),
        "chirp": lambda p: np.cos(w * p["x"] * p["x"]).sum(axis=-1),
        "beat": lambda p: (np.sin(w * p["x"]) * np.cos(p["x"])).sum(axis=-1) + 3,
    }
    x = d(rng.uniform(0.3, 1.3, 3))
    return _Case(f"oscillating {frequency:g} {kind}", "oscillating", functions[kind], {"x": x})


def _zero_tensor(d: Data, name: str, ratio: float, unit: np.ndarray) -> _Case:
    """A tensor of zeros says nothing about its scale: here its neighbours, a small and a large one, mislead."""
    parameters = {"zero": d(np.zeros(3)), "small": d(unit[:3] / ratio), "large": d(unit[3:6] * ratio)}
    up, down = d(ratio), d(1 / ratio)

    def function(p):
        return (np.sin(up * (p["zero"] + p["small"])) * np.cos(down * p["large"])).sum(axis=-1)

    return _Case(name, "scaled", function, parameters)


def _scaled(d: Data, kind: str, label: str, rng: np.random.Generator) -> _Case:
    """Parameters of very different sizes, or functions that vary over another length than their parameters."""
    size = 10.0 ** np.linspace(-8, 8, 9)
    unit = rng.uniform(0.5, 1.5, 9)
    s, w = d(size), d(rng.uniform(0.5, 1.5, 9))
    name, family = f"scaled {kind} {label}", "scaled"
    if kind == "tensors":
        parameters = {f"p{i}": d(size[2 * i] * rng.standard_normal(3)) for i in range(5)}
        steps = d(size[::2])
        return _Case(
            name,
            family,
            lambda p: sum(np.sin(p[f"p{i}"] / steps[i]).sum(axis=-1) for i in range(5)),
            parameters,
        )
    if kind == "zero tensor":
        return _zero_tensor(d, name, 100.0, unit)
    if kind == "extreme zero tensor":
        return replace(_zero_tensor(d, name, 1e6, unit), family="hard")
    near, far = d(1e6), d(10.0 ** np.linspace(0, 8, 9))
    functions: dict[str, tuple[Function, np.ndarray]] = {
        "sines": (lambda p: (w * np.sin(p["x"] / s)).sum(axis=-1), size * unit),
        "logs": (lambda p: (w * np.log1p(p["x"] * p["x"] / (s * s))).sum(axis=-1), size * unit),
        "squares": (lambda p: (w * (p["x"] / s) * (p["x"] / s)).sum(axis=-1), size * unit),
        "tanh": (lambda p: np.tanh((w * p["x"] / s).sum(axis=-1) / 9), size * unit),
        "unequal": (lambda p: (w * p["x"]).sum(axis=-1), size * unit),
        "pair": (lambda p: (p["x"][..., 0] * p["x"][..., 1] - 2) ** 2, size[[0, 8]] * unit[:2]),
        "bowl": (lambda p: (far * p["x"] * p["x"]).sum(axis=-1), unit),
        "narrow": (lambda p: np.tanh(near * (p["x"] - 1)).sum(axis=-1), 1 + 3e-7 * rng.uniform(-1, 1, 2)),
        "wide": (lambda p: np.sin(1 + p["x"]).sum(axis=-1), 1e-6 * unit[:3]),
        "few decades": (lambda p: np.exp(-p["x"] / s[3:6]).sum(axis=-1), size[3:6] * unit[:3]),
    }
    function, x = functions[kind]
    return _Case(name, family, function, {"x": d(x)})


_SCALED = (
    *("tensors", "zero tensor", "extreme zero tensor", "sines", "logs", "squares", "tanh"),
    *("unequal", "pair", "bowl", "narrow", "wide", "few decades"),
)

_SATURATED: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "expit up": _expit,
    "expit down": lambda x: _expit(-x),
    "softplus": lambda x: _softplus(-x) + 1,
    "exp": lambda x: 1 + np.exp(-x),
    "arctan": lambda x: np.arctan(np.exp(x)),
}


def _saturated(d: Data, kind: str, depth: float, rng: np.random.Generator) -> _Case:
    """Where a squashing function has all but reached its limit: little slope on a value of order one."""
    f, w = _SATURATED[kind], d(rng.uniform(0.5, 1.5, 2))
    x = d(depth * rng.uniform(0.95, 1.05, 2))
    return _Case(f"saturated {kind} {depth:.3g}", "saturated", lambda p: (w * f(p["x"])).sum(axis=-1), {"x": x})


_EDGES: dict[str, Callable[[Any], Any]] = {
    "log": np.log,
    "sqrt": np.sqrt,
    "reciprocal": lambda u: 1 / u,
    "power 1.5": lambda u: u * np.sqrt(u),
    "arccos": lambda u: np.arccos(1 - u),
    "arctanh": lambda u: np.arctanh(1 - u),
    "x log x": lambda u: u * np.log(u),
    "log tan": lambda u: np.log(np.tan(u)),
}


def _edge(d: Data, kind: str, distance: float, rng: np.random.Generator) -> _Case:
    """A point at a small distance from where the function ends."""
    f, w = _EDGES[kind], d(rng.standard_normal())
    edge = d(rng.uniform(0.5, 1.5))
    x = d([float(edge) + distance, 0.7])
    name = f"edge {kind} {distance:.3g}"
    return _Case(name, "edge", lambda p: f(p["x"][..., 0] - edge) + w * np.sin(p["x"][..., 1]), {"x": x})


def _raising(u: np.ndarray) -> np.ndarray:
    if u < 0:
        msg = "outside the domain"
        raise ValueError(msg)
    return np.sin(u)


#: Functions of u >= 0 with a finite slope at u = 0: the slope, and how NaN or an exception marks the outside.
_ONE_SIDED: dict[str, tuple[Callable[[Any], Any], float]] = {
    "power 1.5": (lambda u: u * np.sqrt(u), 0.0),
    "power 2.5": (lambda u: u * u * np.sqrt(u) + u, 1.0),
    "exp of power 1.5": (lambda u: np.exp(u * np.sqrt(u)) + u, 1.0),
    "NaN outside": (lambda u: np.where(u < 0, u.dtype.type(np.nan), np.exp(u)), 1.0),
    "infinite outside": (lambda u: np.where(u < 0, u.dtype.type(np.inf), np.tanh(u)), 1.0),
    "raises outside": (_raising, 1.0),
}


def _one_sided(d: Data, kind: str, label: str, rng: np.random.Generator) -> _Case:
    """A point on the edge itself, the function defined on one side only; the truth is the slope of that side."""
    f, slope = _ONE_SIDED[kind]
    sign, w = d(rng.choice([-1.0, 1.0])), d(rng.uniform(0.3, 1.5))
    x = d([rng.uniform(0.5, 1.5), rng.uniform(0.3, 1.0)])
    edge = x[0]
    exact = {"x": np.array([float(sign) * slope, float(w)], np.longdouble)}
    exact["x"][1] *= np.cos(np.longdouble(x[1]))

    def function(p):
        return f(sign * (p["x"][0] - edge)) + w * np.sin(p["x"][1])

    return _Case(f"one-sided {kind} {label}", "edge", function, {"x": x}, exact)


# --- the fixed set ----------------------------------------------------------------------------------------------------


def fixed(dtype: Any) -> list[Problem]:
    """The problems that estimators may be tuned on: the same at every call.

    In float32 some slopes are out of reach of any method, because the loss does not carry them: those move to the
    family "hard", where a bound still has to be honest but cannot be tight.
    """
    dtype = np.dtype(dtype)
    return list(_fixed(dtype.name))


@cache
def _fixed(dtype: str) -> tuple[Problem, ...]:
    with np.errstate(all="ignore"):
        problems = [_problem(case) for case in _cases(partial(np.array, dtype=dtype), single=dtype == "float32")]
        usable = [p for p in problems if np.isfinite(p.truth) and np.isfinite(p.loss(p.parameters))]
        if dtype == "float32":
            usable = [p if _resolvable(p) else replace(p, family="hard") for p in usable]
    return tuple(usable)


def _cases(d: Data, *, single: bool) -> Iterator[_Case]:
    def rng(*key: Any) -> np.random.Generator:
        return np.random.default_rng(_seed(repr(key)))

    for name in _MGH:
        yield _mgh(d, name, "start", None)
        for k in (1, 2):
            yield _mgh(d, name, f"near {k}", rng(name, k))
    for name in _SPECIAL:
        yield _special(d, name, "1", rng(name))
    for name in _ML:
        for k in (1, 2):
            yield _ml(d, name, str(k), rng(name, k))
    for signal in ("sin", "quadratic", "exp", "tanh", "product"):
        for size in (1e2, 1e3, 1e4, 1e5, 1e6):
            yield _offset(d, signal, size, rng(signal, size))
    for signal in ("sin", "quadratic", "tanh", "product"):
        for factor in (1e-30, 1e-24, 1e-17, 1e-10):
            yield _vanishing(d, signal, factor, rng(signal, factor))
    for kind in (*("sin", "quadratic", "tanh"), *("exp", "log", "sqrt", "ratio", "linear", "power")):
        yield _large(d, kind, "1", rng(kind))
    for kind in ("sum", "trend", "chirp", "beat"):
        for frequency in (10, 30, 100, 300, 1000, 3000):
            yield _oscillating(d, kind, frequency, rng(kind, frequency))
    for kind in _SCALED:
        for k in (1, 2):
            yield _scaled(d, kind, str(k), rng(kind, k))
    for kind in _SATURATED:
        for share in (0.3, 0.5, 0.7):
            yield _saturated(d, kind, share * (14 if single else 34) / (2 if kind == "tanh" else 1), rng(kind, share))
    for kind in _EDGES:
        for distance in (0.1, 1e-2, 1e-3) if single else (0.1, 1e-3, 1e-6):
            yield _edge(d, kind, distance, rng(kind, distance))
    for kind in _ONE_SIDED:
        for k in (1, 2):
            yield _one_sided(d, kind, str(k), rng(kind, k))


def _resolvable(problem: Problem) -> bool:
    """Do differences over two neighbouring steps of a wide grid come within 30 % of the truth?

    They know the truth and the right gradient (for the rounding of the arguments), and choose the step by them.
    """
    steps = 10.0 ** np.arange(-6, 3.1, 0.4)
    points = [Point(problem.direction, float(sign * h)) for sign in (-1, 0, 1) for h in steps]
    values = np.array([_value(problem, point) for point in points])
    low, base, high = np.split(values - argument_rounding(problem.parameters, points, problem.gradient), 3)
    slopes = np.where(np.isfinite(low), (high - low) / (2 * steps), (high - base) / steps)
    slopes = np.where(np.isfinite(high), slopes, (base - low) / steps)
    near = np.abs(slopes - problem.truth) <= 0.3 * abs(problem.truth)
    return bool((near[1:] & near[:-1]).any())


def _value(problem: Problem, point: Point) -> float:
    try:
        return float(problem.loss(displace(problem.parameters, point)))
    except ValueError:
        return math.nan


# --- fresh problems ---------------------------------------------------------------------------------------------------

#: Smooth everywhere.
_SMOOTH: dict[str, Callable[[Any], Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "arctan": np.arctan,
    "expit": _expit,
    "softplus": _softplus,
    "erf": _erf,
    "bell": lambda u: np.exp(-u * u),
    "Lorentz": lambda u: 1 / (1 + u * u),
    "log1p": lambda u: np.log1p(u * u),
    "hypotenuse": lambda u: np.sqrt(1 + u * u),
    "square": lambda u: u * u,
    "cube": lambda u: u * u * u,
    "exp": np.exp,
    "sinh": np.sinh,
    "exp sin": lambda u: np.exp(np.sin(u)),
    "log cos": lambda u: np.log(2 + np.cos(u)),
    "x sin": lambda u: u * np.sin(u),
    "ramp bell": lambda u: u * np.exp(-u * u / 2),
    "gelu": _gelu,
    "fast sin": lambda u: np.sin(7 * u) / 7,
}
#: Defined for u > 0.
_POSITIVE: dict[str, Callable[[Any], Any]] = {
    "log": np.log,
    "sqrt": np.sqrt,
    "reciprocal": lambda u: 1 / u,
    "power 1.5": lambda u: u * np.sqrt(u),
    "x log": lambda u: u * np.log(u),
}


def _log_uniform(rng: np.random.Generator, low: float, high: float, size: Any = None) -> Any:
    return 10.0 ** rng.uniform(math.log10(low), math.log10(high), size)


def _tensors(rng: np.random.Generator, d: Data) -> tuple[Arrays, Arrays]:
    """One to three tensors with one to eight entries in all, and the lengths over which they matter."""
    n = int(rng.integers(1, 9))
    cuts = np.sort(rng.integers(0, n + 1, int(rng.integers(0, 3))))
    sizes = [int(s) for s in np.diff([0, *cuts, n]) if s > 0]
    parameters, lengths = {}, {}
    for k, size in enumerate(sizes):
        length = _log_uniform(rng, 1e-3, 1e3, size if rng.random() < 0.25 else None)
        lengths[f"p{k}"] = length
        parameters[f"p{k}"] = d(length * rng.standard_normal(size))
    return parameters, lengths


def _composition(dtype: np.dtype, rng: np.random.Generator, name: str) -> _Case:
    """Linear maps and elementary functions in turn, two to five deep, with a random offset and factor.

    Signals are mostly, not always, kept at order one inside, so that some saturate, some overflow and some oscillate.
    """
    d = partial(np.array, dtype=dtype)
    single = dtype == np.float32
    parameters, lengths = _tensors(rng, d)
    layers: list[tuple[Any, Any, Any]] = []
    total, width = sum(p.size for p in parameters.values()), int(rng.integers(1, 7))
    maps = {n: rng.standard_normal((p.size, width)) / math.sqrt(total) for n, p in parameters.items()}
    maps = {n: d(m / np.reshape(lengths[n], (-1, 1))) for n, m in maps.items()}
    u = sum(p.astype(np.longdouble) @ maps[n] for n, p in parameters.items())
    names = []
    for depth in range(int(rng.integers(2, 6))):
        if depth:
            wider = int(rng.integers(1, 7))
            linear = rng.standard_normal((width, wider)) / math.sqrt(width)
            width = wider
        else:
            linear = np.eye(width)
        gain = _log_uniform(rng, 0.3, 3) if rng.random() > 0.07 else _log_uniform(rng, 3, 30 if single else 300)
        shift = rng.standard_normal(width) / 2
        size = float(np.abs(gain * (u @ linear) + shift).max())
        tamed = 3 / size if size > 3 and rng.random() < 0.9 else 1.0
        linear, shift = d(linear * gain * tamed), d(shift * tamed)
        u = u @ linear + shift
        edged = rng.random() < 0.06
        table = _POSITIVE if edged else _SMOOTH
        kind = list(table)[int(rng.integers(len(table)))]
        if edged:
            shift = d(shift - u.astype(np.float64) + _log_uniform(rng, 0.03 if single else 1e-3, 3, width))
            u = sum(p.astype(np.longdouble) @ maps[n] for n, p in parameters.items())
            for before, moved, squash in layers:
                u = squash(u @ before + moved)
            u = u @ linear + shift
        layers.append((linear, shift, table[kind]))
        names.append(kind)
        u = table[kind](u)
    last = d(rng.standard_normal(width))
    offset = d(rng.choice([-1, 1]) * _log_uniform(rng, 0.1, 1e2 if single else 1e4) if rng.random() < 0.3 else 0.0)
    factor = d(_log_uniform(rng, 1e-3, 1e3))

    def function(p):
        u = sum(p[n] @ m for n, m in maps.items())
        for linear, shift, squash in layers:
            u = squash(u @ linear + shift)
        return factor * (u @ last + offset)

    mixed = any(np.size(length) > 1 for length in lengths.values())
    family = "composition, mixed scales" if mixed else "composition"
    return _Case(f"{name} {'>'.join(names)}", family, function, parameters)


def _pick(rng: np.random.Generator, table: Any) -> Any:
    return list(table)[int(rng.integers(len(table)))]


def _perturbed(dtype: np.dtype, rng: np.random.Generator, name: str) -> _Case:
    """A member of one of the fixed families at a point of its own."""
    d = partial(np.array, dtype=dtype)
    single = dtype == np.float32
    waves, unit = ("sum", "trend", "beat"), rng.uniform(0.5, 1.5, 9)
    left_out = {"extreme zero tensor", *(("narrow", "wide", "pair") if single else ())}
    choices: list[Callable[[], _Case]] = [
        lambda: _mgh(d, _pick(rng, _MGH), name, rng, 0.3),
        lambda: _mgh(d, _pick(rng, _MGH), name, rng, 0.03),
        lambda: _special(d, _pick(rng, _SPECIAL), name, rng),
        lambda: _ml(d, _pick(rng, _ML), name, rng),
        lambda: _offset(d, _pick(rng, _SIGNALS), _log_uniform(rng, 1e2, 1e4 if single else 1e6), rng),
        lambda: _vanishing(d, _pick(rng, _SIGNALS), _log_uniform(rng, 1e-30, 1e-10), rng),
        lambda: _oscillating(d, _pick(rng, waves), _log_uniform(rng, 10, 300 if single else 3e3), rng),
        lambda: _scaled(d, _pick(rng, [k for k in _SCALED if k not in left_out]), name, rng),
        lambda: _zero_tensor(d, f"scaled zero tensor {name}", _log_uniform(rng, 3, 30 if single else 300), unit),
        lambda: _saturated(d, _pick(rng, _SATURATED), _log_uniform(rng, 2, 5 if single else 12), rng),
        lambda: _edge(d, _pick(rng, _EDGES), _log_uniform(rng, 3e-3 if single else 1e-6, 0.3), rng),
        lambda: _large(d, _pick(rng, ("sin", "quadratic", "exp", "log", "sqrt", "ratio")), name, rng),
    ]
    case = _pick(rng, choices)()
    return case if name in case.name else replace(case, name=f"{case.name} {name}")


def fresh(dtype: Any, n: int, seed: int) -> Iterator[Problem]:
    """Problems that nothing was tuned on, as long as nobody tunes on this seed: two of three are compositions.

    Truths are complex steps in 80 bits (1e-18 times the condition), for special functions mpmath.
    """
    dtype = np.dtype(dtype)
    made = attempt = 0
    while made < n:
        name = f"fresh {seed}.{attempt}"
        rng = np.random.default_rng([seed, attempt, dtype.itemsize])
        attempt += 1
        with np.errstate(all="ignore"):
            family = _composition if rng.random() < 2 / 3 else _perturbed
            problem = _problem(family(dtype, rng, name))
            usable = _usable(problem)
        if usable:
            made += 1
            yield problem


# --- places where estimators are known to fail ------------------------------------------------------------------------


def relu_nets(dtype: Any, n: int, seed: int) -> Iterator[Problem]:
    """ReLU nets with 100 to 1e5 units: at most points they are smooth, with a kink very near.

    The truth is the derivative of the linear piece the point lies in, by backpropagation in float64 at that point.
    """
    dtype = np.dtype(dtype)
    for k in range(n):
        rng = np.random.default_rng([seed, k, dtype.itemsize])
        units = int(_log_uniform(rng, 100, 1e5))
        yield _relu_net(dtype, rng, units, f"relu net {seed}.{k} of {units}")


def _relu_net(dtype: np.dtype, rng: np.random.Generator, units: int, name: str) -> Problem:
    """One hidden layer, or two as long as their product stays small; a squared error over a few samples."""
    widths = [units // 2, units - units // 2] if units <= 600 and rng.random() < 0.5 else [units]
    sizes = [int(rng.integers(2, 6)), *widths, 1]
    samples = int(rng.integers(1, 9))
    d = partial(np.array, dtype=dtype)
    x, y = d(rng.standard_normal((samples, sizes[0]))), d(rng.standard_normal((samples, 1)))
    parameters: Arrays = {}
    for i, (before, after) in enumerate(pairwise(sizes)):
        parameters[f"w{i}"] = d(rng.standard_normal((before, after)) * math.sqrt(2 / before))
        parameters[f"b{i}"] = d(0.1 * rng.standard_normal(after))
    count = len(sizes) - 1

    def loss(p):
        h = x
        for i in range(count):
            h = h @ p[f"w{i}"] + p[f"b{i}"]
            h = np.maximum(h, 0) if i < count - 1 else h
        rest = h - y
        return (rest * rest).mean()

    exact = _backpropagate({n: p.astype(np.float64) for n, p in parameters.items()}, x, y, count)
    direction = random_direction("whole model", scales(parameters), _seed(name))
    along = partial(_dotted, exact, parameters)
    gradient = {n: g.astype(dtype) for n, g in exact.items()}
    return Problem(name, "relu nets", loss, parameters, gradient, direction, along(direction), along)


def _backpropagate(p: Arrays, x: np.ndarray, y: np.ndarray, count: int) -> Arrays:
    inputs, h = [], x.astype(np.float64)
    for i in range(count):
        inputs.append(h)
        h = h @ p[f"w{i}"] + p[f"b{i}"]
        h = np.maximum(h, 0) if i < count - 1 else h
    back = 2 * (h - y) / h.size
    gradient = {}
    for i in reversed(range(count)):
        gradient[f"w{i}"], gradient[f"b{i}"] = inputs[i].T @ back, back.sum(axis=0)
        back = (back @ p[f"w{i}"].T) * (inputs[i] > 0)
    return {n: gradient[n] for n in p}


def saturating_offset(dtype: Any, n: int, seed: int) -> Iterator[Problem]:
    """1e3 plus a tanh of a few units in the last place: far out it is flat, and flat looks like slope zero."""
    dtype = np.dtype(dtype)
    ulp = float(np.spacing(dtype.type(1e3)))
    for k in range(n):
        rng = np.random.default_rng([seed, k, dtype.itemsize])
        d = partial(np.array, dtype=dtype)
        ulps, length, size = _log_uniform(rng, 0.3, 30), _log_uniform(rng, 1e-2, 1e2), int(rng.integers(1, 6))
        w, b = d(rng.standard_normal(size) / length), d(rng.standard_normal() / 2)
        yield _saturating(d(ulps * ulp), w, b, d(length * rng.standard_normal(size)), f"saturating {seed}.{k}", ulps)


def _saturating(height: np.ndarray, w: np.ndarray, b: np.ndarray, x: np.ndarray, name: str, ulps: float) -> Problem:
    def function(p):
        return 1000 + height * np.tanh(p["x"] @ w + b)

    return replace(_problem(_Case(f"{name} {ulps:.2g} ulps", "saturating offset", function, {"x": x})), amplitude=ulps)


def hidden_single(n: int, seed: int) -> Iterator[Problem]:
    """A float64 loss of float64 parameters that computes in float32 inside: flat below 1e-7, noisy above.

    Three depths: the whole loss, its terms (averaged in float64), or only an inner layer. The truth is the derivative
    of the function without rounding.
    """
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        d = partial(np.array, dtype=np.float32)
        size, kind = int(rng.integers(1, 6)), ("loss", "terms", "layer")[k % 3]
        w, shift = d(rng.standard_normal((size, 6))), d(rng.standard_normal(6))
        length = _log_uniform(rng, 1e-2, 1e2)
        w = d(w / length)
        function = partial(_with_single_inside, kind=kind, w=w, shift=shift, offset=rng.uniform(1, 3))
        parameters = {"x": length * rng.standard_normal(size)}
        yield _problem(_Case(f"hidden single {seed}.{k} {kind}", f"hidden single ({kind})", function, parameters))


def _with_single_inside(p: Mapping[str, np.ndarray], kind: str, w: np.ndarray, shift: np.ndarray, offset: float) -> Any:
    """What is complex is exact, see above: only a float64 argument is rounded."""
    x = p["x"]
    real = not np.iscomplexobj(x)
    narrow = (lambda a: a.astype(np.float32)) if real else (lambda a: a)
    wide = (lambda a: a.astype(np.float64)) if real else (lambda a: a)
    h = np.tanh(narrow(x) @ w + shift)
    if kind == "loss":
        return wide((h * h + h).mean(axis=-1))
    if kind == "terms":
        return wide(h * h + h).mean(axis=-1)
    h = wide(h)
    return np.log(offset + (h * h).sum(axis=-1)) + np.sin(h).mean(axis=-1)


@dataclass(frozen=True, slots=True)
class _Smooth:
    """What surrounds a kink, a jump or a stair: a sine of a random projection, with its exact gradient."""

    w: np.ndarray
    b: np.ndarray
    x: np.ndarray

    def __call__(self, x: np.ndarray) -> Any:
        return np.sin(x @ self.w + self.b)

    def gradient(self) -> np.ndarray:
        wide = self.x.astype(np.longdouble)
        return np.cos(wide @ self.w + self.b) * self.w


def _smooth(d: Data, rng: np.random.Generator) -> tuple[_Smooth, float]:
    """Along with the length over which it varies."""
    size, length = int(rng.integers(2, 9)), _log_uniform(rng, 1e-2, 1e2)
    x = d(length * rng.standard_normal(size))
    return _Smooth(d(rng.standard_normal(size) / length), d(rng.standard_normal()), x), length


#: Slopes left and right of 0, and the one frameworks choose there.
_BENDS: dict[str, tuple[Callable[[Any], Any], float, float, float]] = {
    "abs": (np.abs, -1.0, 1.0, 0.0),
    "relu": (lambda u: np.maximum(u, 0), 0.0, 1.0, 0.0),
    "leaky": (lambda u: np.where(u > 0, u, u / 128), 1 / 128, 1.0, 1 / 128),
    "ties": (lambda u: np.maximum(u, 0), 0.0, 1.0, 0.5),
    "clip": (lambda u: np.clip(u, None, 0), 1.0, 0.0, 1.0),
}


def kinks(dtype: Any, kind: str, n: int, seed: int) -> Iterator[Problem]:
    """A bend exactly at the point; the truth is the mean of both sides, and the gradient what frameworks return."""
    dtype = np.dtype(dtype)
    for k in range(n):
        rng = np.random.default_rng([seed, k, dtype.itemsize, _seed(kind)])
        yield _kink(partial(np.array, dtype=dtype), rng, kind, f"kink {kind} {seed}.{k}")


def _kink(d: Data, rng: np.random.Generator, kind: str, name: str) -> Problem:
    bend, left, right, chosen = _BENDS[kind]
    smooth, length = _smooth(d, rng)
    x, height = smooth.x, d(_log_uniform(rng, 0.1, 10) / length)
    first = x[0]
    if kind == "ties":
        x[1] = first

    def loss(p):
        u = p["x"]
        if kind == "ties":
            return smooth(u) + height * np.maximum(u[0], u[1])
        return smooth(u) + height * bend(u[0] - first)

    base = smooth.gradient()

    def split(direction: Direction) -> tuple[float, float]:
        """The slopes seen when coming from the left and when leaving to the right."""
        v = direction.block("x", x.shape)
        assert v is not None
        inner, outer = (v[0] - v[1], v[1]) if kind == "ties" else (v[0], 0.0)
        before, after = (left, right) if inner >= 0 else (right, left)
        common = float((base * v).sum()) + float(height) * outer
        return common + float(height) * before * inner, common + float(height) * after * inner

    gradient = base.copy()
    gradient[0] += height * chosen
    if kind == "ties":
        gradient[1] += height * (1 - chosen)
    direction = random_direction("whole model", scales({"x": x}), _seed(name))
    return Problem(
        name,
        f"kink {kind}",
        loss,
        {"x": x},
        {"x": gradient.astype(x.dtype)},
        direction,
        sum(split(direction)) / 2,
        lambda v: sum(split(v)) / 2,
        sides=split(direction),
    )


def jumps(dtype: Any, n: int, seed: int) -> Iterator[Problem]:
    """Steps at the point, or close by; the truth is the slope without the step."""
    dtype = np.dtype(dtype)
    steps: dict[str, Callable[[Any], Any]] = {"sign": np.sign, "floor": np.floor, "step": lambda u: u > 0}
    for k in range(n):
        rng = np.random.default_rng([seed, k, dtype.itemsize])
        d = partial(np.array, dtype=dtype)
        smooth, length = _smooth(d, rng)
        kind, near = list(steps)[k % 3], (k // 3) % 2 == 1
        away = rng.choice([-1, 1]) * _log_uniform(rng, 3e-5 if dtype == np.float32 else 1e-8, 1e-2)
        spot = d(float(smooth.x[0]) + away * length) if near else smooth.x[0]
        function = partial(_jumping, smooth, d(_log_uniform(rng, 1e-2, 10)), steps[kind], spot, d(2 * length))
        family = "jump near the point" if near else "jump at the point"
        case = _Case(f"jump {kind} {seed}.{k}", family, function, {"x": smooth.x}, {"x": smooth.gradient()})
        yield _problem(case)


def _jumping(smooth: _Smooth, height: Any, step: Any, spot: Any, length: Any, p: Mapping[str, np.ndarray]) -> Any:
    return smooth(p["x"]) + height * step((p["x"][0] - spot) / length)


def staircases(dtype: Any, n: int, seed: int) -> Iterator[Problem]:
    """Piecewise constant functions, whose gradient is zero."""
    dtype = np.dtype(dtype)
    for k in range(n):
        rng = np.random.default_rng([seed, k, dtype.itemsize])
        d = partial(np.array, dtype=dtype)
        size, length = int(rng.integers(1, 9)), _log_uniform(rng, 1e-2, 1e2)
        x, kind = d(length * rng.standard_normal(size)), ("round", "floor", "count")[k % 3]
        stairs = d(_log_uniform(rng, 1, 300 if dtype == np.float32 else 1e4) / length)
        w, marks = d(rng.standard_normal(size)), d(length * rng.standard_normal((200, size)))
        function = partial(_stair, kind, stairs, w, marks)
        yield _problem(
            _Case(f"staircase {kind} {seed}.{k}", f"staircase {kind}", function, {"x": x}, {"x": np.zeros(size)})
        )


def _stair(kind: str, stairs: Any, w: np.ndarray, marks: np.ndarray, p: Mapping[str, np.ndarray]) -> Any:
    if kind == "round":
        return (w * np.round(p["x"] * stairs)).sum() / stairs
    if kind == "floor":
        return np.floor(p["x"] * stairs).sum()
    return w.dtype.type((p["x"] > marks).sum())


# --- how good the truths are ------------------------------------------------------------------------------------------


def _disagreement(problem: Problem) -> float | None:
    """Of the truth in 80 bits with one in 64: an upper estimate of the error of the latter, 2000 times that of ours."""
    if not isinstance(problem.along, partial) or problem.along.func is not _stepped:
        return None
    function, parameters = problem.along.args
    with np.errstate(all="ignore"):
        other = _stepped(function, parameters, problem.direction, np.complex128)
    return abs(other - problem.truth) / max(abs(problem.truth), problem.direction.norm(problem.gradient))


def main() -> None:
    for dtype in ("float64", "float32"):
        problems = fixed(dtype)
        print(f"{dtype}: {len(problems)} problems, {dict(Counter(p.family for p in problems))}")
        hard = [p.name for p in problems if p.family == "hard"]
        print(f"  hard: {', '.join(hard) or 'none'}")
        for label, some in (("fixed", problems), ("fresh", list(fresh(dtype, 1000, 0)))):
            gaps = [g for p in some if (g := _disagreement(p)) is not None]
            print(f"  {label}: complex steps in 64 and 80 bits differ by {np.median(gaps):.1e} (median),", end=" ")
            print(f"{max(gaps):.1e} (most) of the slope; {len(some) - len(gaps)} other truths")


if __name__ == "__main__":
    main()
