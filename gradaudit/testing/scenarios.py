"""The seed case: one function, two networks, and a gradient that is ten thousand times too small.

A recurrent layer whose recurrent weights are zero equals a dense layer. Losses agree, finite differences agree, the
dense layer's gradient agrees with them; the recurrent layer's does not, because its backward pass covers the last k
steps only (seen with Lasagne's ``gradient_steps=1``, which sets Theano's ``scan(truncate_gradient=1)``).
"""

from __future__ import annotations

from dataclasses import dataclass

from gradaudit.backends import registry
from gradaudit.protocols import Model
from gradaudit.recurrent import RecurrentSpec, Truncation, initial_weights, none, random_sequences

__all__ = ["SeedCase", "seed_case"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeedCase:
    """Three models of one function.

    Attributes:
        dense: the feed-forward net.
        recurrent: the recurrent net, truncated.
        lifted: the recurrent net with its truncation lifted.
    """

    dense: Model
    recurrent: Model
    lifted: Model


def seed_case(
    backend: str,
    truncation: Truncation,
    *,
    n_sequences: int = 10,
    n_steps: int = 10_000,
    n_features: int = 2,
    n_classes: int = 2,
    dtype: str = "float32",
    seed: int = 0,
) -> SeedCase:
    """Build the case on one backend; the numbers are the same on all of them.

    Raises:
        OptionError: a size below 1.
        UnknownBackendError: no such backend.
        BackendNotInstalledError: its framework is not installed.
    """
    spec = RecurrentSpec(n_features=n_features, n_classes=n_classes)
    weights = initial_weights(spec, seed=seed, dtype=dtype)
    data = random_sequences(spec, n_sequences=n_sequences, n_steps=n_steps, seed=seed, dtype=dtype)
    build = registry.get(backend)
    return SeedCase(
        dense=build.dense_model(spec, weights, data),
        recurrent=build.recurrent_model(spec, weights, data, truncation),
        lifted=build.recurrent_model(spec, weights, data, none()),
    )
