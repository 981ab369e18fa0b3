"""Models nobody would write, at any scale: does an audit or its report crash, and what does it say?

    python benchmarks/random_models.py [--models 1000] [--first 0]

Sums of elementwise functions of one to three tensors, in both precisions; parameters from 1e-300 to 1e150, losses from
1e-320 to 1e200 and on offsets; gradients right, times 2, -1 or 0, not finite, or missing. Errors that name what is
wrong with the model (a loss that is not finite, no parameters) are answers; any other exception is a crash, printed
with its model, and the exit code is 1. Verdicts are counted by what was done to the gradient. No truth is claimed: at
these scales a right gradient may have underflowed, and a wrong one may be zero as it should be.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np

import gradaudit
from gradaudit.backends.numpy import NumpyModel
from gradaudit.errors import GradauditError

Elementwise = Callable[[np.ndarray], np.ndarray]
FUNCTIONS: dict[str, tuple[Elementwise, Elementwise]] = {
    "sin": (np.sin, np.cos),
    "square": (np.square, lambda x: 2 * x),
    "cube": (lambda x: x**3, lambda x: 3 * x * x),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "abs": (np.abs, np.sign),
    "round": (np.round, np.zeros_like),
    "exp": (np.exp, np.exp),
    "log": (np.log, lambda x: 1 / x),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "inverse": (lambda x: 1 / x, lambda x: -1 / (x * x)),
    "constant": (np.zeros_like, np.zeros_like),
}
SHAPES = ((), (1,), (3,), (2, 3), (0,), (50,), (1, 1, 1))
SIZES = {"float64": (0, 0, 0, -8, 8, -30, 30, -150, 150, -300), "float32": (0, 0, 0, -8, 8, -20, 20, -30, -44, 37)}
SCALES = {"float64": (0, 0, -10, 10, -30, 30, -200, -320, 200), "float32": (0, 0, -10, 10, -30, -44, 30)}
FACTORS = (1.0, 1.0, 1.0, 2.0, -1.0, 0.0, np.nan, np.inf)


def random_model(seed: int) -> tuple[NumpyModel, str, str]:
    """A model, what was done to its gradient, and a description."""
    rng = np.random.default_rng(seed)
    dtype = str(rng.choice(["float32", "float64"]))
    drawn: dict[str, np.ndarray] = {}
    for i in range(int(rng.integers(1, 4))):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        size = 10.0 ** float(rng.choice(SIZES[dtype])) if rng.random() > 0.1 else 0.0
        drawn[f"p{i}"] = np.asarray(rng.standard_normal(shape) * size, dtype)
    names = {name: str(rng.choice(list(FUNCTIONS))) for name in drawn}
    scale = np.dtype(dtype).type(10.0 ** float(rng.choice(SCALES[dtype])))
    offset = np.dtype(dtype).type(rng.choice([0, 0, 1, 1e8]))
    factor = float(rng.choice(FACTORS))
    missing = bool(rng.random() < 0.1)

    def loss(p):
        return offset + scale * sum(FUNCTIONS[names[n]][0](x).sum() for n, x in p.items())

    def gradient(p):
        found = {n: np.asarray(factor * scale * FUNCTIONS[names[n]][1](x), x.dtype) for n, x in p.items()}
        return found | {"p0": None} if missing else found

    done = "one missing" if missing else "right" if factor == 1 else f"times {factor:g}"
    words = ", ".join(f"{names[n]} of {x.shape} up to {np.abs(x).max(initial=0):.1e}" for n, x in drawn.items())
    model = NumpyModel(loss, drawn, gradient=gradient, any_dtype=bool(rng.random() < 0.5))
    return model, done, f"{dtype}, {offset:g} + {scale:g} ({words})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    seen: dict[str, Counter[str]] = {}
    crashes = 0
    for seed in range(chosen.first, chosen.first + chosen.models):
        model, done, words = random_model(seed)
        try:
            report = gradaudit.audit(model, seed=seed)
            str(report)
            said = report.verdict.name
        except GradauditError as error:
            said = type(error).__name__
        except Exception:  # noqa: BLE001 (that is what is looked for)
            crashes += 1
            said = "CRASH"
            print(f"{seed}: {words}, {done}\n{traceback.format_exc(limit=-2)}")
        seen.setdefault(done, Counter())[said] += 1
    columns = sorted({said for counts in seen.values() for said in counts})
    print(f"{'gradient':14}" + "".join(f"{c:>22}" for c in columns))
    for done, counts in sorted(seen.items()):
        print(f"{done:14}" + "".join(f"{counts[c] or '.':>22}" for c in columns))
    return int(crashes > 0)


if __name__ == "__main__":
    sys.exit(main())
