"""Each bad input is a named exception with fact, place and hint."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gradaudit
from gradaudit.backends import registry
from gradaudit.backends.numpy import NumpyModel
from gradaudit.errors import (
    AmbiguousBackendError,
    BackendNotInstalledError,
    BackendVersionError,
    ModelContractError,
    NonFiniteLossError,
    OptionError,
    UnknownBackendError,
)
from tests.core.models import mlp, of

X = np.array([1.0, 2.0])


def square(gradient=lambda p: {"x": 2 * p["x"]}, loss=lambda p: (p["x"] ** 2).sum(), **parameters):
    return NumpyModel(loss, parameters or {"x": X}, gradient=gradient)


def mutating(where):
    def loss(p):
        if where == "loss":
            p["x"] *= 2
        return (p["x"] ** 2).sum()

    def gradient(p):
        if where == "gradient":
            p["x"] += 1
        return {"x": 2 * p["x"]}

    return square(gradient, loss)


CASES = {
    "names": (
        square(lambda p: {"y": p["x"]}),
        ModelContractError,
        "parameters are ['x'], but gradients are ['y'] (in value_and_grad())\n\nHint: return one gradient per "
        "parameter (None where there is none); absent: ['x'], unknown: ['y']",
    ),
    "shapes": (
        square(lambda p: {"x": np.ones((2, 1))}),
        ModelContractError,
        "parameter 'x' has shape (2,), its gradient (2, 1) (in value_and_grad())\n\nHint: return each gradient in the "
        "shape of its parameter",
    ),
    "dtypes": (
        square(lambda p: {"x": p["x"].astype("float32")}),
        ModelContractError,
        "parameter 'x' has dtype float64, its gradient float32 (in value_and_grad())\n\nHint: return the gradient as "
        "float64",
    ),
    "vector loss": (
        square(loss=lambda p: p["x"] ** 2),
        ModelContractError,
        "the loss has shape (2,), but it must be one number (in loss())\n\nHint: reduce it, for example loss.mean()",
    ),
    "loss in a tuple": (
        square(loss=lambda p: ((p["x"] ** 2).sum(), p["x"])),
        ModelContractError,
        "the loss is a tuple of 2 (float64, ndarray), but it must be one number (in loss())\n\nHint: return the loss "
        "alone: if it is the first, that only",
    ),
    "loss in a list of many": (
        square(loss=lambda p: [1.0] * 5),
        ModelContractError,
        "the loss is a list of 5 (float, float, float, float, ...), but",
    ),
    "loss in a dict": (
        square(loss=lambda p: {"loss": (p["x"] ** 2).sum(), "x": p["x"]}),
        ModelContractError,
        "the loss is a dict of 2 (float64, ndarray), but it must be one number (in loss())\n\nHint: return the loss "
        "alone: if it is entry 'loss', that only",
    ),
    "nothing in a tuple": (square(loss=lambda p: ()), ModelContractError, "the loss is a tuple of 0 ()"),
    "no loss": (
        square(loss=lambda p: None),
        ModelContractError,
        "the loss is None, but it must be one number (in loss())\n\nHint: return the loss",
    ),
    "integer loss": (
        square(loss=lambda p: 3),
        ModelContractError,
        "the loss has dtype int64, but it must be a real floating-point number",
    ),
    "complex loss": (square(loss=lambda p: 1j), ModelContractError, "the loss has dtype complex128"),
    "nan loss": (
        square(loss=lambda p: np.nan),
        NonFiniteLossError,
        "the loss is nan at the base point, so it has no derivative there (in loss())\n\nHint: start from",
    ),
    "infinite loss": (square(loss=lambda p: np.inf), NonFiniteLossError, "the loss is inf at the base point"),
    "integer parameters": (
        square(x=np.array([1, 2])),
        ModelContractError,
        "parameter 'x' has dtype int64; only real floating-point tensors have a gradient (in parameters())\n\nHint: "
        "close over 'x' as data instead, or convert it",
    ),
    "empty parameters": (
        square(x=np.zeros((0, 3))),
        ModelContractError,
        "no parameter has entries, so there is no gradient to audit: 'x' has shape (0, 3) (in parameters())",
    ),
    "no parameters": (
        NumpyModel(lambda p: 1.0, {}, gradient=lambda p: {}),
        ModelContractError,
        "the model has no parameters, so there is no gradient to audit",
    ),
    "loss changes its input": (
        mutating("loss"),
        ModelContractError,
        "loss() changed its argument 'x' in place: 2 of 2 entries (in loss())\n\nHint: work on a copy",
    ),
    "gradient changes its input": (
        mutating("gradient"),
        ModelContractError,
        "value_and_grad() changed its argument 'x'",
    ),
    "two losses": (
        NumpyModel(lambda p: 1.0, {"x": X}, value_and_grad=lambda p: (2.0, {"x": p["x"]})),
        ModelContractError,
        "loss() is 1.0, but value_and_grad() returns the loss 2.0 at the same parameters",
    ),
    "no model": (
        lambda x: x,
        AmbiguousBackendError,
        "recognises it (in audit())\n\nHint: a module with loss=..., a function with its parameters as `at`",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(name):
    model, error, text = CASES[name]
    with pytest.raises(error) as raised:
        gradaudit.audit(model)
    assert text in str(raised.value)
    assert raised.value.fact in str(raised.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"significant": 0}, "significant must lie between 0 and 1, got 0 (in options)\n\nHint: significant=1e-3"),
        ({"significant": 2.0}, "significant must lie between 0 and 1, got 2.0"),
        ({"max_evaluations": 0}, "max_evaluations must be a whole number, at least 3, got 0"),
        ({"seed": -1}, "seed must be a whole number, at least 0, got -1"),
        ({"seed": True}, "seed must be a whole number"),
        ({"batch_bytes": 1.5}, "batch_bytes must be a whole number"),
        (
            {"truncation": "tail:1"},
            "truncation must be a Truncation, got 'tail:1' (in options)\n\nHint: gradaudit.tail(1)",
        ),
        ({"parameters": "decoder.*"}, "parameters='decoder.*' matches none of first, bias, second"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(OptionError) as raised:
        gradaudit.audit(mlp(), **options)
    assert text in str(raised.value)


def test_no_models():
    with pytest.raises(OptionError, match="there are no models to audit"):
        gradaudit.audit_all({})


def test_a_numpy_model_needs_a_gradient():
    with pytest.raises(OptionError, match=r"NumPy has no automatic differentiation \(in NumpyModel\)"):
        NumpyModel(lambda p: 1.0, {"x": X})


def test_unknown_backend():
    with pytest.raises(
        UnknownBackendError, match="unknown backend 'theano'\n\nHint: one of numpy, torch, jax, tensorflow"
    ):
        registry.get("theano")
    with pytest.raises(UnknownBackendError):
        registry.installed_version("theano")


def test_absent_backend(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(BackendNotInstalledError) as raised:
        registry.get("torch")
    assert "the backend 'torch' needs torch, which is not installed\n\nHint: pip install 'gradaudit[torch]'" in str(
        raised.value
    )
    assert isinstance(raised.value, ImportError)


def test_a_package_without_a_distribution_is_absent(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: object())

    def missing(name):
        raise registry.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(registry, "_version", missing)
    assert registry.installed_version("tensorflow") is None


def test_old_backend(monkeypatch):
    monkeypatch.setattr(registry, "installed_version", lambda name: "1.9.0rc1")
    with pytest.raises(BackendVersionError) as raised:
        registry.get("torch")
    assert (
        "the backend 'torch' needs torch 2.6 or newer, but 1.9.0rc1 is installed\n\nHint: pip install --upgrade"
        in str(raised.value)
    )


def test_the_users_arrays_are_out_of_reach():
    mine = np.array([1.0, 2.0])
    model = of(lambda p: (p["x"] ** 2).sum(), lambda p: {"x": 2 * p["x"]}, x=mine)
    gradaudit.audit(model)
    np.testing.assert_array_equal(mine, [1, 2])
    assert mine.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        model.parameters()["x"][0] = 3


def test_a_loaded_framework_that_is_too_old_is_not_asked(monkeypatch):
    """Unless nobody else knows what the target is."""
    old = dataclasses.replace(registry.BACKENDS[1], package="numpy", distributions=("numpy",), minimum=(9999,))
    monkeypatch.setattr(registry, "BACKENDS", (registry.BACKENDS[0], old))
    report = gradaudit.audit(lambda x: (x**2).sum(), np.ones(3), gradient=lambda x: 2 * x)
    assert report.verdict is gradaudit.Verdict.AGREE
    with pytest.raises(BackendVersionError):
        gradaudit.audit(lambda x: x.sum(), "nobody's")
