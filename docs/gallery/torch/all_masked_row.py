"""Attention with a row that is masked altogether: softmax makes NaN of it, which is replaced by 0 afterwards.

Modelled on https://github.com/pytorch/pytorch/issues/41508.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(5, 4).double(), torch.randn(5, 4).double()
mask = torch.ones(5, 5).tril(-1).bool()
bias = torch.zeros(5, 5).double().masked_fill(~mask, -torch.inf)


def loss(p):
    scores = (x @ p["q"]) @ (x @ p["k"]).T
    attention = torch.softmax(scores + bias, dim=1)  # <- here
    attention = torch.where(mask.any(dim=1, keepdim=True), attention, 0.0)
    return torch.nn.functional.mse_loss(attention @ x, y)


weights = {"q": torch.randn(4, 3, dtype=torch.float64), "k": torch.randn(4, 3, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA604"
