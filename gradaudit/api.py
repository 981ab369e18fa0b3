"""The public calls: `audit` and its kin, `by_step`, `identify_truncation` and its other way, by length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from typing_extensions import Unpack

from gradaudit import across, auditor, operators
from gradaudit.backends import registry
from gradaudit.compare import Verdict
from gradaudit.errors import GradientMismatchError
from gradaudit.lens import by_step as view
from gradaudit.lens.by_length import by_length
from gradaudit.lens.identify import Identified, Losses, StepLosses, identify
from gradaudit.mapping import PortMapping
from gradaudit.options import Options, options_of
from gradaudit.protocols import Model
from gradaudit.report import AuditReport

__all__ = [
    "Target",
    "assert_gradients_agree",
    "audit",
    "audit_all",
    "audit_operator",
    "audit_step",
    "by_step",
    "identify_by_length",
    "identify_truncation",
]


@dataclass(frozen=True, slots=True)
class Target:
    """What `audit` takes, for `audit_all`: see there.

    Attributes:
        target: a module or model; a function of what ``at`` holds; or anything with the three methods.
        at: the base point of a function.
        loss: target -> one number.
        gradient: of a NumPy function.
    """

    target: Any
    at: Any = None
    _: KW_ONLY
    loss: Callable[..., Any] | None = None
    gradient: Callable[..., Any] | bool | None = None

    def model(self) -> Model:
        """As a model.

        Raises:
            AmbiguousBackendError: no framework, or more than one, recognises the target.
        """
        return registry.model_of(self.target, self.at, loss=self.loss, gradient=self.gradient)


def audit(
    target: Any,
    at: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Is the analytic gradient the derivative of this loss; how far is it off, where, how sure are we, and why?

    Args:
        target: what is differentiated: a module or model with parameters of its own; a function of what ``at`` holds,
            which returns the loss; or anything with ``parameters()``, ``loss(p)`` and ``value_and_grad(p)``.
        at: the base point of a function: an array, or a container of arrays, of its framework.
        loss: target -> one number, where the target is a module or model.
        gradient: the gradient of a NumPy function: a function of ``at``, or True if the target returns (loss,
            gradient).
        name: of the target in the report; by default its own.
        progress: called with the number of forward passes so far.
        **options: see `AuditOptions`: parameters, significant, intended, truncation, false_alarm, max_evaluations,
            seed, entries, batch_bytes.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the target.
        ModelContractError: the model breaks its contract (names, shapes, dtypes, no scalar loss, changed inputs).
        NonFiniteLossError: the loss is not finite at the base point.
        OptionError: an unknown option, or one out of its range.
    """
    chosen = options_of(options)
    model = registry.model_of(target, at, loss=loss, gradient=gradient)
    return auditor.audit(model, chosen, target=name or _name(target), progress=progress)


def audit_all(
    models: Mapping[str, Model | Target],
    *,
    mapping: Mapping[str, PortMapping] | None = None,
    name: str = "all models",
    progress: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Audit the same model in several frameworks: one table, and one report each in ``parts``.

    Args:
        models: by name: a `Target`, which is what `audit` takes, or a model with ``parameters()``, ``loss(p)`` and
            ``value_and_grad(p)``.
        mapping: for ports of the first model, how their parameters are made of the first one's: port -> {its parameter:
            recipe}, or port -> a function that makes them all. A recipe is the name of a parameter of the first model,
            the name with ``.T``, or a function ``p -> array`` that rearranges, scales and adds (`gradaudit.conventions`
            has those of common layers). What has the same name needs none. The first model's parameters are then
            handed to all ports, and one that is another function than the first is a DISAGREE, also where each
            gradient is the derivative of its own loss. None: each model keeps parameters of its own.
        name: of all together in the report.
        progress: called with the number of forward passes so far.
        **options: those of `audit`, for every model; the same directions are probed everywhere.

    Raises:
        OptionError: no models, a mapping that does not fit, an unknown option, or one out of its range.
        AmbiguousBackendError: no framework, or more than one, recognises a target.
    """
    chosen = options_of(options)
    adapted = {key: model.model() if isinstance(model, Target) else model for key, model in models.items()}
    return across.audit_all(adapted, chosen, target=name, mapping=mapping, progress=progress)


def audit_operator(
    function: Callable[..., Any],
    *inputs: Any,
    modes: Collection[str] | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Are the derivatives of this function right: reverse, forward, second order, batched?

    Outputs of any number and shape are multiplied with random cotangents and added up. Complex inputs are audited by
    their real and imaginary parts, in the framework's own convention.

    Args:
        function: of the inputs, which returns arrays of its framework, in any containers.
        inputs: where. What is no floating-point or complex array (or a container of them) stays what it is.
        modes: some of ``reverse``, ``forward``, ``second``, ``batched``; by default all that the function offers. Each
            has its report in ``parts``; what is not offered is in ``remarks``.
        name: of the function in the report; by default its own.
        progress: called with the number of forward passes so far.
        **options: those of `audit`, for every mode.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the inputs.
        ModelContractError: no output can be differentiated.
        NonFiniteLossError: the outputs are not finite at these inputs.
        OptionError: an unknown option or mode, one out of its range, or a mode that is not offered.
    """
    chosen = options_of(options)
    operator = registry.operator_of(function, inputs, seed=chosen.seed)
    return operators.audit_operator(operator, chosen, modes=modes, target=name or _name(function), progress=progress)


