"""Seconds, peak memory and evaluations of the demo at full size, each backend in a process of its own.

    python benchmarks/seed_case.py [--backends numpy torch ...] [--truncation tail:1]

Seconds are the audits' own (compilation included, imports not); memory is the peak above what the imports took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from gradaudit import audit
from gradaudit.backends import registry
from gradaudit.recurrent import Truncation, none
from gradaudit.testing.scenarios import seed_case


def measure(backend: str, truncation: str) -> dict:
    """Run the demo here and report."""
    from gradaudit.cli import demo

    registry.get(backend)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = demo.Case(
        n_sequences=10,
        n_steps=10_000,
        n_features=2,
        n_classes=2,
        dtype="float32",
        seed=0,
        truncation=Truncation.parse(truncation),
    )
    started = time.perf_counter()
    outcome = demo.run(backend, case, echo=lambda text: None, progress=lambda stage, n: None)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts = outcome.report.parts
    return {
        "backend": backend,
        "reproduced": outcome.reproduced,
        "seconds": round(seconds, 2),
        "seconds by net": [round(part.seconds, 2) for part in parts],
        "evaluations": [part.evaluations for part in parts],
        "gradients": [part.gradients for part in parts],
        "peak MiB above imports": round((peak - before) / 1024),
    } | multiples(backend)


class Looped:
    """A model without its batch axis."""

    def __init__(self, model) -> None:
        self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad
        self.twin = lambda: None if (twin := model.twin()) is None else Looped(twin)


def multiples(backend: str) -> dict:
    """One audit of the recurrent net as a multiple of one forward and backward pass, compilations done before."""
    model = seed_case(backend, none()).lifted
    audit(model)
    gradient = min(seconds(lambda: model.value_and_grad(model.parameters())) for _ in range(3))
    return {
        "forward + backward, s": round(gradient, 3),
        "audit / (forward + backward), batched": round(
            min(seconds(lambda: audit(model)) for _ in range(2)) / gradient, 1
        ),
        "looped": round(seconds(lambda: audit(Looped(model))) / gradient, 1),
    }


def seconds(call) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    installed = [name for name in registry.names() if registry.installed_version(name)]
    parser.add_argument("--backends", nargs="*", default=installed)
    parser.add_argument("--truncation", default="tail:1")
    parser.add_argument("--here", action="store_true", help="in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.backends[0], arguments.truncation)))
        return
    for backend in arguments.backends:
        command = [sys.executable, __file__, "--here", "--backends", backend, "--truncation", arguments.truncation]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    main()
