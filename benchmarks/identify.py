"""Which truncation is it? The confusion table over random recurrent networks, and what 10,000 steps cost.

    python benchmarks/identify.py                       # 400 truncated networks and 200 others, by both rules
    python benchmarks/identify.py --truncated 40 --untruncated 20 --long 0

The networks are NumPy's: Elman (tanh), GRU and LSTM cells with a readout, sizes H 1-6, D 1-4, N 1-3, T 20-200, kinds in
turn, k log-uniform; losses at all steps or at the last; recurrent weights of scale 0.05 to 3. A third of the
untruncated ones vanishes strongly: their recurrent weights are a thousandth of that. Every network is asked by rule R
(its step losses can be read) and by rule I (only loss and gradient).

    right      one truncation is left, and it is this one, under any of its names
    class      only the last step has a loss, and the class of all that cover as many steps is right
    no effect  "not truncated", and that gradient is the full one within 1e-6
    set        several are left, and this one is among them
    WRONG      anything else: another one, or "not truncated" where that matters, or "truncated" where it is not
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.numpy import NumpyModel, cells
from gradaudit.backends.numpy.adjoint import LayerPass
from gradaudit.lens.identify import Identified, identify
from gradaudit.recurrent import RecurrentSpec, Truncation, chunks, none, tail, tbptt, window

KINDS = ("tail", "window", "chunks", "tbptt")
OUTCOMES = ("right", "class", "no effect", "set", "none of these", "cannot tell", "WRONG")


@dataclass(eq=False)
class Net:
    """A recurrent network of its inputs x (T, N, D), with the truncated gradient of them."""

    spec: RecurrentSpec
    weights: NamedArrays
    labels: Array
    truncation: Truncation

    def start(self, n_sequences: int) -> tuple[Array, ...]:
        return tuple(np.zeros((self.spec.width, n_sequences)) for _ in self.spec.components)

    def losses(self, x: Array) -> Array:
        """The step losses (K, T) of inputs (K, T, N, D): the copies are sequences of one batch."""
        n_copies, n_steps, n_sequences, _ = x.shape
        flat = np.ascontiguousarray(x.transpose(1, 0, 2, 3)).reshape(n_steps, n_copies * n_sequences, -1)
        stacked = {name: w[None] for name, w in self.weights.items()}
        begun = [tuple(c[None] for c in self.start(n_copies * n_sequences))]
        blocks = [kept[-1][0][:, 0] for _, kept in cells.run(self.spec, stacked, cells.Steps(flat), begun)]
        logits = self.weights["V"].T @ np.concatenate(blocks) + self.weights["c"][:, None]
        labels = np.tile(self.labels, (1, n_copies))
        entropies = cells.cross_entropy(logits[:, None], labels, probabilities=False)[:, 0]
        means = entropies.reshape(n_steps, n_copies, n_sequences).mean(axis=2) * self.per_step[:, None]
        return means.T

    @property
    def per_step(self) -> Array:
        """What each step's mean loss weighs, (T,)."""
        n_steps = len(self.labels)
        weights = np.full(n_steps, 1 / n_steps)
        if self.spec.outputs == "last":
            weights = np.zeros(n_steps)
            weights[-1] = 1.0
        return weights

    def loss(self, x: Array) -> float:
        return float(self.losses(x[None]).sum())

    def gradient(self, x: Array) -> Array:
        """Of the truncated loss by x: the full gradients of the runs of all segments, added up where they belong."""
        n_steps, n_sequences, _ = x.shape
        states = self.states(x)
        rows = self.truncation.segments(n_steps)
        found = np.zeros_like(x)
        for length in np.unique(rows[:, 2] - rows[:, 0]):
            starts, first, last = rows[rows[:, 2] - rows[:, 0] == length].T
            steps = starts + np.arange(length)[:, None]
            counted = (steps >= first - 1) & (steps < last)
            begun = tuple(c[starts].transpose(1, 0, 2).reshape(self.spec.width, -1) for c in states)
            inputs = x[steps].reshape(length, -1, x.shape[2]).swapaxes(1, 2)
            weights = np.repeat(np.where(counted, self.per_step[steps], 0), n_sequences, axis=1) / n_sequences
            labels = self.labels[steps].reshape(length, -1)
            by_run = self.run_back(inputs, begun, labels, weights)
            by_run = by_run.swapaxes(1, 2).reshape(*steps.shape, n_sequences, -1)
            for i in range(length):
                np.add.at(found, steps[i], by_run[i])
        return found

    def run_back(self, inputs: Array, begun: tuple[Array, ...], labels: Array, weights: Array) -> Array:
        """D loss / d inputs, (T, D, N), of the runs from these states."""
        layer = next(iter(self.spec.layers(reverse=False)))
        steps = cells.Steps(inputs.swapaxes(1, 2))
        run = LayerPass(self.spec, layer, 0, self.weights, steps, inputs, begun)
        logits = self.weights["V"].T @ run.outputs + self.weights["c"][:, None]
        cotangents = cells.cross_entropy_gradient(logits, labels, probabilities=False) * weights[:, None]
        nothing = tuple(np.zeros_like(component) for component in begun)
        return run.back(self.weights["V"] @ cotangents, nothing)[1]

    def states(self, x: Array) -> tuple[Array, ...]:
        """By component, (T+1, H, N)."""
        stacked = {name: w[None] for name, w in self.weights.items()}
        start = self.start(x.shape[1])
        blocks = [
            kept[-1] for _, kept in cells.run(self.spec, stacked, cells.Steps(x), [tuple(c[None] for c in start)])
        ]
        return tuple(np.concatenate([c[None], *(block[i][:, 0] for block in blocks)]) for i, c in enumerate(start))


