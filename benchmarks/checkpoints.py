"""Full back-propagation through a long sequence: seconds and memory, plain and with checkpoints.

    python benchmarks/checkpoints.py [--backends numpy torch ...] [--steps 100000] [--every 400] [--plain]

An LSTM of 16 units, 10 sequences, float32; each run in a process of its own. Seconds of the second run (the first one
compiles); memory is the peak above what the process had before the first gradient, data and a warm framework included.
``difference``: of the gradients, checkpointed from plain, relative to the largest entry of each tensor, where both run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gradaudit.backends import registry
from gradaudit.recurrent import RecurrentSpec, random_sequences


def measure(backend: str, n_steps: int, every: int | None, saved: str) -> dict:
    """One run here."""
    spec = RecurrentSpec(n_features=8, n_classes=4, cell="lstm", n_hidden=16)
    rng = np.random.default_rng(0)
    weights = {name: (0.3 * rng.standard_normal(s)).astype("float32") for name, s in spec.shapes().items()}

    def model(n):
        data = random_sequences(spec, n_sequences=10, n_steps=n, seed=0)
        full = registry.get(backend).recurrent_model(spec, weights, data)
        return full if every is None else full.checkpointed(every)

    model(2 * (every or 400)).value_and_grad(weights)
    long = model(n_steps)
    long.loss(weights)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        _, gradients = long.value_and_grad(weights)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.savez(saved, **gradients)
    return {"seconds": round(seconds[1], 2), "peak MiB": round((peak - before) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name in registry.names() if registry.installed_version(name)]
    parser.add_argument("--backends", nargs="*", default=installed)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=400)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        every = None if arguments.plain else arguments.every
        print(json.dumps(measure(arguments.backends[0], arguments.steps, every, arguments.here)))
        return
    for backend in arguments.backends:
        with TemporaryDirectory() as folder:
            files = {}
            for kind in ("plain", "checkpointed"):
                files[kind] = Path(folder) / f"{kind}.npz"
                command = [sys.executable, __file__, "--here", str(files[kind]), "--backends", backend]
                command += ["--steps", str(arguments.steps), "--every", str(arguments.every)]
                command += ["--plain"] if kind == "plain" else []
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                print(backend, kind, done.stdout.strip() or f"ended with {done.returncode}", flush=True)
            if all(file.exists() for file in files.values()):
                plain, few = (np.load(file) for file in files.values())
                off = max(float(np.abs(plain[n] - few[n]).max() / np.abs(plain[n]).max()) for n in plain.files)
                print(f"{backend} difference {off:.1e}", flush=True)


if __name__ == "__main__":
    main()
