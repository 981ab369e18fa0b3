"""What a diagnosis costs beyond the audit, in gradients: listing cuts, removing one, holding one, and the whole of it.

    python benchmarks/causes.py [--steps 10000] [--backends torch,jax,tensorflow] [--repeats 3]

Two models, in float32: the original net as a black box (`gradaudit.cli.blind`), and a perceptron with a million
parameters and one cut. A gradient is ``value_and_grad``, the median of some; listing and removing are timed at their
second run, when programs are compiled; in brackets the first run, compilation included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on a busy machine threads wait for one another

import numpy as np

import gradaudit
from gradaudit.backends import registry
from gradaudit.cli.blind import black_box
from gradaudit.cli.demo import Case
from gradaudit.recurrent import tail

HIDDEN, INPUTS, ROWS = 900, 200, 64


def seconds(action, repeats=1):
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def perceptron(backend):
    """Three layers, 1.0 million parameters; the second layer's output is cut in one of its uses."""
    rng = np.random.default_rng(0)
    sizes = [INPUTS, HIDDEN, HIDDEN, 10]
    weights = {
        f"W{i}": (rng.standard_normal(shape) / np.sqrt(shape[0])).astype("float32")
        for i, shape in enumerate(pairwise(sizes))
    }
    x = rng.standard_normal((ROWS, INPUTS))
    stop, tanh, constant, mean = words(backend)

    def loss(p):
        h = tanh(constant(x, p["W0"]) @ p["W0"])
        h = tanh(h @ p["W1"]) * stop(h)
        return mean((h @ p["W2"]) ** 2)

    return registry.get(backend).function_model(loss, weights)


def words(backend):
    if backend == "torch":
        import torch

        return torch.Tensor.detach, torch.tanh, lambda a, like: torch.as_tensor(a).to(like.dtype), torch.mean
    if backend == "jax":
        import jax
        from jax import numpy as jnp

        return jax.lax.stop_gradient, jnp.tanh, lambda a, like: jnp.asarray(a, like.dtype), jnp.mean
    import tensorflow as tf

    return tf.stop_gradient, tf.tanh, lambda a, like: tf.constant(a, like.dtype), tf.reduce_mean


def costs(model, repeats):
    parameters = model.parameters()
    first = seconds(lambda: model.value_and_grad(parameters))
    gradient = seconds(lambda: model.value_and_grad(parameters), repeats)
    listing = [seconds(model.cuts) for _ in range(2)]
    cuts = [cut for cut in model.cuts() if not cut.library]
    without = []

    def remove():
        without.append(model.without(cuts))
        without[-1].value_and_grad(parameters)

    removing = [seconds(remove)]
    removing.append(seconds(lambda: without[-1].value_and_grad(parameters)))
    held = []

    def hold():
        held.append(model.holding(cuts))
        held[-1].loss(parameters)

    holding = [seconds(hold), seconds(lambda: held[-1].loss(parameters))]
    loss = seconds(lambda: model.loss(parameters), repeats)
    return gradient, first, loss, listing, removing, holding


class Silent:
    """The model, of which no cut can be listed: what an audit costs without a diagnosis."""

    def __init__(self, model):
        self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad
        self.along, self.point_bytes, self.twin = model.along, model.point_bytes, model.twin
        self.preserved = model.preserved


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--backends", default="torch,jax,tensorflow")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    case = Case(
        n_sequences=10,
        n_steps=arguments.steps,
        n_features=2,
        n_classes=2,
        dtype="float32",
        seed=0,
        truncation=tail(1),
    )
    print("model, backend: gradient (first) s | times a gradient: list (first), remove (first) | hold, times a loss")
    for backend in arguments.backends.split(","):
        with tempfile.TemporaryDirectory() as folder:
            for name, model in (
                (f"net of {arguments.steps:,} steps", black_box(backend, case, Path(folder))[0]),
                ("1.0 M parameters", perceptron(backend)),
            ):
                g, first, loss, (l0, l1), (r0, r1), (h0, h1) = costs(model, arguments.repeats)
                print(
                    f"{name}, {backend}: {g:.3f} ({first:.2f}) | list {l1 / g:.1f} ({l0 / g:.1f}), "
                    f"remove {r1 / g:.1f} ({r0 / g:.1f}) | hold {h1 / loss:.1f} ({h0 / loss:.1f})"
                )
                bare = gradaudit.audit(Silent(model))
                full = gradaudit.audit(model)
                codes = ", ".join(finding.code for finding in full.findings)
                print(
                    f"    audit {bare.evaluations} evaluations, {bare.gradients} gradients, {bare.seconds:.1f} s; "
                    f"with its diagnosis ({codes}) {full.evaluations}, {full.gradients}, {full.seconds:.1f} s"
                )


if __name__ == "__main__":
    main()
