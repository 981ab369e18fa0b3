"""audit_operator on more than a hundred operators of each framework, beside the frameworks' own checkers.

    python benchmarks/operators.py [--frameworks torch jax tensorflow] [--dtypes float32 float64] [--names PART] [--own]

The lists are operators_torch.txt, operators_jax.txt and operators_tensorflow.txt: name, inputs, expression. Each
operator is judged as it is; with its vector-Jacobian product times 1.01; and with one entry of it, the largest, off by
10 %. The wrong ones are made by the framework's own means: an autograd.Function, a custom_vjp, a tf.custom_gradient. An
operator whose gradient is zero has none. ``--own`` asks the framework's own checker, too: gradcheck (slow and fast),
check_grads, compute_gradient with 1e-3. Evaluations are calls of the function, a batch of n points counts n; gradients
that gradaudit takes beside them (2 to 4) are not in it.
"""

from __future__ import annotations

import argparse
import os
import re
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gradaudit import Verdict, audit_operator

HERE = Path(__file__).parent
VERSIONS = ("right", "x 1.01", "one entry")
#: How the inputs of a list are drawn; ``d`` draws distinct numbers away from 0, so off kinks and ties.
DRAWN = {
    "n": lambda rng, *s: rng.standard_normal(s),
    "p": lambda rng, *s: rng.uniform(0.5, 2.0, s),
    "u": lambda rng, *s: rng.uniform(-0.9, 0.9, s),
    "q": lambda rng, *s: rng.uniform(0.1, 0.9, s),
    "a": lambda rng, *s: rng.uniform(1.2, 3.0, s),
    "t": lambda rng, *s: rng.uniform(1e-6, 1e-3, s),
    "d": lambda rng, *s: rng.permutation(np.linspace(-1.97, 2.03, int(np.prod(s)))).reshape(s),
    "g": lambda rng, n: rng.standard_normal((n, n)) / 2 + 2 * np.eye(n),
    "c": lambda rng, *s: rng.standard_normal(s) + 1j * rng.standard_normal(s),
}


@dataclass(frozen=True)
class Case:
    name: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    expression: str

    def arrays(self, dtype):
        rng = np.random.default_rng([len(self.name), *self.name.encode()])
        wide = {"float32": "complex64", "float64": "complex128"}[dtype]
        drawn = [(kind, DRAWN[kind](rng, *sizes)) for _, kind, sizes in self.inputs]
        return [x.astype(wide if kind == "c" else dtype) for kind, x in drawn]


def cases(framework):
    found = []
    for line in (HERE / f"operators_{framework}.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, inputs, expression = (part.strip() for part in line.split(" | ", 2))
        parsed = re.findall(r"(\w+)=(\w)\(([\d,]*)\)", inputs)
        sizes = tuple((n, kind, tuple(int(k) for k in s.split(",") if k)) for n, kind, s in parsed)
        found.append(Case(name, sizes, expression))
    return found


@dataclass
class Counted:
    """A function that counts its calls."""

    function: object
    calls: int = 0

    def __call__(self, *xs):
        self.calls += 1
        return self.function(*xs)


class Torch:
    def __init__(self):
        import torch

        self.torch = torch
        self.names = {"torch": torch, "F": torch.nn.functional}

    def given(self, arrays):
        return [self.torch.from_numpy(a.copy()).requires_grad_() for a in arrays]

    def array(self, tensor):
        return tensor.numpy(force=True)

    def gradient(self, function, xs):
        y = function(*xs)
        weight = self.torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape).to(y.dtype)
        if not y.requires_grad:
            return [None] * len(xs)
        return list(self.torch.autograd.grad(y, xs, weight, allow_unused=True))

    def spoiled(self, function, spoil):
        torch = self.torch

        class Spoiled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *xs):
                ctx.save_for_backward(*xs)
                return function(*xs)

            @staticmethod
            def backward(ctx, g):
                with torch.enable_grad():
                    xs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
                    found = torch.autograd.grad(function(*xs), xs, g, allow_unused=True)
                return tuple(None if v is None else spoil(i, v) for i, v in enumerate(found))

        return Spoiled.apply

    def factor(self, like, index, by):
        factor = self.torch.ones(like.shape, dtype=like.dtype)
        factor.view(-1)[index] = by
        return factor

    def own(self, function, xs):
        for fast in (False, True):
            counted = Counted(function)
            passed = self.torch.autograd.gradcheck(counted, xs, fast_mode=fast, raise_exception=False)
            yield f"gradcheck {'fast' if fast else 'slow'}", passed, counted.calls


