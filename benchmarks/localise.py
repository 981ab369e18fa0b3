"""Where is a large tensor wrong: directions used, what is found, and what is found that is not there?

    python benchmarks/localise.py                      # P = 1e2, 1e4, 1e6
    python benchmarks/localise.py --sizes 100 10000 --trials 20 --real

Every direction costs eight evaluations of the loss. Simulated: the gaps of known errors, of the size of the gradient's
entries, with noise uniform within a bound of r relative to ||g * v||, as a float64 follow-up has it (r = 6e-9) or a
coarse one (r = 1e-4); "flat" noise has the same bound for every direction, as rounding of the loss has it, relative to
||g * v|| of the whole tensor. Real: follow-up estimates of a NumPy loss, sum(c * sin(p)), with the errors planted in
its gradient, and bounds as an audit makes them.

"found" counts wrong entries read one by one, "false" those of them that are right (it must be 0); "right" counts the
trials whose kind of place is the planted one and whose search came to its end. Places found as a whole (rows, columns)
read examples only.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradaudit.arrays import Array
from gradaudit.backends.numpy import NumpyModel
from gradaudit.direction import Direction, random_direction
from gradaudit.measure.localise import Gap, Located, Oracle, localise
from gradaudit.numeric.budget import Budget
from gradaudit.numeric.estimate import Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler

_EVALUATIONS = 8
_EPS = 2.0**-52


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Planted errors, and the kinds of place that name them rightly."""

    name: str
    errors: Array
    kinds: tuple[str, ...]


