"""After an audit and its diagnosis, also one that raises, all is as it was: the process and the framework.

What is compared is listed in `watched`: a framework's settings, generators and modes, and the attributes of the modules
and classes that diagnosis reaches into, by identity.
"""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests.backends import programs


def _torch():
    import torch

    owners = [torch, torch.Tensor, torch.autograd, torch.autograd.Function, torch.autograd.graph, torch.nn.Module]
    owners += [torch.autograd.function, torch.overrides, torch.inference_mode, torch.nn.Parameter]
    state = {
        "generator": torch.get_rng_state().numpy().tobytes(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "function modes": torch._C._len_torch_function_stack(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
    }
    return owners, state


def _jax():
    import jax

    owners = [jax, jax.numpy, jax.lax, jax.custom_vjp, jax.custom_jvp, jax.core, jax.extend.core]
    return owners, {"config": dict(jax.config.values)}


def _tensorflow():
    import tensorflow as tf
    from tensorflow.python.eager import context, record
    from tensorflow.python.eager.polymorphic_function import polymorphic_function
    from tensorflow.python.framework import ops
    from tensorflow.python.ops import array_ops, custom_gradient, gen_array_ops, script_ops

    owners = [tf, tf.math, array_ops, gen_array_ops, script_ops, custom_gradient, record, tf.GradientTape]
    owners += [ops._EagerTensorBase, polymorphic_function.Function]
    callbacks = list(context.context().op_callbacks)
    return owners, {
        "generator": tf.random.get_global_generator().state.numpy().tobytes(),
        "callbacks": callbacks,
        "eager": (tf.executing_eagerly(), tf.config.functions_run_eagerly()),
    }


def _pytensor():
    import pytensor
    from pytensor import tensor as pt
    from pytensor.compile import mode

    owners = [pytensor, pt, pytensor.compile, pytensor.graph.op.Op]
    config = {name: getattr(pytensor.config, name) for name in ("floatX", "mode", "linker", "optimizer", "cxx")}
    return owners, {"config": config, "modes": [*mode.predefined_modes]}


WATCHED = {
    "numpy": lambda: ([], {}),
    "torch": _torch,
    "jax": _jax,
    "tensorflow": _tensorflow,
    "pytensor": _pytensor,
}


def watched(name):
    """Identities of attributes, kept alive so that they stay their own, and the values of settings."""
    owners, state = WATCHED[name]()
    attributes = [dict(vars(owner)) for owner in (*owners, np)]
    state |= {
        "numpy generator": str(np.random.get_state()),
        "python generator": random.getstate(),
        "numpy errors": np.geterr(),
        "threads": threading.active_count(),
    }
    return attributes, state


#: Filled by importing and by the first use of something; not what an audit exchanges.
_LAZY = {"__annotations__", "__doc__", "__annotations_cache__"}


def same(before, after):
    for one, other in zip(before[0], after[0], strict=True):
        changed = {n for n in one if n in other and one[n] is not other[n]} | (set(one) - set(other))
        assert not changed - _LAZY
    assert before[1] == after[1]


def cut(own, p):
    return own.sum(own.sin(p["x"]) * own.stop(own.cos(p["x"])))


def wrong_rule(own, p):
    rule = own.with_vjp(lambda own, x: own.sin(x), lambda own, x, g: 1.1 * g * own.cos(x) * own.cos(x))
    return own.sum(rule(own.cos(p["x"])))


def not_finite(own, p):
    mask = own.constant(np.array([True, False, True]), p["x"])
    inside = own.constant(np.array([1.0, 0.0, 1.0]), p["x"]) * p["x"]
    return own.sum(own.where(mask, own.singular(inside), p["x"]))


def gradient_of(loss):
    """What each program claims by hand on NumPy."""
    return {
        cut: lambda p: {"x": np.cos(p["x"]) * np.cos(p["x"])},
        wrong_rule: lambda p: {"x": -1.1 * np.cos(np.cos(p["x"])) ** 2 * np.sin(p["x"])},
        not_finite: lambda p: {"x": np.array([0.5, np.nan, 0.5])},
    }[loss]


X = np.array([0.3, 0.7, 1.1])
EXPECTED = {cut: "GA101", wrong_rule: "GA501", not_finite: "GA604"}


@pytest.mark.parametrize("loss", EXPECTED, ids=lambda loss: loss.__name__)
def test_after_a_diagnosis_all_is_as_before(backend, loss):
    model = programs.Program(loss, gradient_of(loss), {"x": X}).on(backend)
    gradaudit.audit(model)  # what a framework loads at its first use is loaded
    before = watched(backend.name)
    report = gradaudit.audit(model)
    same(before, watched(backend.name))
    assert report.verdict is Verdict.DISAGREE
    assert backend.name in programs.UNLISTED or report.findings[0].code == EXPECTED[loss]


class Interrupted(BaseException):
    """As Ctrl-C is: not an Exception."""


@pytest.mark.parametrize("error", [RuntimeError, Interrupted])
@pytest.mark.parametrize("loss", EXPECTED, ids=lambda loss: loss.__name__)
def test_after_a_diagnosis_that_raises_all_is_as_before(backend, loss, error):
    """The user's function fails at each call in turn, from the first of the experiments on."""
    calls = {"n": 0, "fails": 0}

    def failing(own, p):
        calls["n"] += 1
        if calls["n"] == calls["fails"]:
            raise error
        return loss(own, p)

    def count():
        calls["n"] = 0
        with suppress(error):
            gradaudit.audit(programs.Program(failing, gradient_of(loss), {"x": X}).on(backend))
        return calls["n"]

    total = count()
    before = watched(backend.name)
    for fails in (1, 2, 3, *range(max(4, total - 8), total + 1)):
        calls["fails"] = fails
        count()
        same(before, watched(backend.name))