def random_net(rng: np.random.Generator, kind: str, *, n_steps: int = 0, vanishing: bool = False) -> tuple[Net, Array]:
    """A network and inputs; the cell and the losses are drawn."""
    n_steps = n_steps or int(rng.integers(20, 201))
    n_sequences, n_features, n_hidden = int(rng.integers(1, 4)), int(rng.integers(1, 5)), int(rng.integers(1, 7))
    spec = RecurrentSpec(
        n_features=n_features,
        n_classes=int(rng.integers(2, 5)),
        n_hidden=n_hidden,
        cell=("elman", "gru", "lstm")[int(rng.integers(3))],
        activation="tanh",
        outputs=("all", "last")[int(rng.integers(2))],
    )
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    scale = float(np.exp(rng.uniform(np.log(0.05), np.log(3)))) / np.sqrt(n_hidden)
    weights["R"] *= scale * (1e-3 if vanishing else 1)
    k = int(np.exp(rng.uniform(0, np.log(n_steps))))
    chosen = {"none": none(), "tail": tail(k), "window": window(k), "chunks": chunks(k)}.get(kind)
    chosen = chosen or tbptt(int(rng.integers(1, k + 1)), k)
    labels = rng.integers(spec.n_classes, size=(n_steps, n_sequences))
    return Net(spec, weights, labels, chosen), rng.standard_normal((n_steps, n_sequences, n_features))


def model_of(net: Net, x: Array) -> NumpyModel:
    return NumpyModel(
        lambda p: net.loss(p["x"]),
        {"x": x},
        value_and_grad=lambda p: (net.loss(p["x"]), {"x": net.gradient(p["x"])}),
    )


def by_rule(rule: str, net: Net, x: Array, seed: int) -> Identified:
    if rule == "R":
        return identify(model_of(net, x), step_losses=lambda p: net.losses(p["x"]), batched=True, seed=seed)
    return identify(model_of(net, x), losses=net.spec.outputs, seed=seed)


