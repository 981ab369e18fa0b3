"""Frozen first rows, or a truncation in time? GA104 where one tensor alone is audited.

    python benchmarks/frozen_rows.py [--seeds 200]

Of random programs the gradient of one tensor is exactly zero in its first rows, and right in the rest: embedding
tables, weights of a dense layer, and the inputs of truncated recurrent networks (those of benchmarks/identify.py, tails
of 20 to 200 steps with a loss at each of them), of whose gradient at least a tenth is missing. Counted: how many are
called truncated in time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from identify import Net, model_of, random_net

import gradaudit
from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.numpy import NumpyModel
from gradaudit.recurrent import none


def table(rng: np.random.Generator) -> NumpyModel:
    """An embedding table (V, H), whose rows are averaged over a sentence, and read out."""
    n, width = int(rng.integers(8, 40)), int(rng.integers(2, 6))
    words, target = rng.integers(n, size=(60, 3)), rng.standard_normal(60)
    out = rng.standard_normal(width)

    def gradient(p: NamedArrays) -> NamedArrays:
        h = np.tanh(p["table"][words].mean(axis=1))
        back = 2 / 60 * (h @ out - target)[:, None] * out * (1 - h**2) / 3
        found = np.zeros_like(p["table"])
        np.add.at(found, words, back[:, None])
        return {"table": found}

    def loss(p: NamedArrays) -> float:
        return float(((np.tanh(p["table"][words].mean(axis=1)) @ out - target) ** 2).mean())

    return frozen(loss, "table", rng.standard_normal((n, width)), gradient, int(rng.integers(1, n // 2)))


def weight(rng: np.random.Generator) -> NumpyModel:
    """The weight (D, H) of a dense layer."""
    n, width = int(rng.integers(8, 40)), int(rng.integers(2, 6))
    x, target, out = rng.standard_normal((60, n)), rng.standard_normal(60), rng.standard_normal(width)

    def gradient(p: NamedArrays) -> NamedArrays:
        h = np.tanh(x @ p["weight"])
        return {"weight": x.T @ (2 / 60 * (h @ out - target)[:, None] * out * (1 - h**2))}

    def loss(p: NamedArrays) -> float:
        return float(((np.tanh(x @ p["weight"]) @ out - target) ** 2).mean())

    values = rng.standard_normal((n, width)) / np.sqrt(n)
    return frozen(loss, "weight", values, gradient, int(rng.integers(1, n // 2)))


def frozen(
    loss: Callable[[NamedArrays], float],
    name: str,
    values: Array,
    gradient: Callable[[NamedArrays], NamedArrays],
    n_rows: int,
) -> NumpyModel:
    """With a gradient that is zero in the first rows."""
    kept = (np.arange(len(values)) >= n_rows)[:, None]
    return NumpyModel(loss, {name: values}, gradient=lambda p: {name: np.where(kept, gradient(p)[name], 0)})


def sequences(rng: np.random.Generator) -> Iterator[NumpyModel]:
    """The inputs of truncated networks."""
    while True:
        net, x = random_net(rng, "tail")
        full = Net(net.spec, net.weights, net.labels, none()).gradient(x)
        gap = np.linalg.norm(full - net.gradient(x)) / np.linalg.norm(full)
        if net.spec.outputs == "all" and gap > 0.1 and 2 < (net.truncation.k or 0) < len(x) - 2:
            yield model_of(net, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    n = parser.parse_args().seeds
    networks = sequences(np.random.default_rng(3))
    kinds: dict[str, Callable[[np.random.Generator], NumpyModel]] = {
        "embedding tables": table,
        "weights": weight,
        "truncated inputs": lambda _: next(networks),
    }
    for kind, make in kinds.items():
        reports = [gradaudit.audit(make(np.random.default_rng([seed, len(kind)]))) for seed in range(n)]
        wrong = [report for report in reports if report.verdict is gradaudit.Verdict.DISAGREE]
        in_time = sum(any(f.code == "GA104" for f in report.findings) for report in wrong)
        print(f"{kind}: {in_time} of {len(wrong)} that disagree are called truncated in time", flush=True)


if __name__ == "__main__":
    main()
