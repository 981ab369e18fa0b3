"""How the parameters of one model correspond to those of another: an affine map of named arrays, and its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.errors import OptionError

__all__ = ["Correspondence", "Part", "PortMapping", "Recipe", "corresponding"]

#: How one parameter of a port is made of those of the first model: the name of one, the name with ``.T``, or a function
#: of all of them.
Recipe: TypeAlias = str | Callable[[NamedArrays], Any]
#: A recipe for each parameter, or one function that makes all.
PortMapping: TypeAlias = Mapping[str, Recipe] | Callable[[NamedArrays], Mapping[str, Any]]

_TRANSPOSED = ".T"
#: The labels below are recovered from float64 numbers.
_EXACT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What a source adds to a target: ``factor * source.flat[index]``, entry by entry; nothing where the index is -1.

    Attributes:
        index: in the target's shape, int64, of the flattened source.
        factor: in the target's shape, float64.
    """

    index: Array
    factor: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Correspondence:
    """The parameters of a port from those of the first model.

    Attributes:
        shapes: of the first model's parameters.
        constants: what the port's parameters are where the first model's are zero, float64, by target.
        parts: target -> source -> `Part`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    constants: NamedArrays
    parts: Mapping[str, Mapping[str, Part]]

    def apply(self, parameters: NamedArrays) -> dict[str, Array]:
        """The port's parameters, float64.

        Args:
            parameters: of the first model.
        """
        made = {}
        for target, constant in self.constants.items():
            value = constant.copy()
            for source, part in self.parts[target].items():
                flat = np.asarray(parameters[source], np.float64).ravel()
                value += np.where(part.index < 0, 0.0, part.factor * flat[part.index])
            made[target] = value
        return made

    def adjoint(self, gradients: Gradients) -> dict[str, Array | None]:
        """The gradient by the first model's parameters, float64: by the chain rule, from that by the port's.

        Args:
            gradients: by the port's parameters; a missing one adds nothing.

        Returns:
            None for a parameter to which no gradient comes back.
        """
        back: dict[str, Array | None] = dict.fromkeys(self.shapes)
        for target, gradient in gradients.items():
            if gradient is None:
                continue
            for source, part in self.parts[target].items():
                used = part.index >= 0
                weights = (part.factor * np.asarray(gradient, np.float64))[used]
                shape = self.shapes[source]
                flat = np.bincount(part.index[used], weights, minlength=int(np.prod(shape, dtype=np.int64)))
                before = back[source]
                back[source] = flat.reshape(shape) if before is None else before + flat.reshape(shape)
        return back

    def unused(self) -> dict[str, Array]:
        """By parameter of the first model, where its entries are in no parameter of the port: booleans."""
        left = {name: np.ones(shape, bool) for name, shape in self.shapes.items()}
        for parts in self.parts.values():
            for source, part in parts.items():
                left[source].reshape(-1)[part.index[part.index >= 0]] = False
        return {name: where for name, where in left.items() if where.any()}


def corresponding(mapping: PortMapping | None, first: NamedArrays, port: NamedArrays, *, name: str) -> Correspondence:
    """The correspondence that a user's mapping describes.

    A recipe is called with arrays of zeros, ones and labels, which tell where every entry goes and times what; so it
    may be any NumPy code that rearranges, scales and adds. A parameter without a recipe is the first model's of the
    same name.

    Args:
        mapping: recipes by the port's parameter, or one function for all; None: the names are the same.
        first: the first model's parameters.
        port: the port's, of which only names and shapes matter.
        name: of the port, for messages.

    Raises:
        OptionError: a parameter without a recipe, an unknown name, a wrong shape, or a recipe that is not affine with
            one entry of a parameter for each entry of the result.
    """
    where = f"mapping[{name!r}]"
    if callable(mapping):
        every = mapping
        groups: list[tuple[tuple[str, ...], Callable[[NamedArrays], Mapping[str, Any]]]] = [(tuple(port), every)]
    else:
        given = mapping or {}
        unknown = [target for target in given if target not in port]
        if unknown:
            msg = f"{name!r} has no parameter {', '.join(map(repr, unknown))}"
            raise OptionError(msg, where=where, hint=f"its parameters are {', '.join(port)}")
        groups = [((target,), _single(target, given.get(target, target), first, where)) for target in port]
    constants: dict[str, Array] = {}
    parts: dict[str, dict[str, Part]] = {}
    for targets, function in groups:
        probe = _Probe(function, {t: port[t].shape for t in targets}, {n: a.shape for n, a in first.items()}, where)
        constants |= probe.constants
        parts |= probe.parts()
    return Correspondence(shapes={n: a.shape for n, a in first.items()}, constants=constants, parts=parts)


def _single(target: str, recipe: Recipe, first: NamedArrays, where: str) -> Callable[[NamedArrays], Mapping[str, Any]]:
    """One recipe as a function of all parameters."""
    if not isinstance(recipe, str):
        function = recipe
        return lambda p: {target: function(p)}
    source = recipe
    if source in first:
        return lambda p: {target: p[source]}
    if source.endswith(_TRANSPOSED) and (transposed := source.removesuffix(_TRANSPOSED)) in first:
        return lambda p: {target: p[transposed].T}
    what = (
        f"there is no recipe for {target!r}, and" if recipe == target else f"the recipe for {target!r} is {recipe!r}:"
    )
    msg = f"{what} the first model has no parameter of that name, but {', '.join(first)}"
    hint = f'{{"{target}": "{next(iter(first))}"}}, the name with .T, or a function of all parameters'
    raise OptionError(msg, where=where, hint=hint)


class _Watched(Mapping[str, Array]):
    """Parameters that know which of them were asked for."""

    def __init__(self, arrays: NamedArrays) -> None:
        self._arrays = arrays
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Array:
        self.asked.add(name)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(slots=True, eq=False)
class _Probe:
    """A function of the first model's parameters, taken apart.

    Attributes:
        function: parameters -> the targets.
        targets: their shapes.
        sources: shapes of the first model's parameters.
        where: for messages.
        asked: which sources it uses.
        constants: what it makes of zeros.
    """

    function: Callable[[NamedArrays], Mapping[str, Any]]
    targets: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, tuple[int, ...]]
    where: str
    asked: set[str] = field(default_factory=set)
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = self._made({})

    def parts(self) -> dict[str, dict[str, Part]]:
        """Target -> source -> where its entries go.

        Raises:
            OptionError: the function is not of this kind.
        """
        parts: dict[str, dict[str, Part]] = {target: {} for target in self.targets}
        for source in self._in_order():
            shape = self.sources[source]
            labels = np.arange(1.0, 1.0 + np.prod(shape, dtype=np.int64)).reshape(shape)
            factors, labelled = self._made({source: np.ones(shape)}), self._made({source: labels})
            for target, constant in self.constants.items():
                factor = factors[target] - constant
                used = factor != 0
                ratio = np.divide(labelled[target] - constant, factor, out=np.zeros_like(factor), where=used)
                if used.any():
                    index = np.where(used, np.rint(ratio).astype(np.int64) - 1, -1)
                    parts[target][source] = Part(index=np.clip(index, -1, labels.size - 1), factor=factor)
        self._check(parts)
        return parts

    def _check(self, parts: dict[str, dict[str, Part]]) -> None:
        rng = np.random.default_rng(0)
        random = {name: rng.standard_normal(self.sources[name]) for name in self._in_order()}
        found = self._made(random)
        told = Correspondence(shapes=self.sources, constants=self.constants, parts=parts).apply(random)
        for target, value in found.items():
            difference = float(np.abs(value - told[target]).max(initial=0.0))
            if not difference <= _EXACT * (1 + float(np.abs(value).max(initial=0.0))):
                msg = f"what makes {target!r} does not rearrange parameters: random ones are off by {difference:.3g}"
                hint = "use transposes, reshapes, slices, concatenations, sums of parameters and constant factors"
                raise OptionError(msg, where=self.where, hint=hint)

    def _in_order(self) -> Iterator[str]:
        return (name for name in self.sources if name in self.asked)

    def _made(self, given: NamedArrays) -> dict[str, Array]:
        """What the function makes of these, and of zeros for the other sources; float64.

        Raises:
            OptionError: an unknown name, a target that is missing, or one of another shape.
        """
        watched = _Watched({n: given.get(n, np.zeros(shape)) for n, shape in self.sources.items()})
        try:
            made = self.function(watched)
        except KeyError as error:
            msg = f"the first model has no parameter {error}"
            raise OptionError(msg, where=self.where, hint=f"there are {', '.join(self.sources)}") from error
        self.asked |= watched.asked & set(self.sources)
        arrays = {}
        for target, shape in self.targets.items():
            if target not in made:
                msg = f"there is nothing for {target!r}, only for {', '.join(made)}"
                raise OptionError(msg, where=self.where, hint=f"return {', '.join(self.targets)}")
            arrays[target] = np.array(made[target], np.float64)
            if arrays[target].shape != shape:
                msg = f"{target!r} has shape {shape}, but what is made for it {arrays[target].shape}"
                raise OptionError(msg, where=self.where, hint='transpose it ("name.T"), or reshape it in a function')
        return arrays
