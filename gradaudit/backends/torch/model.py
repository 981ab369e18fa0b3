"""A PyTorch loss, a function of named tensors, as a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, cached_property
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, eps, frozen_copy
from gradaudit.backends.torch.backward import gradients
from gradaudit.backends.torch.broadcasts import over_pairs
from gradaudit.backends.torch.carried import carrying
from gradaudit.backends.torch.cuts import held
from gradaudit.backends.torch.held import HeldModel
from gradaudit.backends.torch.hooks import listed, removed
from gradaudit.backends.torch.narrow import narrowest
from gradaudit.backends.torch.origin import found
from gradaudit.backends.torch.outliving import Made
from gradaudit.backends.torch.rules import compared, replacing
from gradaudit.backends.torch.state import preserved, threads
from gradaudit.direction import Point, displace, stack
from gradaudit.errors import ModelContractError
from gradaudit.sites import Broadcast, CustomRule, Cut, Origin

__all__ = ["TorchModel", "as_array", "as_tensor", "environment"]

Function: TypeAlias = Callable[[dict[str, Tensor]], Any]


def environment() -> Mapping[str, str]:
    """PyTorch's version."""
    return {"backend": "torch", "torch": str(torch.__version__)}


def as_tensor(array: Any, device: Any = "cpu") -> Tensor:
    """A fresh tensor of the array's own dtype, whatever the default dtype and device are."""
    return torch.from_numpy(np.array(array)).to(device)


def as_array(tensor: Tensor, what: str = "the result") -> Array:
    """The numbers of a tensor, wherever it lives, whatever it records, sparse or not.

    Raises:
        ModelContractError: NumPy does not have its dtype.
    """
    try:
        array: Array = tensor.to_dense().numpy(force=True)
    except TypeError as error:
        msg = f"{what} has dtype {tensor.dtype}, which NumPy does not have"
        raise ModelContractError(msg, hint="convert it to float32 with .float()") from error
    return array


