"""Looks wrong: the first of 60 inputs of an LSTM has a billionth of the last one's gradient. It vanishes."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
y = torch.randn(1, 5, dtype=torch.float64)
net = torch.nn.LSTM(3, 5).double()


def loss(p):
    weights = {name: w for name, w in p.items() if name != "x"}
    _, (h, _) = torch.func.functional_call(net, weights, (p["x"],))
    return ((h[0] - y) ** 2).mean()


weights = {"x": torch.randn(60, 1, 3, dtype=torch.float64), **dict(net.named_parameters())}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = ""