def outcome(net: Net, x: Array, found: Identified) -> str:
    """How right it is."""
    if found.status == "cannot tell":
        return found.status
    if net.truncation.cuts(len(x)) and found.status == "none of these":
        return found.status
    if not net.truncation.cuts(len(x)) and found.status != "not truncated":
        return "WRONG"
    n_steps, full = len(x), Net(net.spec, net.weights, net.labels, none()).gradient(x)
    truncated = net.gradient(x)
    matters = np.linalg.norm(full - truncated) > 1e-6 * np.linalg.norm(full)
    if found.status == "not truncated":
        return "WRONG" if matters else "right" if net.truncation.kind == "none" else "no effect"
    reaches = {tuple(effective(net, t, n_steps)) for t in found.hypotheses}
    if tuple(effective(net, net.truncation, n_steps)) not in reaches:
        return "WRONG"
    return "set" if len(reaches) > 1 else "right" if net.spec.outputs == "all" else "class"


def effective(net: Net, truncation: Truncation, n_steps: int) -> list[int]:
    """Its reaches; with a loss at the last step only all that matters is whether they reach it."""
    reach = truncation.reach(n_steps)
    return (reach if net.spec.outputs == "all" else reach == n_steps).tolist()


def table(rules: list[str], n_truncated: int, n_untruncated: int, seed: int) -> None:
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    spent: dict[str, list[tuple[int, int]]] = {rule: [] for rule in rules}
    for i in range(n_truncated + n_untruncated):
        rng = np.random.default_rng([seed, i])
        kind = KINDS[i % 4] if i < n_truncated else "none"
        net, x = random_net(rng, kind, vanishing=kind == "none" and i % 3 == 0)
        for rule in rules:
            with np.errstate(all="ignore"):
                found = by_rule(rule, net, x, seed=i)
            said = outcome(net, x, found)
            spent[rule].append((found.evaluations, found.gradients))
            counts.setdefault((rule, net.spec.outputs, kind), Counter())[said] += 1
            if said in ("WRONG", "none of these", "cannot tell"):
                print(
                    f"  {i} {rule} {net.spec.cell} {net.spec.outputs} T={len(x)} {net.truncation}: {said}: {found}",
                    flush=True,
                )
    print(f"\n{'rule, losses':14}{'truth':10}" + "".join(f"{name:>14}" for name in OUTCOMES))
    for (rule, losses, kind), counted in sorted(counts.items(), key=lambda item: (item[0][:2], item[0][2])):
        print(f"{rule + ', ' + losses:14}{kind:10}" + "".join(f"{counted[name] or '.':>14}" for name in OUTCOMES))
    for rule, numbers in spent.items():
        evaluations, gradients = np.array(numbers).T
        print(f"rule {rule}: losses median {np.median(evaluations):.0f}, most {evaluations.max()}", end="; ")
        print(f"gradients median {np.median(gradients):.0f}, most {gradients.max()}")


def long(n_steps: int, seed: int) -> None:
    cases = [
        none(),
        tail(1),
        tail(137),
        window(1),
        window(20),
        chunks(100),
        chunks(4000),
        tbptt(7, 30),
        tbptt(100, 250),
    ]
    print(f"\nT = {n_steps:,}, rule I, an Elman net of 4 units, a loss at each step")
    for truth in cases:
        rng = np.random.default_rng([seed, 7])
        spec = RecurrentSpec(n_features=2, n_classes=3, n_hidden=4, activation="tanh")
        weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
        # it remembers for about a hundred steps
        weights["W"] *= 0.3
        weights["R"] = 0.9 * np.linalg.qr(weights["R"])[0]
        net = Net(spec, weights, rng.integers(3, size=(n_steps, 1)), truth)
        started = time.perf_counter()
        found = identify(model_of(net, rng.standard_normal((n_steps, 1, 2))), losses="all", seed=seed)
        seconds = time.perf_counter() - started
        print(
            f"{truth!s:16} {found.evaluations:4} losses {found.gradients:3} gradients {seconds:6.1f} s   {found}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truncated", type=int, default=400)
    parser.add_argument("--untruncated", type=int, default=200)
    parser.add_argument("--rules", nargs="*", default=["R", "I"])
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.truncated + options.untruncated:
        table(options.rules, options.truncated, options.untruncated, options.seed)
    if options.long:
        long(options.long, options.seed)


if __name__ == "__main__":
    main()