def audit_step(
    target: Any,
    step: Callable[..., Any],
    *,
    loss: Callable[..., Any] | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    sizes: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Is the gradient that the optimiser sees the derivative of the objective that this training step is meant for?

    PyTorch: what the first optimiser is given, else ``.grad`` after the step; all that the step changes in the module,
    its optimisers and loss scalers is put back. Keras on TensorFlow: what an optimiser is given, else what the step
    returns; all variables are put back. JAX, `tf.Module` and NumPy: what the step returns.

    Args:
        target: what is trained: a `torch.nn.Module`, a pytree of JAX's arrays, a Keras model or `tf.Module`, an array
            of NumPy or a dict of them.
        step: target -> the gradient, or a tuple with it; with PyTorch and Keras anything, if it calls backward or an
            optimiser.
        loss: target -> one number, the objective over all the data of the step. None: what the step returns, the first
            number of shape () among it; the step then also runs for every loss.
        name: in the report; by default the module's own.
        progress: called with the number of forward passes so far.
        sizes: whole numbers by which a constant factor is named, for example ``{"world size": 2}``.
        **options: see `audit`.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the target.
        ModelContractError: the step leaves no gradient, or returns no loss where none is given, or the loss breaks its
            contract.
        OptionError: an unknown option, or one out of its range.
    """
    model = registry.step_of(target, step, loss=loss, sizes=sizes or {})
    return auditor.audit(model, options_of(options), target=name or _name(target), progress=progress)


def by_step(
    target: Any,
    at: Any = None,
    *,
    tensor: str,
    axis: int = 0,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    **options: Unpack[Options],
) -> view.StepView:
    """Where along time is the gradient right? A cliff is a truncated tail, saw teeth are chunks, a slope vanishes.

    Args:
        target: as for `audit`; the tensor with an axis of time, for example the inputs, is one of its parameters.
        at: as for `audit`.
        tensor: its name.
        axis: of time.
        loss: as for `audit`.
        gradient: as for `audit`.
        **options: those of `audit`.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the target.
        OptionError: no such tensor or axis; a loss without numeric derivatives; too small a budget.
    """
    model = registry.model_of(target, at, loss=loss, gradient=gradient)
    return view.by_step(model, tensor, axis, options_of(options))


def assert_gradients_agree(
    target: Any,
    at: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    name: str | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """For test suites: `audit`, and raise unless the verdict is AGREE.

    Raises:
        GradientMismatchError: the verdict is DISAGREE or INCONCLUSIVE; the report is its text and its ``report``.
    """
    report = audit(target, at, loss=loss, gradient=gradient, name=name, **options)
    if report.verdict is not Verdict.AGREE:
        raise GradientMismatchError(report)
    return report


def identify_truncation(
    target: Any,
    at: Any = None,
    *,
    inputs: str = "x",
    axis: int = 0,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    step_losses: StepLosses | None = None,
    batched: bool = False,
    losses: Losses = None,
    seed: int = 0,
    max_evaluations: int = 20_000,
) -> Identified:
    """Which truncation in time is this gradient of: tail, window, chunks or tbptt, at which k; or of none?

    What is differentiated must have an axis of time: give the inputs among the parameters, or one copy of a weight for
    each step. Where step losses can be read, for up to 500 steps: ``d loss_s / d x_t`` by differences for all pairs,
    6 T + 12 losses, and 6 or 12 more for each step along which the loss bends strongly. Otherwise: inputs are replaced
    from some step on, and what of the earlier gradient changes, to the last bit, depends on them; with about 20 to 250
    losses and 20 gradients, at any T. The second way takes it that the loss is a sum over the steps, and that time runs
    one way.

    Args:
        target: as in `audit`.
        at: as in `audit`.
        inputs: the name of the tensor with an axis of time.
        axis: which of its axes that is.
        loss: as in `audit`.
        gradient: as in `audit`.
        step_losses: a function of the parameters, NumPy arrays by name (float64 where the model has a float64 twin or
            is NumPy's), that returns what each step adds to the loss, (T,). Not needed where the model has one.
        batched: whether it takes K copies of the inputs at once, on a leading axis, and returns (K, T).
        losses: where they cannot be read: which steps have a loss, ``"all"``, ``"last"``, or their numbers from 1 to T;
            None: unknown, and taken to be all. With a loss at the last step only, the class is all that can be known:
            how many last steps are differentiated.
        seed: of the displacements.
        max_evaluations: losses at most.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the target.
        ModelContractError: the model breaks its contract.
        OptionError: there is no such tensor, axis, word or step, or it has fewer than three steps.
    """
    model = registry.model_of(target, at, loss=loss, gradient=gradient)
    return identify(
        model,
        inputs=inputs,
        axis=axis,
        step_losses=step_losses,
        batched=batched,
        losses=losses,
        seed=seed,
        max_evaluations=max_evaluations,
    )


def identify_by_length(
    of_length: Callable[[int], Model | Target], n_steps: int, *, seed: int = 0, max_evaluations: int = 20_000
) -> Identified:
    """How far back does this gradient go, told from models of other lengths; for what has no axis of time.

    Where only weights are differentiated, which all steps share, no tensor tells one step from another. A truncation
    after k steps cuts nothing of k steps and something of k + 1: the longest model whose gradient is right is k steps
    long, found by doubling and halving. Which kind it is cannot be told so; all that fit are named.

    Args:
        of_length: t -> the model over the first t steps, for 1 <= t <= T.
        n_steps: T.
        seed: of the directions.
        max_evaluations: losses at most, over all lengths.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises a target.
        ModelContractError: a model breaks its contract.
        NonFiniteLossError: a loss is not finite.
        OptionError: fewer than two steps.
    """

    def model(t: int) -> Model:
        made = of_length(t)
        return made.model() if isinstance(made, Target) else made

    return by_length(model, n_steps, seed=seed, max_evaluations=max_evaluations)


def _name(target: Any) -> str:
    """A function's own name, or that of its type."""
    return getattr(target, "__name__", None) or type(target).__name__
