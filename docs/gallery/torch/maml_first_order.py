"""MAML's inner step without create_graph=True: the outer gradient is of first order only.

Modelled on https://github.com/dragen1860/MAML-Pytorch/issues/32.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
support, query = torch.randn(2, 10, 3, dtype=torch.float64)
support_y, query_y = torch.randn(2, 10, 1, dtype=torch.float64)


def task_loss(w, x, y):
    hidden = torch.tanh(x @ w["in"])
    return ((hidden @ w["out"] - y) ** 2).mean()


def loss(p):
    inner = torch.autograd.grad(task_loss(p, support, support_y), list(p.values()))  # <- here
    fast = {name: w - 0.4 * g for (name, w), g in zip(p.items(), inner, strict=True)}
    return task_loss(fast, query, query_y)


weights = {"in": torch.randn(3, 5, dtype=torch.float64), "out": torch.randn(5, 1, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
