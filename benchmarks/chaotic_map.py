"""What hides an error of 1e-3 in the gradient of a chaotic map: the float64 losses, or the rounding of float32?

    python benchmarks/chaotic_map.py

The map is that of `models.RECIPES`: the sum of five logistic maps after 30 steps, and the error is in dL/dr. First what
central differences of float64 losses can know of dL/dr at best, the best step chosen with 60 digits. Then the rounding
of the right float32 gradient: of dL/dr alone, at points nearby, and what dL/dx of the same points leaves of it. Then
what constants that a program holds in float32 change, computed without rounding. Then whose error it is: each entry
beside all others, an error of 1e-3 in dL/dr alone. Last, right gradients of a small recurrent net, whose rounding
repeats itself.
"""

from __future__ import annotations

from decimal import Decimal, getcontext
from math import factorial

import numpy as np
from models import RECIPES

STEPS = (30, 60, 90, 120, 150, 180)
ORDERS = (2, 4, 6, 8, 10)
ERROR = 1e-3
N_POINTS = 17
#: Units in the last place.
FAR = 200

getcontext().prec = 60


def start(seed: int) -> tuple[np.ndarray, np.float32]:
    """The recipe's parameters in float32."""
    parameters, _ = RECIPES["chaotic map, 30 steps"].case(seed)
    return parameters["x"].astype(np.float32), np.float32(parameters["r"])


# ---------------------------------------------------------------- losses


def exact(x: list[Decimal], r: Decimal, steps: int) -> tuple[Decimal, Decimal]:
    """The loss and dL/dr, in 60 digits."""
    loss = slope = Decimal(0)
    for value in x:
        v, dv = value, Decimal(0)
        for _ in range(steps):
            v, dv = r * v * (1 - v), v * (1 - v) + r * (1 - 2 * v) * dv
        loss, slope = loss + v, slope + dv
    return loss, slope


def stencil(order: int) -> list[float]:
    """c_1, c_2, ...: f' = sum c_i (f(ih) - f(-ih)) / h."""
    m = order // 2
    return [(-1) ** (i + 1) * factorial(m) ** 2 / (i * factorial(m - i) * factorial(m + i)) for i in range(1, m + 1)]


def best_differences(steps: int) -> tuple[float, dict[int, float]]:
    """|dL/dr|, and by order the smallest relative error: truncation in 60 digits, and float64's noise over the step."""
    x32, r32 = start(0)
    x, r = [Decimal(float(v)) for v in x32], Decimal(float(r32))
    _, slope = exact(x, r, steps)
    nearby = float(r32) + 1e-12 * np.random.default_rng(0).standard_normal(50)
    noise = np.std(
        [float(Decimal(float(losses(x32, v, steps))) - exact(x, Decimal(float(v)), steps)[0]) for v in nearby]
    )
    found = dict.fromkeys(ORDERS, np.inf)
    for h in map(Decimal, 10.0 ** np.arange(-15, -1, 0.5)):
        differences = [
            (exact(x, r + i * h, steps)[0] - exact(x, r - i * h, steps)[0]) / h - 2 * i * slope
            for i in range(1, max(ORDERS) // 2 + 1)
        ]
        for order in ORDERS:
            c = stencil(order)
            truncation = abs(sum(a * float(d) for a, d in zip(c, differences, strict=False)))
            error = truncation + noise * np.sqrt(2 * np.sum(np.square(c))) / float(h)
            found[order] = min(found[order], error / abs(float(slope)))
    return abs(float(slope)), found


def losses(x: np.ndarray, r: float, steps: int) -> np.ndarray:
    """The loss in float64."""
    x = x.astype(np.float64)
    for _ in range(steps):
        x = r * x * (1 - x)
    return x.sum()


# ---------------------------------------------------------------- gradients

#: The same map, rounded differently.
FORMS = {
    "(r x) (1 - x)": lambda r, v: r * v * (1 - v),
    "r (x (1 - x))": lambda r, v: r * (v * (1 - v)),
    "r (x - x x)  ": lambda r, v: r * (v - v * v),
    "r x - r x x  ": lambda r, v: r * v - r * v * v,
}


def gradients(x: np.ndarray, r: np.ndarray, dtype: type, form: str = "(r x) (1 - x)") -> np.ndarray:
    """(dL/dx_1, ..., dL/dx_5, dL/dr) at each point, by reverse mode in one dtype."""
    x, r = x.astype(dtype), r.astype(dtype)
    seen = []
    for _ in range(30):
        seen.append(x)
        x = FORMS[form](r, x)
    adjoint, dr = np.ones_like(x), np.zeros_like(x)
    for v in reversed(seen):
        dr = dr + adjoint * (v * (1 - v))
        adjoint = adjoint * (r * (1 - 2 * v))
    return np.concatenate([adjoint, dr.sum(-1, keepdims=True)], -1).astype(np.float64)


def shaken(seed: int, far: float) -> tuple[np.ndarray, np.ndarray]:
    """The base point and points so many units in the last place away."""
    rng = np.random.default_rng(seed)
    moved = []
    for p in start(seed):
        shape = (N_POINTS, np.size(p))
        away = rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape) * far
        away[0] = 0
        moved.append((p + away * np.spacing(p)).astype(np.float32))
    return tuple(moved)