class Jax:
    def __init__(self):
        import jax

        self.jax = jax
        self.names = {
            "jax": jax,
            "jnp": jax.numpy,
            "lax": jax.lax,
            "nn": jax.nn,
            "np": np,
            "special": jax.scipy.special,
        }

    def given(self, arrays):
        return [self.jax.numpy.asarray(a) for a in arrays]

    array = staticmethod(np.asarray)

    def gradient(self, function, xs):
        y, pullback = self.jax.vjp(function, *xs)
        weight = self.jax.numpy.linspace(0.5, 1.5, y.size).reshape(y.shape).astype(y.dtype)
        return list(pullback(weight))

    def spoiled(self, function, spoil):
        jax = self.jax
        rule = jax.custom_vjp(function)
        rule.defvjp(
            lambda *xs: (function(*xs), xs),
            lambda xs, g: tuple(spoil(i, v) for i, v in enumerate(jax.vjp(function, *xs)[1](g))),
        )
        return rule

    def factor(self, like, index, by):
        return self.jax.numpy.ones(like.size, like.dtype).at[index].set(by).reshape(like.shape)

    def own(self, function, xs):
        from jax.test_util import check_grads

        counted = Counted(function)
        try:
            check_grads(counted, tuple(xs), 1, modes=["rev"])
        except AssertionError:
            yield "check_grads", False, counted.calls
        else:
            yield "check_grads", True, counted.calls


class Tensorflow:
    def __init__(self):
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        self.tf = tf
        self.names = {"tf": tf, "np": np}

    def given(self, arrays):
        return [self.tf.constant(a) for a in arrays]

    array = staticmethod(np.asarray)

    def gradient(self, function, xs):
        tf = self.tf
        with tf.GradientTape() as tape:
            tape.watch(xs)
            y = function(*xs)
        weight = tf.cast(tf.reshape(tf.linspace(0.5, 1.5, tf.size(y)), y.shape), y.dtype)
        found = tape.gradient(y, xs, output_gradients=weight)
        return [None if g is None else tf.convert_to_tensor(g) for g in found]

    def spoiled(self, function, spoil):
        tf = self.tf

        @tf.custom_gradient
        def rule(*xs):
            def backward(g):
                with tf.GradientTape() as tape:
                    tape.watch(xs)
                    y = function(*xs)
                found = tape.gradient(y, xs, output_gradients=g)
                return [None if v is None else spoil(i, tf.convert_to_tensor(v)) for i, v in enumerate(found)]

            return function(*xs), backward

        return rule

    def factor(self, like, index, by):
        flat = np.ones(int(np.prod(like.shape)))
        flat[index] = by
        return self.tf.cast(self.tf.constant(flat.reshape(tuple(like.shape))), like.dtype)

    def own(self, function, xs):
        counted = Counted(function)
        analytic, numeric = self.tf.test.compute_gradient(counted, xs)
        off = max(np.abs(a - n).max(initial=0) for a, n in zip(analytic, numeric, strict=True))
        yield "compute_gradient", bool(off < 1e-3), counted.calls


FRAMEWORKS = {"torch": Torch, "jax": Jax, "tensorflow": Tensorflow}


@dataclass
class Tally:
    right: int = 0
    wrong: list = field(default_factory=list)
    open: list = field(default_factory=list)
    evaluations: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    seconds: float = 0.0


def versions(framework, function, xs):
    """The operator as it is and, where its gradient is not zero, spoiled."""
    yield "right", function, True
    found = [None if g is None else framework.array(g) for g in framework.gradient(function, xs)]
    sizes = [0.0 if g is None else float(np.abs(g).max(initial=0)) for g in found]
    if max(sizes) == 0:
        return
    yield "x 1.01", framework.spoiled(function, lambda i, v: v * 1.01), False
    which = int(np.argmax(sizes))
    index = int(np.abs(found[which]).argmax())
    entry = lambda i, v: v * framework.factor(v, index, 1.1) if i == which else v  # noqa: E731
    yield "one entry", framework.spoiled(function, entry), False


