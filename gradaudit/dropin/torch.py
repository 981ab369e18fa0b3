"""``gradcheck`` and ``gradgradcheck`` as in `torch.autograd`: same arguments, same exceptions, any dtype.

``eps`` and ``atol`` are not used, ``fast_mode`` changes nothing: directions are probed anyway. ``rtol`` is the smallest
error that matters. What is no comparison with numbers (undefined gradients, the product with a zero gradient, batched
forward gradients) is asked of PyTorch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import (
    GradcheckError,
    _test_backward_mul_by_grad_output,
    _test_batched_grad_forward_ad,
    _test_undefined_backward_mode,
)

from gradaudit import api
from gradaudit.compare import Verdict
from gradaudit.dropin.translate import failures, significant
from gradaudit.errors import NotOfferedError, OptionError
from gradaudit.report import AuditReport

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


def gradcheck(
    func: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-06,
    atol: float = 1e-05,
    rtol: float = 0.001,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Whether the derivatives of a function by its inputs that require a gradient are right.

    Args:
        func: of tensors, returns a tensor or several.
        inputs: a tensor or several; float32 works.
        eps: not used.
        atol: not used.
        rtol: the smallest relative error that matters, 1e-6 to 1e-2.
        raise_exception: False: return False instead.
        nondet_tol: above 0, gradients may differ when they are computed again.
        check_undefined_grad: undefined gradients of outputs are handled as zeros.
        check_grad_dtypes: gradients have the dtypes of their inputs.
        check_batched_grad: the backward pass under vmap.
        check_batched_forward_grad: forward mode under vmap.
        check_forward_ad: forward mode.
        check_backward_ad: reverse mode.
        fast_mode: not used.
        masked: not used: gradients of sparse inputs are those of their specified entries.

    Raises:
        GradcheckError: they are not; the report is its text and its ``report``.
        ValueError: no input requires a gradient.
        AssertionError: nothing is to be checked.
    """
    del eps, atol, fast_mode
    if not (check_forward_ad or check_backward_ad):
        msg = "Expected at least one of check_forward_ad or check_backward_ad to be True"
        raise AssertionError(msg)
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    modes = [m for m, asked in (("reverse", check_backward_ad), ("forward", check_forward_ad)) if asked]
    modes += ["batched"] if check_batched_grad else []
    try:
        _audited(func, given, modes, rtol=rtol, nondeterministic=nondet_tol > 0)
        if check_grad_dtypes:
            _same_dtypes(func, given)
        _without_numbers(
            func,
            given,
            undefined=check_undefined_grad and check_backward_ad,
            batched_forward=check_batched_forward_grad,
            backward=check_backward_ad,
            masked=bool(masked),
        )
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    *,
    eps: float = 1e-06,
    atol: float = 1e-05,
    rtol: float = 0.001,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Whether the derivatives of the gradient are right, by the inputs and by the gradients of the outputs.

    Args:
        func: as for `gradcheck`.
        inputs: as for `gradcheck`.
        grad_outputs: gradients of the outputs; by default random ones.
        eps: not used.
        atol: not used.
        rtol: the smallest relative error that matters, 1e-6 to 1e-2.
        gen_non_contig_grad_outputs: random gradients of the outputs are not contiguous.
        raise_exception: False: return False instead.
        nondet_tol: above 0, gradients may differ when they are computed again.
        check_undefined_grad: undefined gradients of gradients are handled as zeros.
        check_grad_dtypes: second derivatives have the dtypes of their inputs.
        check_batched_grad: the second backward pass under vmap.
        check_fwd_over_rev: forward over reverse.
        check_rev_over_rev: reverse over reverse.
        fast_mode: not used.
        masked: as for `gradcheck`.

    Raises:
        GradcheckError: they are not.
        ValueError: no input requires a gradient.
        AssertionError: nothing is to be checked.
    """
    del eps, atol, fast_mode
    if not (check_fwd_over_rev or check_rev_over_rev):
        msg = "Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True"
        raise AssertionError(msg)
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if grad_outputs is None:
        weights = tuple(_random_like(y, contiguous=not gen_non_contig_grad_outputs) for y in _outputs(func(*given)))
    else:
        weights = (grad_outputs,) if isinstance(grad_outputs, Tensor) else tuple(grad_outputs)
    gradient = _Gradient(func, given)
    passed = True
    if check_rev_over_rev:
        passed = gradcheck(
            gradient.recorded,
            (*given, *weights),
            rtol=rtol,
            raise_exception=raise_exception,
            nondet_tol=nondet_tol,
            check_undefined_grad=check_undefined_grad,
            check_grad_dtypes=check_grad_dtypes,
            check_batched_grad=check_batched_grad,
            masked=masked,
        )
    if passed and check_fwd_over_rev:
        passed = gradcheck(
            gradient.transformed,
            (*given, *weights),
            rtol=rtol,
            raise_exception=raise_exception,
            nondet_tol=nondet_tol,
            check_forward_ad=True,
            check_backward_ad=False,
        )
    return passed


class _Gradient:
    """The gradient of a function as a function of its inputs, followed by the gradients of its outputs."""

    def __init__(self, func: Callable[..., Any], inputs: Sequence[Any]) -> None:
        self._func, self._n = func, len(inputs)
        self._chosen = [i for i, x in enumerate(inputs) if _is_checked(x)]
        self._outputs = [k for k, y in enumerate(_several(func(*inputs))) if _is_checked(y)]

    def recorded(self, *arguments: Any) -> tuple[Tensor, ...]:
        """By autograd."""
        xs = [arguments[i] for i in self._chosen]
        xs = [x if x.requires_grad else x.detach().requires_grad_() for x in xs]
        with torch.enable_grad():
            outputs = self._of_chosen(arguments, xs)
            found = torch.autograd.grad(outputs, xs, arguments[self._n :], create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    def transformed(self, *arguments: Any) -> tuple[Tensor, ...]:
        """By `torch.func.vjp`: forward mode runs inside a transform, where nothing may be told to record."""
        pull = torch.func.vjp(lambda *xs: self._of_chosen(arguments, xs), *(arguments[i] for i in self._chosen))[1]
        return tuple(pull(tuple(arguments[self._n :])))

    def _of_chosen(self, arguments: Sequence[Any], xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        every = list(arguments[: self._n])
        for i, x in zip(self._chosen, xs, strict=True):
            every[i] = x
        return tuple(y for k, y in enumerate(_several(self._func(*every))) if k in self._outputs)


def _audited(
    func: Callable[..., Any], inputs: Sequence[Any], modes: Sequence[str], *, rtol: float, nondeterministic: bool
) -> AuditReport:
    chosen = [i for i, x in enumerate(inputs) if _is_checked(x)]
    if not chosen:
        msg = (
            "gradcheck expects at least one input tensor to require gradient, but none of the them have "
            "requires_grad=True."
        )
        raise ValueError(msg)

    def of_chosen(*xs: Tensor) -> list[Any]:
        every = list(inputs)
        for i, x in zip(chosen, xs, strict=True):
            every[i] = x
        return _several(func(*every))

    checked = [k for k, y in enumerate(of_chosen(*(inputs[i] for i in chosen))) if _is_checked(y)]
    if not checked:  # nothing to differentiate: right as it is
        return AuditReport(verdict=Verdict.AGREE, target="")
    try:
        report = api.audit_operator(
            lambda *xs: [y for k, y in enumerate(of_chosen(*xs)) if k in checked],
            *(inputs[i] for i in chosen),
            modes=modes,
            name=getattr(func, "__qualname__", type(func).__name__),
            significant=significant(rtol),
        )
    except OptionError as error:
        if isinstance(error.__cause__, NotOfferedError):  # as the original: PyTorch's own error
            raise error.__cause__.__cause__ or error from error
        raise
    failed = failures(report, rtol, nondeterministic=nondeterministic)
    if failed:
        raise _error("\n\n".join(map(str, failed)), report)
    return report


def _error(text: str, report: AuditReport | None = None) -> GradcheckError:
    error = GradcheckError(text)
    error.report = report
    return error


def _is_checked(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _several(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _outputs(found: Any) -> list[Tensor]:
    return [y for y in _several(found) if _is_checked(y)]


def _random_like(y: Tensor, *, contiguous: bool) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.testing.make_tensor(
            y.shape, dtype=y.dtype, device=y.device, low=-1, high=1, requires_grad=True, noncontiguous=not contiguous
        )


def _same_dtypes(func: Callable[..., Any], inputs: Sequence[Any]) -> None:
    chosen = [x for x in inputs if _is_checked(x)]
    for y in _outputs(func(*inputs)):
        found = torch.autograd.grad(y, chosen, torch.zeros_like(y), allow_unused=True)
        for i, (x, g) in enumerate(zip(chosen, found, strict=True)):
            if g is not None and g.dtype != x.dtype:
                msg = f"the gradient of input {i} is {g.dtype}, the input {x.dtype}"
                raise _error(msg)


def _without_numbers(
    func: Callable[..., Any],
    inputs: tuple[Any, ...],
    *,
    undefined: bool,
    batched_forward: bool,
    backward: bool,
    masked: bool,
) -> None:
    """The checks of PyTorch that compare nothing with numeric derivatives."""
    if batched_forward:
        _test_batched_grad_forward_ad(func, inputs)
    outputs = tuple(_outputs(func(*inputs))) if backward else ()
    if outputs:
        _test_backward_mul_by_grad_output(outputs, inputs, masked)
        if undefined:
            _test_undefined_backward_mode(func, outputs, inputs)
