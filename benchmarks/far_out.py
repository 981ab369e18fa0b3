"""Right operators of one number, far out: what does an audit say where next to nothing is left of the derivative?

    python benchmarks/far_out.py

PyTorch's activations and losses at x from -6 to -1e4, in both precisions, by `audit_operator`: A agrees, ? is
inconclusive, D disagrees. What disagrees is no wrong rule: the function as it is computed has another derivative there
than the function that is meant. 1 + erf(x) moves in steps of 1e-16 or not at all, and x times that is all that a gelu
is; the second derivative of what is left is that of x pdf(x). Nothing outside of the function tells that from a wrong
rule for x pdf(x).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from gradaudit import Verdict, audit_operator

POINTS = (-6.0, -6.5, -7.0, -7.5, -8.0, -9.0, -10.0, -12.0, -16.0, -18.0, -20.0, -36.0, -40.0, -80.0, -740.0, -1e4)
SIGNS = {Verdict.AGREE: "A", Verdict.INCONCLUSIVE: "?", Verdict.DISAGREE: "D"}


def cross_entropy(x: Tensor, label: int) -> Tensor:
    logits = torch.stack([x, torch.zeros_like(x)], -1)
    return F.cross_entropy(logits, torch.full((len(x),), label))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu, tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "1 - tanh": lambda x: 1 - torch.tanh(-x),
    "1 + erf": lambda x: 1 + torch.erf(x),
    "erfc": torch.erfc,
    "elu": F.elu,
    "selu": F.selu,
    "exp": torch.exp,
    "cross entropy, right": partial(cross_entropy, label=0),
    "cross entropy, wrong": partial(cross_entropy, label=1),
}


def main() -> None:
    print(f"{'':30}" + "".join(f"{x:>7g}" for x in POINTS))
    for dtype in (torch.float64, torch.float32):
        for name, function in FUNCTIONS.items():
            verdicts = [audit_operator(function, torch.tensor([x], dtype=dtype)).verdict for x in POINTS]
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            print(f"{label:30}" + "".join(f"{SIGNS[v]:>7}" for v in verdicts), flush=True)


if __name__ == "__main__":
    main()