def faults(size: int, seed: int) -> Iterator[Fault]:
    """Sparse, one row, one column, ten rows, a quarter of the columns, everything."""
    rng = np.random.default_rng([size, seed])
    rows = math.isqrt(size) // 4 * 4 or 4
    shape = (rows, size // rows // 4 * 4)
    everywhere = rng.standard_normal(shape)

    def only(*index: object) -> Array:
        errors = np.zeros(shape)
        errors[index] = everywhere[index]
        return errors

    for n in (1, 10, 100):
        errors = np.zeros(shape)
        # 96 entries of the smallest tensor are all of it
        places = rng.choice(errors.size, min(n, errors.size), replace=False)
        errors.flat[places] = rng.choice([-1, 1], len(places)) * rng.uniform(0.5, 1.5, len(places))
        yield Fault(name=f"{n} entries", errors=errors, kinds=("entries" if n < errors.size else "whole tensor",))
    yield Fault(name="a row", errors=only(rng.integers(rows)), kinds=("rows",))
    yield Fault(name="a column", errors=only(slice(None), rng.integers(shape[1])), kinds=("columns",))
    if rows >= 50:
        yield Fault(name="ten rows", errors=only(rng.choice(rows, 10, replace=False)), kinds=("rows",))
    gate, width = rng.integers(4), shape[1] // 4
    gates = only(slice(None), slice(gate * width, (gate + 1) * width))
    yield Fault(name="a gate", errors=gates, kinds=("columns",))
    yield Fault(name="everything", errors=everywhere, kinds=("whole tensor",))


@dataclass(slots=True)
class Simulated:
    """An oracle that knows the errors."""

    errors: Array
    r: float
    flat: bool
    rng: np.random.Generator
    gradient: Array = field(init=False)
    unit: tuple[int, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.gradient = self.rng.standard_normal(self.errors.shape)
        self.unit = (-1, np.zeros(0))

    def __call__(self, directions: Sequence[Direction]) -> list[Gap]:
        return [self._gap(direction) for direction in directions]

    def _gap(self, direction: Direction) -> Gap:
        scale = direction.scales["w"]
        if direction.entry is not None:
            truth, size = self.errors[direction.entry] * scale, abs(self.gradient[direction.entry] * scale)
        else:
            if self.unit[0] != direction.seed:  # drawing is most of the work
                unit = random_direction("", {"w": 1.0}, direction.seed).block("w", self.errors.shape)
                self.unit = (direction.seed, np.asarray(unit))
            v = scale * self.unit[1]
            truth, size = float((self.errors * v).sum()), float(np.linalg.norm(self.gradient * v))
        if self.flat:
            size = float(np.linalg.norm(self.gradient))
        bound = self.r * size
        return Gap(value=float(truth + bound * self.rng.uniform(-1, 1)), bound=float(bound))


def real(errors: Array, seed: int) -> Oracle:
    """Follow-up estimates of a float64 loss whose gradient has the errors, with bounds as an audit makes them."""
    rng = np.random.default_rng([seed, 1])
    c, p = rng.standard_normal((2, *errors.shape))
    gradient = c * np.cos(p) + errors
    model = NumpyModel(lambda q: (c * np.sin(q["w"])).sum(), {"w": p}, gradient=lambda _: {"w": gradient})
    sampler = Sampler(model, Budget(10**9), gradients={"w": None}, batch_bytes=2**26, dtype="float64")
    first = estimate(sampler, [random_direction("w", {"w": 1.0}, 10**6)], "first")[0]
    known = Known(sigma=first.sigma, base=first.base, step=first.step)

    def oracle(directions: Sequence[Direction]) -> list[Gap]:
        gaps = []
        for d, e in zip(directions, follow_up(sampler, directions, known, "localise"), strict=True):
            analytic = d.dot({"w": gradient})
            own = _EPS * (16 * d.reach({"w": gradient}) + 64 * abs(analytic))
            gaps.append(Gap(value=analytic - e.value, bound=e.bound + own))
        return gaps

    return oracle


def trial(fault: Fault, oracle: Oracle, seed: int, most: int) -> tuple[Located, float]:
    """One search and its seconds."""
    started = time.perf_counter()
    found = localise(oracle, "w", fault.errors.shape, 0.7, seed=seed, most=most)
    return found, time.perf_counter() - started


def row(label: str, size: int, trials: Sequence[tuple[Fault, Located, float]]) -> str:
    """One line of the table."""
    fault = trials[0][0]
    used = [found.directions for _, found, _ in trials]
    planted = sum(int(np.count_nonzero(f.errors)) for f, _, _ in trials)
    read = [(f, entry) for f, found, _ in trials for entry in found.entries]
    false = sum(f.errors[entry] == 0 for f, entry in read)
    right = sum(found.kind in f.kinds and found.complete for f, found, _ in trials)
    seconds = np.mean([s for *_, s in trials])
    return (
        f"{label:12} {size:>8,} {fault.name:12} {np.mean(used):8.1f} {max(used):6} "
        f"{_EVALUATIONS * np.mean(used):9.0f} {len(read):>7} of {planted:<9,} {false:5} "
        f"{right:5} of {len(trials):<3} {seconds:6.1f}  {trials[0][1].where[:60]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**2, 10**4, 10**6])
    parser.add_argument("--trials", type=int, default=10, help="a tenth of them for more than 1e5 entries")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--real", action="store_true", help="through real losses only (minutes at 1e6)")
    parser.add_argument("--most-real", type=int, default=500)
    args = parser.parse_args()
    settings = [("6e-9", 6e-9, False), ("1e-4", 1e-4, False), ("1e-4 flat", 1e-4, True)]
    print(
        f"{'noise':12} {'P':>8} {'wrong':12} {'directions':>10} {'max':>4} {'losses':>9} {'found':>10} "
        f"{'':9} {'false':>5} {'right':>8} {'s':>9}  place of the first trial"
    )
    for label, r, flat in [("real", 0.0, False)] if args.real else settings:
        for size in args.sizes:
            seeds = range(args.seed, args.seed + (args.trials if size <= 10**5 else max(1, args.trials // 10 * 3)))
            if args.real and size > 10**5:
                seeds = seeds[:1]
            for same in zip(*(faults(size, seed) for seed in seeds), strict=True):
                done = []
                for fault, seed in zip(same, seeds, strict=True):
                    rng = np.random.default_rng([seed, 2])
                    oracle = real(fault.errors, seed) if args.real else Simulated(fault.errors, r, flat, rng)
                    done.append((fault, *trial(fault, oracle, seed, args.most_real if args.real else args.most)))
                print(row(label, size, done), flush=True)


if __name__ == "__main__":
    main()
