"""Looks wrong: a relu network in float32, with many kinks close by. Its gradient is right."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
x, y = torch.randn(64, 8), torch.randn(64, 1)


def loss(p):
    dtype = p["0.weight"].dtype
    return torch.nn.functional.mse_loss(torch.func.functional_call(net, p, (x.to(dtype),)), y.to(dtype))


model = registry.get("torch").function_model(loss, dict(net.named_parameters()))
EXPECTED = ""
