"""Bias of truncated gradients of a trained LSTM on sequences of 1,000 steps, and whether the recommended k holds.

    python benchmarks/bias.py [--backend numpy] [--figure docs/bias.png]

The task is leaky adding: the features are noise and, at one step in five, a mark; the label of a step says whether
the leaky sum of the marked noise is above zero. A PyTorch LSTM of 16 units is trained on T = 80 by Adam, its weights
are put into the built-in network, and the bias is measured at T = 1,000, N = 16, in float64. The k that comes out is
then judged on data of four other seeds, each by its own full gradient. Needs the extra torch, and plot for the figure.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from gradaudit import bias_curve
from gradaudit.arrays import global_norm
from gradaudit.backends import registry
from gradaudit.protocols import Model
from gradaudit.recurrent import RecurrentSpec, SequenceData, none
from gradaudit.render.to_text import number, table

SPEC = RecurrentSpec(n_features=2, n_classes=2, cell="lstm", n_hidden=16)
LEAK = 0.95
KINDS = "window", "chunks", "tail"
DELTAS = 0.1, 0.01
FRESH = 2, 3, 4, 5


def task(n_sequences: int, n_steps: int, seed: int) -> SequenceData:
    rng = np.random.default_rng([seed, 80])
    noise = rng.standard_normal((n_sequences, n_steps))
    marks = rng.random((n_sequences, n_steps)) < 0.2
    total, labels = np.zeros(n_sequences), np.zeros((n_sequences, n_steps), int)
    for t in range(n_steps):
        total = LEAK * total + marks[:, t] * noise[:, t]
        labels[:, t] = total > 0
    return SequenceData(features=np.stack([noise, marks], axis=-1), labels=labels)


def trained(n_updates: int) -> tuple[dict[str, np.ndarray], float]:
    """The weights in the layout of the built-in network, and the last cross-entropy."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lstm, readout = torch.nn.LSTM(2, 16, batch_first=True, dtype=torch.float64), torch.nn.Linear(16, 2).double()
    with torch.no_grad():
        lstm.bias_ih_l0[16:32] += 2  # remember at first, as is usual
    parameters = [*lstm.parameters(), *readout.parameters()]
    optimiser, losses = torch.optim.Adam(parameters, lr=1e-2), []
    for update in range(n_updates):
        data = task(32, 80, 1000 + update)
        logits = readout(lstm(torch.from_numpy(data.features))[0])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(data.labels).flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    weights = {
        "W": lstm.weight_ih_l0.T,
        "R": lstm.weight_hh_l0.T,
        "b": lstm.bias_ih_l0 + lstm.bias_hh_l0,
        "V": readout.weight.T,
        "c": readout.bias,
    }
    return {name: w.detach().numpy().copy() for name, w in weights.items()}, float(np.mean(losses[-50:]))


def model(backend: str, weights: dict[str, np.ndarray], seed: int) -> Model:
    return registry.get(backend).recurrent_model(SPEC, weights, task(16, 1000, seed), none())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    weights, loss = trained(arguments.updates)
    print(f"trained in {time.perf_counter() - started:.0f} s, cross-entropy {loss:.3f}, chance 0.693", flush=True)
    measured = model(arguments.backend, weights, 1)
    fresh = [model(arguments.backend, weights, seed) for seed in FRESH]
    true = [data.value_and_grad(weights)[1] for data in fresh]
    head = ["delta", "reference", "kind", "k", "bias", "on fresh data: mean", "worst", "beta", "gradients", "seconds"]
    rows = [head]
    for delta in DELTAS:
        for full in (True, False):
            curve = bias_curve(measured, delta=delta, full=full, kinds=KINDS if full else KINDS[:1])
            if full and delta == DELTAS[-1]:
                print(curve, flush=True)
                if arguments.figure is not None:
                    curve.plot(arguments.figure)
            rows += [row(curve, one, fresh, true) for one in curve.curves]
    print("\n".join(table(rows, right=range(3, len(head)))))


def bias(model, true, truncation, names) -> float:
    found = model.with_truncation(truncation).value_and_grad(model.parameters())[1]
    return global_norm({n: found[n] - true[n] for n in names}) / global_norm({n: true[n] for n in names})


def row(curve, one, fresh, true) -> list[str]:
    elsewhere = [bias(*pair, one.named(one.k), one.parameters) for pair in zip(fresh, true, strict=True)]
    measured = next(point.bias for point in one.points if point.k == one.k)
    beta = "" if one.beta is None else number(one.beta)
    numbers = number(measured), number(np.mean(elsewhere)), number(max(elsewhere)), beta
    reference = "full gradient" if curve.full else "longest window"
    return [str(curve.delta), reference, one.kind, str(one.k), *numbers, str(curve.gradients), f"{curve.seconds:.1f}"]


if __name__ == "__main__":
    main()
