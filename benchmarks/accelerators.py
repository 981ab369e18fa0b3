"""Models on a GPU, as people have them: right ones, with TF32 and mixed precision too, and wrong ones.

    python benchmarks/accelerators.py                          # PyTorch and JAX, on the accelerator they find
    python benchmarks/accelerators.py --only torch --device cpu

The right ones must not be called wrong, the wrong ones must be, and the random generators, ``.grad`` and precision
settings must be as before: otherwise the exit code is 1. "gradient" is one gradient, the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import gradaudit
from gradaudit import Verdict

RNG = np.random.default_rng(0)
SEQUENCES = RNG.standard_normal((16, 12, 8)).astype("float32")
IMAGES = RNG.standard_normal((8, 3, 16, 16)).astype("float32")
CLASSES = np.arange(32) % 3

#: name, whether it is right, one audit, one gradient
Case = tuple[str, bool, Callable[[], Any], Callable[[], Any]]


def torch_cases(device: str) -> Iterator[Case]:
    """Modules on a device; data made once, there."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    x, images = torch.from_numpy(SEQUENCES).to(device), torch.from_numpy(IMAGES).to(device)
    y, labels = torch.from_numpy(CLASSES[:16]).to(device), torch.from_numpy(CLASSES[:8]).to(device)

    class Classifier(nn.Module):
        def __init__(self, *, cut: bool = False) -> None:
            super().__init__()
            self.cut, self.lstm, self.out = cut, nn.LSTM(8, 64, 2, batch_first=True), nn.Linear(64, 3)

        def forward(self, x: Any) -> Any:
            h = self.lstm(x)[0][:, -1]
            return self.out(h.detach() if self.cut else h)

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(_: Any, g: Any) -> Any:
            return 1.05 * g

    class Wrong(nn.Module):
        def forward(self, x: Any) -> Any:
            return Scaled.apply(x)

    def case(name: str, net: Any, loss: Any, *, right: bool = True) -> Case:
        net = net.to(device)

        def gradient() -> None:
            torch.autograd.grad(loss(net), list(net.parameters()), allow_unused=True)
            if device != "cpu":
                torch.cuda.synchronize()

        return name, right, lambda: gradaudit.audit(net, loss=loss), gradient

    def entropy(net: Any) -> Any:
        return functional.cross_entropy(net(x), y)

    def seen(net: Any) -> Any:
        return functional.cross_entropy(net(images), labels)

    def autocast(dtype: Any, loss: Any) -> Any:
        def narrow(net: Any) -> Any:
            with torch.autocast(torch.device(device).type, dtype):
                return loss(net)

        return narrow

    def residual() -> Any:
        return nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip

    def mlp(*middle: Any) -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(96, 256), nn.Tanh(), *middle, nn.Linear(256, 3))

    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    yield case("MLP", mlp(), entropy)
    yield case("MLP, dropout", mlp(nn.Dropout(0.3)), entropy)
    yield case("MLP, bfloat16 autocast", mlp(), autocast(torch.bfloat16, entropy))
    if device != "cpu":
        yield case("MLP, float16 autocast", mlp(), autocast(torch.float16, entropy))
    yield case("nn.LSTM, two layers", Classifier(), entropy)
    yield case("nn.TransformerEncoderLayer", layer, lambda net: functional.mse_loss(net(x), x.flip(1)))
    yield case("convolutions, BatchNorm", residual(), seen)
    yield case("convolutions, compiled", torch.compile(residual()), seen)
    yield case("MLP, backward x 1.05", mlp(Wrong()), entropy, right=False)
    yield case("nn.LSTM, detached", Classifier(cut=True), entropy, right=False)
    yield case("convolutions, backward x 1.05", nn.Sequential(residual(), Wrong()), seen, right=False)

    with set_to(torch.backends.cuda.matmul, "allow_tf32", value=True):
        yield case("MLP, TF32", mlp(), entropy)
        yield case("nn.LSTM, TF32", Classifier(), entropy)
        yield case("MLP, TF32, backward x 1.05", mlp(Wrong()), entropy, right=False)
    with set_to(torch.backends.cudnn, "allow_tf32", value=False):
        yield case("convolutions, no TF32", residual(), seen)


