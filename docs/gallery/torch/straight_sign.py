"""A binary activation with a surrogate backward that also forgets its window: the loss stands still."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return torch.sign(x)

    @staticmethod
    def backward(_, g):  # <- here
        return g


x, y = torch.randn(16, 4).double(), torch.randn(16, 2).double()


def loss(p):
    return torch.nn.functional.mse_loss(Sign.apply(x @ p["w"]) @ p["v"], y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "v": torch.randn(5, 2, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA501"
