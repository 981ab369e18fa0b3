"""Looks wrong: activation checkpointing with dropout. The state of the generator is kept: the mask is the same."""

import torch
import torch.utils.checkpoint

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 1).double()


def loss(p):
    torch.manual_seed(1)

    def block(h):
        return torch.nn.functional.dropout(torch.tanh(h @ p["w"]), 0.5)

    h = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    return torch.nn.functional.mse_loss(h @ p["v"], y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "v": torch.randn(5, 1, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = ""