@contextmanager
def set_to(owner: Any, name: str, *, value: Any) -> Iterator[None]:
    """A setting, as before afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def torch_state(device: str) -> tuple[Any, ...]:
    """What must be as before."""
    import torch

    cuda = torch.cuda.get_rng_state().tolist() if device != "cpu" else ()
    backends = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    return torch.get_rng_state().tolist(), cuda, *backends, torch.get_default_dtype(), torch.is_grad_enabled()


def jax_cases(_: str) -> Iterator[Case]:
    """Functions of pytrees, on JAX's default device."""
    import jax
    from jax import numpy as jnp

    x, y = jnp.asarray(SEQUENCES), jnp.asarray(CLASSES[:16])
    keys = jax.random.split(jax.random.key(0), 4)

    def entropy(logits: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    @jax.custom_vjp
    def scaled(x: Any) -> Any:
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, g: (1.05 * g,))

    def mlp(p: Any, middle: Any = lambda h: h) -> Any:
        return entropy(middle(jnp.tanh(x.reshape(16, 96) @ p["w"])) @ p["v"])

    def scan(p: Any, cut: Any = lambda h: h) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jnp.tanh(x @ p["w"] + cut(h) @ p["r"])
            return h, None

        return entropy(jax.lax.scan(step, jnp.zeros((16, 64)), x.swapaxes(0, 1))[0] @ p["v"])

    def normal(i: int, *shape: int) -> Any:
        return jax.random.normal(keys[i], shape) / np.sqrt(shape[0])

    dense = {"w": normal(0, 96, 256), "v": normal(1, 256, 3)}
    recurrent = {"w": normal(0, 8, 64), "r": normal(1, 64, 64), "v": normal(2, 64, 3)}

    def case(name: str, loss: Any, at: Any, *, right: bool = True, precision: str = "default") -> Case:
        def under() -> Any:
            return jax.default_matmul_precision(None if precision == "default" else precision)

        def audit() -> Any:
            with under():
                return gradaudit.audit(jax.jit(loss), at)

        compiled = jax.jit(jax.grad(loss))

        def gradient() -> None:
            with under():
                jax.block_until_ready(compiled(at))

        return name, right, audit, gradient

    for precision in ("default", "highest", "tensorfloat32", "bfloat16"):
        yield case(f"MLP, matmul {precision}", mlp, dense, precision=precision)
        yield case(f"scan, matmul {precision}", scan, recurrent, precision=precision)
    yield case("MLP, backward x 1.05", lambda p: mlp(p, scaled), dense, right=False)
    yield case("scan, cut", lambda p: scan(p, jax.lax.stop_gradient), recurrent, right=False)


def jax_state(_: str) -> tuple[Any, ...]:
    """What must be as before."""
    import jax

    return jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision, jax.config.jax_default_device


def main() -> int:
    """Audit them all; 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["torch", "jax"])
    parser.add_argument("--device", default="cuda", help="of PyTorch; JAX has its own")
    parser.add_argument("--reports", action="store_true", help="print every report")
    options = parser.parse_args()
    failed = 0
    makers = {"torch": (torch_cases, torch_state), "jax": (jax_cases, jax_state)}
    for framework, (cases, state) in makers.items():
        if options.only not in (None, framework):
            continue
        for name, right, audit, gradient in cases(options.device):
            before, started = state(options.device), time.perf_counter()
            try:
                report = audit()
            except Exception:  # noqa: BLE001  # the others are still worth seeing
                failed += 1
                print(f"{framework:6} {name:32} {'right' if right else 'wrong'}  FAILED")
                traceback.print_exc()
                continue
            seconds = time.perf_counter() - started
            untouched = state(options.device) == before
            spent = statistics.median(timed(gradient) for _ in range(5))
            wrong = report.verdict is Verdict.DISAGREE
            bad = wrong == right or not untouched
            failed += bad
            causes = ", ".join(finding.code for finding in report.findings)
            print(
                f"{framework:6} {name:32} {'right' if right else 'wrong'}  {report.verdict.name:12} "
                f"{report.evaluations:5} evaluations {seconds:6.1f} s  gradient {spent * 1e3:7.2f} ms  {causes}"
                f"{'' if untouched else '  STATE CHANGED'}{'  <-' if bad else ''}",
                flush=True,
            )
            if options.reports or bad or report.verdict is Verdict.INCONCLUSIVE:
                print(report)
    return int(failed > 0)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