def rounding(seed: int, form: str) -> list[float]:
    """At the base point, and the standard deviation at points nearby: of dL/dr, and of what dL/dx leaves of it.

    Then the error of 1e-3 in standard errors of the mean, alone and beside dL/dx; relative to dL/dr.
    """
    points = shaken(seed, FAR)
    right = gradients(*points, np.float64)
    apart = (gradients(*points, np.float32, form) - right) / abs(right[0, -1])
    design = np.column_stack([np.ones(N_POINTS), apart[:, :-1]])
    solution, *_ = np.linalg.lstsq(design, apart[:, -1], rcond=None)
    rest = apart[:, -1] - design @ solution
    left = np.sqrt(rest @ rest / (N_POINTS - design.shape[1]))
    deviation = apart[:, -1].std(ddof=1)
    of_mean = left * np.sqrt(np.linalg.inv(design.T @ design)[0, 0])
    return [apart[0, -1], deviation, left, ERROR / (deviation / np.sqrt(N_POINTS)), ERROR / of_mean]


def beside_the_others(seed: int, error: float) -> np.ndarray:
    """Each entry fitted by all others and a constant: the constant in standard errors, (6,), dL/dr the last.

    Args:
        seed: of the parameters.
        error: in dL/dr alone, relative.
    """
    points = shaken(seed, FAR)
    right = gradients(*points, np.float64)
    apart = (gradients(*points, np.float32) - right) / abs(right[0])
    apart[:, -1] += error
    found = []
    for k in range(apart.shape[1]):
        others = np.delete(apart, k, axis=1)
        design = np.column_stack([np.ones(N_POINTS), others / np.abs(others).max(axis=0)])
        inverse = np.linalg.pinv(design)
        rest = apart[:, k] - design @ (inverse @ apart[:, k])
        noise = np.sqrt(rest @ rest / (N_POINTS - design.shape[1]))
        found.append(abs(inverse[0] @ apart[:, k]) / (noise * np.linalg.norm(inverse[0])))
    return np.array(found)


#: Float32 holds it as 1.
CONSTANT = 1 + 0.999 * 2.0**-24


def constants(seed: int, n: int) -> np.ndarray:
    """How far apart, relatively, two programs of the map have dL/dr, at each point: all in float64, with no rounding.

    One multiplies r by n constants of 1.00000006, the other by what float32 holds of them, which is 1.
    """
    x, r = shaken(seed, FAR)
    factors = (CONSTANT**n, 1.0)
    exact_ones, stored = (c * gradients(x, (c * r.astype(np.float64)), np.float64)[:, -1] for c in factors)
    return (stored - exact_ones) / np.abs(exact_ones)


