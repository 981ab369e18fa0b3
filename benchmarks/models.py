"""Correct but hard losses, each written once and run by NumPy, PyTorch, JAX and TensorFlow.

A `Recipe` makes parameters and data from a random generator, both exact in float32, so that every dtype sees the same
numbers; its ``loss`` is written in terms of an `Ops`, which each framework fills in with its own functions, so that
its own derivative rules are what is audited. `NumpyOps` has no derivatives: PyTorch's serve there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["RECIPES", "JaxOps", "NumpyOps", "Ops", "Recipe", "TensorflowOps", "TorchOps", "ops"]

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Ops:
    """What a loss may call; anything that operators and slices do not do.

    Attributes:
        factor: where given, tanh has a backward of the user's own, wrong by this factor (1: right).
        cut: where given, recurrent losses detach their state before this step.
    """

    factor: float | None = None
    cut: int | None = None

    def tanh(self, x: Any) -> Any:
        """The framework's, or the user's own."""
        return self.own_tanh(x) if self.factor is None else self.custom_tanh(x)

    def mean(self, x: Any) -> Any:
        """Over all entries."""
        return self.sum(x) / float(np.prod(x.shape))

    def state(self, h: Any, step: int) -> Any:
        """A recurrent state before a step."""
        return self.stop(h) if step == self.cut else h

    def normed(self, x: Any, axis: int = -1) -> Any:
        """Zero mean and unit variance."""
        n = x.shape[axis]
        centred = x - self.sum(x, axis, keep=True) / n
        return centred / self.sqrt(self.sum(centred * centred, axis, keep=True) / n + 1e-5)

    def cross_entropy(self, logits: Any, onehot: Any) -> Any:
        """Mean over the rows."""
        return self.mean(self.logsumexp(logits, -1) - self.sum(logits * onehot, -1))


@dataclass(frozen=True)
class NumpyOps(Ops):
    """NumPy and SciPy; numbers only."""

    exp, log, sqrt, sin = (staticmethod(f) for f in (np.exp, np.log, np.sqrt, np.sin))
    abs, round, own_tanh = staticmethod(np.abs), staticmethod(np.round), staticmethod(np.tanh)
    where, reshape = staticmethod(np.where), staticmethod(np.reshape)
    cholesky = staticmethod(np.linalg.cholesky)

    def custom_tanh(self, x):
        return np.tanh(x)

    def array(self, x, like):
        return x.astype(like.dtype) if x.dtype.kind == "f" else x

    def stop(self, x):
        return x

    def relu(self, x):
        return np.maximum(x, 0)

    def sigmoid(self, x):
        return 1 / (1 + np.exp(-x))

    def softplus(self, x):
        return np.logaddexp(x, np.zeros((), x.dtype))

    def gelu(self, x):
        from scipy.special import erf

        return x * (1 + erf(x / np.sqrt(np.array(2, x.dtype)))) / 2

    def sum(self, x, axis=None, *, keep=False):
        return np.sum(x, axis=axis, keepdims=keep)

    def max(self, x, axis):
        return np.max(x, axis=axis)

    def logsumexp(self, x, axis):
        top = x.max(axis, keepdims=True)
        return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis))

    def softmax(self, x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def transpose(self, x):
        return np.swapaxes(x, -1, -2)

    def take(self, table, index):
        return table[index]

    def concat(self, parts, axis):
        return np.concatenate(parts, axis)

    def stack(self, parts):
        return np.stack(parts)

    def prod(self, x):
        return np.prod(x)

    def diagonal(self, x):
        return np.diagonal(x)

    def solve_lower(self, lower, b):
        from scipy.linalg import solve_triangular

        return solve_triangular(lower, b, lower=True)

    def conv(self, x, kernel):
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[0], axis=1)
        return np.einsum("nlcw,wcf->nlf", windows, kernel)


@dataclass(frozen=True)
class TorchOps(Ops):
    """PyTorch."""

    def __getattr__(self, name):
        import torch

        names = {"own_tanh": "tanh", "abs": "abs", "take": None}
        if name.startswith("_") or not hasattr(torch, names.get(name) or name):
            raise AttributeError(name)
        return getattr(torch, names.get(name) or name)

    def custom_tanh(self, x):
        return _torch_tanh(x, self.factor)

    def array(self, x, like):
        import torch

        return torch.from_numpy(x).to(like.dtype) if x.dtype.kind == "f" else torch.from_numpy(x)

    def stop(self, x):
        return x.detach()

    def softplus(self, x):
        import torch

        return torch.logaddexp(x, x.new_zeros(()))

    def gelu(self, x):
        import torch

        return torch.nn.functional.gelu(x)

    def sum(self, x, axis=None, *, keep=False):
        return x.sum() if axis is None else x.sum(axis, keepdim=keep)

    def max(self, x, axis):
        return x.amax(axis)

    def softmax(self, x):
        return x.softmax(-1)

    def cholesky(self, x):
        import torch

        return torch.linalg.cholesky(x)

    def transpose(self, x):
        return x.transpose(-1, -2)

    def take(self, table, index):
        import torch

        return torch.nn.functional.embedding(torch.as_tensor(index), table)

    def concat(self, parts, axis):
        import torch

        return torch.cat(parts, axis)

    def solve_lower(self, lower, b):
        import torch

        return torch.linalg.solve_triangular(lower, b, upper=False)

    def conv(self, x, kernel):
        import torch

        out = torch.nn.functional.conv1d(x.transpose(1, 2), kernel.permute(2, 1, 0))
        return out.transpose(1, 2)


def _torch_tanh(x, factor):
    import torch

    class Tanh(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return torch.tanh(x)

        @staticmethod
        def setup_context(ctx, _inputs, output):
            ctx.save_for_backward(output)

        @staticmethod
        def backward(ctx, grad):
            (t,) = ctx.saved_tensors
            return grad * factor * (1 - t * t)

    return Tanh.apply(x)


@dataclass(frozen=True)
class JaxOps(Ops):
    """JAX."""

    def __getattr__(self, name):
        import jax.numpy as jnp

        names = {"own_tanh": "tanh"}
        if name.startswith("_") or not hasattr(jnp, names.get(name, name)):
            raise AttributeError(name)
        return getattr(jnp, names.get(name, name))

    def custom_tanh(self, x):
        import jax
        import jax.numpy as jnp

        factor = self.factor
        tanh = jax.custom_vjp(jnp.tanh)
        tanh.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda t, grad: (grad * factor * (1 - t * t),))
        return tanh(x)

    def array(self, x, like):
        import jax.numpy as jnp

        return jnp.asarray(x, like.dtype) if x.dtype.kind == "f" else jnp.asarray(x)

    def stop(self, x):
        import jax

        return jax.lax.stop_gradient(x)

    def relu(self, x):
        import jax

        return jax.nn.relu(x)

    def sigmoid(self, x):
        import jax

        return jax.nn.sigmoid(x)

    def softplus(self, x):
        import jax

        return jax.nn.softplus(x)

    def gelu(self, x):
        import jax

        return jax.nn.gelu(x, approximate=False)

    def sum(self, x, axis=None, *, keep=False):
        return x.sum(axis, keepdims=keep)

    def max(self, x, axis):
        return x.max(axis)

    def logsumexp(self, x, axis):
        import jax

        return jax.nn.logsumexp(x, axis=axis)

    def softmax(self, x):
        import jax

        return jax.nn.softmax(x)

    def cholesky(self, x):
        import jax.numpy as jnp

        return jnp.linalg.cholesky(x)

    def transpose(self, x):
        return x.swapaxes(-1, -2)

    def take(self, table, index):
        return table[index]

    def concat(self, parts, axis):
        import jax.numpy as jnp

        return jnp.concatenate(parts, axis)

    def solve_lower(self, lower, b):
        import jax

        return jax.scipy.linalg.solve_triangular(lower, b, lower=True)

    def conv(self, x, kernel):
        import jax

        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


@dataclass(frozen=True)
class TensorflowOps(Ops):
    """TensorFlow."""

    def __getattr__(self, name):
        import tensorflow as tf

        names = {"own_tanh": "tanh", "softplus": "math.softplus", "log": "math.log", "prod": "reduce_prod"}
        names |= {"transpose": "linalg.matrix_transpose", "diagonal": "linalg.diag_part", "take": "gather"}
        names |= {"cholesky": "linalg.cholesky", "solve_lower": "linalg.triangular_solve", "stop": "stop_gradient"}
        names |= {"relu": "nn.relu", "softmax": "nn.softmax", "logsumexp": "reduce_logsumexp", "max": "reduce_max"}
        if name.startswith("_"):
            raise AttributeError(name)
        found = tf
        for part in names.get(name, name).split("."):
            found = getattr(found, part)
        return found

    def custom_tanh(self, x):
        import tensorflow as tf

        factor = self.factor

        @tf.custom_gradient
        def tanh(x):
            t = tf.tanh(x)
            return t, lambda grad: grad * tf.cast(factor, x.dtype) * (1 - t * t)

        return tanh(x)

    def array(self, x, like):
        import tensorflow as tf

        return tf.cast(tf.convert_to_tensor(x), like.dtype) if x.dtype.kind == "f" else tf.convert_to_tensor(x)

    def gelu(self, x):
        import tensorflow as tf

        return tf.nn.gelu(x, approximate=False)

    def sum(self, x, axis=None, *, keep=False):
        import tensorflow as tf

        return tf.reduce_sum(x, axis, keepdims=keep)

    def conv(self, x, kernel):
        import tensorflow as tf

        return tf.nn.conv1d(x, kernel, 1, "VALID")


_OPS = {"numpy": NumpyOps, "torch": TorchOps, "jax": JaxOps, "tensorflow": TensorflowOps}


def ops(backend: str, **options: Any) -> Ops:
    """The functions of one framework."""
    return _OPS[backend](**options)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One loss.

    Attributes:
        name: unique.
        make: random generator -> (parameters, data).
        loss: (ops, parameters, data) -> one number.
        alone: whether a bare float32 loss has the digits to say anything.
        tanh: whether it calls `Ops.tanh`.
        steps: of a recurrent loss, else 0.
        large: so many parameters that it is audited rarely.
    """

    name: str
    make: Callable[[np.random.Generator], tuple[dict[str, Any], dict[str, Any]]]
    loss: Callable[[Ops, Tensors, Tensors], Any]
    alone: bool = True
    tanh: bool = False
    steps: int = 0
    large: bool = False

    def case(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Parameters and data, float64 arrays of float32 numbers."""
        parameters, data = self.make(np.random.default_rng([seed, *self.name.encode()]))
        return {n: _single(p) for n, p in parameters.items()}, {n: _single(d) for n, d in data.items()}


def _single(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float32).astype(np.float64) if array.dtype.kind == "f" else array


RECIPES: dict[str, Recipe] = {}


def _recipe(make: Any, name: str, **options: Any) -> Callable[[Any], Any]:
    """Decorate a loss: it becomes a recipe of this name."""

    def register(loss: Any) -> Any:
        RECIPES[name] = Recipe(name=name, make=make, loss=loss, **options)
        return loss

    return register


def _variant(name: str, of: str, make: Any = None, loss: Any = None, **options: Any) -> None:
    """Register a recipe that differs from another in a few things."""
    base = RECIPES[of]
    RECIPES[name] = replace(base, name=name, make=make or base.make, loss=loss or base.loss, **options)


def _mlp(*sizes: int, rows: int = 16, gain: float = 1.0, shift: float = 0.0) -> Any:
    def make(rng):
        p = {}
        for k, (i, o) in enumerate(pairwise(sizes)):
            p[f"w{k}"] = gain * rng.standard_normal((i, o)) / np.sqrt(i)
            p[f"b{k}"] = 0.1 * rng.standard_normal(o) + shift
        return p, {"x": rng.standard_normal((rows, sizes[0])), "y": rng.standard_normal((rows, sizes[-1]))}

    return make


def _forward(o, p, d, act):
    h, n = o.array(d["x"], p["w0"]), len(p) // 2
    for k in range(n):
        h = h @ p[f"w{k}"] + p[f"b{k}"]
        h = act(h) if k < n - 1 else h
    return h


def _squares(o, p, d, act):
    error = _forward(o, p, d, act) - o.array(d["y"], p["w0"])
    return o.mean(error * error)


@_recipe(_mlp(5, 8, 8, 3), "mlp tanh", tanh=True)
def mlp_tanh(o, p, d):
    return _squares(o, p, d, o.tanh)


@_recipe(_mlp(5, 8, 8, 3), "mlp gelu")
def mlp_gelu(o, p, d):
    return _squares(o, p, d, o.gelu)


@_recipe(_mlp(5, 24, 3), "mlp relu")
def mlp_relu(o, p, d):
    return _squares(o, p, d, o.relu)


_variant("mlp relu deep", "mlp relu", _mlp(6, 20, 20, 20, 2, rows=40))
_variant("mlp tanh 1e5", "mlp tanh", _mlp(40, 300, 290, 4), large=True)
_variant("mlp relu 1e5", "mlp relu", _mlp(40, 300, 290, 4), large=True)
_variant("saturated tanh", "mlp tanh", _mlp(5, 8, 8, 3, gain=8))


@_recipe(_mlp(4, 6, 6, 6, 6, 6, 6, 6, 1), "deep sigmoid")
def deep_sigmoid(o, p, d):
    return _squares(o, p, d, o.sigmoid)


@_recipe(_mlp(5, 8, 8, 3), "offset 1e4", alone=False)
def offset_1e4(o, p, d):
    return 1e4 + _squares(o, p, d, o.tanh)


@_recipe(_mlp(5, 8, 8, 3), "offset 1e6", alone=False)
def offset_1e6(o, p, d):
    return 1e6 + _squares(o, p, d, o.tanh)


@_recipe(_mlp(5, 8, 8, 3), "offset 1e2")
def offset_1e2(o, p, d):
    return 100 + _squares(o, p, d, o.tanh)


@_recipe(_mlp(5, 8, 8, 3), "loss of 1e-12", tanh=True)
def tiny_loss(o, p, d):
    return 1e-12 * _squares(o, p, d, o.tanh)


@_recipe(_mlp(5, 8, 8, 3), "loss of 1e12", tanh=True)
def huge_loss(o, p, d):
    return 1e12 * _squares(o, p, d, o.tanh)


@_recipe(_mlp(6, 10, 4, rows=3000), "large sum", tanh=True)
def large_sum(o, p, d):
    error = _forward(o, p, d, o.tanh) - o.array(d["y"], p["w0"])
    return o.sum(error * error)


@_recipe(_mlp(5, 12, 12, 3), "layer norm")
def layer_norm(o, p, d):
    return _squares(o, p, d, lambda h: o.gelu(o.normed(h)))


@_recipe(_mlp(5, 12, 12, 3), "batch norm")
def batch_norm(o, p, d):
    return _squares(o, p, d, lambda h: o.relu(o.normed(h, 0)))


def _near_kink(rng):
    """The activations' inputs lie between 1e-7 and 1 from the kink, evenly by order of magnitude."""
    p, d = _mlp(5, 1, rows=30)(rng)
    z = d["x"].astype(np.float32).astype(np.float64) @ p["w0"].astype(np.float32).astype(np.float64)
    d["y"] = 10.0 ** rng.uniform(-7, 0, 30) * rng.choice([-1, 1], 30) - z[:, 0]
    return {"w": p["w0"][:, 0], "v": rng.standard_normal(30)}, d


@_recipe(_near_kink, "near kinks")
def near_kinks(o, p, d):
    h = o.relu(o.sum(o.array(d["x"], p["w"]) * p["w"], 1) + o.array(d["y"], p["w"]))
    return o.sum(p["v"] * h)


def _elman(n, steps, hidden, features=3, gain=0.9):
    def make(rng):
        p = {"w": rng.standard_normal((features, hidden)) / 2, "b": 0.1 * rng.standard_normal(hidden)}
        p["r"] = gain * rng.standard_normal((hidden, hidden)) / np.sqrt(hidden)
        p["v"] = rng.standard_normal((hidden, 2))
        return p, {"x": rng.standard_normal((steps, n, features)), "y": rng.standard_normal((n, 2))}

    return make


@_recipe(_elman(4, 40, 6), "elman 40 steps", tanh=True, steps=40)
def elman(o, p, d):
    x, h = o.array(d["x"], p["w"]), 0 * o.array(d["y"], p["w"]) @ o.transpose(p["v"])
    for t in range(x.shape[0]):
        h = o.tanh(x[t] @ p["w"] + o.state(h, t) @ p["r"] + p["b"])
    error = h @ p["v"] - o.array(d["y"], p["w"])
    return o.mean(error * error)


_variant("elman exploding", "elman 40 steps", _elman(4, 25, 6, gain=2.0), steps=25)
_variant("elman vanishing", "elman 40 steps", _elman(4, 40, 6, gain=0.2))


def _gated(gates):
    def make(rng):
        p = {"v": rng.standard_normal((5, 2))}
        for g in gates:
            p[f"w{g}"] = rng.standard_normal((3, 5)) / 2
            p[f"r{g}"] = rng.standard_normal((5, 5)) / 2
            p[f"b{g}"] = 0.1 * rng.standard_normal(5)
        return p, {"x": rng.standard_normal((16, 4, 3)), "y": rng.standard_normal((4, 2))}

    return make


def _gate(p, x, h, name):
    return x @ p[f"w{name}"] + h @ p[f"r{name}"] + p[f"b{name}"]


@_recipe(_gated("ifog"), "lstm", tanh=True, steps=16)
def lstm(o, p, d):
    x, y = o.array(d["x"], p["v"]), o.array(d["y"], p["v"])
    h = c = 0 * y @ o.transpose(p["v"])
    for t in range(x.shape[0]):
        h, c = o.state(h, t), o.state(c, t)
        i, f, out = (o.sigmoid(_gate(p, x[t], h, name)) for name in "ifo")
        c = f * c + i * o.tanh(_gate(p, x[t], h, "g"))
        h = out * o.tanh(c)
    error = h @ p["v"] - y
    return o.mean(error * error)


@_recipe(_gated("zrn"), "gru", tanh=True, steps=16)
def gru(o, p, d):
    x, y = o.array(d["x"], p["v"]), o.array(d["y"], p["v"])
    h = 0 * y @ o.transpose(p["v"])
    for t in range(x.shape[0]):
        h = o.state(h, t)
        z, r = (o.sigmoid(_gate(p, x[t], h, name)) for name in "zr")
        h = (1 - z) * h + z * o.tanh(_gate(p, x[t], r * h, "n"))
    error = h @ p["v"] - y
    return o.mean(error * error)


def _attention(rng):
    p = {n: rng.standard_normal((6, 6)) / 2 for n in ("q", "k", "v", "o")}
    return p, {"x": rng.standard_normal((2, 7, 6)), "y": rng.standard_normal((2, 7, 6))}


@_recipe(_attention, "attention")
def attention(o, p, d):
    x = o.array(d["x"], p["q"])
    scores = (x @ p["q"]) @ o.transpose(x @ p["k"]) / 6**0.5
    error = o.softmax(scores) @ (x @ p["v"]) @ p["o"] - o.array(d["y"], p["q"])
    return o.mean(error * error)


def _vae(rng):
    p = {"enc": rng.standard_normal((8, 6)) / 3, "mu": rng.standard_normal((6, 2)) / 2}
    p |= {"logvar": rng.standard_normal((6, 2)) / 2, "dec": rng.standard_normal((2, 6))}
    p["out"] = rng.standard_normal((6, 8))
    return p, {"x": (rng.random((10, 8)) < 0.5).astype(float), "noise": rng.standard_normal((10, 2))}


@_recipe(_vae, "vae", tanh=True)
def vae(o, p, d):
    x, noise = o.array(d["x"], p["enc"]), o.array(d["noise"], p["enc"])
    h = o.tanh(x @ p["enc"])
    mu, logvar = h @ p["mu"], h @ p["logvar"]
    logits = o.tanh((mu + o.exp(logvar / 2) * noise) @ p["dec"]) @ p["out"]
    likelihood = o.sum(o.softplus(logits) - x * logits)
    return (likelihood - o.sum(1 + logvar - mu * mu - o.exp(logvar)) / 2) / 10


def _softmax(scale):
    def make(rng):
        p = {"w": scale * rng.standard_normal((6, 5)), "b": rng.standard_normal(5)}
        return p, {"x": rng.standard_normal((20, 6)), "y": np.eye(5)[rng.integers(0, 5, 20)]}

    return make


@_recipe(_softmax(100), "softmax, huge logits")
def softmax_regression(o, p, d):
    logits = o.array(d["x"], p["w"]) @ p["w"] + p["b"]
    return o.cross_entropy(logits, o.array(d["y"], p["w"]))


_variant("softmax regression", "softmax, huge logits", _softmax(1))


def _mixed(rng):
    scale = 10.0 ** rng.uniform(-6, 6, 12)
    p = {"p": scale * rng.standard_normal(12), "q": rng.standard_normal(4)}
    return p, {"x": 1 / scale, "m": rng.standard_normal((12, 4))}


@_recipe(_mixed, "mixed scale within a tensor")
def mixed(o, p, d):
    return o.sum(o.sin(p["p"] * o.array(d["x"], p["p"])) * o.sum(o.array(d["m"], p["p"]) * p["q"], 1))


def _units(rng):
    p = {"small": 1e-8 * rng.standard_normal(6), "large": 1e6 * rng.standard_normal(6)}
    return p, {"m": rng.standard_normal((6, 6))}


@_recipe(_units, "tensors of 1e-8 and 1e6")
def units(o, p, d):
    return o.sum(o.sin(p["small"] * 1e8) * o.sum(o.array(d["m"], p["small"]) * o.sin(p["large"] / 1e6), 1))


@_recipe(lambda rng: ({"x": 300 * rng.standard_normal(20)}, {}), "logsumexp")
def logsumexp(o, p, _d):
    return o.logsumexp(p["x"] / 50, 0) + o.logsumexp(-p["x"] / 3, 0)


def _gaussian_process(rng):
    x = np.sort(rng.uniform(-2, 2, 15))
    return {"log_length": np.array(-0.2), "log_scale": np.array(0.3), "log_noise": np.array(-2.0)}, {
        "square": (x[:, None] - x) ** 2, "eye": np.eye(15), "y": np.sin(2 * x)[:, None]}  # fmt: skip


@_recipe(_gaussian_process, "gaussian process", alone=True)
def gaussian_process(o, p, d):
    square, eye, y = (o.array(d[n], p["log_length"]) for n in ("square", "eye", "y"))
    kernel = o.exp(2 * p["log_scale"] - square / 2 * o.exp(-2 * p["log_length"])) + o.exp(2 * p["log_noise"]) * eye
    lower = o.cholesky(kernel)
    white = o.solve_lower(lower, y)
    return o.sum(white * white) / 2 + o.sum(o.log(o.diagonal(lower)))


def _covariance(rng):
    return {"factor": rng.standard_normal((5, 5)), "mean": rng.standard_normal((5, 1))}, {
        "y": rng.standard_normal((5, 30)), "eye": np.eye(5)}  # fmt: skip


@_recipe(_covariance, "gaussian covariance")
def covariance(o, p, d):
    lower = o.cholesky(p["factor"] @ o.transpose(p["factor"]) + 0.1 * o.array(d["eye"], p["factor"]))
    white = o.solve_lower(lower, o.array(d["y"], p["factor"]) - p["mean"])
    return o.sum(white * white) / 60 + o.sum(o.log(o.diagonal(lower)))


def _conv(rng):
    p = {"k0": rng.standard_normal((3, 2, 5)) / 2, "k1": rng.standard_normal((3, 5, 2)) / 3}
    p["b"] = rng.standard_normal(5) / 5
    return p, {"x": rng.standard_normal((4, 16, 2)), "y": rng.standard_normal((4, 12, 2))}


@_recipe(_conv, "convolution")
def convolution(o, p, d):
    error = o.conv(o.relu(o.conv(o.array(d["x"], p["b"]), p["k0"]) + p["b"]), p["k1"]) - o.array(d["y"], p["b"])
    return o.mean(error * error)


def _pool(rng):
    p, d = _conv(rng)
    return p, d | {"y": rng.standard_normal((4, 2))}


@_recipe(_pool, "max pooling")
def pooling(o, p, d):
    h = o.max(o.gelu(o.conv(o.array(d["x"], p["b"]), p["k0"]) + p["b"]), 1)
    error = h @ o.sum(p["k1"], 0) - o.array(d["y"], p["b"])
    return o.mean(error * error)


def _embedding(rng):
    p = {"table": rng.standard_normal((40, 6)), "w": rng.standard_normal((6, 4)) / 2}
    return p, {"index": rng.integers(0, 20, 25), "y": np.eye(4)[rng.integers(0, 4, 25)]}


@_recipe(_embedding, "embedding")
def embedding(o, p, d):
    return o.cross_entropy(o.take(p["table"], d["index"]) @ p["w"], o.array(d["y"], p["w"]))


@_recipe(lambda rng: ({"x": rng.uniform(0.7, 1.3, 60) * rng.choice([-1, 1], 60)}, {}), "long product")
def long_product(o, p, _d):
    return o.prod(p["x"])


def _minimum(rng):
    x = rng.standard_normal(8)
    return {"x": x, "y": rng.standard_normal(3)}, {"x": x}


@_recipe(_minimum, "minimum in one tensor")
def minimum(o, p, d):
    away = p["x"] - o.array(d["x"], p["x"])
    return o.sum(away * away) + o.sum(p["y"] * p["y"])


@_recipe(lambda rng: ({"x": np.zeros(6), "y": np.zeros(6)}, {"s": rng.standard_normal(6)}), "saddle")
def saddle(o, p, d):
    return 1 + o.sum((p["x"] * p["x"] - p["y"] * p["y"]) * o.array(d["s"], p["x"]) + p["x"] * p["y"])


@_recipe(lambda rng: ({"x": rng.standard_normal(5), "idle": rng.standard_normal((3, 2))}, {}), "unused parameter")
def unused(o, p, _d):
    return o.sum(o.sin(p["x"]))


@_recipe(lambda rng: ({"x": 3 * rng.standard_normal(6), "y": rng.standard_normal(6)}, {}), "piecewise constant part")
def piecewise(o, p, _d):
    return o.sum(o.round(p["x"]) * o.sin(p["y"]))


def _poisson(rng):
    return {"w": rng.standard_normal(5) / 2, "b": np.array(2.0)}, {
        "x": rng.standard_normal((40, 5)), "y": rng.poisson(5, 40).astype(float)}  # fmt: skip


@_recipe(_poisson, "poisson regression")
def poisson(o, p, d):
    rate = o.sum(o.array(d["x"], p["w"]) * p["w"], 1) + p["b"]
    return o.sum(o.exp(rate) - o.array(d["y"], p["w"]) * rate)


@_recipe(_poisson, "student t")
def student(o, p, d):
    error = o.sum(o.array(d["x"], p["w"]) * p["w"], 1) + p["b"] - o.array(d["y"], p["w"])
    return o.sum(o.log(1 + error * error / 3))


@_recipe(_poisson, "absolute error")
def absolute(o, p, d):
    return o.mean(o.abs(o.sum(o.array(d["x"], p["w"]) * p["w"], 1) + p["b"] - o.array(d["y"], p["w"])))


@_recipe(lambda rng: ({"x": rng.standard_normal(20)}, {}), "sin(300 x)")
def oscillating(o, p, _d):
    return o.sum(o.sin(300 * p["x"])) / 300


def _chain(rng):
    p = {"start": rng.standard_normal(4), "move": rng.standard_normal((4, 4)), "emit": rng.standard_normal((4, 5))}
    return p, {"seen": rng.integers(0, 5, 25)}


@_recipe(_chain, "hidden Markov model")
def hidden_markov(o, p, d):
    move = p["move"] - o.reshape(o.logsumexp(p["move"], 1), (4, 1))
    emit = o.transpose(p["emit"] - o.reshape(o.logsumexp(p["emit"], 1), (4, 1)))
    at = o.take(emit, d["seen"])
    alpha = p["start"] - o.logsumexp(p["start"], 0) + at[0]
    for t in range(1, d["seen"].shape[0]):
        alpha = o.logsumexp(o.reshape(alpha, (4, 1)) + move, 0) + at[t]
    return -o.logsumexp(alpha, 0)


def _flow(rng):
    p = {n: rng.standard_normal((2, 2)) / 2 for n in ("s0", "t0", "s1", "t1")}
    return p, {"x": rng.standard_normal((20, 4))}


@_recipe(_flow, "normalising flow", tanh=True)
def flow(o, p, d):
    x = o.array(d["x"], p["s0"])
    a, b = x[:, :2], x[:, 2:]
    s0 = o.tanh(a @ p["s0"])
    b = b * o.exp(s0) + a @ p["t0"]
    s1 = o.tanh(b @ p["s1"])
    a = a * o.exp(s1) + b @ p["t1"]
    return o.mean(a * a / 2 + b * b / 2 - s0 - s1)


def _logistic(rng):
    return {"x": rng.uniform(0.2, 0.8, 5), "r": np.array(3.6)}, {}


@_recipe(_logistic, "chaotic map, 12 steps")
def chaotic(o, p, _d, n=12):
    x = p["x"]
    for _ in range(n):
        x = p["r"] * x * (1 - x)
    return o.sum(x)


@_recipe(_logistic, "chaotic map, 30 steps", alone=False)
def more_chaotic(o, p, d):
    return chaotic(o, p, d, 30)


def _contrastive(rng):
    return {"w": rng.standard_normal((6, 4))}, {
        "x": rng.standard_normal((8, 6)), "z": rng.standard_normal((8, 6)), "y": np.eye(8)}  # fmt: skip


@_recipe(_contrastive, "contrastive, temperature 0.05")
def contrastive(o, p, d):
    one, other = (o.array(d[n], p["w"]) @ p["w"] for n in ("x", "z"))
    one, other = (e / o.sqrt(o.sum(e * e, 1, keep=True)) for e in (one, other))
    return o.cross_entropy(one @ o.transpose(other) / 0.05, o.array(d["y"], p["w"]))


def _distances(rng):
    return {"x": rng.standard_normal((10, 2))}, {"y": rng.uniform(1, 2, (10, 10)), "eye": np.eye(10)}


@_recipe(_distances, "distances")
def distances(o, p, d):
    x = p["x"]
    difference = o.reshape(x, (10, 1, 2)) - o.reshape(x, (1, 10, 2))
    length = o.sqrt(o.sum(difference * difference, 2) + 1e-12 + o.array(d["eye"], x))
    error = (length - o.array(d["y"], x)) * (1 - o.array(d["eye"], x))
    return o.mean(error * error)


def _rational(rng):
    return {"a": rng.standard_normal(6), "b": 1e-3 + 1e-2 * rng.random(6)}, {"x": rng.standard_normal(6)}


@_recipe(_rational, "small denominators")
def rational(o, p, d):
    return o.sum(p["a"] * o.array(d["x"], p["a"]) / p["b"])


def _spring(_rng):
    return {"k": np.array(3.0), "c": np.array(0.2), "x": np.array(1.0), "v": np.array(0.0)}, {}


@_recipe(_spring, "leapfrog, 60 steps")
def leapfrog(o, p, _d):
    x, v = p["x"], p["v"]
    for _ in range(60):
        v = v - 0.1 * (p["k"] * o.sin(x) + p["c"] * v)
        x = x + 0.1 * v
    return x * x + v * v


@_recipe(lambda rng: ({"x": rng.uniform(-8, 8, 16)}, {}), "saturated sigmoids")
def saturated(o, p, _d):
    return o.mean(o.sigmoid(4 * p["x"]))


@_recipe(lambda rng: ({"a": rng.standard_normal((4, 4)), "b": rng.standard_normal((4, 4))}, {}), "power of a matrix")
def matrix_power(o, p, _d):
    m = p["a"] / 2
    for _ in range(6):
        m = m @ p["a"] / 2 + p["b"]
    return o.sum(m * m)
