"""What the auditor asks of a model: one small protocol that everybody implements, and optional capabilities.

A model is *pure*: for the same parameters it gives the same loss and leaves its arguments alone. Arrays at this border
are NumPy arrays in the model's own dtype. A capability that a model has in general but not in this instance answers
None (for example ``twin()`` of a model that is float64 already).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.direction import Point
from gradaudit.recurrent import Problem, RecurrentSpec, SequenceData, Truncation
from gradaudit.sites import Broadcast, CustomRule, Cut, Origin

__all__ = [
    "Backend",
    "FrameworkModel",
    "Model",
    "Network",
    "Operator",
    "StepVariant",
    "SupportsAlong",
    "SupportsAt",
    "SupportsBroadcasts",
    "SupportsComplexStep",
    "SupportsCuts",
    "SupportsEnvironment",
    "SupportsFrozen",
    "SupportsJvp",
    "SupportsMixedPrecision",
    "SupportsOrigin",
    "SupportsRules",
    "SupportsSizes",
    "SupportsState",
    "SupportsSteps",
    "SupportsTerms",
    "SupportsTruncation",
    "SupportsTwin",
    "SupportsVariants",
    "SupportsWindows",
]


@runtime_checkable
class Model(Protocol):
    """A scalar loss over named parameters, its data fixed."""

    def parameters(self) -> NamedArrays:
        """The base point: name to array, names as the framework prints them."""

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss, a NumPy scalar in the loss's own dtype."""

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its analytic gradient; a missing gradient is None, never zeros."""


@runtime_checkable
class SupportsAlong(Protocol):
    """Many losses at once: a batch axis, vmap, in place."""

    @property
    def point_bytes(self) -> int:
        """Working memory that one more point takes, in bytes."""

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,), in the loss's dtype."""


@runtime_checkable
class SupportsAt(Protocol):
    """The same loss can be audited at other parameters, whatever its own are."""

    def at(self, parameters: NamedArrays) -> Model:
        """The same loss with these as its base point."""


@runtime_checkable
class SupportsJvp(Protocol):
    """Forward-mode differentiation."""

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """``<d loss/d p, tangents>``; under a truncation, of the truncated gradient."""


@runtime_checkable
class SupportsSteps(Protocol):
    """A loss that is a sum over time steps."""

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,); their sum is the loss."""


@runtime_checkable
class SupportsComplexStep(Protocol):
    """An analytic loss that computes in complex arithmetic."""

    def complex_loss(self, parameters: NamedArrays) -> complex | None:
        """The loss at complex parameters, complex; None: not here."""


@runtime_checkable
class SupportsTerms(Protocol):
    """A loss that is a sum of terms; differences of terms lose fewer digits than differences of sums."""

    def terms(self, parameters: NamedArrays) -> Array:
        """The terms before reduction, any shape; their sum is the loss."""


@runtime_checkable
class SupportsTruncation(Protocol):
    """A recurrent model that knows how its backward pass is truncated."""

    @property
    def truncation(self) -> Truncation:
        """The truncation as declared."""

    def with_truncation(self, truncation: Truncation) -> Model:
        """The same loss with another truncation."""


@runtime_checkable
class SupportsWindows(Protocol):
    """A recurrent model whose windows can be had one after the other."""

    def windows(self, parameters: NamedArrays) -> Iterator[Gradients]:
        """The gradients of ``window(1)``, ``window(2)``, ..., each for the price of about one full gradient."""


@runtime_checkable
class SupportsFrozen(Protocol):
    """Cut values can be held at the base point."""

    def frozen(self) -> Model | None:
        """The same loss at the base point, whose ordinary derivative is the cut gradient; None: nothing is cut."""


@runtime_checkable
class SupportsCuts(Protocol):
    """The framework can say where the gradient is cut, and undo it."""

    def cuts(self) -> Sequence[Cut]:
        """The live cuts at the base point, in the order of their first execution: see `gradaudit.sites.Cut`."""

    def without(self, cuts: Collection[Cut]) -> Model | None:
        """The same loss, whose gradient flows through these cuts; None: it cannot be made to."""

    def holding(self, cuts: Collection[Cut]) -> Model | None:
        """The loss whose cut values stay what they are at the base point, wherever the parameters go; None: cannot.

        The gradient of this loss is what the framework returns for the original, if nothing else is wrong.
        """


@runtime_checkable
class SupportsRules(Protocol):
    """The framework can compare hand-written derivatives with what they are the derivatives of."""

    def rules(self) -> Sequence[CustomRule]:
        """The rules that the loss runs at the base point, in the order of their first execution, each compared."""

    def replacing(self, rules: Collection[CustomRule]) -> Model | None:
        """The same loss, these rules replaced by the derivatives of their primals; None: it cannot be made to."""


@runtime_checkable
class SupportsOrigin(Protocol):
    """The framework can say where a gradient stops being finite."""

    def origin(self) -> Origin | None:
        """At the base point, the first operation of the backward pass with finite inputs and a non-finite result."""


@runtime_checkable
class SupportsBroadcasts(Protocol):
    """The framework can say where a loss is taken over pairs, probably by accident."""

    def broadcasts(self) -> Sequence[Broadcast]:
        """At the base point, in the order of their sums: see `gradaudit.sites.Broadcast`."""


@runtime_checkable
class SupportsMixedPrecision(Protocol):
    """The framework can say that parts of the loss are meant to compute in a narrower format than their tensors'."""

    def narrow(self) -> float | None:
        """Machine epsilon of that format; None: none is."""