def recurrent(seed: int) -> float:
    """A right gradient of h <- tanh(W h), 40 steps, 2 x 2: the best combination of its entries in standard errors."""
    rng = np.random.default_rng(seed)
    p = np.append(3 * rng.standard_normal(4), rng.uniform(-1, 1, 2)).astype(np.float32)
    points = np.tile(p, (N_POINTS, 1))
    away = rng.choice([-1, 1], points.shape) * rng.uniform(0.5, 1.5, points.shape) * FAR
    away[0] = 0
    points = (points + away * np.spacing(p)).astype(np.float32)
    exact_ones, ours = (np.array([_recurrent_gradient(q.astype(t)) for q in points]) for t in (np.float64, np.float32))
    apart = (ours - exact_ones) / np.abs(exact_ones[0])
    covariance = np.cov(apart, rowvar=False) + np.diag(np.full(len(p), np.finfo(np.float32).eps ** 2))
    mean = apart.mean(axis=0)
    return float(np.sqrt(N_POINTS * mean @ np.linalg.solve(covariance, mean)))


def _recurrent_gradient(p: np.ndarray) -> np.ndarray:
    w, h, seen = p[:4].reshape(2, 2), p[4:], []
    for _ in range(40):
        seen.append(h)
        h = np.tanh(w @ h)
    adjoint, dw = np.ones_like(h), np.zeros_like(w)
    for before, after in zip(seen[::-1], [h, *seen[:0:-1]], strict=True):
        inner = adjoint * (1 - after * after)
        dw, adjoint = dw + np.outer(inner, before), w.T @ inner
    return np.append(dw, adjoint)


def main() -> None:
    print("dL/dr by central differences of float64 losses: relative error at the best step, truncation and noise")
    print("  steps  |dL/dr|  " + "  ".join(f"order {o:2d}" for o in ORDERS))
    for steps in STEPS:
        slope, best = best_differences(steps)
        print(f"  {steps:5d}  {slope:7.1e}  " + "  ".join(f"{best[o]:8.1e}" for o in ORDERS))
    print(
        "\nrounding of the right float32 dL/dr after 30 steps, relative; an error of 1e-3 in standard errors, 17 points"
    )
    print("  seed  formula        base point   nearby  beside dL/dx   seen alone  seen beside dL/dx")
    for seed in range(8):
        for form in FORMS if seed == 0 else list(FORMS)[:1]:
            base, nearby, left, alone, beside = rounding(seed, form)
            print(f"  {seed:4d}  {form}  {base:11.1e}  {nearby:7.1e}  {left:12.1e}  {alone:11.1f}  {beside:17.1f}")
    print("\ndL/dr of a program with n constants beside what float32 holds of them, no rounding: relative, 17 points")
    print("  seed  n  base point     mean   nearby")
    for seed in range(4):
        for n in (1, 2, 4):
            apart = constants(seed, n)
            print(f"  {seed:4d}  {n}  {apart[0]:10.1e}  {apart.mean():7.1e}  {apart.std(ddof=1):7.1e}")
    print("\neach entry beside all others, 17 points: the constant in standard errors, dL/dx_1 to dL/dx_5, dL/dr")
    for seed in range(8):
        for error in (0.0, ERROR):
            seen = "  ".join(f"{of_entry:6.1f}" for of_entry in beside_the_others(seed, error))
            print(f"  {seed:4d}  dL/dr off by {error:g}: {seen}")
    with np.errstate(all="ignore"):
        seen = [recurrent(seed) for seed in range(100)]
    seen = [s for s in seen if np.isfinite(s)]
    print(f"\n{len(seen)} right gradients of a small recurrent net, their best combination in standard errors:")
    print("  median, 90 %, largest: " + ", ".join(f"{q:.0f}" for q in np.quantile(seen, [0.5, 0.9, 1])))


if __name__ == "__main__":
    main()
