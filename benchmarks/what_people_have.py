"""Models as people have them, unmodified, in float32, without options: what does an audit say, and what does it cost?

    python benchmarks/what_people_have.py                    # all, a process for each framework (and backend of Keras)
    python benchmarks/what_people_have.py --only torch keras-jax

All are right: every verdict must be AGREE, or the exit code is 1. "gradient" is one gradient of the same model, the
median of five; "audit" the seconds of one audit, with all that is compiled for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradaudit
from gradaudit.backends import registry

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((32, 8)).astype("float32")
SEQUENCES = RNG.standard_normal((16, 12, 8)).astype("float32")
IMAGES = RNG.standard_normal((8, 16, 16, 3)).astype("float32")
TOKENS = RNG.integers(64, size=(4, 17)).astype("int64")
CLASSES = (np.arange(32) % 3).astype("int32")


@dataclass(frozen=True, slots=True)
class Case:
    """What `gradaudit.audit` is given."""

    name: str
    target: Any
    at: Any = None
    loss: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What came of it; times in seconds."""

    group: str
    name: str
    n_parameters: int
    verdict: str
    source: str
    resolution: float
    evaluations: int
    audit: float
    gradient: float
    report: str


def numpy_cases() -> Iterator[Case]:
    """A pair as `scipy.optimize` has it."""
    from scipy.optimize import rosen, rosen_der

    yield Case("Rosenbrock, 10 dimensions", rosen, np.linspace(-1, 1.5, 10), gradient=rosen_der)


