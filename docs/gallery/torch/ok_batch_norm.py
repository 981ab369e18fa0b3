"""Looks wrong: the bias before a batch norm has a gradient of 1e-17. The derivative is zero: the mean takes it away."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
net.double()
x, y = torch.randn(32, 4).double(), torch.randn(32, 1).double()


def loss(p):
    return torch.nn.functional.mse_loss(torch.func.functional_call(net, p, (x,)), y)


model = registry.get("torch").function_model(loss, dict(net.named_parameters()))
EXPECTED = ""
