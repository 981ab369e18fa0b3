"""Right float32 gradients of few entries: is any called wrong by the relation between its entries?

    python benchmarks/related.py [--seeds 300] [--first 1000]

Small models that amplify rounding, each as it is and with constants that float32 stores otherwise than its float64
twin: maps (logistic, Henon), an oscillator, recurrent nets, Lorenz's equations. Of each the number of seeds, how many
have differences worth the points (then 32 gradients are taken), and how many are condemned, which none should be: by
the relation, or since one entry alone is off by more than rounding (which an audit condemns only where the twin's
gradient is cleared). Then the same of those with an error of 1e-3 in one of the entries.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch

import gradaudit
from gradaudit.backends.torch.model import TorchModel
from gradaudit.measure.baseline import gradient_of
from gradaudit.measure.sources import choose
from gradaudit.numeric.budget import Budget

ERROR = 1e-3


def constant(x, value):
    """A number that is stored in the dtype of x."""
    return torch.tensor(value, dtype=x.dtype)


def logistic(x, c, steps=30):
    r, y = 3.7 + 0.2 * x[5], torch.sigmoid(x[:5])
    for _ in range(steps):
        y = c * r * y * (1 - y)
    return y.sum()


def henon(x, c, steps=40):
    a, b, u, v = 1.4 * x[0], 0.3 * x[1], 0.1 * x[2], 0.1 * x[3]
    for _ in range(steps):
        u, v = 1 - c * a * u * u + v, b * u
    return u + v


def oscillator(x, c, steps=200):
    dt, u, v = c * 0.1, x[3], x[4]
    for i in range(steps):
        v = v + dt * (-x[0] * x[0] * torch.sin(3 * u) - 0.1 * x[1] * v + x[2] * float(np.cos(0.1 * i)))
        u = u + dt * v
    return (u - x[5]) ** 2


def recurrent(x, c, steps=40):
    w, h = 3 * c * x[:4].reshape(2, 2), x[4:6]
    for _ in range(steps):
        h = torch.tanh(w @ h)
    return h.sum()


def lorenz(x, c, steps=150):
    s, r, b = 10 + x[0], 28 + x[1], 8 / 3 + 0.1 * x[2]
    (u, v, w), dt = x[3:6], c * 0.02
    for _ in range(steps):
        u, v, w = u + dt * s * (v - u), v + dt * (u * (r - w) - v), w + dt * (u * v - b * w)
    return u + v


MODELS = {"logistic": (logistic, 6), "henon": (henon, 4), "oscillator": (oscillator, 6), "recurrent": (recurrent, 6)}
MODELS["lorenz"] = (lorenz, 6)
STORED = {"": 1.0, ", stored": 1 + 0.999 * 2.0**-24}


class Off:
    """A model whose own gradient has an error; the twin's is right."""

    def __init__(self, model, error):
        self.parameters, self.loss, self.twin = model.parameters, model.loss, model.twin
        self._model, self._error = model, error

    def value_and_grad(self, parameters):
        loss, gradients = self._model.value_and_grad(parameters)
        return loss, {n: (g + self._error).astype(g.dtype) for n, g in gradients.items()}


def asked(function, c, n, seed, error):
    """Whether the relation condemns, whether an entry alone does, and the gradients taken; None: not finite."""
    x = np.random.default_rng(seed).standard_normal(n).astype("float32")
    model = TorchModel(lambda p: function(p["x"], constant(p["x"], c)), {"x": x}, n_threads=1)
    loss, gradients = gradient_of(model, Budget(10_000))
    if not (np.isfinite(loss) and np.isfinite(gradients["x"]).all()):
        return None
    off = np.zeros(n)
    k = np.argmax(np.abs(gradients["x"] * x)) if seed % 2 else seed // 2 % n
    off[k] = error * gradients["x"][k]
    wrong, budget = Off(model, off), Budget(10_000)
    loss, gradients = gradient_of(wrong, budget)
    source = choose(wrong, loss, gradients, budget, seed=seed)
    return bool(source.related), bool((source.excess or {}).get("x", np.zeros(1)).any()), budget.spent["gradient"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=1000)
    chosen = parser.parse_args()
    for name, (function, n) in MODELS.items():
        for words, c in STORED.items():
            seeds = range(chosen.first, chosen.first + chosen.seeds)
            right, wrong = ([a for s in seeds if (a := asked(function, c, n, s, e))] for e in (0.0, ERROR))
            looked = sum(g > 30 for *_, g in right)
            print(f"{name + words:20} {len(right):4} seeds, {looked:4} looked at; condemned by the relation, ", end="")
            print(f"an entry alone: {sum(r for r, *_ in right)}, {sum(e for _, e, _ in right)}; ", end="")
            print(f"off by {ERROR:g}: {sum(r for r, *_ in wrong)}, {sum(e for _, e, _ in wrong)}", flush=True)
    verdicts = Counter()
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        x = np.random.default_rng(seed).standard_normal(6).astype("float32")
        model = TorchModel(lambda p: recurrent(p["x"], 1.0), {"x": x}, n_threads=1)
        verdicts[str(gradaudit.audit(model, seed=seed).verdict)] += 1
    print(f"audits of the recurrent nets: {dict(verdicts)}")


if __name__ == "__main__":
    main()