def run(name, dtypes, part, own):
    framework = FRAMEWORKS[name]()
    listed = [case for case in cases(name) if part in case.name]
    tallies = defaultdict(Tally)
    fewer = defaultdict(lambda: np.zeros(4, int))
    for case in listed:
        function = eval(f"lambda {', '.join(n for n, _, _ in case.inputs)}: {case.expression}", dict(framework.names))
        for dtype in dtypes:
            scope = framework.jax.enable_x64(dtype == "float64") if name == "jax" else warnings.catch_warnings()
            with scope, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                xs = framework.given(case.arrays(dtype))
                for version, spoiled, right in versions(framework, function, xs):
                    started = time.perf_counter()
                    report = audit_operator(spoiled, *xs, modes=["reverse"])
                    tally = tallies[dtype, version, "gradaudit"]
                    tally.seconds += time.perf_counter() - started
                    tally.evaluations.append(report.evaluations)
                    tally.gradients.append(report.gradients)
                    coarsest = max((p.resolution for p in report.parts[0].parameters), default=0)
                    said = f"{case.name} ({report.parts[0].source}; {coarsest:.1e})"
                    if report.verdict is Verdict.INCONCLUSIVE:
                        tally.open.append(said)
                    elif (report.verdict is Verdict.AGREE) == right:
                        tally.right += 1
                    else:
                        tally.wrong.append(said)
                    started = time.perf_counter()
                    for checker, passed, calls in _own(framework, spoiled, xs) if own else ():
                        other = tallies[dtype, version, checker]
                        other.seconds += time.perf_counter() - started
                        started = time.perf_counter()
                        if passed is None:
                            other.open.append(case.name)
                            continue
                        other.evaluations.append(calls)
                        other.right += passed == right
                        if passed != right:
                            other.wrong.append(case.name)
                        took = np.array([report.evaluations < calls, 1])
                        fewer[dtype, version, checker] += np.concatenate([took, took * (passed == right)])
    _print(name, len(listed), tallies, fewer)


def _own(framework, function, xs):
    try:
        yield from framework.own(function, xs)
    except Exception as error:  # noqa: BLE001  # a checker that raises has said nothing
        yield f"raises ({type(error).__name__})", None, 0


def _print(name, n, tallies, fewer):
    print(f"\n{name}: {n} operators")
    head = f"{'right':>6} {'wrong':>6} {'open':>5} {'evaluations':>12} {'seconds':>8}"
    print(f"  {'dtype':8} {'version':10} {'checker':18} {head}")
    order = lambda item: (item[0][0], VERSIONS.index(item[0][1]))  # noqa: E731
    for (dtype, version, checker), t in sorted(tallies.items(), key=order):
        mean = np.mean(t.evaluations) if t.evaluations else 0
        numbers = f"{t.right:6} {len(t.wrong):6} {len(t.open):5} {mean:12.0f} {t.seconds:8.1f}"
        less, of, less_rightly, rightly = fewer.get((dtype, version, checker), (0, 0, 0, 0))
        if t.gradients:
            numbers += f"   and {np.mean(t.gradients):.1f} gradients"
        beside = f"   gradaudit took fewer in {less} of {of}" if of else ""
        beside += f", and in {less_rightly} of the {rightly} that it judged rightly" if rightly < of else ""
        print(f"  {dtype:8} {version:10} {checker:18} {numbers}{beside}")
    for (dtype, version, checker), t in tallies.items():
        if checker == "gradaudit" and (t.wrong or t.open):
            print(f"  {dtype}, {version}: WRONG {'; '.join(t.wrong) or 'none'}; OPEN {'; '.join(t.open) or 'none'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="*", default=list(FRAMEWORKS), choices=list(FRAMEWORKS))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "float64"])
    parser.add_argument("--names", default="")
    parser.add_argument("--own", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.frameworks:
        run(name, arguments.dtypes, arguments.names, arguments.own)


if __name__ == "__main__":
    main()
