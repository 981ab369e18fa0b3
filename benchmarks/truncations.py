"""Truncated gradients of the built-in networks: against the definition, and what they cost.

    python benchmarks/truncations.py check --backend numpy [--every 1] [--steps 7 13] [--eager] [--processes 1]
    python benchmarks/truncations.py frozen --backend numpy [--every 1]
    python benchmarks/truncations.py cost --backend numpy [--steps 10000]
    python benchmarks/truncations.py windows --backend numpy [--steps 10000]
    python benchmarks/truncations.py linear --backend numpy

``check``: every truncation, every k and k1 <= k2, of every cell, losses on all steps or the last, masks, learned or
carried states, against the sum over pairs (tests/backends/pairs.py), float64; the worst error relative to the largest
entry of its tensor. ``--every n`` takes one combination of n: JAX and TensorFlow compile a second for each. With
``--eager`` they run op by op, what is traced and differentiated being the same; ``--processes`` share the networks.
``frozen``: the gradients against sixth-order central differences of the frozen objective. ``cost``: seconds of the seed
case (10 sequences, 2 features, softmax Elman of 2 units, float32), compilation apart, the best of 3 runs, as multiples
of the full gradient's. ``windows``: those of windows by their runs, and as they are; then both ways on wider networks
of a fifth as many steps. ``linear``: the same at 5,000, 10,000 and 20,000 steps.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from gradaudit.backends import doubled, registry
from gradaudit.direction import Point, random_direction
from gradaudit.recurrent import (
    RecurrentSpec,
    SequenceData,
    Truncation,
    chunks,
    none,
    random_sequences,
    randomised,
    tail,
    tbptt,
    window,
)
from gradaudit.testing.scenarios import seed_case
from tests.backends.pairs import gradient_of, pair_derivatives
from tests.backends.test_truncations import CELLS

N = 3
KINDS = {**CELLS, "sigmoid": {"cell": "elman", "activation": "sigmoid"}, "gru_before alone": {"cell": "gru_before"}}


def truncations(n_steps: int) -> Iterator[Truncation]:
    yield none()
    for k in range(1, n_steps + 1):
        yield from (tail(k), window(k), chunks(k), *(tbptt(k1, k) for k1 in range(1, k + 1)))
    yield from (randomised(0.3, 0), randomised(0.7, 1))


def cases(n_steps: int) -> Iterator[tuple[str, RecurrentSpec, dict, SequenceData]]:
    for cell, options in KINDS.items():
        for outputs, masked, learned in product(("all", "last"), (False, True), (False, True)):
            spec = RecurrentSpec(n_features=2, n_classes=3, outputs=outputs, learn_initial_state=learned, **options)
            rng = np.random.default_rng([len(cell), n_steps])
            weights = {name: 0.7 * rng.standard_normal(shape) for name, shape in spec.shapes().items()}
            data = random_sequences(spec, n_sequences=N, n_steps=n_steps, seed=1, dtype="float64")
            lengths = np.array([n_steps, max(1, n_steps - 2), max(1, n_steps // 2)])
            mask = np.arange(n_steps) < lengths[:, None] if masked else None
            state = None if learned or spec.bidirectional else 0.5 * rng.standard_normal((N, spec.n_state))
            words = f"{cell}, losses on {outputs}{', masked' if masked else ''}{', learned state' if learned else ''}"
            yield words, spec, weights, SequenceData(features=data.features, labels=data.labels, mask=mask, state=state)


def op_by_op(backend: str) -> None:
    """Have a framework compile nothing."""
    if backend == "jax":
        import jax

        jax.config.update("jax_disable_jit", val=True)
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(run_eagerly=True)


def shared(backend: str, n_steps: int, every: int, *, eager: bool, processes: int) -> tuple[int, float, str]:
    """`check`, the networks shared by so many processes; how far they are goes to stderr."""
    n_networks, compared, worst, where = sum(1 for _ in cases(n_steps)), 0, 0.0, ""
    job = partial(one_network, backend, n_steps, every, eager=eager)
    # a process that has compiled thousands of programs can crash, and a crash must not go unseen
    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(in_a_process, job, index): index for index in range(n_networks)}
        crashed = []
        for done, future in enumerate(as_completed(running), start=1):
            try:
                n, off, place = future.result()
            except BrokenProcessPool:
                crashed.append(running[future])
                print(f"network {running[future]} crashed", file=sys.stderr, flush=True)
                continue
            compared += n
            if off > worst:
                worst, where = off, place
            told = f"network {running[future]}; {done} of {n_networks}, {compared:,}, worst {worst:.1e}"
            print(told, file=sys.stderr, flush=True)
    if crashed:
        sys.exit(f"networks {crashed} crashed; of the others {compared:,} combinations, worst {worst:.1e} ({where})")
    return compared, worst, where


def in_a_process(job, index: int) -> tuple[int, float, str]:
    """What a job returns in a process of its own, which ends with it; asked a second time where that crashed."""
    for last in (False, True):
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
                return own.submit(job, index).result()
        except BrokenProcessPool:
            if last:
                raise
    raise AssertionError


def one_network(backend: str, n_steps: int, every: int, index: int, *, eager: bool) -> tuple[int, float, str]:
    """`check` of one of the networks, in a process of its own."""
    if eager:
        op_by_op(backend)
    return check(registry.get(backend), n_steps, every, index)


def check(backend, n_steps: int, every: int, index: int) -> tuple[int, float, str]:
    """How many combinations of a network were compared, the worst error, and where."""
    words, spec, weights, data = next(islice(cases(n_steps), index, None))
    chosen = list(truncations(n_steps))
    chosen = chosen[-index * len(chosen) % every :: every]
    compared, worst, where = len(chosen), 0.0, ""
    if chosen:
        expected_loss, found, readout = pair_derivatives(spec, weights, data)
        for truncation in chosen:
            loss, gradients = backend.recurrent_model(spec, weights, data, truncation).value_and_grad(weights)
            errors = [abs(loss - expected_loss) / abs(expected_loss)]
            expected = gradient_of(truncation, found, readout, N)
            # complex steps lose what lies below: exp(-120) of a saturated softmax, which is no 0 of nothing kept
            largest = max(np.abs(wanted).max() for wanted in expected.values())
            least = np.finfo(np.float64).eps * largest or np.finfo(np.float64).tiny
            for name, wanted in expected.items():
                errors.append(np.abs(gradients[name] - wanted).max() / max(np.abs(wanted).max(), least))
            if max(errors) > worst:
                worst, where = max(errors), f"{words}, {truncation}, T = {n_steps}"
    return compared, worst, where


def frozen(backend, n_steps: int, every: int) -> tuple[int, float, str]:
    """Frozen objectives: how many, the worst error of <gradient, v> against differences, relative to |g| |v|; where."""
    seen = compared = 0
    worst, where, h = 0.0, "", 5e-4
    for words, spec, weights, data in cases(n_steps):
        for truncation in truncations(n_steps):
            seen += 1
            if seen % every or not truncation.cuts(n_steps) or spec.activation == "relu":
                continue
            compared += 1
            model = backend.recurrent_model(spec, weights, data, truncation)
            loss, gradients = model.value_and_grad(weights)
            objective = model.frozen()
            direction = random_direction("all", dict.fromkeys(weights, 1.0), seen)
            values = objective.along([Point(direction, i * h) for i in range(-3, 4)])
            slope = sum(c * (values[3 + i] - values[3 - i]) for i, c in ((1, 45), (2, -9), (3, 1))) / (60 * h)
            size = direction.norm(gradients)
            error = max(abs(slope - direction.dot(gradients)) / size, abs(values[3] - loss) / abs(loss))
            if error > worst:
                worst, where = error, f"{words}, {truncation}"
    return compared, worst, where


def best(call, n: int = 3) -> float:
    """Seconds of the fastest of some runs after a first one."""
    call()
    runs = []
    for _ in range(n):
        started = time.perf_counter()
        call()
        runs.append(time.perf_counter() - started)
    return min(runs)


def seconds(backend: str, truncation: Truncation, n_steps: int) -> float:
    model = seed_case(backend, truncation, n_steps=n_steps).recurrent
    return best(lambda: model.value_and_grad(model.parameters()))


def cost(backend: str, n_steps: int) -> None:
    full = seconds(backend, none(), n_steps)
    print(f"{backend}, {n_steps:,} steps: full forward and backward {full:.3f} s; multiples of it:")
    makers = {
        "tail": tail,
        "chunks": chunks,
        "window": window,
        "tbptt(k/2, k)": lambda k: tbptt(max(1, k // 2), k),
    }
    for name, make in makers.items():
        row = [seconds(backend, make(k), n_steps) / full for k in (1, 10, 100)]
        print(f"  {name:14} k = 1, 10, 100: {row[0]:6.2f} {row[1]:6.2f} {row[2]:6.2f}", flush=True)
    print(f"  {'randomised':14} p = 0.1:        {seconds(backend, randomised(0.1), n_steps) / full:6.2f}")
    model = seed_case(backend, none(), n_steps=n_steps).lifted
    direction = random_direction("all", dict.fromkeys(model.parameters(), 1.0), 0)
    points = [Point(direction, 1e-3 * i) for i in range(20)]
    together = best(lambda: model.along(points))
    looped = best(lambda: [model.along([point]) for point in points])
    print(f"  20 perturbed losses: batched {together / full:.2f}, looped {looped / full:.2f}", flush=True)


def both_ways(call, least: float) -> tuple[float, float]:
    """Seconds by runs, and by doubling where k is larger than so many times the numbers in a Jacobian."""
    found = []
    for long in (math.inf, least):
        with patch.object(doubled, "_LONG", long):
            found.append(best(call))
    return found[0], found[1]


def windows(backend: str, n_steps: int) -> None:
    full = min(seconds(backend, none(), n_steps) for _ in range(2))
    for k in (1, 10, 100):
        model = seed_case(backend, window(k), n_steps=n_steps).recurrent
        runs, now = both_ways(partial(model.value_and_grad, model.parameters()), 1)
        print(f"{backend}, {n_steps:,} steps, window({k}) by runs {runs / full:.1f}, now {now / full:.1f}", flush=True)
    for cell, n_hidden in (("lstm", 2), ("gru", 8), ("lstm", 8)):
        spec = RecurrentSpec(n_features=2, n_classes=2, cell=cell, n_hidden=n_hidden)
        rng = np.random.default_rng(0)
        weights = {n: (0.4 * rng.standard_normal(s)).astype("float32") for n, s in spec.shapes().items()}
        data = random_sequences(spec, n_sequences=10, n_steps=n_steps // 5, seed=0)
        plain, model = (registry.get(backend).recurrent_model(spec, weights, data, t) for t in (none(), window(100)))
        full = best(partial(plain.value_and_grad, weights))
        runs, forced = both_ways(partial(model.value_and_grad, weights), 0)
        words = f"{cell} of {n_hidden}, S = {spec.n_state}: window(100) by runs {runs / full:.1f}, doubled"
        print(f"  {words} {forced / full:.1f}", flush=True)


def linear(backend: str) -> None:
    for truncation in (none(), tail(100), chunks(10), window(10)):
        times = [seconds(backend, truncation, n) for n in (5_000, 10_000, 20_000)]
        print(f"  {backend}, {truncation}: " + ", ".join(f"{t:.3f} s" for t in times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "frozen", "cost", "windows", "linear"])
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what in ("check", "frozen"):
        for n_steps in arguments.steps or [7]:
            started = time.perf_counter()
            if arguments.what == "check":
                eager, processes = arguments.eager, arguments.processes
                n, worst, where = shared(arguments.backend, n_steps, arguments.every, eager=eager, processes=processes)
            else:
                n, worst, where = frozen(registry.get(arguments.backend), n_steps, arguments.every)
            took = time.perf_counter() - started
            counted = f"{n:,} combinations, worst {worst:.1e} ({where}), {took:.0f} s"
            print(f"{arguments.what} {arguments.backend}, T = {n_steps}: {counted}", flush=True)
    elif arguments.what == "windows":
        windows(arguments.backend, (arguments.steps or [10_000])[0])
    elif arguments.what == "cost":
        cost(arguments.backend, (arguments.steps or [10_000])[0])
    else:
        linear(arguments.backend)


if __name__ == "__main__":
    main()
