"""``check_grads``, ``check_vjp`` and ``check_jvp`` as in `jax.test_util`: same arguments, same exceptions.

``eps`` and ``atol`` are not used; ``rtol`` is the smallest error that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit import api
from gradaudit.dropin.translate import failures, significant
from gradaudit.errors import NotOfferedError, OptionError

__all__ = ["check_grads", "check_jvp", "check_vjp"]


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Check derivatives up to an order, forward and reverse.

    Args:
        f: a function of pytrees of arrays, to pytrees of arrays.
        args: its arguments.
        order: derivatives of derivatives up to this one.
        modes: ``"fwd"``, ``"rev"``, ``"lin"`` (linearized).
        atol: not used.
        rtol: the smallest relative error that matters, 1e-6 to 1e-2; by default gradaudit's own.
        eps: not used.

    Raises:
        AssertionError: they are wrong; the report is its text.
    """
    del atol, eps
    _check_grads(f, tuple(args), order, modes, rtol, "")


def _check_grads(
    f: Callable[..., Any], args: tuple[Any, ...], order: int, modes: Sequence[str], rtol: float | None, said: str
) -> None:
    """Each mode of f, and f's derivative in that mode as a function of its own, up to the order."""
    for mode in (mode for mode in _DERIVATIVES if mode in modes):
        label, derivative = _DERIVATIVES[mode]
        of = f"{label} of {said}" if said else label
        taken = partial(derivative, f)
        if mode == "lin":
            check_jvp(f, taken, args, rtol=rtol, err_msg=of)
        else:
            _audited(f, args, "forward" if mode == "fwd" else "reverse", rtol, of)
        if order > 1:
            _check_grads(taken, args if mode == "rev" else (args, args), order - 1, modes, rtol, of)


def check_vjp(
    f: Callable[..., Any],
    f_vjp: Callable[..., Any],
    args: Sequence[Any],
    atol: float | None = None,
    rtol: float | None = None,
    eps: float = 0.0001,
    err_msg: str = "",
) -> None:
    """Check a vector-Jacobian product.

    Args:
        f: the function.
        f_vjp: of its arguments, returns its value and a function from cotangents to those of the arguments, as
            ``functools.partial(jax.vjp, f)`` does.
        args: where.
        atol: not used.
        rtol: the smallest relative error that matters, 1e-6 to 1e-2; by default gradaudit's own.
        eps: not used.
        err_msg: before the report.

    Raises:
        AssertionError: it is wrong; the report is its text.
    """
    del atol, eps

    ruled = jax.custom_vjp(f)
    ruled.defvjp(lambda *given: (f(*given), given), lambda given, g: tuple(f_vjp(*given)[1](g)))
    _audited(ruled, tuple(args), "reverse", rtol, err_msg)


def check_jvp(
    f: Callable[..., Any],
    f_jvp: Callable[..., Any],
    args: Sequence[Any],
    atol: float | None = None,
    rtol: float | None = None,
    eps: float = 0.0001,
    err_msg: str = "",
) -> None:
    """Check a Jacobian-vector product.

    Args:
        f: the function.
        f_jvp: of arguments and tangents, returns value and tangent, as ``functools.partial(jax.jvp, f)`` does.
        args: where.
        atol: not used.
        rtol: the smallest relative error that matters, 1e-6 to 1e-2; by default gradaudit's own.
        eps: not used.
        err_msg: before the report.

    Raises:
        AssertionError: it is wrong; the report is its text.
    """
    del atol, eps

    ruled = jax.custom_jvp(f)
    ruled.defjvp(f_jvp)
    _audited(ruled, tuple(args), "forward", rtol, err_msg)


def _audited(f: Callable[..., Any], args: tuple[Any, ...], mode: str, rtol: float | None, said: str) -> None:
    given = jax.tree.map(_as_array, args)
    if not any(_is_inexact(leaf) for leaf in jax.tree.leaves(given)):
        return  # nothing to differentiate by
    if not any(_is_inexact(leaf) for leaf in jax.tree.leaves(jax.eval_shape(f, *given))):
        return
    name = getattr(f, "__name__", type(f).__name__)
    try:
        report = api.audit_operator(f, *given, modes=[mode], name=name, significant=significant(rtol))
    except OptionError as error:
        if isinstance(error.__cause__, NotOfferedError):  # as the original: JAX's own error
            raise error.__cause__.__cause__ or error from error
        raise
    failed = failures(report, rtol)
    if failed:
        raise AssertionError("\n\n".join([f"{said or mode}: the derivative is wrong", *map(str, failed)]))


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, (float, complex, np.ndarray, np.generic)) else leaf


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(getattr(leaf, "dtype", np.dtype(int)), jnp.inexact))


def _pulled_back(f: Callable[..., Any], *args: Any) -> Any:
    """The gradient that the outputs themselves make: what the next order differentiates."""
    outputs, pullback = jax.vjp(f, *args)
    return pullback(outputs)


def _linearized(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    outputs, tangent_map = jax.linearize(f, *primals)
    return outputs, tangent_map(*tangents)


#: By mode of `check_grads`: what it is called, and f -> the derivative that it makes.
_DERIVATIVES: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "fwd": ("JVP", jax.jvp),
    "rev": ("VJP", _pulled_back),
    "lin": ("LIN", _linearized),
}
