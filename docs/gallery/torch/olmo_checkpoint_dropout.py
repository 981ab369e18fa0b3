"""Activation checkpointing with preserve_rng_state=False: the recomputed forward drops other units.

Modelled on https://github.com/allenai/OLMo-core/issues/828.
"""

import torch
from torch.nn.functional import dropout, mse_loss
from torch.utils.checkpoint import checkpoint

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 1).double()


def loss(p):
    torch.manual_seed(1)

    def block(h):
        return dropout(torch.tanh(h @ p["w"]), 0.5)

    h = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # wrong: preserve_rng_state=True
    return mse_loss(h @ p["v"], y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "v": torch.randn(5, 1, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA901"
MISSES = "GA901, unexplained: no finding knows a backward pass that draws its mask anew"