@final
class TorchModel:
    """A pure function of a dict of named tensors, differentiated by autograd.

    The function always gets fresh tensors: those given as ``parameters`` are copied, and neither they nor their
    ``.grad`` change. The gradient is as their hooks leave it.

    Args:
        function: parameters -> one number, a tensor of shape ().
        parameters: the base point, floating-point tensors or arrays by name. A tensor's copies live on its device, an
            array's on the default device.
        batched: parameters with a leading axis K -> (K,) losses; by default `torch.func.vmap` of the function where
            that works, else a loop.
        point_bytes: working memory of one point in a batch; by default measured.
        n_threads: on how many threads PyTorch computes meanwhile; by default on as many as are set.

    Raises:
        ModelContractError: a parameter has a dtype that NumPy lacks.
    """

    def __init__(
        self,
        function: Function,
        parameters: Mapping[str, Any],
        *,
        batched: Function | None = None,
        point_bytes: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._function = carrying(function, parameters)
        self._batched = batched
        self._given_point_bytes = point_bytes
        self._n_threads = n_threads
        self._parameters = frozen_copy(
            {n: as_array(p, f"parameter {n!r}") if isinstance(p, Tensor) else p for n, p in parameters.items()}
        )
        default = torch.get_default_device()
        self._devices = {name: getattr(p, "device", default) for name, p in parameters.items()}
        self._vectorises = True
        self._differentiates_inside = False
        self._replaced: frozenset[CustomRule] = frozenset()

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number.
        """
        with self._recording():
            if not self._differentiates_inside:
                # RuntimeError: a loss that differentiates by its own parameters, as MAML does; or an error of its own
                with suppress(RuntimeError):
                    return self._scalar(self._function(self._tensors(parameters)), "loss()")
            value = self._scalar(self._function(self._leaves(parameters)), "loss()")
            self._differentiates_inside = True
            return value

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient by autograd; None where the loss does not depend on a parameter.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        with self._recording():
            leaves = self._leaves(parameters)
            loss = self._function(dict(leaves))
            value = self._scalar(loss, "value_and_grad()")
            found = gradients(loss, leaves) if isinstance(loss, Tensor) else dict.fromkeys(leaves)
        return value, {n: None if g is None else as_array(g) for n, g in found.items()}

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative by forward mode, `torch.func.jvp`.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        _load_forward_mode()
        arrays = {name: np.asarray(tangents[name], p.dtype) for name, p in parameters.items()}
        with self._recording():
            loss, tangent = torch.func.jvp(self._function, (self._tensors(parameters),), (self._tensors(arrays),))
        self._scalar(loss, "jvp()")
        return float(tangent)

    @cached_property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        if self._given_point_bytes is not None:
            return self._given_point_bytes
        return sum(p.nbytes for p in self._parameters.values()) + self._tried[0]

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        if self._batched is not None:
            with self._recording():
                return as_array(self._batched(self._tensors(stack(self._parameters, points))))
        losses = self._vectorised(points) if self._vectorises else None
        if losses is None:
            return np.array([self.loss(displace(self._parameters, point)) for point in points])
        return losses

    def at(self, parameters: NamedArrays) -> TorchModel:
        """The same function at another base point, on the same devices."""
        given = self._given_point_bytes
        before, now = (min(p.itemsize for p in arrays.values()) for arrays in (self._parameters, parameters))
        model = TorchModel(
            self._function,
            self._tensors(parameters),
            batched=self._batched,
            point_bytes=None if given is None else given * now // before,
            n_threads=self._n_threads,
        )
        model._replaced = self._replaced
        return model

    def twin(self) -> TorchModel | None:
        """The same function of float64 parameters; None if they are float64 already, or if it cannot take them.

        A function that multiplies them with its own float32 matrices cannot: PyTorch mixes no dtypes in a product.
        """
        if all(p.dtype == np.float64 for p in self._parameters.values()):
            return None
        try:
            twin = self.at({name: p.astype(np.float64) for name, p in self._parameters.items()})
            loss = twin.loss(twin.parameters())
        except (RuntimeError, TypeError):
            return None
        return twin if loss.dtype == np.float64 else None

    def narrow(self) -> float | None:
        """The coarsest format that the loss autocasts to, or multiplies in: see `gradaudit.backends.torch.narrow`."""
        with preserved():
            return narrowest(lambda: self.loss(self._parameters), self._devices.values())

    def cuts(self) -> Sequence[Cut]:
        """Where the gradient is cut, or changed by a hook: see `gradaudit.backends.torch.cuts` and `hooks`."""
        with preserved(), self._recording():
            return listed(self._function, self._leaves(self._parameters))

    def without(self, cuts: Collection[Cut]) -> TorchModel | None:
        """The same loss, these cuts removed; None where PyTorch then refuses, as for a parameter changed in place."""
        if not all(cut.removable for cut in cuts):
            return None
        return _if_it_runs(self._over(removed(self._function, cuts)))

    def holding(self, cuts: Collection[Cut]) -> HeldModel | None:
        """The loss with these cuts' values held; None where that changes it at the base point."""
        with preserved(), self._recording():
            function = held(self._function, self._leaves(self._parameters), cuts)
        model = self._over(function)
        with preserved():
            loss = self.loss(self._parameters)
        try:
            with preserved():
                again = model.loss(self._parameters)
        except RuntimeError:  # for example values recorded inside vmap
            return None
        same = np.allclose(again, loss, rtol=16 * eps(loss.dtype), atol=0, equal_nan=True)
        return HeldModel(model, lambda: self._held_twin(cuts)) if same else None

    def rules(self) -> Sequence[CustomRule]:
        """The hand-written derivatives, each compared: see `gradaudit.backends.torch.rules`."""

        def gradient() -> None:
            with preserved():
                self.value_and_grad(self._parameters)

        with preserved():
            return compared(gradient)

    def replacing(self, rules: Collection[CustomRule]) -> TorchModel | None:
        """The same loss, these rules replaced; None where a primal leaves PyTorch and is too large for differences."""
        return _if_it_runs(self._over(self._function, self._replaced | frozenset(rules)))

    def origin(self) -> Origin | None:
        """Where the gradient stops being finite: see `gradaudit.backends.torch.origin`."""
        with preserved():
            _, gradients = self.value_and_grad(self._parameters)
        if all(g is None or np.isfinite(g).all() for g in gradients.values()):
            return None
        with preserved(), self._recording():
            return found(self._function, self._leaves(self._parameters))

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the loss is taken over pairs: see `gradaudit.backends.torch.broadcasts`."""
        tensors = self._leaves(self._parameters)
        with preserved(), self._recording():
            return over_pairs(lambda: self._function(dict(tensors)), list(tensors.values()))

    def preserved(self) -> AbstractContextManager[None]:
        """PyTorch's global state as it was, see `gradaudit.backends.torch.state`."""
        return preserved()

    def environment(self) -> Mapping[str, str]:
        """PyTorch's version."""
        return environment()

    def _over(self, function: Function, replaced: frozenset[CustomRule] | None = None) -> TorchModel:
        model = TorchModel(function, self._tensors(self._parameters), n_threads=self._n_threads)
        model._replaced = self._replaced if replaced is None else replaced
        return model

    def _held_twin(self, cuts: Collection[Cut]) -> HeldModel | None:
        twin = self.twin()
        return None if twin is None else twin.holding(cuts)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Grad mode, whatever mode the caller is in.

        The losses too are evaluated in it: a loss may differentiate inside, as a physics-informed network does. It
        costs nothing, since there is no tape where no parameter requires a gradient.
        """
        with torch.inference_mode(mode=False), torch.enable_grad(), threads(self._n_threads), replacing(self._replaced):
            yield

    def _scalar(self, loss: Any, where: str) -> Scalar:
        value = as_scalar(as_array(loss, "the loss") if isinstance(loss, Tensor) else loss, where)
        if type(loss) is float and all(p.itemsize < value.itemsize for p in self._parameters.values()):
            # item() hands the number of a float32 tensor over as one of Python's
            with np.errstate(over="ignore"):
                single = np.float32(loss)
            return single if float(single) == loss else value
        return value

    def _tensors(self, arrays: NamedArrays) -> dict[str, Tensor]:
        return {name: as_tensor(array, self._devices[name]) for name, array in arrays.items()}

    def _leaves(self, arrays: NamedArrays) -> dict[str, Tensor]:
        return {name: p.requires_grad_() for name, p in self._tensors(arrays).items()}

    def _vectorised(self, points: Sequence[Point]) -> Array | None:
        """The losses by vmap, or None, for good, where the function is beyond it, or keeps what it computes."""
        try:
            if self._tried[1]:
                self._vectorises = False
                return None
            with self._recording(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # it is still faster
                losses = as_array(torch.func.vmap(self._function)(self._tensors(stack(self._parameters, points))))
        except Exception:  # noqa: BLE001  # whatever is wrong, the loop meets it again if it is not vmap's fault
            self._vectorises = False
            return None
        # another shape or dtype: the loop says what is wrong with it
        return losses if losses.shape == (len(points),) and np.issubdtype(losses.dtype, np.floating) else None

    @cached_property
    def _tried(self) -> tuple[int, bool]:
        """Of one evaluation: the bytes that autograd would keep, more than needed; whether tensors outlive it."""
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.data_ptr()] = tensor.nbytes
            return tensor.detach()  # itself, an output that its own graph keeps would never be freed

        with preserved(), self._recording(), Made() as made:
            try:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    self._function(self._leaves(self._parameters))
            except RuntimeError:  # a loss with torch.func inside: it refuses these hooks
                saved.clear()
                self.loss(self._parameters)
        return sum(saved.values()), made.outlive()


@cache
def _load_forward_mode() -> None:
    """On its first use forward mode compiles some formulas, with a function that PyTorch itself has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        one = torch.ones((), device="cpu")
        torch.func.jvp(torch.sin, (one,), (one,))


def _if_it_runs(model: TorchModel) -> TorchModel | None:
    try:
        with preserved():
            model.value_and_grad(model.parameters())
    except RuntimeError:
        return None
    return model