def torch_cases() -> Iterator[Case]:
    """PyTorch modules."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    x, y = torch.from_numpy(SEQUENCES), torch.from_numpy(CLASSES[:16]).long()

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(8, 16, num_layers=2, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(x)[0][:, -1])

    yield Case("nn.LSTM, two layers", Classifier(), loss=lambda net: functional.cross_entropy(net(x), y))
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    yield Case("nn.TransformerEncoderLayer, dropout", layer, loss=lambda net: functional.mse_loss(net(x), x.flip(1)))

    class Residual(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(n, n, 3, padding=1, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(n) for _ in range(2))

        def forward(self, x: Any) -> Any:
            inner = functional.relu(self.norms[0](self.one(x)))
            return functional.relu(x + self.norms[1](self.two(inner)))

    resnet = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(8), nn.MaxPool2d(2), Residual(8))
    resnet.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])
    images, labels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(CLASSES[:8]).long()
    yield Case("ResNet, BatchNorm", resnet, loss=lambda net: functional.cross_entropy(net(images), labels))

    class Gpt2(nn.Module):
        def __init__(self, width: int = 32, n_heads: int = 4) -> None:
            super().__init__()
            self.n_heads = n_heads
            self.wte, self.wpe = nn.Embedding(64, width), nn.Embedding(16, width)
            self.ln_1, self.ln_2, self.ln_f = (nn.LayerNorm(width) for _ in range(3))
            self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
            self.drop, self.head = nn.Dropout(0.1), nn.Linear(width, 64, bias=False)
            self.head.weight = self.wte.weight

        def forward(self, i: Any) -> Any:
            n, length = i.shape
            x = self.drop(self.wte(i) + self.wpe(torch.arange(length)))
            heads = self.c_attn(self.ln_1(x)).view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
            x = x + self.drop(self.c_proj(mixed.reshape(n, length, -1)))
            return self.head(self.ln_f(x + self.drop(self.mlp(self.ln_2(x)))))

    tokens = torch.from_numpy(TOKENS)
    following = tokens[:, 1:].flatten()
    yield Case("GPT-2 block, dropout, tied head", Gpt2(),
               loss=lambda net: functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), following))  # fmt: skip


def jax_cases() -> Iterator[Case]:
    """Functions of pytrees and modules."""
    import equinox as eqx
    import jax
    from flax import linen, nnx
    from jax import numpy as jnp

    target = jnp.sin(ROWS[:, :1])
    key = jax.random.key(0)
    mlp = linen.Sequential([linen.Dense(16), linen.gelu, linen.Dense(16), linen.gelu, linen.Dense(1)])
    variables = mlp.init(key, ROWS)
    yield Case("Flax linen MLP", lambda v: jnp.mean((mlp.apply(v, ROWS) - target) ** 2), variables)
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.relu, nnx.Linear(16, 1, rngs=rngs)
    )
    yield Case("Flax NNX MLP, BatchNorm", net, loss=lambda net: jnp.mean((net(ROWS) - target) ** 2))
    module = eqx.nn.MLP(8, 1, 16, 2, activation=jax.nn.tanh, key=key)
    yield Case("Equinox MLP, filter_jit", module,
               loss=eqx.filter_jit(lambda net: jnp.mean((jax.vmap(net)(ROWS) - target) ** 2)))  # fmt: skip

    def rnn(p: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            return jnp.tanh(x @ p["W"] + h @ p["R"] + p["b"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((16, 16)), jnp.swapaxes(SEQUENCES, 0, 1))
        log_p = jax.nn.log_softmax(h @ p["out"])
        return -jnp.mean(log_p[jnp.arange(16), CLASSES[:16]])

    keys = jax.random.split(key, 3)
    shapes = {"W": (8, 16), "R": (16, 16), "out": (16, 3)}
    weights = {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    yield Case("lax.scan RNN, jit", jax.jit(rnn), weights | {"b": jnp.zeros(16)})


def keras_cases() -> Iterator[Case]:
    """Keras models, on the backend that the process was started with."""
    import keras

    keras.utils.set_random_seed(0)
    layers, entropy = keras.layers, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    lstm = keras.Sequential([layers.Input((12, 8)), layers.LSTM(16), layers.Dropout(0.1), layers.Dense(3)])
    yield Case("Keras LSTM", lstm, loss=lambda net: entropy(CLASSES[:16], net(SEQUENCES)))
    conv = keras.Sequential(
        [layers.Input((16, 16, 3)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    for layer in (layers.MaxPooling2D(), layers.Flatten(), layers.Dense(3)):
        conv.add(layer)
    yield Case("Keras Conv2D, BatchNorm", conv, loss=lambda net: entropy(CLASSES[:8], net(IMAGES, training=True)))


#: Each group runs in a process of its own.
GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "numpy": numpy_cases,
    "torch": torch_cases,
    "jax": jax_cases,
    "keras-tensorflow": keras_cases,
    "keras-torch": keras_cases,
    "keras-jax": keras_cases,
}


def measured(group: str, case: Case) -> Row:
    """Audit a case, and time its gradient."""
    model = registry.model_of(case.target, case.at, loss=case.loss, gradient=case.gradient)
    parameters = model.parameters()
    started = time.perf_counter()
    report = gradaudit.audit(case.target, case.at, loss=case.loss, gradient=case.gradient, name=case.name)
    audit = time.perf_counter() - started
    model.value_and_grad(parameters)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        model.value_and_grad(parameters)
        seconds.append(time.perf_counter() - started)
    return Row(
        group=group,
        name=case.name,
        n_parameters=sum(p.size for p in parameters.values()),
        verdict=str(report.verdict),
        source=report.source,
        resolution=max(p.resolution for p in report.parameters),
        evaluations=report.evaluations,
        audit=audit,
        gradient=statistics.median(seconds),
        report=str(report),
    )


def run(group: str) -> list[Row]:
    """The rows of a group, from a process of its own."""
    _, _, backend = group.partition("-")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"KERAS_BACKEND": backend} if backend else {})
    command = [sys.executable, __file__, "--rows", group]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Row(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> int:
    """Print the table; 1 if a verdict is not AGREE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to run")
    parser.add_argument("--rows", choices=GROUPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        for case in GROUPS[arguments.rows]():
            print(json.dumps(dataclasses.asdict(measured(arguments.rows, case))), flush=True)
        return 0
    form = "{:<17} {:<35} {:>10} {:<12} {:<24} {:>10} {:>11} {:>8} {:>9}"
    print(
        form.format(
            "group", "model", "parameters", "verdict", "numeric", "resolution", "evaluations", "audit", "gradient"
        )
    )
    rows = []
    for group in arguments.only:
        for row in run(group):
            rows.append(row)
            numbers = (f"{row.resolution:.2g}", row.evaluations, f"{row.audit:.2f}", f"{row.gradient:.4f}")
            print(form.format(row.group, row.name, row.n_parameters, row.verdict, row.source, *numbers), flush=True)
    wrong = [row for row in rows if row.verdict != "AGREE"]
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} AGREE")
    for row in wrong:
        print(f"\n{row.report}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
