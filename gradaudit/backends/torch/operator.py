"""A PyTorch function of tensors in any containers, in and out: each way of differentiating it as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from gradaudit.arrays import Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.containers import flattened
from gradaudit.backends.operands import IMAGINARY, REAL, WithGradient, cotangent, in_short, named, offset
from gradaudit.backends.torch.backward import nodes
from gradaudit.backends.torch.model import TorchModel, as_array, as_tensor
from gradaudit.backends.torch.state import preserved
from gradaudit.backends.torch.widening import widening
from gradaudit.errors import ModelContractError, NotOfferedError
from gradaudit.protocols import Model

__all__ = ["TorchOperator", "operator"]

Tensors: TypeAlias = dict[str, Tensor]


def operator(function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> TorchOperator | None:
    """The operator at these inputs; None: none of them is a floating-point or complex tensor."""
    found = flattened(named(function, inputs), lambda x: _is_differentiable(x) and x.numel() > 0)
    if found is None:
        return None
    leaves, rebuilt = found
    return TorchOperator(lambda x: function(*rebuilt(x).values()), leaves, seed=seed)


@final
class TorchOperator:
    """See `gradaudit.protocols.Operator`.

    Complex inputs are audited by their real and imaginary parts, through PyTorch's complex gradient, which is
    ``dL/dRe + i dL/dIm``.

    Args:
        function: a dict of tensors -> tensors in any containers.
        inputs: real or complex floating-point tensors by name.
        seed: of the cotangents.

    Raises:
        ModelContractError: no output is a floating-point or complex tensor.
    """

    def __init__(
        self, function: Callable[[dict[str, Tensor]], Any], inputs: Mapping[str, Tensor], *, seed: int
    ) -> None:
        self._function = function
        self._seed = seed
        self._complex = [name for name, x in inputs.items() if x.is_complex()]
        # of a sparse tensor the specified entries are the input
        self._sparse = {name: x.detach() for name, x in inputs.items() if x.layout != torch.strided}
        self._inputs = {name: _entries(x.detach()) for name, x in inputs.items()}
        self._parts = _apart(self._inputs)
        with preserved(), torch.no_grad():
            given = self._joined({name: p.clone() for name, p in self._parts.items()})
            outputs = self._outputs(given)
            self._changed = [n for n, x in given.items() if not torch.equal(_bits(_entries(x)), _bits(self._inputs[n]))]
        if not outputs:
            msg = "no output of the operator is a floating-point or complex tensor"
            raise ModelContractError(msg, where="audit_operator()", hint="nothing of it can be differentiated")
        arrays = {name: as_array(y) for name, y in outputs.items()}
        self._cotangents = {name: cotangent(y, i, seed) for i, (name, y) in enumerate(arrays.items())}
        self._offset = offset([(arrays[name], c) for name, c in self._cotangents.items()])

    def remarks(self) -> Sequence[str]:
        """That inputs are changed in place."""
        return [f"The operator changes {name} in place; it was given copies." for name in self._changed]

    def reverse(self) -> Model:
        """``Re <c, f(x)>``, differentiated by the vector-Jacobian product."""
        return TorchModel(widening(self._paired, self._parts), self._parts)

    def second(self) -> Model:
        """``Re <u, vjp(x, c)>`` over inputs and cotangents, differentiated by reverse over reverse.

        Raises:
            NotOfferedError: the backward pass cannot be differentiated, or the first derivative is zero everywhere.
        """
        given = {n: torch.from_numpy(np.array(c)) for n, c in self._cotangents.items() if c.size}
        cotangents = _apart({f"cotangent of {n}": c for n, c in given.items()})
        like = next(iter(self._parts.values()))
        parameters = {**self._parts, **{n: c.to(like.dtype) for n, c in cotangents.items()}}
        with preserved():
            found = self._products({n: p.clone().requires_grad_() for n, p in parameters.items()})
        products = {n: g for n, g in found.items() if g is not None}
        if any(type(node).__name__ == "Error" for g in products.values() for node in nodes(g)):
            msg = "a backward pass is marked once_differentiable"
            raise NotOfferedError(msg, where="second order")
        weights = {n: cotangent(as_array(g), i, self._seed + 1) for i, (n, g) in enumerate(products.items())}
        if not weights:
            msg = "the outputs do not depend on the inputs"
            raise NotOfferedError(msg, where="second order")

        def loss(p: dict[str, Tensor]) -> Tensor:
            products = self._products(p)
            return sum(_product(g, weights[n]) for n, g in products.items() if g is not None and n in weights)

        model = TorchModel(widening(loss, parameters), parameters)
        try:
            with preserved():
                model.value_and_grad(model.parameters())
        except (RuntimeError, NotImplementedError) as error:
            raise NotOfferedError(in_short(error), where="second order") from error
        return model

    def batched(self) -> Model:
        """As `reverse`; the gradient is one of two that the backward pass makes at once, under vmap.

        Raises:
            NotOfferedError: the backward pass does not run under vmap.
        """
        model = WithGradient(TorchModel(widening(self._paired, self._parts), self._parts), self._batched)
        try:
            with preserved():
                model.value_and_grad(model.parameters())
        except (RuntimeError, NotImplementedError) as error:
            raise NotOfferedError(in_short(error), where="batched") from error
        return model

    def _outputs(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = flattened(self._function(dict(x)), _is_differentiable)
        return {} if found is None else {name: y.to_dense() for name, y in found[0].items()}

    def _paired(self, p: Mapping[str, Tensor]) -> Tensor:
        outputs = self._outputs(self._copied(p))
        return sum(_product(y, self._cotangents[name]) for name, y in outputs.items()) + self._offset

    def _copied(self, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # what is changed in place may be no leaf
        return {n: x.clone() for n, x in self._joined(p).items()}

    def _joined(self, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined = {}
        for name in self._inputs:
            both = name in self._complex
            x = torch.complex(p[name + REAL], p[name + IMAGINARY]) if both else p[name]
            joined[name] = _with_entries(self._sparse[name], x) if name in self._sparse else x
        return joined

    def _products(self, p: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """The vector-Jacobian products of the inputs with the cotangents in p, differentiable."""
        if not any(a.requires_grad for a in p.values()):
            msg = "a vector-Jacobian product needs inputs that record"  # TorchModel then gives some
            raise RuntimeError(msg)
        x = self._joined(p)
        outputs = self._outputs({n: a.clone() for n, a in x.items()})  # as in _copied
        recording = {n: y for n, y in outputs.items() if y.requires_grad}
        if not recording:
            return dict.fromkeys(x)
        weights = [self._weight(p, n, y) for n, y in recording.items()]
        found = torch.autograd.grad(
            list(recording.values()), list(x.values()), weights, create_graph=True, allow_unused=True
        )
        return dict(zip(x, found, strict=True))

    def _weight(self, p: Mapping[str, Tensor], name: str, output: Tensor) -> Tensor:
        if not output.numel():
            return torch.zeros_like(output)
        key = f"cotangent of {name}"
        if output.is_complex():
            return torch.complex(p[key + REAL], p[key + IMAGINARY]).to(output.dtype)
        return p[key].to(output.dtype)

    def _batched(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        with torch.enable_grad():
            p = {n: as_tensor(a).requires_grad_() for n, a in parameters.items()}
            outputs = self._outputs(self._copied(p))
            weights = {n: _as_cotangent(self._cotangents[n], y) for n, y in outputs.items()}
            loss = sum(_product(y, self._cotangents[n]) for n, y in outputs.items()) + self._offset
            recording = {n: y for n, y in outputs.items() if y.requires_grad}
            found: Sequence[Tensor | None] = [None] * len(p)
            if recording:
                stacked = [torch.stack([-weights[n] / 2, weights[n]]) for n in recording]
                found = torch.autograd.grad(
                    list(recording.values()), list(p.values()), stacked, allow_unused=True, is_grads_batched=True
                )
        gradients = {n: None if g is None else as_array(g[1]) for n, g in zip(p, found, strict=True)}
        return as_scalar(as_array(loss)[()], "value_and_grad()"), gradients


def _is_differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _entries(x: Tensor) -> Tensor:
    if x.layout == torch.sparse_coo:
        return x.coalesce().values()
    return x if x.layout == torch.strided else x.values()


def _with_entries(x: Tensor, entries: Tensor) -> Tensor:
    """The sparse tensor with other entries at the same places."""
    if x.layout == torch.sparse_coo:
        return torch.sparse_coo_tensor(
            x.coalesce().indices(), entries, x.shape, is_coalesced=True, check_invariants=False
        )
    rows = x.layout in (torch.sparse_csr, torch.sparse_bsr)
    compressed, plain = (x.crow_indices(), x.col_indices()) if rows else (x.ccol_indices(), x.row_indices())
    return torch.sparse_compressed_tensor(compressed, plain, entries, x.shape, layout=x.layout, check_invariants=False)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Complex tensors as two."""
    parts: Tensors = {}
    for name, x in tensors.items():
        parts |= {name + REAL: x.real, name + IMAGINARY: x.imag} if x.is_complex() else {name: x}
    return parts


def _as_cotangent(weight: Any, output: Tensor) -> Tensor:
    return as_tensor(weight, output.device).to(output.dtype)


def _product(output: Tensor, weight: Any) -> Tensor:
    c = _as_cotangent(weight, output)
    return (c.real * output.real + c.imag * output.imag).sum() if output.is_complex() else (c * output).sum()


def _bits(x: Tensor) -> Tensor:
    return torch.nan_to_num(torch.view_as_real(x) if x.is_complex() else x)