@runtime_checkable
class SupportsTwin(Protocol):
    """The same loss in float64."""

    def twin(self) -> Model | None:
        """A float64 model over the same parameters; None: this one is float64 already."""


@runtime_checkable
class SupportsSizes(Protocol):
    """The model's own sizes, by which a constant factor can be named."""

    def sizes(self) -> Mapping[str, int]:
        """For example ``{"sequences": 10, "steps": 10000}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVariant:
    """A training step with one thing changed.

    Attributes:
        kind: ``forgotten`` or ``leftover``: started from empty gradients, with an optimiser in the step or without;
            ``clipped``: without clipping; ``weights``: micro-batches weighted by their rows; ``objective``: not run.
        detail: what the step does there, in words; may be empty.
        model: the same objective with the gradient of that step; where it is not run, with its own.
    """

    kind: str
    detail: str
    model: Model


@runtime_checkable
class SupportsVariants(Protocol):
    """A training step that can be run differently, to prove what is wrong with it."""

    def variants(self) -> Sequence[StepVariant] | None:
        """The same objective, one thing about the step changed in each; None: no step."""


@runtime_checkable
class SupportsState(Protocol):
    """A framework's state around an audit."""

    def preserved(self) -> AbstractContextManager[None]:
        """Leave the framework's global state as it was, also after an exception."""


@runtime_checkable
class SupportsEnvironment(Protocol):
    """Which framework computes, in which version."""

    def environment(self) -> Mapping[str, str]:
        """For example ``{"backend": "torch", "torch": "2.13.0"}``."""


class FrameworkModel(Model, SupportsAlong, SupportsJvp, SupportsState, SupportsEnvironment, Protocol):
    """What every backend's own `Model` over a function can do."""


class Network(Protocol):
    """What a backend builds from a `Problem`; `gradaudit.backends.network.NetworkModel` makes a full model of it."""

    @property
    def truncates(self) -> bool:
        """Whether its own gradient is truncated as its problem declares; otherwise it is the full one."""

    @property
    def model(self) -> FrameworkModel:
        """The network's loss over its weights; the gradient of a weight is 0, never missing."""

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step of each sequence adds to the loss, (T, N), in the network's dtype; their sum is the loss."""

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each; of a network that runs one way only."""

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S): the loss, its gradients, and d / d that state, (N, S).

        Both are those of ``loss + <pull, state after the last step>``, pull (N, S): what later losses pull at it.
        """


class Operator(Protocol):
    """A function of arrays with any outputs, and its derivatives: each way of differentiating it is a model.

    The losses are ``Re <c, f(x)>`` with random cotangents c, and for the second order ``Re <u, vjp(x, c)>`` (u random),
    over the inputs, complex ones by their real and imaginary parts.
    """

    def remarks(self) -> Sequence[str]:
        """What a user should know of the operator, for example that it changes an input in place; sentences."""

    def reverse(self) -> Model:
        """Differentiated by the vector-Jacobian product; forward mode is its `SupportsJvp`.

        Raises:
            NotOfferedError: there is none.
        """

    def second(self) -> Model:
        """The vector-Jacobian product as a function of inputs and cotangents, differentiated by reverse over reverse.

        Raises:
            NotOfferedError: it has no derivative.
        """

    def batched(self) -> Model:
        """As `reverse`, the vector-Jacobian product computed for several cotangents or points at once.

        Raises:
            NotOfferedError: it has no batching rule.
        """


class Backend(Protocol):
    """One framework: the same names in every folder of `gradaudit.backends`."""

    @property
    def name(self) -> str:
        """numpy, torch, jax, tensorflow or pytensor."""

    def environment(self) -> Mapping[str, str]:
        """The framework's versions."""

    def function_model(self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any) -> Model:
        """A model over a pure function of named tensors."""

    def adapt(
        self, target: Any, at: Any, *, loss: Callable[..., Any] | None, gradient: Callable[..., Any] | bool | None
    ) -> Model | None:
        """The user's own object as a model, see `gradaudit.audit`; None: it is none of this framework."""

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> Operator | None:
        """A function at its inputs, see `gradaudit.audit_operator`; None: they are none of this framework.

        Raises:
            ModelContractError: nothing of it can be differentiated.
        """

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """A training step as a model, see `gradaudit.audit_step`; None: the target is none of this framework."""

    def dense_model(self, spec: RecurrentSpec, weights: NamedArrays, data: SequenceData) -> Model:
        """A dense layer on all N*T vectors as one batch."""

    def recurrent_model(
        self, spec: RecurrentSpec, weights: NamedArrays, data: SequenceData, truncation: Truncation
    ) -> Model:
        """The recurrent network, truncated."""

    def network(self, problem: Problem) -> Network:
        """The network of a problem."""
