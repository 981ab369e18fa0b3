"""TensorFlow's recurrent layer as a plain graph and by XLA: seconds of the first call, and of the best later one.

    python benchmarks/tensorflow_xla.py [--steps 10000]

The seed case (10 sequences, 2 features, softmax Elman of 2 units, float32): one loss, its gradient, 20 and 53 losses of
a batch, the number of an audit's second batch and of both.
"""

# ruff: noqa: SLF001  # what is compiled here is the inside of the layer
from __future__ import annotations

import argparse
import os
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from gradaudit.backends.tensorflow import cells
from gradaudit.backends.tensorflow.recurrent import TensorflowNetwork
from gradaudit.recurrent import none
from gradaudit.testing.scenarios import seed_case


def seconds(call) -> str:
    runs = []
    for _ in range(4):
        started = time.perf_counter()
        call()
        runs.append(time.perf_counter() - started)
    return f"first {runs[0]:5.2f}, then {min(runs[1:]):6.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    model = seed_case("tensorflow", none(), n_steps=parser.parse_args().steps).recurrent
    network = model._network
    assert isinstance(network, TensorflowNetwork)
    steps = network._steps.given()
    for n_copies in (1, 20, 53):
        kind = network._kind(n_copies=n_copies)
        weights = {n: tf.constant(np.repeat(p[None], n_copies, 0)) for n, p in model.parameters().items()}
        states = (network._initial_states(weights, reverse=False),)
        losses = partial(cells._recurrent_losses, kind, cells._by_step)

        def gradient(weights, losses=losses, states=states):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = tf.reduce_sum(losses(weights, states, steps)[0])
            return tape.gradient(loss, weights)["R"]

        for xla in (False, True):
            loss = tf.function(losses, jit_compile=xla, autograph=False)
            words = f"{'XLA' if xla else 'graph':6}{n_copies:3} losses   "
            print(words + seconds(lambda f=loss, w=weights, s=states: f(w, s, steps)[0].numpy()), flush=True)
            if n_copies == 1:
                whole = tf.function(gradient, jit_compile=xla, autograph=False)
                print(words[:6] + "  1 gradient " + seconds(lambda f=whole, w=weights: f(w).numpy()), flush=True)


if __name__ == "__main__":
    main()
